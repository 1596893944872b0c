"""The band in sub-channels, each assigned by a UAV to one of its users."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.association import associate, row_blocks
from marl_tr.envs.uav.radio import NO_LIMITS, Links, joined, limited_rates
from marl_tr.envs.uav.radio_config import LinkLimits

__all__ = ["SubchannelLinks", "serve_subchannels", "split_power"]

Array = NDArray[Any]


@dataclass(frozen=True)
class SubchannelLinks(Links):
    """The downlink of one slot with sub-channels.

    `sinr` is a user's effective SINR: the one at which its sub-channels, all alike, would carry the sum of their
    Shannon rates; 0 without a sub-channel. `load` counts the users of a UAV, with a sub-channel or without.
    `levels` are summed over assigned sub-channels, in units of the noise over the UAV's whole band, so that one
    user who gets everything evenly has the levels of the plain downlink.

    Attributes:
        user: ``[E, U, K]`` int, to whom each sub-channel went; -1: idle.
        power: ``[E, U, K]``, what is sent on it, in W; 0 on idle ones.
        subchannel_sinr: ``[E, U, K]``, linear; 0 on idle ones.
    """

    user: Array
    power: Array
    subchannel_sinr: Array


def serve_subchannels(
    gain: Array,
    power: Array,
    choice: Array,
    *,
    full_power: Array,
    noise_w: float,
    bandwidth_hz: float,
    resources: Literal["equal_share", "orthogonal"] = "equal_share",
    limits: LinkLimits = NO_LIMITS,
    horizontal_sq: Array | None = None,
) -> SubchannelLinks:
    """Rates of users on the sub-channels that their UAVs assign to them.

    A user belongs to the UAV that it receives best when all send at full power, within the limits of
    `associate`: what a UAV sends now must not decide whom it may send to. Of user g on sub-channel k of its
    UAV s, with ``P = full`` split as the UAV chose,

        SINR = p_sk G_sg / (sum over u != s of p_uk G_ug + N / K),   R_g = sum over its k of (B / K) log2(1 + SINR).

    With ``"orthogonal"`` each UAV has sub-channels of its own, of width ``B / (U K)``, and the sum is empty.
    The least SINR and the highest spectral efficiency hold on each sub-channel.

    A sub-channel that is assigned to a user of another UAV stays idle: choices are made before anybody knows who
    belongs to whom, so that this is no error of the UAV's. On an idle sub-channel nothing is sent.

    Past the association, the cost is that of ``E U U K`` numbers, whatever the number of users.

    Args:
        gain: Power gains, ``[E, U, G]``, linear; the same on all sub-channels.
        power: Transmit powers, ``[E, U, K]``, in W.
        choice: Index of the user that each sub-channel is for, ``[E, U, K]`` int; -1: idle.
        full_power: Highest total power of each UAV, ``[E, U]``, in W; 0: it is silent and serves nobody.
        noise_w: Noise over the whole band, in W.
        bandwidth_hz: The whole band, in Hz.
        resources: Whether UAVs share the sub-channels or have their own.
        limits: Of association and rate.
        horizontal_sq: Squared horizontal distances, in m^2, ``[E, U, G]``; needed with a coverage radius.

    Raises:
        ValueError: A power is negative or not finite, the powers of a UAV exceed its full power, a choice is no
            user, or there is a coverage radius and no `horizontal_sq`.
    """
    _check(power, choice, full_power, users=gain.shape[2])
    envs, uavs, users = gain.shape
    subchannels = power.shape[2]
    return joined(
        [
            _serve(
                gain[rows],
                power[rows],
                choice[rows],
                full_power=full_power[rows],
                noise_w=noise_w,
                bandwidth_hz=bandwidth_hz,
                orthogonal=resources == "orthogonal",
                limits=limits,
                horizontal_sq=None if horizontal_sq is None else horizontal_sq[rows],
            )
            for rows in row_blocks(envs, uavs * max(users, uavs * subchannels))
        ]
    )


def _serve(
    gain: Array,
    power: Array,
    choice: Array,
    *,
    full_power: Array,
    noise_w: float,
    bandwidth_hz: float,
    orthogonal: bool,
    limits: LinkLimits,
    horizontal_sq: Array | None,
) -> SubchannelLinks:
    envs, uavs, users = gain.shape
    subchannels = power.shape[2]
    received = gain * (full_power / noise_w)[:, :, None]
    serving = associate(received, limits=limits, horizontal_sq=horizontal_sq).serving
    row, sender = np.arange(envs)[:, None, None], np.arange(uavs)[:, None]
    chosen = np.maximum(choice, 0)
    assigned = (choice >= 0) & (serving[row, chosen] == sender)
    power = np.where(assigned, power, 0)

    # [E, V, U, K]: what UAV v sends on sub-channel k, at the user to whom UAV u gave k, over the noise there.
    reach = gain[row[:, None], sender[:, None], chosen[:, None]]
    reach *= (power * (subchannels / noise_w))[:, :, None, :]
    levels = np.where(assigned[:, None], reach, 0).sum(axis=3).transpose(0, 2, 1) / subchannels
    itself = np.arange(uavs)
    sinr = reach[:, itself, itself]
    width = bandwidth_hz / subchannels
    if orthogonal:
        sinr *= uavs
        width /= uavs
        levels *= uavs * np.eye(uavs, dtype=gain.dtype)
    else:
        reach[:, itself, itself] = 0
        sinr /= 1.0 + reach.sum(axis=1)
    rates = limited_rates(sinr, limits, scale=width / math.log(2))

    pair = (row * users + chosen).ravel()

    def per_user(values: Array) -> Array:
        return np.bincount(pair, weights=values.ravel(), minlength=envs * users).reshape(envs, users)

    effective = np.expm1(per_user(np.log1p(sinr)) / np.maximum(per_user(assigned), 1))
    return SubchannelLinks(
        serving=serving,
        sinr=effective.astype(gain.dtype),
        rates=per_user(rates).astype(gain.dtype),
        load=(serving[:, None, :] == sender).sum(axis=2),
        uav_rates=rates.sum(axis=2),
        levels=levels,
        user=np.where(assigned, choice, -1),
        power=power,
        subchannel_sinr=sinr,
    )


def split_power(logits: Array, p_max_w: float) -> Array:
    """Powers from any real numbers: ``p_max softmax([logits, 0])`` without its last entry, the unused power.

    Args:
        logits: ``[..., K]``.
        p_max_w: Highest total power, in W.

    Returns:
        ``[..., K]``, positive, adding up to less than `p_max_w` (in floating point, to at most about that).
    """
    # The unused power's logit is 0, so that the largest is never negative.
    largest = np.maximum(logits.max(axis=-1, keepdims=True), 0)
    weights: Array = np.exp(logits - largest)
    weights *= p_max_w / (weights.sum(axis=-1, keepdims=True) + np.exp(-largest))
    return weights


def _check(power: Array, choice: Array, full_power: Array, *, users: int) -> None:
    wrong = ~(np.isfinite(power) & (power >= 0))
    if wrong.any():
        env, uav, k = (int(index[0]) for index in np.nonzero(wrong))
        raise ValueError(
            f"power of UAV {uav} on sub-channel {k} in environment {env} must be finite and not negative, "
            f"not {power[env, uav, k]}"
        )
    # A silent UAV's powers are not sent, so they need not be 0; a little above is rounding.
    above = (power.sum(axis=2) > full_power * (1 + 1e-4)) & (full_power > 0)
    if above.any():
        env, uav = (int(index[0]) for index in np.nonzero(above))
        raise ValueError(
            f"powers of UAV {uav} in environment {env} add up to {power[env, uav].sum():g} W, above its "
            f"{full_power[env, uav]:g} W"
        )
    nobody = (choice < -1) | (choice >= users)
    if nobody.any():
        env, uav, k = (int(index[0]) for index in np.nonzero(nobody))
        raise ValueError(
            f"choice of UAV {uav} for sub-channel {k} in environment {env} must be a user in [0, {users}) or -1, "
            f"not {choice[env, uav, k]}"
        )
