"""The stacked arrays of one step of a batch of environments."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.contract import GroupStep, Leaves, Step

__all__ = ["Batch", "Layout", "Rows"]

Array = NDArray[Any]
Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""``{name: (shape, dtype)}`` of every array of a `Batch`."""


@dataclass
class Rows:
    """One copy's part of a `Batch`: lists over the groups of views ``[A, ...]``, and the state ``[S]``."""

    observation: list[Leaves]
    reward: list[Array]
    terminated: list[Array]
    truncated: list[Array]
    alive: list[Array]
    acting: list[Array]
    state: Array | None

    def digest(self, *, at_reset: bool) -> int:
        """64 bits of BLAKE2b over every byte, signed; at a reset over what a reset writes."""
        hashed = hashlib.blake2b(digest_size=8)
        for leaves in self.observation:
            for array in leaves.values():
                hashed.update(array.data)
        parts = [self.alive, self.acting]
        if not at_reset:
            parts += [self.reward, self.terminated, self.truncated]
        for part in parts:
            for array in part:
                hashed.update(array.data)
        if self.state is not None:
            hashed.update(self.state.data)
        return int.from_bytes(hashed.digest(), "little", signed=True)


@dataclass
class Batch:
    """Lists over the groups of ``[E, A, ...]``, and the state ``[E, S]``; see `GroupStep` for what they mean."""

    groups: Sequence[GroupCodec]
    observation: list[Leaves]
    reward: list[Array]
    terminated: list[Array]
    truncated: list[Array]
    alive: list[Array]
    acting: list[Array]
    state: Array | None

    @staticmethod
    def layout(groups: Sequence[GroupCodec], num_envs: int, state_size: int | None) -> Layout:
        """Every array of such a batch, for whoever lays them out in memory of his own."""
        layout: Layout = {}
        for g, group in enumerate(groups):
            size = (num_envs, len(group.agents))
            for leaf, space in group.spec.observation.items():
                layout[f"{g}/observation/{leaf}"] = ((*size, *(space.shape or ())), np.dtype(space.dtype))
            layout[f"{g}/reward"] = (size, np.dtype(np.float32))
            for name in ("terminated", "truncated", "alive", "acting"):
                layout[f"{g}/{name}"] = (size, np.dtype(np.bool_))
        if state_size is not None:
            layout["state"] = ((num_envs, state_size), np.dtype(np.float32))
        return layout

    @classmethod
    def over(cls, groups: Sequence[GroupCodec], arrays: Mapping[str, Array]) -> Batch:
        """A batch that writes into `arrays`, which are as `layout` says."""
        one_each: dict[str, Any] = {
            name: [arrays[f"{g}/{name}"] for g in range(len(groups))]
            for name in ("reward", "terminated", "truncated", "alive", "acting")
        }
        observation = [
            {leaf: arrays[f"{g}/observation/{leaf}"] for leaf in group.spec.observation}
            for g, group in enumerate(groups)
        ]
        return cls(groups, observation=observation, state=arrays.get("state"), **one_each)

    @classmethod
    def zeros(cls, groups: Sequence[GroupCodec], layout: Layout) -> Batch:
        """A batch of fresh arrays, all zero."""
        return cls.over(groups, {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()})

    def rows(self, copy: int) -> Rows:
        """Views of one copy's rows."""
        return Rows(
            observation=[{leaf: array[copy] for leaf, array in leaves.items()} for leaves in self.observation],
            reward=[array[copy] for array in self.reward],
            terminated=[array[copy] for array in self.terminated],
            truncated=[array[copy] for array in self.truncated],
            alive=[array[copy] for array in self.alive],
            acting=[array[copy] for array in self.acting],
            state=None if self.state is None else self.state[copy],
        )

    def part(self, first: int, count: int) -> Batch:
        """Views of the rows of `count` copies from `first` on."""
        rows = slice(first, first + count)
        parts: dict[str, Any] = {
            field.name: [array[rows] for array in getattr(self, field.name)]
            for field in fields(self)
            if field.name not in ("groups", "observation", "state")
        }
        observation = [{leaf: array[rows] for leaf, array in leaves.items()} for leaves in self.observation]
        state = None if self.state is None else self.state[rows]
        return Batch(self.groups, observation=observation, state=state, **parts)

    def clear(self) -> None:
        """Set everything to zero, as before a step."""
        for leaves in self.observation:
            for array in leaves.values():
                array.fill(0)
        for name in ("reward", "terminated", "truncated", "alive", "acting"):
            for array in getattr(self, name):
                array.fill(0)
        if self.state is not None:
            self.state.fill(0)

    def final(self, done: Array) -> tuple[list[Leaves], Array | None] | None:
        """Copies of the observations and the state, or None where nobody may ask for a value beyond this step."""
        if not (done.any() or any(array.any() for array in self.truncated)):
            return None
        observation = [{leaf: array.copy() for leaf, array in leaves.items()} for leaves in self.observation]
        return observation, None if self.state is None else self.state.copy()

    def step(self, done: Array, final: tuple[list[Leaves], Array | None] | None = None) -> Step:
        """What the trainer gets, made of these arrays themselves."""
        observations, state = (None, None) if final is None else final
        parts = {}
        for g, group in enumerate(self.groups):
            parts[group.name] = GroupStep(
                observation=self.observation[g],
                reward=self.reward[g],
                terminated=self.terminated[g],
                truncated=self.truncated[g],
                alive=self.alive[g],
                acting=self.acting[g],
                final_observation=None if observations is None else observations[g],
            )
        return Step(
            groups=parts,
            done=done,
            state={} if self.state is None else {"state": self.state},
            final_state=None if state is None else {"state": state},
        )
