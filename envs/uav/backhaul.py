"""What a UAV can deliver is bounded by what a macro base station can bring to it."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.channel import SPEED_OF_LIGHT, LosConstants, power_gain
from marl_tr.envs.uav.radio import Links, with_rates
from marl_tr.envs.uav.radio_config import BackhaulConfig

__all__ = ["backhaul_capacity", "limit_by_backhaul", "macro_place"]

Array = NDArray[Any]
L = TypeVar("L", bound=Links)


def macro_place(config: BackhaulConfig, *, area_m: float) -> tuple[float, float]:
    """Where the macro base station stands, x and y in m."""
    if config.place == "centre":
        return 0.5 * area_m, 0.5 * area_m
    if config.place == "edge":
        return 0.5 * area_m, 0.0
    return config.place


def backhaul_capacity(
    position: Array, height: Array | float, *, config: BackhaulConfig, area_m: float, constants: LosConstants
) -> Array:
    """What the macro base station can bring to each UAV, in b/s.

    The backhaul has a band of its own, split equally among all UAVs (also silent ones), and the macro's power with
    it: ``C_u = (B / U) log2(1 + P G_u / N)`` with P and N over the whole band, not above the highest spectral
    efficiency.

    Args:
        position: UAV positions, ``[E, U, 2]`` or ``[E, U, 3]``, in m; x and y are used.
        height: UAV heights over the ground, in m, ``[E, U]`` or one for all.
        config: Place and link budget.
        area_m: Side of the area, in m.
        constants: Of the environment, for the channel ``"mean_gain"``.

    Returns:
        ``[E, U]``.
    """
    x, y = macro_place(config, area_m=area_m)
    horizontal_sq = np.square(position[..., 0] - x) + np.square(position[..., 1] - y)
    # Seen from the lower of the two ends; nearer than 1 m there is no far field.
    above = np.maximum(np.abs(np.asarray(height, position.dtype) - config.height_m), 1.0).astype(position.dtype)
    if config.channel == "free_space":
        gain = (SPEED_OF_LIGHT / (4 * math.pi * config.carrier_hz)) ** 2 / (horizontal_sq + above * above)
    else:
        gain = power_gain(
            horizontal_sq, above, constants=constants, carrier_hz=config.carrier_hz, averaging="mean_gain"
        )
    efficiency = np.log1p(gain * (config.power_w / config.noise_w)) / math.log(2)
    if config.max_spectral_efficiency is not None:
        np.minimum(efficiency, config.max_spectral_efficiency, out=efficiency)
    capacity: Array = efficiency * (config.bandwidth_hz / position.shape[1])
    return capacity


def limit_by_backhaul(links: L, capacity: Array) -> L:
    """Scale the rates of a UAV's users by one factor where together they exceed its backhaul.

    Args:
        links: Of one slot.
        capacity: ``[E, U]``, in b/s.

    Returns:
        The links, with new `rates` and `uav_rates`.
    """
    binding = links.uav_rates > capacity
    factor = np.ones_like(links.uav_rates)
    np.divide(capacity, links.uav_rates, out=factor, where=binding)
    # Row -1 is some UAV's factor, but the rate of a user whom nobody serves is 0.
    rates = links.rates * factor[np.arange(len(factor))[:, None], links.serving]
    return with_rates(links, rates)
