"""How much a set of rates is worth, and how unequal it is: pure functions, in the dtype of their input."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["StdOver", "alpha_fair", "alpha_fair_worth", "outage_share", "rate_deviation"]

Array = NDArray[Any]

StdOver = Literal["users", "uavs", "running_users"]
"""What the standard deviation of the reward is taken over."""


def alpha_fair_worth(rates: Array, *, alpha: float, floor: float) -> Array:
    """What single rates are worth: ``R^(1 - alpha) / (1 - alpha)``, and ``log R`` for ``alpha = 1``.

    0 is the rate itself, 1 proportional fairness, 2 the least potential delay, and towards infinity only the
    least rate counts. As alpha goes to 1 differences of utilities go to those of the logarithm; the utility itself
    does not, by the constant ``1 / (1 - alpha)``.

    Args:
        rates: Any shape, not negative; best in units of a typical rate, for powers of b/s leave float32.
        alpha: Aversion to inequality, at least 0.
        floor: For alpha of 1 and above, where a rate of 0 is worth minus infinity, lower rates count as this
            one, in the unit of `rates`; positive. Not used below 1.

    Raises:
        ValueError: `alpha` is negative, or `floor` is not positive.

    Source: Mo and Walrand, "Fair end-to-end window-based congestion control", IEEE/ACM ToN 8(5), 2000.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    if floor <= 0:
        raise ValueError(f"floor must be positive, got {floor}")
    worth: Array
    if alpha < 1:
        worth = rates ** (1 - alpha) / (1 - alpha)
    elif alpha == 1:
        worth = np.log(np.maximum(rates, floor))
    else:
        worth = np.maximum(rates, floor) ** (1 - alpha) / (1 - alpha)
    return worth


def alpha_fair(rates: Array, *, alpha: float, floor: float) -> Array:
    """Alpha-fair utility of users together, ``[E]`` from ``[E, G]``: the sum of `alpha_fair_worth`."""
    utility: Array = alpha_fair_worth(rates, alpha=alpha, floor=floor).sum(axis=1)
    return utility


def rate_deviation(
    over: StdOver, *, rates: Array, mean_rates: Array, uav_rates: Array, flying: Array | None = None
) -> Array:
    """Population standard deviation in Mb/s of what the reward should make equal.

    Args:
        over: ``"users"``: the users' rates; ``"running_users"``: their mean rates over the episode so far, which lets
            users take turns; ``"uavs"``: the UAVs' sum rates over ``G / U``, so that all three are of one scale.
        rates: ``[E, G]``, in b/s.
        mean_rates: ``[E, G]``, in b/s.
        uav_rates: ``[E, U]``, in b/s.
        flying: ``[E, U]`` bool, the UAVs that count (``"uavs"``); None: all. 0 where none does.

    Returns:
        ``[E]``. Does not depend on the order of users or UAVs, to the last bit.
    """
    if over == "users":
        return _deviation(rates * 1e-6)
    if over == "running_users":
        return _deviation(mean_rates * 1e-6)
    scaled = uav_rates * (1e-6 * uav_rates.shape[1] / rates.shape[1])
    if flying is None:
        return _deviation(scaled)
    count = np.maximum(flying.sum(axis=1), 1).astype(scaled.dtype)
    # In the order of the rates, those that do not count last, so that sums have one order.
    ordered = np.sort(np.where(flying, scaled, np.inf), axis=1)
    counts = np.isfinite(ordered)
    mean = np.where(counts, ordered, 0).sum(axis=1) / count
    squares = np.square(np.where(counts, ordered - mean[:, None], 0)).sum(axis=1)
    deviation: Array = np.sqrt(squares / count)
    return deviation


def outage_share(rates: Array, *, threshold: float) -> Array:
    """Share of the users whose rate is below `threshold`, ``[E]``.

    Args:
        rates: ``[E, G]``, in b/s.
        threshold: In b/s.
    """
    share: Array = (rates < threshold).mean(axis=1, dtype=rates.dtype)
    return share


def _deviation(values: Array) -> Array:
    # One layout, so that sums have one order.
    ordered = np.sort(np.ascontiguousarray(values), axis=1)
    mean = ordered.sum(axis=1) / values.shape[1]
    deviation: Array = np.sqrt(np.square(ordered - mean[:, None]).mean(axis=1))
    return deviation
