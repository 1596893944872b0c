"""Propulsion power of a rotary-wing UAV.

Source: Zeng, Xu, Zhang, "Energy minimization for wireless communication with rotary-wing UAV", IEEE TWC
18(4), 2019, equations 12 and 64 and table I, for level flight. That climbing takes the work against gravity, and
that descending gives nothing back, is assumed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HOVER_POWER_W", "climb_power", "propulsion_power"]

Array = NDArray[Any]

_WEIGHT_N = 20.0
_AIR_DENSITY = 1.225
_ROTOR_RADIUS_M = 0.4
_DISC_AREA_M2 = 0.503
_BLADE_SPEED_RAD_S = 300.0
_TIP_SPEED_M_S = 120.0
_SOLIDITY = 0.05
_BODY_DRAG = 0.6
_INDUCED_FACTOR = 0.1
_PROFILE_DRAG = 0.012

_BLADE_AREA_M2 = _SOLIDITY * _DISC_AREA_M2
_BLADE_W = _PROFILE_DRAG / 8 * _AIR_DENSITY * _BLADE_AREA_M2 * _BLADE_SPEED_RAD_S**3 * _ROTOR_RADIUS_M**3
_INDUCED_W = (1 + _INDUCED_FACTOR) * _WEIGHT_N**1.5 / math.sqrt(2 * _AIR_DENSITY * _DISC_AREA_M2)
# Unrounded: with the table's 4.03 m/s the minimum of the curve moves by 0.01 W.
_INDUCED_SPEED_SQ = _WEIGHT_N / (2 * _AIR_DENSITY * _DISC_AREA_M2)
_PARASITE = 0.5 * _BODY_DRAG * _AIR_DENSITY * _BLADE_AREA_M2

HOVER_POWER_W = _BLADE_W + _INDUCED_W
"""``P(0)``, in W."""


def climb_power(rise: Array) -> Array:
    """Power to gain height, on top of `propulsion_power`, in W: ``W v_z``, and nothing back in descent.

    Args:
        rise: Vertical speed, in m/s, positive upwards, any shape.
    """
    power: Array = _WEIGHT_N * np.maximum(rise, 0.0)
    return power


def propulsion_power(speed_sq: Array) -> Array:
    """``P(V)`` of level flight, in W.

    Args:
        speed_sq: Squared horizontal speed, in m^2/s^2, any shape.
    """
    x = speed_sq * (0.5 / _INDUCED_SPEED_SQ)
    # sqrt(1 + x^2) - x as its reciprocal sum: the difference loses every digit of float32 in fast flight.
    induced = 1.0 / np.sqrt(np.sqrt(1.0 + x * x) + x)
    power: Array = (
        _BLADE_W
        + (3.0 * _BLADE_W / _TIP_SPEED_M_S**2) * speed_sq
        + _INDUCED_W * induced
        + _PARASITE * speed_sq * np.sqrt(speed_sq)
    )
    return power
