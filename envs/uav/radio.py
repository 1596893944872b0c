"""Who serves whom, at which SINR and rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Links", "serve"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Links:
    """The downlink of one slot.

    Attributes:
        serving: ``[E, G]`` int, index of each user's UAV.
        sinr: ``[E, G]``, linear.
        rates: ``[E, G]``, in b/s.
        load: ``[E, U]``, users of each UAV.
        uav_rates: ``[E, U]``, sum over each UAV's users, in b/s; 0 without users.
        levels: ``[E, U, U]``, power from UAV (second index) summed over the users of a UAV (first index), in
            units of the noise; what one does to the other, and on the diagonal the wanted signal.
    """

    serving: Array
    sinr: Array
    rates: Array
    load: Array
    uav_rates: Array
    levels: Array


def serve(
    gain: Array,
    power: Array,
    *,
    noise_w: float,
    bandwidth_hz: float,
    resources: Literal["equal_share", "orthogonal"],
) -> Links:
    """Associate every user with its strongest UAV and split each UAV's band equally among its users.

    With ``"equal_share"`` all UAVs use the whole band and disturb each other; with ``"orthogonal"`` each has
    its own ``B/U``. A user's share of its UAV's power equals its share of the band, so the SINR does not
    depend on it.

    Args:
        gain: Power gains, ``[E, U, G]``, linear.
        power: Transmit powers, ``[E, U]``, in W, positive.
        noise_w: Noise over the whole band, in W.
        bandwidth_hz: The whole band, in Hz.
        resources: How the UAVs divide the band.
    """
    uavs = gain.shape[1]
    # In units of the noise: sizes that float32 holds well.
    received = gain * (power / noise_w)[:, :, None]
    serving = received.argmax(axis=1)
    mine = serving[:, None, :] == np.arange(uavs)[None, :, None]
    signal = received.max(axis=1)
    band = bandwidth_hz
    levels = mine.astype(gain.dtype) @ received.transpose(0, 2, 1)
    if resources == "equal_share":
        # Summed over the others rather than total minus signal: under a dominant server the difference would
        # lose the interference in float32.
        sinr = signal / (1.0 + np.where(mine, 0.0, received).sum(axis=1, dtype=gain.dtype))
    else:
        # The noise in B/U is smaller by U, and nobody else transmits there.
        sinr = signal * uavs
        band /= uavs
        levels *= uavs * np.eye(uavs, dtype=gain.dtype)
    load = mine.sum(axis=2)
    rates = np.log1p(sinr)
    rates *= band / math.log(2)
    rates /= load[np.arange(len(load))[:, None], serving]
    uav_rates = np.where(mine, rates[:, None, :], 0.0).sum(axis=2, dtype=gain.dtype)
    return Links(serving, sinr, rates, load, uav_rates, levels)
