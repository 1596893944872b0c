"""Who serves whom, at which SINR and rate."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.association import associate, row_blocks
from marl_tr.envs.uav.radio_config import LinkLimits

__all__ = ["NO_LIMITS", "Links", "joined", "limited_rates", "serve", "with_rates"]

Array = NDArray[Any]

NO_LIMITS = LinkLimits()
"""Any number of users, any distance, any SINR, Shannon's rate."""


@dataclass(frozen=True)
class Links:
    """The downlink of one slot.

    Attributes:
        serving: ``[E, G]`` int, index of each user's UAV; -1: nobody serves it, and its SINR and rate are 0.
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


L = TypeVar("L", bound=Links)


def serve(
    gain: Array,
    power: Array,
    *,
    noise_w: float,
    bandwidth_hz: float,
    resources: Literal["equal_share", "orthogonal"],
    limits: LinkLimits = NO_LIMITS,
    horizontal_sq: Array | None = None,
) -> Links:
    """Associate every user with its strongest UAV and split each UAV's band equally among its users.

    With ``"equal_share"`` all UAVs use the whole band and disturb each other; with ``"orthogonal"`` each has
    its own ``B/U``. A user's share of its UAV's power equals its share of the band, so the SINR does not
    depend on it.

    A UAV of power 0 serves nobody and disturbs nobody. A user below the least SINR stays with its UAV and
    keeps its share of the band, at rate 0.

    Args:
        gain: Power gains, ``[E, U, G]``, linear.
        power: Transmit powers, ``[E, U]``, in W, not negative.
        noise_w: Noise over the whole band, in W.
        bandwidth_hz: The whole band, in Hz.
        resources: How the UAVs divide the band.
        limits: Of association and rate; see `associate` for caps and coverage.
        horizontal_sq: Squared horizontal distances, in m^2, ``[E, U, G]``; needed with a coverage radius.

    Raises:
        ValueError: There is a coverage radius and no `horizontal_sq`.
    """
    envs, uavs, users = gain.shape
    blocks = [
        _serve(
            gain[rows],
            power[rows],
            noise_w=noise_w,
            band=bandwidth_hz,
            orthogonal=resources == "orthogonal",
            limits=limits,
            horizontal_sq=None if horizontal_sq is None else horizontal_sq[rows],
        )
        for rows in row_blocks(envs, uavs * users)
    ]
    return joined(blocks)


def _serve(
    gain: Array,
    power: Array,
    *,
    noise_w: float,
    band: float,
    orthogonal: bool,
    limits: LinkLimits,
    horizontal_sq: Array | None,
) -> Links:
    uavs = gain.shape[1]
    # In units of the noise: sizes that float32 holds well.
    received = gain * (power / noise_w)[:, :, None]
    association = associate(received, limits=limits, horizontal_sq=horizontal_sq)
    serving, signal = association.serving, association.signal
    mine = serving[:, None, :] == np.arange(uavs)[None, :, None]
    levels = mine.astype(gain.dtype) @ received.transpose(0, 2, 1)
    if orthogonal:
        # The noise in B/U is smaller by U, and nobody else transmits there.
        sinr = signal * uavs
        band /= uavs
        levels *= uavs * np.eye(uavs, dtype=gain.dtype)
    else:
        # Summed over the others rather than total minus signal: under a dominant server the difference would
        # lose the interference in float32.
        sinr = signal / (1.0 + np.where(mine, 0.0, received).sum(axis=1, dtype=gain.dtype))
    load = mine.sum(axis=2)
    rates = limited_rates(sinr, limits, scale=band / math.log(2))
    # Of a user whom nobody serves, the load before the row's first is taken; its rate is 0 whatever it is divided by.
    sharers = np.maximum(load, 1).astype(gain.dtype)
    rates /= sharers.take(serving + uavs * np.arange(len(load))[:, None])
    uav_rates = np.where(mine, rates[:, None, :], 0.0).sum(axis=2, dtype=gain.dtype)
    return Links(serving, sinr, rates, load, uav_rates, levels)


def limited_rates(sinr: Array, limits: LinkLimits, *, scale: float) -> Array:
    """``scale log(1 + SINR)``, cut off at the highest spectral efficiency and 0 below the least SINR.

    Args:
        sinr: Linear, any shape.
        limits: `max_spectral_efficiency` and `min_sinr_db` are used.
        scale: Bandwidth over ``log(2)``: the result is then a rate in b/s.
    """
    rates: Array = np.log1p(sinr)
    if limits.max_spectral_efficiency is not None:
        np.minimum(rates, limits.max_spectral_efficiency * math.log(2), out=rates)
    rates *= scale
    if limits.min_sinr_db is not None:
        rates[sinr < 10 ** (limits.min_sinr_db / 10)] = 0
    return rates


def with_rates(links: L, rates: Array) -> L:
    """The same links at other rates of the users (as traffic or backhaul leaves them); sums the UAVs' anew.

    Args:
        links: Of one slot.
        rates: ``[E, G]``, in b/s; those of users whom nobody serves are 0.
    """
    envs, uavs = links.load.shape
    # Column 0 takes whom nobody serves.
    column = np.arange(envs)[:, None] * (uavs + 1) + links.serving + 1
    sums = np.bincount(column.ravel(), weights=rates.ravel(), minlength=envs * (uavs + 1))
    uav_rates = sums.reshape(envs, uavs + 1)[:, 1:].astype(rates.dtype)
    return dataclasses.replace(links, rates=rates, uav_rates=uav_rates)


def joined(blocks: list[L]) -> L:
    """Blocks of environments as one."""
    if len(blocks) == 1:
        return blocks[0]
    return dataclasses.replace(
        blocks[0],
        **{field.name: np.concatenate([getattr(b, field.name) for b in blocks]) for field in fields(blocks[0])},
    )
