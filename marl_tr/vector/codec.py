"""From an environment's own spaces to stacked arrays and back.

One `ObservationCodec` and one `ActionCodec` serve all agents of a group, because a group's spaces are equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.errors import UnsupportedSpace

__all__ = ["ActionCodec", "GroupCodec", "ObservationCodec", "group_agents"]

_OBSERVATIONS = "Box (flattened to float32) and Discrete (one-hot)"
_ACTIONS = "Box of floats, Discrete and MultiDiscrete"


@dataclass(frozen=True)
class ObservationCodec:
    """Writes one agent's observation into a row of a float32 array.

    Attributes:
        source: The agent's own space.
        space: The stacked space, a one-dimensional float32 `Box`.
    """

    source: spaces.Space[Any]
    space: spaces.Box

    @classmethod
    def of(cls, source: spaces.Space[Any], *, where: str) -> ObservationCodec:
        """Choose the encoding for `source`; `where` names environment and agent in the error.

        Raises:
            UnsupportedSpace: `source` is neither `Box` nor `Discrete`.
        """
        if isinstance(source, spaces.Box) and int(np.prod(source.shape)) > 0:
            with np.errstate(over="ignore"):  # a float64 limit beyond float32 is no limit
                low = np.asarray(source.low, dtype=np.float32).reshape(-1)
                high = np.asarray(source.high, dtype=np.float32).reshape(-1)
            return cls(source, spaces.Box(low, high, dtype=np.float32))
        if isinstance(source, spaces.Discrete):
            return cls(source, spaces.Box(0.0, 1.0, (int(source.n),), dtype=np.float32))
        raise UnsupportedSpace(
            f"{where}: observation space {source} is not supported; supported are {_OBSERVATIONS}. Wrap the "
            "environment so that it returns one of them (gymnasium.spaces.utils.flatten turns Dict, Tuple "
            "and MultiBinary into a Box)"
        )

    def write(self, value: Any, row: NDArray[np.float32]) -> None:
        """Encode `value` into `row`, shape ``[D]``.

        Raises:
            ValueError: `value` has another size than the space, or is no number; says which.
        """
        if isinstance(self.source, spaces.Discrete):
            index = int(value) - int(self.source.start)
            if not 0 <= index < row.size:
                raise ValueError(f"{value} is outside {self.source}")
            row[:] = 0.0
            row[index] = 1.0
            return
        flat = np.asarray(value).reshape(-1)
        if flat.size != row.size:  # NumPy would broadcast a single number silently
            raise ValueError(f"shape {np.shape(value)} where the space has {self.source.shape}")
        with np.errstate(over="ignore"):  # becomes inf, which the check for finite values names
            row[:] = flat


@dataclass(frozen=True)
class ActionCodec:
    """Turns a row of a stacked action array into what ``env.step`` takes.

    Attributes:
        source: The agent's own space.
        space: The stacked space: a flat float32 `Box`, or `Discrete` / `MultiDiscrete` starting at 0.
        decode: From a row (``[D]`` float32, an int64 number, or ``[M]`` int64) to the agent's own action.
    """

    source: spaces.Space[Any]
    space: spaces.Space[Any]
    decode: Callable[[Any], Any]

    @classmethod
    def of(cls, source: spaces.Space[Any], *, where: str) -> ActionCodec:
        """Choose the decoding for `source`; `where` names environment and agent in the error.

        Raises:
            UnsupportedSpace: `source` is no `Box` of floats, `Discrete` or `MultiDiscrete`.
        """
        if isinstance(source, spaces.Box) and np.issubdtype(source.dtype, np.floating) and source.low.size > 0:
            return cls._of_box(source)
        if isinstance(source, spaces.Discrete):
            start = int(source.start)
            return cls(source, spaces.Discrete(int(source.n)), lambda row: int(row) + start)
        if isinstance(source, spaces.MultiDiscrete):
            offset, dtype, shape = np.asarray(source.start), source.dtype, source.shape
            return cls(
                source,
                spaces.MultiDiscrete(np.asarray(source.nvec).reshape(-1)),
                lambda row: (np.asarray(row).reshape(shape) + offset).astype(dtype),
            )
        raise UnsupportedSpace(
            f"{where}: action space {source} is not supported; supported are {_ACTIONS}. Wrap the "
            "environment so that it takes one of them"
        )

    @classmethod
    def _of_box(cls, source: spaces.Box) -> ActionCodec:
        low, high, dtype, shape = source.low, source.high, source.dtype, source.shape
        stacked = spaces.Box(
            np.asarray(low, dtype=np.float32).reshape(-1),
            np.asarray(high, dtype=np.float32).reshape(-1),
            dtype=np.float32,
        )
        # float32 rounds a float64 bound such as 0.1 outwards; the clip brings the action back into the space.
        return cls(source, stacked, lambda row: np.clip(np.asarray(row, dtype).reshape(shape), low, high))


@dataclass(frozen=True)
class GroupCodec:
    """A group's name, its agents in order, and how their rows are written and read."""

    name: str
    agents: tuple[str, ...]
    observation: ObservationCodec
    action: ActionCodec


def group_agents(
    agents: Sequence[str],
    observation: Mapping[str, spaces.Space[Any]],
    action: Mapping[str, spaces.Space[Any]],
    *,
    env_id: str,
) -> tuple[GroupCodec, ...]:
    """Stack agents with equal spaces, in the order in which `agents` first shows each pair of spaces.

    A group is called by the common part of its agents' names before the last ``_<number>`` (``adversary_0``,
    ``adversary_1`` -> ``adversary``); where its agents share none, or two groups share one, by
    ``group_<index>``.

    Raises:
        UnsupportedSpace: See `ObservationCodec.of` and `ActionCodec.of`.
    """
    stacks: list[list[str]] = []
    for agent in agents:
        for stack in stacks:
            if observation[stack[0]] == observation[agent] and action[stack[0]] == action[agent]:
                stack.append(agent)
                break
        else:
            stacks.append([agent])
    codecs = []
    for name, stack in zip(_group_names(stacks), stacks, strict=True):
        where = f"environment {env_id!r}, agent {stack[0]!r}"
        codecs.append(
            GroupCodec(
                name=name,
                agents=tuple(stack),
                observation=ObservationCodec.of(observation[stack[0]], where=where),
                action=ActionCodec.of(action[stack[0]], where=where),
            )
        )
    return tuple(codecs)


def _group_names(stacks: Sequence[Sequence[str]]) -> list[str]:
    prefixes = [{re.sub(r"_\d+$", "", str(agent)) for agent in stack} for stack in stacks]
    single = [next(iter(prefix)) if len(prefix) == 1 else None for prefix in prefixes]
    numbered = [f"group_{index}" for index in range(len(stacks))]
    names = [
        prefix if prefix is not None and single.count(prefix) == 1 else number
        for prefix, number in zip(single, numbered, strict=True)
    ]
    return names if len(set(names)) == len(names) else numbered
