"""One line of strict JSON, the same bytes for the same content, whatever number types went in.

JSON has no infinities and no nan; here they are the strings ``"Infinity"``, ``"-Infinity"`` and ``"NaN"``,
which `number` (and Python's `float`) reads back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["dumps", "number"]


def dumps(value: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """`value` on one line, without spaces.

    Args:
        value: Nested mappings, lists and tuples of strings, bools, None and numbers; zero-dimensional NumPy
            and torch values count as numbers.
        sort_keys: Sort the keys of every mapping; else they keep their order.

    Raises:
        TypeError: Something else is in it.
    """
    return json.dumps(_plain(value), sort_keys=sort_keys, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def number(value: object) -> float:
    """The float that `dumps` wrote.

    Raises:
        ValueError: `value` is neither a number nor one of the three strings.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(str(value))
    raise ValueError(f"{value!r} is not a number")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int):
        return value
    if getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
