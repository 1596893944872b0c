"""Air-to-ground channel: a power law of the distance, attenuated further without line of sight.

Pure functions, computed in the dtype of their input.

Source: Zeng, Xu, Zhang, "Energy minimization for wireless communication with rotary-wing UAV", IEEE TWC 18(4),
2019, equations 3 and 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.channel import SPEED_OF_LIGHT, elevation_deg, sigmoid

__all__ = ["PowerLaw", "free_space_beta0"]

Array = NDArray[Any]


@dataclass(frozen=True)
class PowerLaw:
    """Links with gain ``beta0 d^-alpha``; implements `marl_tr.envs.uav.links.LinkModel`.

    Attributes:
        beta0: Gain at 1 m, linear.
        alpha: Path-loss exponent.
        kappa: Factor without line of sight.
        c: Sigmoid constant, in degrees.
        d: Sigmoid slope, per degree.
    """

    beta0: float
    alpha: float = 2.3
    kappa: float = 0.2
    c: float = 10.0
    d: float = 0.6

    def los_probability(self, horizontal_sq: Array, height: Array) -> Array:
        """``1 / (1 + C exp(-D (theta - C)))`` for the elevation in degrees (Zeng et al., equation 3)."""
        return sigmoid(elevation_deg(np.sqrt(horizontal_sq), height), self.c, self.d)

    def gains(self, horizontal_sq: Array, height: Array) -> tuple[Array, Array]:
        """Power gains with and without line of sight, linear."""
        los = self._attenuation(horizontal_sq, height)
        los = np.exp(los, out=los)
        return los, los * self.kappa

    def mean(self, horizontal_sq: Array, height: Array, averaging: Literal["mean_gain", "mean_db"]) -> Array:
        """Mean power gain, linear; for ``"mean_gain"`` Zeng et al., equation 4."""
        p = self.los_probability(horizontal_sq, height)
        gain = self._attenuation(horizontal_sq, height)
        if averaging == "mean_db":
            # kappa^(1 - p), inside the one exponential.
            p -= 1.0
            p *= -math.log(self.kappa)
            gain += p
            return np.exp(gain, out=gain)
        np.exp(gain, out=gain)
        p *= 1.0 - self.kappa
        p += self.kappa
        gain *= p
        return gain

    def shadowing_db(self, height: Array) -> tuple[Array, Array]:
        """None of its own: zeros."""
        return np.zeros_like(height), np.zeros_like(height)

    def _attenuation(self, horizontal_sq: Array, height: Array) -> Array:
        """``ln(beta0 d^-alpha)``."""
        log_gain: Array = horizontal_sq + height * height
        np.log(log_gain, out=log_gain)
        log_gain *= -0.5 * self.alpha
        log_gain += math.log(self.beta0)
        return log_gain


def free_space_beta0(carrier_hz: float) -> float:
    """Gain of free space at 1 m, linear: ``(c / (4 pi f))^2``."""
    return (SPEED_OF_LIGHT / (4 * math.pi * carrier_hz)) ** 2
