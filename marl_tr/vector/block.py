"""Some of a batch's copies, stepped one after the other into arrays that are given.

A process that holds all copies has one block; worker processes have one each, over shared arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.batch import Batch
from marl_tr.vector.codec import GroupCodec, group_agents
from marl_tr.vector.contract import Actions, EnvSpec, Leaves
from marl_tr.vector.copies import SingleAgentView, as_parallel
from marl_tr.vector.episode import EnvironmentCopy, episode_seed
from marl_tr.vector.errors import (
    BadEnvironmentData,
    NotAnEnvironment,
    NotFiniteData,
    ReplayMismatch,
    UnsupportedSpace,
    environment_code,
)
from marl_tr.vector.leaves import called, identical
from marl_tr.vector.observations import LONE
from marl_tr.vector.replay import ReplayLog, pack, unpack
from marl_tr.vector.turns import TurnBasedView

__all__ = ["CopyBlock", "probe", "stacked"]

Array = NDArray[Any]


class CopyBlock:
    """The copies ``first_index`` to ``first_index + num_envs - 1`` of a batch.

    A copy is seeded, and named in errors, by its index in the whole batch: it plays the same episodes in a block of
    any size. A step is `advance`, then `Batch.final` where somebody asks for it, then `renew`.

    Args:
        env_id: The environment's name, for messages.
        factory: Makes one environment; called `num_envs` times.
        num_envs: Copies in this block.
        first_index: Index of the first of them in the whole batch.
        first: Makes the first copy in place of `factory` (used for a copy that renders).
        rebuild: Make every environment anew for each episode, so that those that remember something beyond their reset
            are repeatable after all.

    Attributes:
        groups: How agents are stacked.
        layout: The arrays that a `Batch` of this block needs.
        spec: As if this block were the whole batch.
        copies: The environments.
        rewards_may_fail: A reward that is not finite is passed on, and is no `NotFiniteData`.

    Raises:
        NotAnEnvironment: `factory` returns something else, or the same object twice.
        UnsupportedSpace: A space that no adapter exists for; names agent and leaf.
        BadEnvironmentData: Copies differ in agents or spaces.
    """

    def __init__(
        self,
        env_id: str,
        factory: Callable[[], Any],
        num_envs: int,
        *,
        first_index: int = 0,
        first: Callable[[], Any] | None = None,
        rebuild: bool = False,
    ) -> None:
        self._makers = [first or factory, *[factory] * (num_envs - 1)]
        envs = [as_parallel(make(), env_id=env_id) for make in self._makers]
        self._id = env_id
        self._rebuild = rebuild
        self._first = first_index
        _agree(envs, env_id, first_index)
        self.groups, state_size = probe(envs[0], env_id)
        self.layout = Batch.layout(self.groups, num_envs, state_size)
        self.copies = [EnvironmentCopy(env, first_index + e, self.groups, env_id) for e, env in enumerate(envs)]
        self.rewards_may_fail = False
        self._logs = [ReplayLog() for _ in envs]
        self._seed: int | None = None
        self._episode = np.zeros(num_envs, dtype=np.int64)
        self.spec = EnvSpec(
            id=env_id,
            num_envs=num_envs,
            groups=tuple(group.spec for group in self.groups),
            state={} if state_size is None else {"state": spaces.Box(-np.inf, np.inf, (state_size,))},
            turns=any(isinstance(env, TurnBasedView) for env in envs),
        )

    def reset(self, seed: int, batch: Batch) -> None:
        """Start new episodes; writes what a reset has into `batch`, whose other arrays are zero.

        Raises:
            ValueError: `seed` is negative.
            BadEnvironmentData: See `EnvironmentCopy.reset`.
            NotFiniteData: A value is not finite.
        """
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._seed = int(seed)
        self._episode[:] = 0
        for index in range(self.spec.num_envs):
            self._reset_copy(index, batch)
        self._check_finite(batch)

    def advance(self, actions: Actions, batch: Batch) -> Array:
        """Step every copy once; `batch`, all zero before, then holds the last step of those that ended.

        Returns:
            ``[num_envs]`` bool, whose episode is over.

        Raises:
            RuntimeError: Before `reset`.
            ValueError: Actions of a wrong shape.
            BadEnvironmentData: See `EnvironmentCopy.step`.
            NotFiniteData: A value is not finite.
        """
        if self._seed is None:
            raise RuntimeError(f"environment {self._id!r}: call reset(seed) before step")
        given = stacked(actions, self.groups, self.spec.num_envs)
        done = np.zeros(self.spec.num_envs, dtype=np.bool_)
        for index, copy in enumerate(self.copies):
            rows = batch.rows(index)
            mine = [{leaf: array[index] for leaf, array in leaves.items()} for leaves in given]
            done[index] = copy.step(mine, rows)
            self._logs[index].append(mine, rows.digest(at_reset=False))
        self._check_finite(batch)
        return done

    def renew(self, done: Array, batch: Batch) -> None:
        """Zero the observations of the dead, and reset the copies that are `done`.

        Raises:
            BadEnvironmentData: See `EnvironmentCopy.reset`.
            NotFiniteData: A value is not finite.
        """
        for leaves, alive in zip(batch.observation, batch.alive, strict=True):
            if not alive.all():
                for array in leaves.values():
                    array[~alive] = 0
        if not done.any():
            return
        self._episode += done
        for ended in np.flatnonzero(done):
            self._reset_copy(int(ended), batch)
        self._check_finite(batch)

    @property
    def digests(self) -> list[int]:
        """Of each copy's newest answer, see `Rows.digest`."""
        return [log.digests[-1] for log in self._logs]

    def render(self) -> Array:
        """The first copy now, ``[H, W, 3]`` uint8.

        Raises:
            BadEnvironmentData: It rendered something else.
        """
        copy = self.copies[0]
        with environment_code(f"environment {self._id!r}, copy {copy.index}, step {copy.steps}, render()", self._id):
            frame = np.asarray(copy.env.render())
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise BadEnvironmentData(
                f"environment {self._id!r}: render() gave {frame.dtype} of shape {frame.shape}; with "
                "render_mode='rgb_array' return an array [H, W, 3] of uint8"
            )
        return np.ascontiguousarray(frame)

    def hook(self, name: str) -> Any:
        """An attribute of the first copy's environment, below all wrappers.

        Raises:
            AttributeError: It has none of this name.
        """
        env = self.copies[0].env
        env = env.env if isinstance(env, TurnBasedView | SingleAgentView) else env
        return getattr(getattr(env, "unwrapped", env), name)

    def state_dict(self) -> dict[str, Any]:
        """Reset seed, episode numbers, actions since each copy's reset, and a digest of every answer."""
        return {
            "id": self._id,
            "seed": -1 if self._seed is None else self._seed,
            "episode": self._episode.copy(),
            **pack(self._logs, self.groups),
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
            for index, log in enumerate(unpack(state, self.groups)):
                self._replay(index, log)

    def close(self) -> None:
        """Close every copy."""
        for copy in self.copies:
            copy.env.close()

    def _reset_copy(self, index: int, batch: Batch) -> None:
        if self._rebuild:
            self.copies[index].env.close()
            self.copies[index].env = as_parallel(self._makers[index](), env_id=self._id)
        rows = batch.rows(index)
        assert self._seed is not None
        self.copies[index].reset(episode_seed(self._seed, self._first + index, int(self._episode[index])), rows)
        self._logs[index].begin(rows.digest(at_reset=True))

    def _replay(self, index: int, saved: ReplayLog) -> None:
        batch = Batch.zeros(self.groups, self.layout)
        self._reset_copy(index, batch)
        self._compare(index, saved)
        rows = batch.rows(index)
        for actions in saved.actions:
            batch.clear()
            self.copies[index].step(actions, rows)
            self._logs[index].append(actions, rows.digest(at_reset=False))
            self._compare(index, saved)

    def _compare(self, index: int, saved: ReplayLog) -> None:
        step = len(self._logs[index].actions)
        if self._logs[index].digests[step] == saved.digests[step]:
            return
        what = "the reset observation" if step == 0 else "the answer"
        raise ReplayMismatch(
            f"environment {self._id!r}, copy {self._first + index}, step {step} of episode "
            f"{int(self._episode[index])}: {what} differs from the saved run, so it cannot be resumed exactly. Draw "
            "every random number from self.np_random, set in reset(seed=...), and let nothing outlive a reset, or set "
            f"env.rebuild ('marl-tr check-env {self._id}' finds the place)"
        )

    def _check_finite(self, batch: Batch) -> None:
        for g, group in enumerate(self.groups):
            leaves = batch.observation[g]
            fields = {called(LONE, leaf.name): leaves[leaf.name] for leaf in group.observation.leaves}
            if not self.rewards_may_fail:
                fields["reward"] = batch.reward[g]
            for field, array in fields.items():
                if not np.isfinite(array).all():
                    index, agent = np.argwhere(~np.isfinite(array))[0][:2]
                    raise self._not_finite(field, int(index), f", agent {group.agents[agent]!r}")
        if batch.state is not None and not np.isfinite(batch.state).all():
            raise self._not_finite("state", int(np.argwhere(~np.isfinite(batch.state))[0][0]), "")

    def _not_finite(self, field: str, index: int, agent: str) -> NotFiniteData:
        copy = self.copies[index]
        return NotFiniteData(
            f"environment {self._id!r}, copy {copy.index}{agent}, step {copy.steps}: {field} is not finite (NaN, "
            "infinite, or beyond float32); look for a division by zero or a value without a limit there "
            f"('marl-tr check-env {self._id}' looks for more)"
        )


def stacked(actions: Actions, groups: Sequence[GroupCodec], num_envs: int) -> list[Leaves]:
    """`actions` as a list over the groups, in the dtype of each leaf's space.

    Raises:
        ValueError: A group or a leaf is missing, or of a wrong shape.
    """
    taken = []
    for group in groups:
        if group.name not in actions:
            raise ValueError(f"actions lack the group {group.name!r}")
        given, mine = actions[group.name], {}
        for leaf in group.action.leaves:
            if leaf.name not in given:
                raise ValueError(f"actions of group {group.name!r} lack the leaf {leaf.name!r}")
            mine[leaf.name] = array = np.asarray(given[leaf.name], dtype=leaf.space.dtype)
            expected = (num_envs, len(group.agents), *(leaf.space.shape or ()))
            if array.shape != expected:
                which = "" if leaf.name == "action" else f", leaf {leaf.name!r},"
                raise ValueError(
                    f"actions of group {group.name!r}{which} have shape {array.shape}, expected {expected}"
                )
        taken.append(mine)
    return taken


def probe(env: Any, env_id: str) -> tuple[tuple[GroupCodec, ...], int | None]:
    """Reset `env` once to see how its agents are stacked, and how many numbers ``state()`` has (None: no state).

    Args:
        env: See `marl_tr.vector.copies.as_parallel`.
        env_id: Its name.

    Raises:
        UnsupportedSpace: See `group_agents`; also where ``state()`` is not one array of numbers.
    """
    with environment_code(f"environment {env_id!r}, at its first reset", env_id):
        agents = tuple(env.possible_agents)
        observation = {agent: env.observation_space(agent) for agent in agents}
        action = {agent: env.action_space(agent) for agent in agents}
        answer = env.reset(seed=0)
    # Whatever else reset returns is refused where it is called for good.
    infos = answer[1] if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping) else {}
    movers = env.movers if isinstance(env, TurnBasedView) else None
    groups = group_agents(agents, observation, action, env_id=env_id, infos=infos, movers=movers)
    return groups, _state_size(env, env_id)


def _state_size(env: Any, env_id: str) -> int | None:
    if not callable(getattr(getattr(env, "unwrapped", env), "state", None)):
        return None  # an aec_to_parallel of a board game calls what is no method there
    try:
        with environment_code(f"environment {env_id!r}, state() after its first reset", env_id):
            given = env.state()
    except NotImplementedError:
        return None
    state = None if isinstance(given, Mapping | tuple) else np.asarray(given)
    numbers = state is not None and state.dtype.kind in "biuf"
    if state is None or not numbers or state.size == 0:
        what = type(given).__name__ if state is None else f"{type(given).__name__} of {state.dtype}"
        raise UnsupportedSpace(
            f"environment {env_id!r}: state() returns {what}; return one array of numbers (np.concatenate of all its "
            "parts), or leave state() out (the critic then sees all observations)"
        )
    return int(state.size)


def _agree(envs: Sequence[Any], env_id: str, first_index: int) -> None:
    """The agents' names are the same in every copy, as are their spaces."""
    if len({id(_innermost(env)) for env in envs}) < len(envs):
        raise NotAnEnvironment(
            f"environment {env_id!r}: its factory returned the same object twice; build a new environment in every call"
        )
    with environment_code(f"environment {env_id!r}, possible_agents", env_id):
        agents = tuple(envs[0].possible_agents)
    if not agents:
        raise BadEnvironmentData(f"environment {env_id!r}: possible_agents is empty; name every agent there")
    names = list(map(str, agents))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BadEnvironmentData(
            f"environment {env_id!r}: possible_agents names {twice[0]!r} twice; name each agent once"
        )
    for index, env in enumerate(envs[1:], start=first_index + 1):
        if tuple(env.possible_agents) != agents:
            raise BadEnvironmentData(
                f"environment {env_id!r}: copy {index} has the agents {tuple(env.possible_agents)}, copy {first_index} "
                f"{agents}; the factory must give the same agents each time"
            )
        for agent in agents:
            for name in ("observation_space", "action_space"):
                with environment_code(f"environment {env_id!r}, {name}({agent!r})", env_id):
                    mine, first = getattr(env, name)(agent), getattr(envs[0], name)(agent)
                if not identical(mine, first):
                    raise BadEnvironmentData(
                        f"environment {env_id!r}, copy {index}, agent {agent!r}: {name} differs from copy "
                        f"{first_index}; the factory must give the same spaces each time"
                    )


def _innermost(env: Any) -> Any:
    """The environment under our view of it and the user's wrappers."""
    inside = env.env if isinstance(env, SingleAgentView | TurnBasedView) else env
    return getattr(inside, "unwrapped", inside)
