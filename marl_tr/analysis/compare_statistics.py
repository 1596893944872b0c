"""How variants compare over several runs, with the uncertainty that few runs leave.

Intervals are percentile intervals of a bootstrap over *runs*, redrawn within each task and variant: what they say is
how far the number could have come out otherwise with other seeds. Below five runs they are too narrow.

Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (arXiv 2108.13264), section
    4; Gorsane et al., Towards a Standardised Performance Evaluation Protocol for Cooperative MARL (arXiv 2209.10485).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marl_tr.analysis.statistics import ConfidenceInterval, iqm

__all__ = [
    "Band",
    "curve_band",
    "first_reached",
    "normalise",
    "on_common_grid",
    "performance_profile",
    "probability_of_improvement",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A curve and the pointwise interval around it.

    Attributes:
        estimate: ``[N]``.
        low: Lower end, ``[N]``.
        high: Upper end, ``[N]``.
    """

    estimate: Array
    low: Array
    high: Array


def normalise(scores: ArrayLike, *, low: float, high: float) -> Array:
    """Scores in units in which `low` is 0 and `high` is 1; beyond them they are not cut off.

    Raises:
        ValueError: `high` is not above `low`.
    """
    if not high > low:
        raise ValueError(f"the range of scores must rise, not from {low} to {high}")
    result: Array = (np.asarray(scores, dtype=np.float64) - low) / (high - low)
    return result


def probability_of_improvement(
    x: Sequence[ArrayLike],
    y: Sequence[ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> ConfidenceInterval:
    """``P(X > Y)``: how likely a run of X beats a run of Y on a task drawn at random; a tie counts half.

    On one task it is the share of all pairs of runs in which X is ahead, Mann and Whitney's U over the number of
    pairs. The tasks' shares are averaged. It says how *often*, never how much.

    Args:
        x: A row of scores ``[n]`` a task; rows may differ in length.
        y: The same tasks in the same order, ``[m]`` each.
        confidence: Share of resamples inside.
        resamples: How many.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: No tasks, not the same number of them, or a task without scores.
    """
    ours, theirs = _rows(x), _rows(y)
    if len(ours) != len(theirs):
        raise ValueError(f"X has {len(ours)} tasks and Y {len(theirs)}")
    generator = np.random.default_rng(seed)
    estimate, drawn = 0.0, np.zeros(resamples)
    for a, b in zip(ours, theirs, strict=True):
        ahead = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])
        estimate += float(ahead.mean()) / len(ours)
        drawn += ((_shares(a.size, resamples, generator) @ ahead) * _shares(b.size, resamples, generator)).sum(1)
    low, high = _ends(drawn / len(ours), confidence)
    return ConfidenceInterval(estimate, float(low), float(high), confidence, resamples)


def performance_profile(
    scores: Sequence[ArrayLike],
    thresholds: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """Share of runs with a score above each threshold: averaged over tasks, which count alike.

    Args:
        scores: A row of scores ``[n]`` a task, normalised where there are several.
        thresholds: ``[N]``.
        confidence: Share of resamples inside the band, point by point.
        resamples: How many.
        seed: Equal seeds give equal bands.

    Raises:
        ValueError: No tasks, or a task without scores.
    """
    rows, tau = _rows(scores), np.asarray(thresholds, dtype=np.float64)
    generator = np.random.default_rng(seed)
    estimate, drawn = np.zeros(tau.size), np.zeros((resamples, tau.size))
    for row in rows:
        above = (row[:, None] > tau[None]).astype(np.float64)
        estimate += above.mean(0) / len(rows)
        drawn += _shares(row.size, resamples, generator) @ above / len(rows)
    low, high = _ends(drawn, confidence)
    return Band(estimate, low, high)


def curve_band(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Band:
    """Interquartile mean over runs at each point of a curve; whole runs are redrawn, so that points belong together.

    Args:
        values: ``[runs, N]``.
        confidence: Share of resamples inside the band, point by point.
        resamples: How many.
        seed: Equal seeds give equal bands.
    """
    curves = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    runs, points = curves.shape
    # Resamples are all drawn before any is used: the block's size must not change them.
    chosen = generator.integers(0, runs, (resamples, runs))
    block = max(1, 4_000_000 // (runs * points))
    drawn = np.concatenate(
        [
            iqm(np.moveaxis(curves[chosen[start : start + block]], 1, -1))  # [b, N, runs]
            for start in range(0, resamples, block)
        ]
    )
    low, high = _ends(drawn, confidence)
    return Band(iqm(curves.T), low, high)


def first_reached(x: ArrayLike, values: ArrayLike, threshold: float) -> float:
    """The first of `x` ``[N]`` at which `values` ``[N]`` is at least `threshold`; infinite where none is.

    Noise makes it early: of many evaluations one is lucky. It is a comparison between curves that are evaluated alike.
    """
    reached = np.flatnonzero(np.asarray(values, dtype=np.float64) >= threshold)
    return float(np.asarray(x, dtype=np.float64)[reached[0]]) if reached.size else float("inf")


def on_common_grid(curves: Sequence[tuple[ArrayLike, ArrayLike]], *, points: int = 100) -> tuple[Array, Array]:
    """Curves that were measured at different places, interpolated linearly where all of them are known.

    Args:
        curves: ``(x [N], y [N])`` of each, x rising.
        points: Of the grid, evenly from the latest beginning to the earliest end.

    Returns:
        The grid ``[points]`` and the values ``[curves, points]``.
    """
    measured = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in curves]
    begin, end = max(x[0] for x, _ in measured), min(x[-1] for x, _ in measured)
    grid = np.linspace(begin, max(begin, end), points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in measured])


def _rows(scores: Sequence[ArrayLike]) -> list[Array]:
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows):
        raise ValueError("every task needs a row of scores")
    return rows


def _shares(runs: int, resamples: int, generator: np.random.Generator) -> Array:
    """How often each run is in a resample of as many, as a share: ``[resamples, runs]``, rows sum to 1."""
    counts = generator.multinomial(runs, np.full(runs, 1.0 / runs), size=resamples)
    result: Array = counts / runs
    return result


def _ends(drawn: NDArray[Any], confidence: float) -> tuple[Array, Array]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high
