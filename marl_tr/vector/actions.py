"""From rows of stacked actions to what an environment's own action space contains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_tr.vector.errors import UnsupportedSpace
from marl_tr.vector.leaves import Path, named_parts

__all__ = ["LONE", "ActionCodec", "ActionLeaf"]

LONE = "action"
"""The leaf of an action without parts."""

MOST_VALUES = 1024
"""Values that one entry of an integer `Box` may have: each is an output of the policy's network."""

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"
_CURES = {
    spaces.Text: "give its characters as a MultiDiscrete of fixed length",
    spaces.Graph: "choose among a fixed number of nodes and edges (MultiDiscrete, MultiBinary)",
    spaces.Sequence: "fix its length (a Tuple, or MultiDiscrete), and let one choice mean 'nothing'",
    spaces.OneOf: "use a Dict of all alternatives and a Discrete that says which one is meant",
}


@dataclass(frozen=True)
class ActionLeaf:
    """One part of an action.

    Attributes:
        name: Its path, or ``"action"`` where there is one part only.
        path: Where it is in the agent's action.
        source: Its own space.
        space: The stacked space: a flat float32 `Box`, or `Discrete` / `MultiDiscrete` that start at 0.
        decode: From a row (``[D]`` float32, an int64 number, or ``[M]`` int64) to a value in `source`.
    """

    name: str
    path: Path
    source: spaces.Space[Any]
    space: spaces.Space[Any]
    decode: Callable[[Any], Any]


@dataclass(frozen=True)
class ActionCodec:
    """Turns rows of stacked actions into what ``env.step`` takes.

    Attributes:
        source: The agent's own space.
        leaves: Its parts.
        decode: From one row a leaf, in the order of `leaves`, to a value that lies in `source`.
    """

    source: spaces.Space[Any]
    leaves: tuple[ActionLeaf, ...]
    decode: Callable[[Sequence[Any]], Any]

    @classmethod
    def of(cls, source: spaces.Space[Any], *, where: str) -> ActionCodec:
        """Choose the decoding for `source`; `where` names environment and agent in the error.

        Raises:
            UnsupportedSpace: A part is of a kind that no policy can choose; names it, with a cure.
        """
        parts = named_parts(source, LONE, where=f"{where}: action space")
        leaves = tuple(_leaf(*part, where=where) for part in parts)
        return cls(source, leaves, _assembled(source, list(leaves), iter(range(len(leaves)))))


def _assembled(space: spaces.Space[Any], leaves: list[ActionLeaf], places: Any) -> Callable[[Sequence[Any]], Any]:
    """The decoder of `space`, whose parts are the next of `leaves`."""
    if isinstance(space, spaces.Dict):
        items = {key: _assembled(part, leaves, places) for key, part in space.spaces.items()}
        return lambda rows: {key: decode(rows) for key, decode in items.items()}
    if isinstance(space, spaces.Tuple):
        parts = [_assembled(part, leaves, places) for part in space.spaces]
        return lambda rows: tuple(decode(rows) for decode in parts)
    place = next(places)
    decode = leaves[place].decode
    return lambda rows: decode(rows[place])


def _leaf(name: str, path: Path, source: spaces.Space[Any], *, where: str) -> ActionLeaf:
    part = "" if name == LONE else f" (leaf {name!r})"
    if isinstance(source, spaces.Discrete):
        start, number = int(source.start), source.dtype.type
        return ActionLeaf(name, path, source, spaces.Discrete(int(source.n)), lambda row: number(int(row) + start))
    if isinstance(source, spaces.MultiDiscrete) and source.nvec.size > 0:
        return _choices(name, path, source, source.nvec, source.start)
    if isinstance(source, spaces.MultiBinary) and 0 not in source.shape:
        two = np.full(source.shape, 2)
        return _choices(name, path, source, two, np.zeros_like(two))
    if isinstance(source, spaces.Box) and 0 not in source.shape:
        if np.issubdtype(source.dtype, np.floating):
            return _numbers(name, path, source)
        values = [int(high) - int(low) + 1 for low, high in zip(source.low.flat, source.high.flat, strict=True)]
        if max(values) > MOST_VALUES:
            raise UnsupportedSpace(
                f"{where}: action space {source}{part}: an entry has {max(values):,} values, and each would be a "
                f"choice of its own ({MOST_VALUES:,} at most); use a Box of floats and round in step, or fewer values"
            )
        return _choices(name, path, source, np.array(values).reshape(source.shape), source.low)
    default = "wrap the environment so that it takes one of them"
    cure = next((cure for kind, cure in _CURES.items() if isinstance(source, kind)), default)
    raise UnsupportedSpace(f"{where}: action space {source}{part} is not supported; supported are {_SUPPORTED}; {cure}")


def _choices(name: str, path: Path, source: spaces.Space[Any], nvec: Any, start: Any) -> ActionLeaf:
    offset, dtype, shape = np.asarray(start).astype(np.int64), source.dtype, source.shape
    return ActionLeaf(
        name,
        path,
        source,
        spaces.MultiDiscrete(np.asarray(nvec).reshape(-1).astype(np.int64)),
        lambda row: np.asarray(np.asarray(row).reshape(shape) + offset, dtype),
    )


def _numbers(name: str, path: Path, source: spaces.Box) -> ActionLeaf:
    low, high, dtype, shape = source.low, source.high, source.dtype, source.shape
    with np.errstate(over="ignore"):  # a float64 limit beyond float32 is no limit
        stacked = spaces.Box(
            np.asarray(low, dtype=np.float32).reshape(-1),
            np.asarray(high, dtype=np.float32).reshape(-1),
            dtype=np.float32,
        )
    # float32 rounds a float64 bound such as 0.1 outwards; the clip brings the action back into the space. Of an array
    # without axes it makes a number, which a Box does not contain.
    return ActionLeaf(
        name,
        path,
        source,
        stacked,
        lambda row: np.asarray(np.minimum(np.maximum(np.asarray(row, dtype).reshape(shape), low), high)),
    )
