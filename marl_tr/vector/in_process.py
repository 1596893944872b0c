"""Any PettingZoo environment or gymnasium.Env as a `VectorEnv`: copies stepped one after the other, here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.vector.batch import Batch
from marl_tr.vector.block import CopyBlock
from marl_tr.vector.contract import Actions, Reference, Step
from marl_tr.vector.sampling import random_actions

__all__ = ["InProcessVectorEnv", "RenderedVectorEnv"]

Array = NDArray[Any]


class InProcessVectorEnv:
    """``E`` copies of a user's environment behind the contract of `marl_tr.vector.VectorEnv`.

    Agents that ended, or have not joined yet, are rows of zeros with ``alive`` False; the environment itself
    is never given an action for them. Every step returns fresh arrays, so that a caller may keep those of
    earlier steps. ``final_observation`` is also given where an agent was truncated while its environment
    goes on.

    Args:
        env_id: The environment's name, for messages.
        factory: Makes one environment; called `num_envs` times.
        num_envs: ``E``.
        first: Makes the first copy in place of `factory` (used for a copy that renders).
        first_index: Index of the first copy, where these are a part of a larger batch: copies are seeded, and named in
            errors, by their index there.
        rebuild: Make every environment anew for each episode; see `CopyBlock`.

    Raises:
        NotAnEnvironment: `factory` returns something else, or the same object twice.
        UnsupportedSpace: A space that no adapter exists for; names agent and leaf.
        BadEnvironmentData: Copies differ in agents or spaces.

    Example:
        >>> import gymnasium
        >>> env = InProcessVectorEnv("cartpole", lambda: gymnasium.make("CartPole-v1"), num_envs=2)
        >>> env.reset(seed=0).groups["agent"].observation["observation"].shape
        (2, 1, 4)
    """

    def __init__(
        self,
        env_id: str,
        factory: Callable[[], Any],
        num_envs: int,
        *,
        first: Callable[[], Any] | None = None,
        first_index: int = 0,
        rebuild: bool = False,
    ) -> None:
        self._block = CopyBlock(env_id, factory, num_envs, first_index=first_index, first=first, rebuild=rebuild)
        self.spec = self._block.spec

    @property
    def rewards_may_fail(self) -> bool:
        """A reward that is not finite is passed on, and is no `NotFiniteData`."""
        return self._block.rewards_may_fail

    @rewards_may_fail.setter
    def rewards_may_fail(self, value: bool) -> None:
        self._block.rewards_may_fail = value

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes, whatever ``E`` is.

        Raises:
            ValueError, BadEnvironmentData, NotFiniteData: See `CopyBlock.reset`.
        """
        batch = self._batch()
        self._block.reset(seed, batch)
        return batch.step(np.zeros(self.spec.num_envs, dtype=np.bool_))

    def step(self, actions: Actions) -> Step:
        """Advance every environment by one step; those that end are reset in the same step.

        Args:
            actions: ``{group: {leaf: [E, A, ...]}}``; rows of agents that are not to move are ignored.

        Raises:
            RuntimeError, ValueError, BadEnvironmentData, NotFiniteData: See `CopyBlock.advance`.
        """
        batch = self._batch()
        done = self._block.advance(actions, batch)
        final = batch.final(done)
        self._block.renew(done, batch)
        return batch.step(done, final)

    def state_dict(self) -> dict[str, Any]:
        """See `CopyBlock.state_dict`."""
        return self._block.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play every copy's episode again; see `CopyBlock.load_state_dict`.

        Raises:
            ValueError, ReplayMismatch: See there.
        """
        self._block.load_state_dict(state)

    def references(self) -> Sequence[Reference]:
        """The policy that is uniform over what is allowed, with draws of its own that start anew at every call."""
        generator = np.random.default_rng(0)
        return [Reference("random", lambda step: random_actions(self.spec, generator, step))]

    @property
    def exact_gaps(self) -> Callable[..., Mapping[str, float]]:
        """The first copy's hook of this name; see `marl_tr.vector.contract.VectorEnv`.

        Raises:
            AttributeError: It has none.
        """
        hook: Callable[..., Mapping[str, float]] = self._block.hook("exact_gaps")
        return hook

    def close(self) -> None:
        """Close every copy."""
        self._block.close()

    def _batch(self) -> Batch:
        return Batch.zeros(self._block.groups, self._block.layout)


class RenderedVectorEnv(InProcessVectorEnv):
    """An `InProcessVectorEnv` whose first copy was made with ``render_mode="rgb_array"``."""

    def render(self) -> Array:
        """The first environment now, ``[H, W, 3]`` uint8; see `CopyBlock.render`."""
        return self._block.render()
