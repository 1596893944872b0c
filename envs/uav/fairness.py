"""How the users' rates are spread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fairness"]

Array = NDArray[Any]


def fairness(rates: Array) -> dict[str, Array]:
    """Statistics of the users' rates.

    Args:
        rates: ``[E, G]``, in b/s.

    Returns:
        ``[E]`` arrays: sum, mean, population standard deviation, 5th percentile (linear interpolation) and
        least rate in Mb/s, and Jain's index ``(sum R)^2 / (G sum R^2)``, 0 where all rates are 0.
    """
    mbps = np.sort(rates, axis=1) * 1e-6
    users = rates.shape[1]
    total = np.add.reduce(mbps, axis=1)
    mean = total / users
    deviation = mbps - mean[:, None]
    squares = np.add.reduce(np.square(mbps), axis=1)
    at = 0.05 * (users - 1)
    low = math.floor(at)
    high = min(low + 1, users - 1)
    return {
        "throughput_mbps": total,
        "mean_rate_mbps": mean,
        "std_rate_mbps": np.sqrt(np.add.reduce(np.square(deviation), axis=1) / users),
        "p5_rate_mbps": mbps[:, low] + (at - low) * (mbps[:, high] - mbps[:, low]),
        "min_rate_mbps": mbps[:, 0],
        "jain": total * mean / np.maximum(squares, np.finfo(squares.dtype).tiny),  # 0 / tiny where nobody is served
    }
