"""Curves in the plane, and the nearest point on them.

A curve is one piece, or several, each run through by ``t`` in [0, 1]; the arc parameter ``u`` in [0, 1] runs through
the pieces one after the other at (nearly) constant speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CURVES", "Curve", "Nearest"]

Array = NDArray[Any]

_GRID = 512
"""Points a piece among which the nearest is looked for first."""
_GOLDEN = (np.sqrt(5.0) - 1) / 2
_SECTIONS = 40
"""Golden sections of two grid cells: an interval of about 1e-11."""


@dataclass(frozen=True)
class Nearest:
    """Points of a curve.

    Attributes:
        u: ``[N]`` arc parameters.
        distance: ``[N]`` to them.
    """

    u: Array
    distance: Array


@dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
        pieces: From ``t`` ``[...]`` in [0, 1] to points ``[..., 2]``, each.
        closed: Whether ``u = 1`` is ``u = 0``; of one piece then.
    """

    pieces: tuple[Callable[[Array], Array], ...]
    closed: bool = False

    def point(self, u: Array) -> Array:
        """Points ``[..., 2]`` at arc parameters ``[...]``."""
        scaled = np.clip(np.asarray(u, np.float64), 0, 1) * len(self.pieces)
        piece = np.minimum(scaled.astype(np.int64), len(self.pieces) - 1)
        return self._at(piece, scaled - piece)

    def nearest(self, points: Array) -> Nearest:
        """The nearest points of the curve to ``[N, 2]``: the nearest of a grid, then golden sections around it."""
        points = np.asarray(points, np.float64)
        t = np.linspace(0, 1, _GRID + 1)
        grid = np.stack([piece(t) for piece in self.pieces])  # [pieces, G, 2]
        squared = np.square(points[:, None, None] - grid).sum(-1).reshape(len(points), -1)
        piece, cell = np.divmod(squared.argmin(1), _GRID + 1)
        low, high = (cell - 1) / _GRID, (cell + 1) / _GRID
        if not self.closed:
            low, high = np.maximum(low, 0), np.minimum(high, 1)

        def away(t: Array) -> Array:
            gaps: Array = np.hypot(*(points - self._at(piece, t)).T)
            return gaps

        for _ in range(_SECTIONS):
            width = _GOLDEN * (high - low)
            left, right = high - width, low + width
            keep_left = away(left) < away(right)
            low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
        # An end of the curve is approached by sections, but only reached by itself.
        candidates = np.stack([(low + high) / 2, cell / _GRID])
        gaps = np.stack([away(t) for t in candidates])
        best = gaps.argmin(0)
        rows = np.arange(len(points))
        u = (piece + candidates[best, rows]) / len(self.pieces)
        return Nearest(u=u % 1.0 if self.closed else u, distance=gaps[best, rows])

    def _at(self, piece: Array, t: Array) -> Array:
        points: Array = np.choose(piece[..., None], [curve(t) for curve in self.pieces])
        return points


def _arc(centre: tuple[float, float], begin: float, end: float) -> Callable[[Array], Array]:
    """Of the unit circle around `centre`, between angles."""

    def piece(t: Array) -> Array:
        angle = begin + (end - begin) * t
        return np.stack([centre[0] + np.cos(angle), centre[1] + np.sin(angle)], -1)

    return piece


def _spiral(t: Array) -> Array:
    """Archimedes', one turn and three quarters, out to radius 1.4; the root makes the speed nearly constant."""
    first, last = 0.5 * np.pi, 4.0 * np.pi
    angle = np.sqrt(first**2 + (last**2 - first**2) * t)
    points: Array = (1.4 / last * angle)[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return points


CURVES: Mapping[str, Curve] = {
    "circle": Curve((_arc((0.0, 0.0), 0.0, 2 * np.pi),), closed=True),
    "moons": Curve((_arc((-0.5, -0.25), np.pi, 0.0), _arc((0.5, 0.25), np.pi, 2 * np.pi))),
    "spiral": Curve((_spiral,)),
}
