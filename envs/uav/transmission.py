"""One slot on air: from positions, gains and commands to what every user gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.actions import Command
from marl_tr.envs.uav.association import associate, nearest_users
from marl_tr.envs.uav.backhaul import backhaul_capacity, limit_by_backhaul
from marl_tr.envs.uav.channel import ENVIRONMENTS
from marl_tr.envs.uav.channel_config import AlHouraniConfig
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.radio import Links, serve
from marl_tr.envs.uav.subchannels import serve_subchannels

__all__ = ["Transmission", "transmit"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Transmission:
    """What was sent in a slot, and what arrived.

    Attributes:
        links: Who serves whom, SINRs and rates.
        power: ``[E, U]``, sent by each UAV, in W.
    """

    links: Links
    power: Array


def transmit(
    config: DownlinkConfig,
    gain: Array,
    command: Command,
    *,
    position: Array,
    users: Array,
    chosen: Array | None = None,
    flying: Array | None = None,
) -> Transmission:
    """Serve the users, as the settings of the radio say.

    Sub-channels go to the users that were chosen. Where nobody chooses (continuous actions), they go round the UAV's
    own users, the nearest first.

    Args:
        config: The settings.
        gain: ``[E, U, G]``, linear.
        command: Powers.
        position: UAVs, ``[E, U, 3]``, in m.
        users: ``[E, G, 2]``, in m.
        chosen: ``[E, U, K]``, the user whom each sub-channel is for, -1: idle; None: nobody chooses.
        flying: ``[E, U]`` bool; the others are silent. None: all fly.
    """
    limits = config.radio
    horizontal_sq = None if limits.coverage_radius_m is None else _horizontal_sq(position, users)
    band: dict[str, Any] = {
        "noise_w": config.noise_w,
        "bandwidth_hz": config.bandwidth_hz,
        "resources": config.resources,
        "limits": limits,
        "horizontal_sq": horizontal_sq,
    }
    links: Links
    if command.split is None:
        power = command.power.astype(gain.dtype, copy=False)
        power = power if flying is None else power * flying
        links = serve(gain, power, **band)
    else:
        split = command.split.astype(gain.dtype, copy=False)
        full = np.full(gain.shape[:2], config.p_max_w, gain.dtype)
        if flying is not None:
            full, split = full * flying, split * flying[..., None]
        if chosen is None:
            belongs = associate(gain * full[..., None], limits=limits, horizontal_sq=horizontal_sq).serving
            mine = belongs[:, None, :] == np.arange(config.num_uavs)[:, None]
            chosen = _in_turn(nearest_users(position, users, split.shape[2], among=mine))
        found = serve_subchannels(gain, split, chosen, full_power=full, **band)
        links, power = found, found.power.sum(axis=2)
    if config.radio.backhaul is not None:
        channel = config.channel
        capacity = backhaul_capacity(
            position,
            position[..., 2],
            config=config.radio.backhaul,
            area_m=config.area_m,
            constants=ENVIRONMENTS[channel.environment if isinstance(channel, AlHouraniConfig) else "urban"],
        )
        links = limit_by_backhaul(links, capacity)
    return Transmission(links, power)


def _in_turn(nearest: Array) -> Array:
    """``[E, U, K]`` users, -1 behind the last of them, to as many sub-channels: from the first again after the last."""
    known = (nearest >= 0).sum(axis=2, keepdims=True)
    turn = np.arange(nearest.shape[2]) % np.maximum(known, 1)
    return np.take_along_axis(nearest, turn, axis=2)


def _horizontal_sq(position: Array, users: Array) -> Array:
    dx: Array = users[:, None, :, 0] - position[:, :, 0, None]
    dy = users[:, None, :, 1] - position[:, :, 1, None]
    dx *= dx
    dy *= dy
    dx += dy
    return dx
