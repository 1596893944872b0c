"""``uav/downlink-v0`` as a batch: what the trainer talks to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.uav.actions import action_spaces
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.export import tables
from marl_tr.envs.uav.observation import (
    View,
    observation_shapes,
    observation_size,
    observe,
    split_observation,
    state_shapes,
    write_state,
)
from marl_tr.envs.uav.recording import GROUP
from marl_tr.envs.uav.references import references
from marl_tr.envs.uav.render import TopView, pictures, scene
from marl_tr.envs.uav.simulator import Outcome, Simulator
from marl_tr.vector.contract import (
    Actions,
    EnvSpec,
    GroupSpec,
    GroupStep,
    Leaves,
    Reference,
    Step,
    Table,
    Trajectory,
)

__all__ = ["DownlinkVectorEnv", "make"]

Array = NDArray[Any]

_LINKS = 2**17
"""Links (environments times UAVs times users) of a simulator at most: beyond, temporaries leave the cache, and the
memory that they take grows, while the time that NumPy's calls take besides their work is already small."""


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
        self._rows = _blocks(num_envs, config.num_uavs * config.num_users)
        self._blocks = [
            Simulator(config, rows.stop - rows.start, env_offset=env_offset + rows.start) for rows in self._rows
        ]
        self._size = observation_size(config)
        self._state_spaces = {
            name: spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in state_shapes(config).items()
        }
        self._track: list[Array] = []
        self._view: TopView | None = None
        group = GroupSpec(
            name=GROUP,
            agents=config.agents,
            observation={
                name: spaces.Box(-np.inf, np.inf, shape, np.float32)
                for name, shape in observation_shapes(config).items()
            },
            action=action_spaces(config),
        )
        self.spec = EnvSpec(
            id="uav/downlink-v0",
            num_envs=num_envs,
            groups=(group,),
            state=self._state_spaces,
            horizon=config.horizon if config.fixed_length else None,
            own_state=True,
        )

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        out = self._empty()
        for rows, block in zip(self._rows, self._blocks, strict=True):
            block.reset(seed)
            _write(block, out, rows)
        self._record()
        shape = self.spec.num_envs, self.config.num_uavs
        return self._assemble(out, np.zeros(shape, np.float32), np.zeros(shape, bool), np.zeros(shape[:1], bool))

    def step(self, actions: Actions) -> Step:
        """Fly one slot in every environment; an episode ends with its last slot, or when nobody flies any more.

        Args:
            actions: ``{"uav": {leaf: [E, U, ...]}}``, see `marl_tr.envs.uav.actions`.

        Raises:
            ValueError: A leaf is missing or has the wrong shape, or an action is not finite or not among the choices.
        """
        chosen = self._checked(actions)
        out, final = self._empty(), None
        shape = self.spec.num_envs, self.config.num_uavs
        reward = np.empty(shape, np.float32)
        terminated = np.empty(shape, bool)
        truncated = np.empty(shape, bool)
        ended = np.empty(shape[:1], bool)
        outcomes: list[Outcome] = []
        for rows, block in zip(self._rows, self._blocks, strict=True):
            outcome = block.step({leaf: values[rows] for leaf, values in chosen.items()})
            outcomes.append(outcome)
            reward[rows], terminated[rows], ended[rows] = outcome.reward, outcome.terminated, block.over
            truncated[rows] = block.alive & ended[rows, None]
            if ended[rows].any():
                final = final or self._empty()
                _write(block, final, rows, who=outcome.flew)
                block.next_episode(np.flatnonzero(ended[rows]))
            _write(block, out, rows)
        self._record()
        step = self._assemble(out, reward, terminated, ended)
        step.groups[GROUP].truncated = truncated
        if final is not None:
            step.groups[GROUP].final_observation = split_observation(self.config, final.observation)
            step.final_state = final.state
        step.metrics = _joined([outcome.metrics for outcome in outcomes])
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
            raise ValueError(f"the state has {len(state)} blocks of environments, not {len(self._blocks)}")
        for index, block in enumerate(self._blocks):
            block.load_state_dict(state[f"block_{index}"])
        self._track = []
        self._record()

    def references(self) -> Sequence[Reference]:
        """Random, hovering, k-means and searched policies, see `marl_tr.envs.uav.references`."""
        return references(self.spec, self.config)

    def render(self) -> Array:
        """The first environment from above, with its tracks in this episode, ``[H, W, 3]`` uint8."""
        if self._view is None:
            self._view = TopView(self.config)
        first = self._blocks[0]
        leaves = {name: np.empty((first.num_envs, *box.shape)) for name, box in self._state_spaces.items()}
        write_state(View(first), leaves)
        state = {name: leaf[0] for name, leaf in leaves.items()}
        title = f"slot {first.slot[0]} of {self.config.horizon}"
        return self._view.draw(scene(self.config, state, np.stack(self._track), title=title))

    def media(self, trajectory: Trajectory) -> Mapping[str, Array | Callable[[], Array]]:
        """See `marl_tr.envs.uav.render.pictures`."""
        return pictures(self.config, trajectory)

    def tables(self, trajectory: Trajectory) -> Mapping[str, Table]:
        """``uavs``, ``users`` and ``slots`` of an episode, see `marl_tr.envs.uav.export`."""
        return tables(self.config, trajectory)

    def close(self) -> None:
        """Nothing is held."""

    def _record(self) -> None:
        """Keep the first environment's way through this episode, for `render`."""
        first = self._blocks[0]
        if first.slot[0] == 0:
            self._track = []
        self._track.append(first.position[0, :, : self.config.coordinates].copy())

    def _empty(self) -> _Output:
        """New arrays each step, so that a caller may keep a step without copying it."""
        envs = self.spec.num_envs
        return _Output(
            observation=np.empty((envs, self.config.num_uavs, self._size), np.float32),
            state={name: np.empty((envs, *space.shape), np.float32) for name, space in self._state_spaces.items()},
        )

    def _assemble(self, out: _Output, reward: Array, terminated: Array, ended: Array) -> Step:
        alive = np.concatenate([block.alive for block in self._blocks])
        group = GroupStep(
            observation=split_observation(self.config, out.observation),
            reward=reward,
            terminated=terminated,
            truncated=np.zeros_like(terminated),
            alive=alive,
            acting=alive.copy(),
        )
        return Step(groups={GROUP: group}, done=ended, state=out.state)

    def _checked(self, actions: Actions) -> Leaves:
        """Shapes, before any block has moved."""
        chosen = {leaf: np.asarray(values) for leaf, values in actions[GROUP].items()}
        expected = self.spec.groups[0].action
        if chosen.keys() != expected.keys():
            raise ValueError(
                f"actions of group {GROUP!r} have the leaves {sorted(chosen)}, expected {sorted(expected)}"
            )
        for leaf, space in expected.items():
            shape = (self.spec.num_envs, self.config.num_uavs, *(space.shape or ()))
            if chosen[leaf].shape != shape:
                raise ValueError(
                    f"actions of group {GROUP!r}, leaf {leaf!r}, have shape {chosen[leaf].shape}, expected {shape}"
                )
        return chosen


@dataclass(frozen=True)
class _Output:
    observation: Array
    state: dict[str, Array]


def _blocks(num_envs: int, links: int) -> list[slice]:
    """Environments in blocks of one size, or two that differ by one."""
    count = math.ceil(num_envs * links / max(_LINKS, links))
    edges = [num_envs * index // count for index in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _joined(parts: list[Leaves]) -> Leaves:
    """Blocks of environments as one."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write(block: Simulator, out: _Output, rows: slice, *, who: Array | None = None) -> None:
    view = View(block)
    observe(view, out.observation[rows], who=who)
    write_state(view, {name: array[rows] for name, array in out.state.items()})
