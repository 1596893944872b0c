"""Named arrays in memory that several processes see.

Nothing is ever locked: who writes which rows, and when, is agreed between the processes. The memory has no name in the
system: it goes with the last process that holds it, also where one is killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SharedArrays"]

Array = NDArray[Any]

_ALIGNMENT = 64
"""Bytes; a cache line, so that no two arrays share one."""


class SharedArrays:
    """Arrays by name, in one piece of shared memory; zero at first.

    Can be an argument of a process that `context` starts, and is the same memory there.

    Args:
        layout: ``{name: (shape, dtype)}``.
        context: Of the processes that will share it.
    """

    def __init__(self, layout: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], context: SpawnContext) -> None:
        self._layout = dict(layout)
        size = sum(_room(shape, dtype) for shape, dtype in self._layout.values())
        self._memory = context.RawArray("b", max(size, 1))
        self._arrays = self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {"_layout": self._layout, "_memory": self._memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = self._map()

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def under(self, prefix: str) -> dict[str, Array]:
        """The arrays whose name begins with `prefix`, by the rest of their name."""
        return {name[len(prefix) :]: array for name, array in self._arrays.items() if name.startswith(prefix)}

    def _map(self) -> dict[str, Array]:
        memory = np.frombuffer(self._memory, dtype=np.int8)
        arrays, offset = {}, 0
        for name, (shape, dtype) in self._layout.items():
            size = int(np.prod(shape)) * dtype.itemsize
            arrays[name] = memory[offset : offset + size].view(dtype).reshape(shape)
            offset += _room(shape, dtype)
        return arrays


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    size = int(np.prod(shape)) * dtype.itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
