"""Mean gains between any places, and how well the ground is covered.

What draws maps or searches places needs the channel as a function of positions alone. `Gain` is that function;
`mean_gain` makes the one of the configuration, and a channel of another kind (a measured gain map) brings its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.propagation import Channel, make_channel

__all__ = ["Gain", "ground_sinr_db", "mean_gain"]

Array = NDArray[Any]

Gain = Callable[[Array, Array], Array]
"""From UAVs ``[E, U, 2 or 3]`` and places on the ground ``[E, G, 2 or more]``, in m, to mean power gains
``[E, U, G]``, linear, in the dtype of the places."""


def mean_gain(config: DownlinkConfig) -> Gain:
    """The configuration's mean channel; UAVs given by two coordinates fly at ``altitude_m``."""
    channels: dict[np.dtype[Any], Channel] = {}

    def gain(uavs: Array, ground: Array) -> Array:
        dtype = ground.dtype
        if dtype not in channels:
            channels[dtype] = make_channel(
                config.channel, carrier_hz=config.carrier_hz, num_envs=1, num_uavs=1, num_users=1, dtype=dtype
            )
        if uavs.shape[2] == 2:
            uavs = np.concatenate((uavs, np.full((*uavs.shape[:2], 1), config.altitude_m, uavs.dtype)), axis=2)
        return channels[dtype].mean_gain(uavs, ground[..., :2])

    return gain


def ground_sinr_db(
    config: DownlinkConfig, gain: Gain, uavs: Array, power_w: Array, *, points: int = 80
) -> NDArray[np.float64]:
    """SINR that a user would have from its best server, over the whole area.

    Args:
        config: Area, noise and how the UAVs divide the band.
        gain: Of the mean channel.
        uavs: ``[U, 2 or 3]``, in m.
        power_w: ``[U]``; a UAV with 0 is silent.
        points: ``N``, places along each side; each is the centre of a cell.

    Returns:
        ``[N, N]`` in dB, first index along y from 0 up, second along x; ``-inf`` where nobody sends.
    """
    centres = (np.arange(points) + 0.5) * (config.area_m / points)
    ground = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(1, -1, 2)
    received = gain(uavs[None].astype(np.float64), ground)[0] * (power_w / config.noise_w)[:, None]
    signal = received.max(axis=0)
    if config.resources == "orthogonal":
        sinr = signal * len(uavs)  # the noise in B/U is smaller by U
    else:
        sinr = signal / (1.0 + (received.sum(axis=0) - signal))
    with np.errstate(divide="ignore"):
        decibel: NDArray[np.float64] = 10.0 * np.log10(sinr)
    return decibel.reshape(points, points)
