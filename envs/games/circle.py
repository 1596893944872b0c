"""Modes on a circle: where they are, which is nearest, and how samples divide among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["EVEN_SHARE", "mode_measures", "nearest", "points", "squared_distances"]

Array = NDArray[Any]

EVEN_SHARE = 0.2
"""A mode counts as kept if it has at least this part of an even share, ``1 / M``, of a context's samples: 10 % of them
for two modes, and less for more, each of which has less when all are kept."""


def points(angle: ArrayLike, *, modes: int, radius: float) -> Array:
    """Where the modes are: mode ``k`` at the angle ``angle + 2 pi k / M``.

    Args:
        angle: ``[...]`` rad.
        modes: ``M``.
        radius: Of the circle around the origin.

    Returns:
        ``[..., M, 2]`` float64.
    """
    at = np.asarray(angle, np.float64)[..., None] + 2 * np.pi * np.arange(modes) / modes
    return radius * np.stack((np.cos(at), np.sin(at)), axis=-1)


def squared_distances(places: Array, modes: Array) -> Array:
    """From ``[E, A, 2]`` to each of ``[E, M, 2]``: ``[E, A, M]``."""
    squares: Array = np.square(places[:, :, None, :] - modes[:, None, :, :]).sum(axis=-1)
    return squares


def nearest(places: Array, modes: Array) -> Array:
    """Index of the mode ``[E, M, 2]`` nearest to each place ``[E, A, 2]``, ``[E, A]``; of equals the first."""
    index: Array = squared_distances(places, modes).argmin(axis=-1)
    return index


def mode_measures(mode: Array, cohort: Array, *, modes: int) -> dict[str, float]:
    """How the samples of each context divide among the modes; means over contexts, and over agents.

    The samples of a context are those of a cohort, agent by agent. A mode is kept if it has at least
    ``EVEN_SHARE / M`` of them.

    Args:
        mode: ``[E, A]``, the mode of each sample.
        cohort: ``[E]``.
        modes: ``M``.

    Returns:
        ``modes_per_context``: how many modes are kept, 1 to ``M``. ``all_modes_share``: of contexts in which every mode
        is. ``mode_entropy`` (of two modes or more): entropy of the shares over ``log M``, 0 to 1; of the shares as
        they are, so that ``n`` samples of an even mixture give about ``1 - (M - 1) / (2 n log M)``. Empty where no
        cohort has two samples: one sample says nothing about its context.
    """
    _, row = np.unique(cohort, return_inverse=True)
    agents = mode.shape[1]
    cell = (row[:, None] * agents + np.arange(agents)) * modes + mode
    count = np.bincount(cell.ravel(), minlength=(row.max() + 1) * agents * modes).reshape(-1, modes)
    total = count.sum(axis=1, keepdims=True)
    several = total[:, 0] >= 2
    if not several.any():
        return {}
    count, total = count[several], total[several]
    kept = (count * modes >= EVEN_SHARE * total - 1e-9) & (count > 0)
    measured = {
        "modes_per_context": float(kept.sum(axis=1).mean()),
        "all_modes_share": float(kept.all(axis=1).mean()),
    }
    if modes > 1:
        share = count / total
        entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)
        measured["mode_entropy"] = float(entropy.mean() / np.log(modes))
    return measured
