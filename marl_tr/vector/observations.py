"""From an agent's observation to rows of stacked arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.contract import Leaves
from marl_tr.vector.errors import UnsupportedSpace
from marl_tr.vector.leaves import Path, at, called, named_parts

__all__ = ["LONE", "ObservationCodec", "ObservationLeaf"]

LONE = "observation"
"""The leaf of an observation without parts."""

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"
_CURES = {
    spaces.Text: "give its characters as a MultiDiscrete of fixed length, or leave it out",
    spaces.Graph: "give nodes as a Box [n, features] and edges as a Box [n, n], filled up with zeros",
    spaces.Sequence: "give it as a Box [longest, features], filled up with zeros",
    spaces.OneOf: "give a Dict of all alternatives and a Discrete that says which one holds",
    spaces.Discrete: "so many make a table of features too long; give the number as a Box of floats, scaled",
    spaces.MultiDiscrete: "so many make a table of features too long; give the numbers as a Box of floats, scaled",
}
MOST_FEATURES = 65_536
"""Features that a one-hot may have: each is an input of every network, of every copy and step."""

Write = Callable[[Any, NDArray[Any]], None]


@dataclass(frozen=True)
class ObservationLeaf:
    """One part of an observation.

    Attributes:
        name: Its path, or ``"observation"`` where there is one part only.
        path: Where it is in the agent's observation.
        space: The stacked space, a float32 `Box`.
        write: Encodes a value of the agent's own space into a row of `space`'s shape.
    """

    name: str
    path: Path
    space: spaces.Box
    write: Write


@dataclass(frozen=True)
class ObservationCodec:
    """Writes one agent's observation into rows of float32 arrays.

    Attributes:
        source: The agent's own space.
        leaves: Its parts, but for the mask.
    """

    source: spaces.Space[Any]
    leaves: tuple[ObservationLeaf, ...]

    @classmethod
    def of(cls, source: spaces.Space[Any], *, where: str, mask: str | None = None) -> ObservationCodec:
        """Choose the encoding for `source`.

        An observation without parts, or with one part called ``observation`` beside the mask, becomes one flat leaf
        ``observation``. A `Box` or `MultiBinary` that is a part of a ``Dict`` or ``Tuple`` keeps its shape.

        Args:
            source: The agent's own space.
            where: Names environment and agent in the error.
            mask: A key of `source` that is no leaf.

        Raises:
            UnsupportedSpace: A part is of a kind that cannot be stacked; names it, with a cure.
        """
        parts = named_parts(source, LONE, where=f"{where}: observation space")
        if mask is not None:
            parts = [part for part in parts if part[1][0] != mask]
            if not parts:
                raise UnsupportedSpace(f"{where}: observation space {source} holds a mask and nothing else")
        lone = len(parts) == 1 and parts[0][0] == LONE
        return cls(source, tuple(_leaf(*part, flat=lone, where=where) for part in parts))

    def write(self, value: Any, rows: Leaves, agent: int) -> None:
        """Encode `value` into row `agent` of each leaf of `rows`, ``{leaf: [A, ...]}``.

        Raises:
            ValueError: A part is missing, of another size than its space, or no number; says which.
        """
        for leaf in self.leaves:
            try:
                leaf.write(at(value, leaf.path) if leaf.path else value, rows[leaf.name][agent])
            except (
                TypeError,
                ValueError,
                OverflowError,
                RuntimeError,
            ) as error:  # torch's, of a tensor with a gradient
                raise ValueError(f"{called(LONE, leaf.name)} is malformed: {error}") from error


def _leaf(name: str, path: Path, source: spaces.Space[Any], *, flat: bool, where: str) -> ObservationLeaf:
    if isinstance(source, spaces.Discrete) and source.n <= MOST_FEATURES:
        return ObservationLeaf(name, path, _unit((int(source.n),)), _one_hot(source))
    if isinstance(source, spaces.MultiDiscrete) and 0 < source.nvec.sum(dtype=np.int64) <= MOST_FEATURES:
        return ObservationLeaf(name, path, _unit((int(source.nvec.sum(dtype=np.int64)),)), _one_hots(source))
    if isinstance(source, spaces.Box | spaces.MultiBinary) and 0 not in source.shape:
        # A part that is one number is a row of one: networks concatenate along the last axis.
        shape = (int(np.prod(source.shape)),) if flat else source.shape or (1,)
        return ObservationLeaf(name, path, _box(source, shape), _numbers(source.shape, strict=len(shape) > 1))
    part = "" if name == LONE else f" (leaf {name!r})"
    default = "wrap the environment so that it returns one of them"
    cure = next((cure for kind, cure in _CURES.items() if isinstance(source, kind)), default)
    raise UnsupportedSpace(
        f"{where}: observation space {source}{part} is not supported; supported are {_SUPPORTED}; {cure}"
    )


def _unit(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(0.0, 1.0, shape, dtype=np.float32)


def _box(source: spaces.Box | spaces.MultiBinary, shape: tuple[int, ...]) -> spaces.Box:
    if isinstance(source, spaces.MultiBinary):
        return _unit(shape)
    with np.errstate(over="ignore"):  # a float64 limit beyond float32 is no limit
        low = np.asarray(source.low, dtype=np.float32).reshape(shape)
        high = np.asarray(source.high, dtype=np.float32).reshape(shape)
    return spaces.Box(low, high, dtype=np.float32)


def _numbers(shape: tuple[int, ...], *, strict: bool) -> Write:
    def write(value: Any, row: NDArray[Any]) -> None:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":  # NumPy would read text, drop imaginary parts, and make NaN of None
            raise ValueError(f"{type(value).__name__} of {array.dtype} where real numbers belong")
        # NumPy would broadcast a single number silently, and tables of another shape would be read across.
        if array.size != row.size or (strict and array.shape != shape):
            raise ValueError(f"shape {array.shape} where the space has {shape}")
        array = array.reshape(row.shape)
        if array.dtype == np.float32:
            row[...] = array
            return
        with np.errstate(over="ignore"):  # becomes inf, which the check for finite values names
            row[...] = array

    return write


def _one_hot(source: spaces.Discrete) -> Write:
    start = int(source.start)

    def write(value: Any, row: NDArray[Any]) -> None:
        index = int(value) - start
        if index + start != value or not 0 <= index < row.size:
            raise ValueError(f"{value} is outside {source}")
        row[:] = 0.0
        row[index] = 1.0

    return write


def _one_hots(source: spaces.MultiDiscrete) -> Write:
    sizes = source.nvec.reshape(-1).astype(np.int64)
    firsts = np.cumsum(sizes) - sizes
    start = source.start.reshape(-1).astype(np.int64)

    def write(value: Any, row: NDArray[Any]) -> None:
        array = np.asarray(value)
        if array.size != sizes.size:
            raise ValueError(f"shape {array.shape} where the space has {source.shape}")
        given = array.reshape(-1).astype(np.int64)
        index = given - start
        if (given != array.reshape(-1)).any() or (index < 0).any() or (index >= sizes).any():
            raise ValueError(f"{value} is outside {source}")
        row[:] = 0.0
        row[firsts + index] = 1.0

    return write
