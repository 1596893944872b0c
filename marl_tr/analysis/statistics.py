"""Aggregates of scores over runs and episodes, with their uncertainty.

Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (arXiv
    2108.13264).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ConfidenceInterval", "iqm", "stratified_bootstrap_ci"]

Array = NDArray[np.float64]

# Numbers of a block of resamples: 32 MB, whatever the number of scores.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class ConfidenceInterval:
    """A statistic and the interval that bootstrap resamples of it fill.

    Attributes:
        estimate: The statistic of the scores themselves.
        low: Lower end.
        high: Upper end.
        confidence: Share of the resamples between them.
        resamples: How many there were.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    resamples: int


def iqm(scores: ArrayLike) -> Array:
    """Interquartile mean over the last axis: the mean of the middle half of the scores.

    With the ``n`` scores in order, score ``i`` (from 1) stands for the stretch ``[i - 1, i]`` of ``[0, n]``
    and counts by the part of it that lies in ``[n / 4, 3 n / 4]``, divided by ``n / 2``. Where 4 divides
    ``n`` this is the plain mean of the middle ``n / 2`` scores, ``scipy.stats.trim_mean(scores, 0.25)``;
    elsewhere the two scores at the quartiles count in part, where `trim_mean` drops fewer than a quarter at
    each end. One score is its own mean; of two or three none is dropped whole, the outer ones of three count
    a quarter of the middle one.

    Args:
        scores: ``[..., n]``, n at least 1, finite.

    Returns:
        ``[...]`` float64.

    Raises:
        ValueError: No scores, or a score that is not finite.
    """
    ordered = np.sort(_finite(scores), axis=-1)
    n = ordered.shape[-1]
    rank = np.arange(n, dtype=np.float64)
    inside = np.minimum(rank + 1, 0.75 * n) - np.maximum(rank, 0.25 * n)
    # Not a matrix product: its rounding would depend on how many rows are reduced together.
    result: Array = (ordered * (np.maximum(inside, 0.0) / (0.5 * n))).sum(axis=-1)
    return result


def stratified_bootstrap_ci(
    scores: ArrayLike | Sequence[ArrayLike],
    statistic: Callable[[Array], Array] = iqm,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> ConfidenceInterval:
    """Percentile bootstrap interval of a statistic of all scores, each stratum resampled within itself.

    Args:
        scores: ``[strata, n]``: a row a run (or task), which are never mixed when scores are redrawn; rows of
            different lengths are allowed; ``[n]`` is one stratum.
        statistic: ``[R, N] -> [R]``, over the last axis, of the N scores of all strata side by side.
        confidence: Share of resamples inside, in (0, 1).
        resamples: How many; 2000 leave each end a standard error of about 1.5 % of the interval's width.
        seed: Equal seeds give equal intervals.

    Returns:
        The statistic of `scores` and its interval. With one score a stratum the interval has no width and
        means nothing.

    Raises:
        ValueError: No scores, a score that is not finite, or a setting out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), not {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    strata = _strata(scores)
    generator = np.random.default_rng(seed)
    everything = np.concatenate(strata)
    block = max(1, _BLOCK // everything.size)
    drawn = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        rows = [stratum[generator.integers(0, stratum.size, (count, stratum.size))] for stratum in strata]
        drawn.append(np.asarray(statistic(np.concatenate(rows, axis=1)), dtype=np.float64))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return ConfidenceInterval(
        estimate=float(np.asarray(statistic(everything[None]))[0]),
        low=float(low),
        high=float(high),
        confidence=confidence,
        resamples=resamples,
    )


def _strata(scores: ArrayLike | Sequence[ArrayLike]) -> list[Array]:
    rows: Any = scores if isinstance(scores, np.ndarray) else list(scores)  # type: ignore[arg-type]
    if len(rows) and np.ndim(rows[0]) == 0:
        rows = [rows]
    strata = [_finite(row) for row in rows]
    if not strata or any(stratum.ndim != 1 for stratum in strata):
        raise ValueError("scores must be [n] or [strata, n]")
    return strata


def _finite(scores: ArrayLike) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError("there are no scores")
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{bad} of {values.size} scores are not finite")
    return values
