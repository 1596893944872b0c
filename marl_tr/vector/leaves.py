"""The parts of a nested space, and what each is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_tr.vector.errors import UnsupportedSpace

__all__ = ["Path", "at", "called", "identical", "named_parts", "part_of"]

Path = tuple[str | int, ...]
"""The keys that lead from a value to one of its parts; empty where the value has no parts."""


def named_parts(space: spaces.Space[Any], lone: str, *, where: str) -> list[tuple[str, Path, spaces.Space[Any]]]:
    """``(name, path, space)`` of everything in `space` that is no ``Dict`` or ``Tuple``, in its order.

    Args:
        space: Any space.
        lone: The name where `space` itself is the only part.
        where: Names environment, agent and kind of space in an error.

    Raises:
        UnsupportedSpace: There is no part, or two are called alike.
    """
    parts = [("/".join(map(str, path)) or lone, path, part) for path, part in _parts(space, ())]
    if not parts:
        raise UnsupportedSpace(f"{where} {space} is empty; give it at least one part")
    names = [name for name, _, _ in parts]
    for name in names:
        if names.count(name) > 1:
            raise UnsupportedSpace(f"{where} {space} has two parts called {name!r}; rename a key")
    return parts


def _parts(space: spaces.Space[Any], path: Path) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _parts(part, (*path, index))
    else:
        yield path, space


def identical(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether two spaces are equal to the last bit.

    To Gymnasium bounds are equal that differ by 1e-8: a power in watts, say, would be ten times too large.
    """
    if one != other:
        return False
    others = dict(_parts(other, ()))
    return all(
        np.array_equal(part.low, others[path].low) and np.array_equal(part.high, others[path].high)  # type: ignore[attr-defined]
        for path, part in _parts(one, ())
        if isinstance(part, spaces.Box)
    )


def part_of(space: spaces.Space[Any], path: Path) -> spaces.Space[Any] | None:
    """The part of `space` at `path`, or None."""
    for key in path:
        inside: Any = space.spaces if isinstance(space, spaces.Dict | spaces.Tuple) else ()
        if key not in (inside if isinstance(inside, Mapping) else range(len(inside))):
            return None
        space = inside[key]
    return space


def at(value: Any, path: Path) -> Any:
    """The part of `value` at `path`.

    Raises:
        ValueError: `value` has no such part; names the key.
    """
    for key in path:
        if isinstance(value, Mapping):
            if key not in value:
                raise ValueError(f"has no key {key!r}")
        elif isinstance(key, int) and isinstance(value, Sequence):
            if key >= len(value):
                raise ValueError(f"has {len(value)} parts, not {key + 1}")
        else:
            raise ValueError(f"is {type(value).__name__} where part {key!r} is looked for")
        value = value[key]
    return value


def called(kind: str, leaf: str) -> str:
    """How an error names a leaf: ``observation``, or ``observation leaf 'pos/x'`` of several."""
    return kind if leaf == kind else f"{kind} leaf {leaf!r}"
