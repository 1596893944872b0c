"""Air-to-ground channel: probabilistic line of sight.

Pure functions, and the links that they make; computed in the dtype of their input: float64 meets the golden vectors,
float32 is for the simulator. Angles are degrees: the constants were fitted in degrees, and code that feeds radians
is the best known way to get this model wrong.

Source: Al-Hourani, Kandeepan, Lardner, "Optimal LAP altitude for maximum coverage", IEEE WCL 3(6), 2014;
form as in Zeng, Xu, Zhang, IEEE TWC 18(4), 2019, equations 3 and 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ENVIRONMENTS",
    "SPEED_OF_LIGHT",
    "AlHourani",
    "LosConstants",
    "elevation_deg",
    "los_probability",
    "power_gain",
    "sigmoid",
]

Array = NDArray[Any]

SPEED_OF_LIGHT = 299_792_458.0
"""In m/s."""


@dataclass(frozen=True)
class LosConstants:
    """An environment's fit.

    Attributes:
        a: Sigmoid constant, in degrees.
        b: Sigmoid slope, per degree.
        eta_los_db: Loss beyond free space with line of sight, in dB.
        eta_nlos_db: The same without, in dB.
    """

    a: float
    b: float
    eta_los_db: float
    eta_nlos_db: float


ENVIRONMENTS = {
    "suburban": LosConstants(4.88, 0.43, 0.1, 21.0),
    "urban": LosConstants(9.61, 0.16, 1.0, 20.0),
    "dense_urban": LosConstants(12.08, 0.11, 1.6, 23.0),
    "high_rise": LosConstants(27.23, 0.08, 2.3, 34.0),
}
"""Al-Hourani's four environments at 2 GHz."""


def elevation_deg(horizontal: Array, height: Array | float) -> Array:
    """Elevation of the UAV seen from the user, in degrees (90 overhead).

    Args:
        horizontal: Horizontal distance, in m, any shape.
        height: UAV height over the user, in m.
    """
    angle: Array = np.arctan2(np.asarray(height, dtype=horizontal.dtype), horizontal)
    angle *= 180.0 / math.pi
    return angle


def los_probability(elevation: Array, constants: LosConstants) -> Array:
    """``1 / (1 + a exp(-b (theta - a)))`` for an elevation in degrees."""
    return sigmoid(elevation, constants.a, constants.b)


def sigmoid(elevation: Array, a: float, b: float) -> Array:
    """``1 / (1 + a exp(-b (theta - a)))`` with `a` in degrees and `b` per degree."""
    p: Array = elevation * -b
    np.exp(p, out=p)
    p *= a * math.exp(a * b)
    p += 1.0
    return np.reciprocal(p, out=p)


def power_gain(
    horizontal_sq: Array,
    height: Array | float,
    *,
    constants: LosConstants,
    carrier_hz: float,
    averaging: Literal["mean_gain", "mean_db"],
) -> Array:
    """Mean power gain of each link, linear.

    Args:
        horizontal_sq: Squared horizontal distance, in m^2, any shape.
        height: UAV height over the user, in m.
        constants: The environment.
        carrier_hz: Carrier frequency, in Hz.
        averaging: ``"mean_gain"``: expectation of the gain over line of sight or not; ``"mean_db"``: of the
            loss in dB.

    Returns:
        Gain below one, shaped like `horizontal_sq`.
    """
    p = los_probability(elevation_deg(np.sqrt(horizontal_sq), height), constants)
    nlos = 10 ** (-constants.eta_nlos_db / 10)
    if averaging == "mean_gain":
        # A sum of two positive terms, so that float32 loses nothing where one of them vanishes.
        p *= 10 ** (-constants.eta_los_db / 10) - nlos
        p += nlos
    else:
        p *= (constants.eta_nlos_db - constants.eta_los_db) * math.log(10) / 10
        np.exp(p, out=p)
        p *= nlos
    # Free space, 20 log10(4 pi f d / c) dB, without leaving the linear domain.
    p *= (SPEED_OF_LIGHT / (4 * math.pi * carrier_hz)) ** 2
    p /= horizontal_sq + height * height
    return p


@dataclass(frozen=True)
class AlHourani:
    """Links of an environment at a carrier; implements `marl_tr.envs.uav.links.LinkModel`."""

    constants: LosConstants
    carrier_hz: float

    def los_probability(self, horizontal_sq: Array, height: Array) -> Array:
        """Probability of line of sight."""
        return los_probability(elevation_deg(np.sqrt(horizontal_sq), height), self.constants)

    def gains(self, horizontal_sq: Array, height: Array) -> tuple[Array, Array]:
        """Power gains with and without line of sight, linear."""
        free: Array = horizontal_sq + height * height
        np.divide((SPEED_OF_LIGHT / (4 * math.pi * self.carrier_hz)) ** 2, free, out=free)
        return free * 10 ** (-self.constants.eta_los_db / 10), free * 10 ** (-self.constants.eta_nlos_db / 10)

    def mean(self, horizontal_sq: Array, height: Array, averaging: Literal["mean_gain", "mean_db"]) -> Array:
        """Mean power gain, see `power_gain`."""
        return power_gain(
            horizontal_sq, height, constants=self.constants, carrier_hz=self.carrier_hz, averaging=averaging
        )

    def shadowing_db(self, height: Array) -> tuple[Array, Array]:
        """None of its own: zeros."""
        return np.zeros_like(height), np.zeros_like(height)
