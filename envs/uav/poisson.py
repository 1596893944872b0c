"""Poisson numbers from the counter-based generator, by inversion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marl_tr.philox import uniform

__all__ = ["PoissonTable", "poisson", "poisson_table"]

_REACH = 9.0
"""Standard deviations round the mean that a table covers; with `_MARGIN` more, less than 2**-53 lies beyond."""
_MARGIN = 40
_HIGHEST_MEAN = 1e9


@dataclass(frozen=True)
class PoissonTable:
    """A Poisson distribution, ready to be drawn from.

    Attributes:
        first: The least number that the table has.
        cumulative: ``P(X <= first + i)``, ``[n]`` float64, ending in 1.
    """

    first: int
    cumulative: NDArray[np.float64]


def poisson_table(mean: float) -> PoissonTable:
    """The distribution of mean `mean`, cut off where less than one draw in ``2**53`` would lie.

    Its probabilities follow from each other, ``p(k) = p(k - 1) mean / k``, in logarithms: no factorial overflows,
    and large means need no normal approximation. A mean of a million takes 18,000 numbers.

    Raises:
        ValueError: `mean` is not in ``[0, 1e9]``.
    """
    if not 0 <= mean <= _HIGHEST_MEAN:
        raise ValueError(f"the mean of a Poisson number must be in [0, {_HIGHEST_MEAN:g}], got {mean}")
    if mean == 0:
        return PoissonTable(0, np.ones(1))
    reach = _REACH * math.sqrt(mean)
    first = max(0, math.floor(mean - reach) - _MARGIN)
    last = math.ceil(mean + reach) + _MARGIN
    logs = np.concatenate(([0.0], np.cumsum(np.log(mean / np.arange(first + 1, last + 1)))))
    mass = np.exp(logs - logs.max())
    cumulative = np.cumsum(mass)
    cumulative /= cumulative[-1]
    return PoissonTable(first, cumulative)


def poisson(
    seed: int, stream: ArrayLike, *, purpose: int, step: ArrayLike, count: int, table: PoissonTable
) -> NDArray[np.int64]:
    """Poisson numbers; coordinates as in `marl_tr.philox.bits`, one uniform number each.

    Returns:
        ``[E, count]`` int64. The first ``n`` numbers do not depend on `count`.
    """
    u = uniform(seed, stream, purpose=purpose, step=step, count=count)
    # The first whose cumulative probability is above u; there is one, for u < 1.
    drawn: NDArray[Any] = np.searchsorted(table.cumulative, u, side="right")
    return drawn.astype(np.int64) + table.first
