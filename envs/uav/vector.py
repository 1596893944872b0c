"""``uav/downlink-v0`` as a batch: what the trainer talks to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.observation import observation_size, observe, state_shapes, write_state
from marl_tr.envs.uav.references import GROUP, references
from marl_tr.envs.uav.simulator import Outcome, Simulator
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Reference, Step

__all__ = ["BLOCK", "DownlinkVectorEnv", "make"]

Array = NDArray[Any]

BLOCK = 64
"""Environments a simulator: as many as keep the temporaries of one step in the cache."""


def make(*, num_envs: int = 1, env_offset: int = 0, **config: Any) -> DownlinkVectorEnv:
    """``uav/downlink-v0``, native.

    Args:
        num_envs: ``E``.
        env_offset: Index of the first environment in the random streams: a batch of 1 with ``env_offset=j``
            repeats environment ``j`` of any batch.
        **config: Fields of `DownlinkConfig`.

    Raises:
        pydantic.ValidationError: A field is unknown or out of range.
        ValueError: `num_envs` is below 1.

    Example:
        >>> env = make(num_envs=8, num_uavs=2)
        >>> env.reset(seed=1).groups["uav"].observation["observation"].shape
        (8, 2, 155)
    """
    return DownlinkVectorEnv(DownlinkConfig(**config), num_envs=num_envs, env_offset=env_offset)


class DownlinkVectorEnv:
    """``E`` environments, in blocks; implements `marl_tr.vector.contract.VectorEnv`."""

    def __init__(self, config: DownlinkConfig, *, num_envs: int, env_offset: int = 0) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.config = config
        self._blocks = [
            Simulator(config, min(BLOCK, num_envs - first), env_offset=env_offset + first)
            for first in range(0, num_envs, BLOCK)
        ]
        self._rows = [slice(first, first + block.num_envs) for first, block in self._enumerated()]
        self._size = observation_size(config)
        self._state_shapes = state_shapes(config)
        everywhere = {
            name: spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in self._state_shapes.items()
        }
        group = GroupSpec(
            name=GROUP,
            agents=config.agents,
            observation={"observation": spaces.Box(-np.inf, np.inf, (self._size,), np.float32)},
            action={"action": spaces.Box(-1.0, 1.0, (3,), np.float32)},
        )
        self.spec = EnvSpec(
            id="uav/downlink-v0",
            num_envs=num_envs,
            groups=(group,),
            state=everywhere,
            horizon=config.horizon,
            own_state=True,
        )

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        for block in self._blocks:
            block.reset(seed)
        reward = np.zeros((self.spec.num_envs, self.config.num_uavs), np.float32)
        ended = np.zeros(self.spec.num_envs, bool)
        return self._step(self._observations(), self._states(), reward, ended)

    def step(self, actions: Actions) -> Step:
        """Fly one slot in every environment; episodes end together with their last slot's step.

        Args:
            actions: ``{"uav": {"action": [E, U, 3]}}``.

        Raises:
            ValueError: The shape is wrong, or an action is not finite.
        """
        chosen = np.asarray(actions[GROUP]["action"])
        expected = (self.spec.num_envs, self.config.num_uavs, 3)
        if chosen.shape != expected:
            raise ValueError(f"actions of group {GROUP!r} have shape {chosen.shape}, expected {expected}")
        observation, state = self._observations(write=False), self._states(write=False)
        reward = np.empty(expected[:2], np.float32)
        ended = np.empty(expected[0], bool)
        final_observation: Array | None = None
        final_state: dict[str, Array] | None = None
        outcomes: list[Outcome] = []
        for rows, block in zip(self._rows, self._blocks, strict=True):
            outcome = block.step(chosen[rows])
            outcomes.append(outcome)
            reward[rows] = outcome.reward
            ended[rows] = block.slot == self.config.horizon
            if ended[rows].any():
                if final_observation is None or final_state is None:
                    final_observation, final_state = (
                        self._observations(write=False),
                        self._states(write=False),
                    )
                self._write(block, rows, final_observation, final_state)
                block.next_episode(np.flatnonzero(ended[rows]))
            self._write(block, rows, observation, state)
        step = self._step(observation, state, reward, ended)
        if final_observation is not None:
            step.groups[GROUP].final_observation = {"observation": final_observation}
            step.final_state = final_state
        step.metrics = {
            name: np.concatenate([outcome.metrics[name] for outcome in outcomes])
            for name in outcomes[0].metrics
        }
        return step

    def state_dict(self) -> dict[str, Any]:
        """Everything the following steps depend on."""
        return {f"block_{index}": block.state_dict() for index, block in enumerate(self._blocks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: It was taken from another number of environments, UAVs or users.
        """
        if len(state) != len(self._blocks):
            raise ValueError(
                f"the state has {len(state)} blocks of environments, this batch has {len(self._blocks)}"
            )
        for index, block in enumerate(self._blocks):
            block.load_state_dict(state[f"block_{index}"])

    def references(self) -> Sequence[Reference]:
        """Random, hover and k-means policies."""
        return references(self.config)

    def close(self) -> None:
        """Nothing is held."""

    def _enumerated(self) -> list[tuple[int, Simulator]]:
        return [(BLOCK * index, block) for index, block in enumerate(self._blocks)]

    # Outputs are new arrays each step, so that a caller may keep a step without copying it.
    def _observations(self, *, write: bool = True) -> Array:
        out = np.empty((self.spec.num_envs, self.config.num_uavs, self._size), np.float32)
        if write:
            for rows, block in zip(self._rows, self._blocks, strict=True):
                observe(block, out[rows])
        return out

    def _states(self, *, write: bool = True) -> dict[str, Array]:
        out = {
            name: np.empty((self.spec.num_envs, *shape), np.float32)
            for name, shape in self._state_shapes.items()
        }
        if write:
            for rows, block in zip(self._rows, self._blocks, strict=True):
                write_state(block, {name: array[rows] for name, array in out.items()})
        return out

    def _write(self, block: Simulator, rows: slice, observation: Array, state: dict[str, Array]) -> None:
        observe(block, observation[rows])
        write_state(block, {name: array[rows] for name, array in state.items()})

    def _step(self, observation: Array, state: dict[str, Array], reward: Array, ended: Array) -> Step:
        shape = reward.shape
        group = GroupStep(
            observation={"observation": observation},
            reward=reward,
            terminated=np.zeros(shape, bool),
            truncated=np.repeat(ended[:, None], shape[1], axis=1),
            alive=np.ones(shape, bool),
            acting=np.ones(shape, bool),
        )
        return Step(groups={GROUP: group}, done=ended, state=state)
