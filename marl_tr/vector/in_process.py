"""Any PettingZoo ParallelEnv or gymnasium.Env as a `VectorEnv`: copies stepped one after the other, here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.codec import GroupCodec, group_agents
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Reference, Step
from marl_tr.vector.copies import as_parallel
from marl_tr.vector.episode import Batch, EnvironmentCopy, episode_seed
from marl_tr.vector.errors import (
    BadEnvironmentData,
    NotAnEnvironment,
    NotFiniteData,
    ReplayMismatch,
    UnsupportedSpace,
)
from marl_tr.vector.replay import ReplayLog, pack, unpack
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
        first: Makes copy 0 in place of `factory` (used for a copy that renders).

    Attributes:
        rewards_may_fail: A reward that is not finite is passed on, and is no `NotFiniteData`.

    Raises:
        NotAnEnvironment: `factory` returns something else, or the same object twice.
        UnsupportedSpace: A space that no adapter exists for; names the agent.
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
    ) -> None:
        makers = [first or factory, *[factory] * (num_envs - 1)]
        envs = [as_parallel(make(), env_id=env_id) for make in makers]
        self._id = env_id
        self._agents = _agree(envs, env_id)
        self._groups = group_agents(
            self._agents,
            {agent: envs[0].observation_space(agent) for agent in self._agents},
            {agent: envs[0].action_space(agent) for agent in self._agents},
            env_id=env_id,
        )
        self._copies = [EnvironmentCopy(env, index, self._groups, env_id) for index, env in enumerate(envs)]
        self._logs = [ReplayLog() for _ in envs]
        self._state_size = _probe_state(envs[0], env_id)
        self.rewards_may_fail = False
        self._seed: int | None = None
        self._episode = np.zeros(num_envs, dtype=np.int64)
        state = {} if self._state_size is None else {"state": spaces.Box(-np.inf, np.inf, (self._state_size,))}
        self.spec = EnvSpec(
            id=env_id, num_envs=num_envs, groups=tuple(_spec_of(group) for group in self._groups), state=state
        )

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes, whatever ``E`` is.

        Raises:
            ValueError: `seed` is negative.
            BadEnvironmentData: See `EnvironmentCopy.reset`.
        """
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._seed = int(seed)
        self._episode[:] = 0
        batch = self._batch()
        for index in range(self.spec.num_envs):
            self._reset_copy(index, batch)
        self._check_finite(batch.observation, batch.reward, batch.state)
        return self._step(batch, np.zeros(self.spec.num_envs, dtype=np.bool_), None, None)

    def step(self, actions: Actions) -> Step:
        """Advance every environment by one step; those that end are reset in the same step.

        Args:
            actions: ``{group: {"action": [E, A, ...]}}``; rows of agents that are not alive are ignored.

        Raises:
            RuntimeError: Before `reset`.
            ValueError: Actions of a wrong shape.
            BadEnvironmentData: See `EnvironmentCopy.step`.
            NotFiniteData: A value is not finite.
        """
        if self._seed is None:
            raise RuntimeError(f"environment {self._id!r}: call reset(seed) before step")
        stacked = self._stacked(actions)
        batch = self._batch()
        done = np.zeros(self.spec.num_envs, dtype=np.bool_)
        for index, copy in enumerate(self._copies):
            rows = batch.rows(index)
            mine = [array[index] for array in stacked]
            done[index] = copy.step(mine, rows)
            self._logs[index].append(mine, rows.digest(at_reset=False))
        self._check_finite(batch.observation, batch.reward, batch.state)
        final: list[Array] | None = None
        final_state: Array | None = None
        if done.any() or any(array.any() for array in batch.truncated):
            final = [array.copy() for array in batch.observation]
            final_state = None if batch.state is None else batch.state.copy()
        for observation, alive in zip(batch.observation, batch.alive, strict=True):
            observation[~alive] = 0.0
        self._episode += done
        for ended in np.flatnonzero(done):
            self._reset_copy(int(ended), batch)
        if done.any():
            self._check_finite(batch.observation, batch.reward, batch.state)
        return self._step(batch, done, final, final_state)

    def state_dict(self) -> dict[str, Any]:
        """Reset seed, episode numbers, actions since each copy's reset, and a digest of every answer."""
        return {
            "id": self._id,
            "seed": -1 if self._seed is None else self._seed,
            "episode": self._episode.copy(),
            **pack(self._logs, self._groups),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Reset every copy with its seed, give it its actions again, and compare each answer.

        Raises:
            ValueError: `state` is of another environment or another number of copies.
            ReplayMismatch: An environment did not repeat itself; names the environment, the copy and the
            step.
        """
        if state["id"] != self._id or len(state["episode"]) != self.spec.num_envs:
            raise ValueError(
                f"state of {len(state['episode'])} copies of {state['id']!r} given to {self.spec.num_envs} "
                f"copies of {self._id!r}"
            )
        seed = int(state["seed"])
        self._seed = None if seed < 0 else seed
        self._episode[:] = state["episode"]
        if self._seed is not None:
            for index, log in enumerate(unpack(state, self._groups)):
                self._replay(index, log)

    def references(self) -> Sequence[Reference]:
        """The uniformly random policy, with draws of its own that start anew at every call of this method."""
        generator = np.random.default_rng(0)
        return [Reference("random", lambda step: random_actions(self.spec, generator))]

    def close(self) -> None:
        """Close every copy."""
        for copy in self._copies:
            copy.env.close()

    def _batch(self) -> Batch:
        return Batch(self._groups, self.spec.num_envs, self._state_size)

    def _reset_copy(self, index: int, batch: Batch) -> None:
        rows = batch.rows(index)
        assert self._seed is not None
        self._copies[index].reset(episode_seed(self._seed, index, int(self._episode[index])), rows)
        self._logs[index].begin(rows.digest(at_reset=True))

    def _replay(self, index: int, saved: ReplayLog) -> None:
        self._reset_copy(index, self._batch())
        self._compare(index, saved)
        for actions in saved.actions:
            rows = self._batch().rows(index)
            self._copies[index].step(actions, rows)
            self._logs[index].append(actions, rows.digest(at_reset=False))
            self._compare(index, saved)

    def _compare(self, index: int, saved: ReplayLog) -> None:
        step = len(self._logs[index].actions)
        if self._logs[index].digests[step] == saved.digests[step]:
            return
        what = "the reset observation" if step == 0 else "the answer"
        raise ReplayMismatch(
            f"environment {self._id!r}, copy {index}, step {step} of episode {int(self._episode[index])}: "
            f"{what} differs from the saved run, so it cannot be resumed exactly. Draw every random number "
            "from self.np_random, set in reset(seed=...), and let nothing outlive a reset ('marl-tr "
            "check-env' finds the place)"
        )

    def _stacked(self, actions: Actions) -> list[Array]:
        stacked = []
        for group in self._groups:
            space = group.action.space
            array = np.asarray(actions[group.name]["action"])
            expected = (self.spec.num_envs, len(group.agents), *(space.shape or ()))
            if array.shape != expected:
                raise ValueError(f"actions of group {group.name!r} have shape {array.shape}, expected {expected}")
            stacked.append(array)
        return stacked

    def _check_finite(self, observation: list[Array], reward: list[Array], state: Array | None) -> None:
        for field, arrays in (("observation", observation), ("reward", reward)):
            if field == "reward" and self.rewards_may_fail:
                continue
            for group, array in zip(self._groups, arrays, strict=True):
                if not np.isfinite(array).all():
                    index, agent = np.argwhere(~np.isfinite(array))[0][:2]
                    raise self._not_finite(field, int(index), f", agent {group.agents[agent]!r}")
        if state is not None and not np.isfinite(state).all():
            raise self._not_finite("state", int(np.argwhere(~np.isfinite(state))[0][0]), "")

    def _not_finite(self, field: str, index: int, agent: str) -> NotFiniteData:
        step = self._copies[index].steps
        return NotFiniteData(
            f"environment {self._id!r}, copy {index}{agent}, step {step}: {field} is not finite (NaN, "
            "infinite, or beyond float32); look for a division by zero or a value without a limit there"
        )

    def _step(self, batch: Batch, done: Array, final: list[Array] | None, final_state: Array | None) -> Step:
        groups = {}
        for g, group in enumerate(self._groups):
            groups[group.name] = GroupStep(
                observation={"observation": batch.observation[g]},
                reward=batch.reward[g],
                terminated=batch.terminated[g],
                truncated=batch.truncated[g],
                alive=batch.alive[g],
                acting=batch.alive[g].copy(),
                final_observation=None if final is None else {"observation": final[g]},
            )
        return Step(
            groups=groups,
            done=done,
            state={} if batch.state is None else {"state": batch.state},
            final_state=None if final_state is None else {"state": final_state},
        )


class RenderedVectorEnv(InProcessVectorEnv):
    """An `InProcessVectorEnv` whose copy 0 was made with ``render_mode="rgb_array"``."""

    def render(self) -> Array:
        """The first environment now, ``[H, W, 3]`` uint8.

        Raises:
            BadEnvironmentData: It rendered something else.
        """
        frame = np.asarray(self._copies[0].env.render())
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise BadEnvironmentData(
                f"environment {self._id!r}: render() gave {frame.dtype} of shape {frame.shape}; with "
                "render_mode='rgb_array' return an array [H, W, 3] of uint8"
            )
        return np.ascontiguousarray(frame)


def _spec_of(group: GroupCodec) -> GroupSpec:
    return GroupSpec(
        name=group.name,
        agents=group.agents,
        observation={"observation": group.observation.space},
        action={"action": group.action.space},
    )


def _agree(envs: Sequence[Any], env_id: str) -> tuple[str, ...]:
    """The agents' names, the same in every copy, as are their spaces."""
    if len({id(getattr(env, "env", env)) for env in envs}) < len(envs):
        raise NotAnEnvironment(
            f"environment {env_id!r}: its factory returned the same object twice; build a new environment in every call"
        )
    agents = tuple(envs[0].possible_agents)
    if not agents:
        raise BadEnvironmentData(f"environment {env_id!r}: possible_agents is empty; name every agent there")
    for index, env in enumerate(envs[1:], start=1):
        if tuple(env.possible_agents) != agents:
            raise BadEnvironmentData(
                f"environment {env_id!r}: copy {index} has the agents {tuple(env.possible_agents)}, copy 0 "
                f"{agents}; the factory must give the same agents each time"
            )
        for agent in agents:
            for name in ("observation_space", "action_space"):
                if getattr(env, name)(agent) != getattr(envs[0], name)(agent):
                    raise BadEnvironmentData(
                        f"environment {env_id!r}, copy {index}, agent {agent!r}: {name} differs from copy 0; "
                        "the factory must give the same spaces each time"
                    )
    return agents


def _probe_state(env: Any, env_id: str) -> int | None:
    """How many numbers ``state()`` has, or None where the environment has none."""
    env.reset(seed=0)
    try:
        state = np.asarray(env.state())
    except (NotImplementedError, AttributeError):
        return None
    if not (np.issubdtype(state.dtype, np.number) or state.dtype == np.bool_) or state.size == 0:
        raise UnsupportedSpace(
            f"environment {env_id!r}: state() returns {type(env.state()).__name__} of {state.dtype}; return "
            "one array of numbers, or leave state() out (the critic then sees all observations)"
        )
    return int(state.size)
