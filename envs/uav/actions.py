"""What a UAV chooses, and what the choice means: spaces, decoding, and encoding for policies that know what they want.

Four kinds. ``continuous``: numbers in [-1, 1] for speed, heading, pitch (3-D flight) and power. ``velocity``: numbers
for the velocity along each axis, and power. ``discrete``: one choice among hovering and directions at some speeds (and
pitches), one among powers. ``hybrid``: flight as numbers, power as a choice. With sub-channels, powers of the
sub-channels are a softmax of numbers (continuous, velocity), or the power chosen is split evenly over the sub-channels
that are given to somebody; each goes to one of the nearest users, or to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike, NDArray

from marl_tr.envs.uav.actions_config import DiscreteActions, NumberActions, VelocityActions
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.subchannels import split_power
from marl_tr.vector.contract import Leaves

__all__ = ["Command", "action_spaces", "checked", "decode", "encode", "least_power", "moves"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Command:
    """What UAVs are told to do for one slot.

    Attributes:
        speed: ``[E, U]``, in m/s.
        heading: ``[E, U]``, in rad; 0 is along x.
        pitch: ``[E, U]``, in rad, positive upwards; None in level flight.
        power: ``[E, U]``, transmit power, in W.
        split: ``[E, U, K]``, its parts on the sub-channels, in W; None without sub-channels.
        choice: ``[E, U, K]`` int, rank among the nearest users of the one that gets the sub-channel, -1 for nobody;
            None where nobody chooses.
    """

    speed: Array
    heading: Array
    pitch: Array | None
    power: Array
    split: Array | None = None
    choice: Array | None = None


def action_spaces(config: DownlinkConfig) -> dict[str, spaces.Space[Any]]:
    """Space of each leaf of one UAV's action: ``action`` alone, or ``move`` and ``alloc`` (hybrid)."""
    kind, three = config.actions, config.flight.dimensions == 3
    if isinstance(kind, NumberActions):
        return {"action": _box(2 + three + (config.channels or 1))}
    alloc = [kind.powers, *_users(config)]
    if isinstance(kind, DiscreteActions):
        moves = 1 + kind.directions * kind.speeds * (kind.pitches if three else 1)
        return {"action": spaces.MultiDiscrete([moves, *alloc])}
    return {"move": _box(2 + three), "alloc": spaces.MultiDiscrete(alloc)}


def checked(
    expected: Mapping[str, spaces.Space[Any]], leaves: Mapping[str, Array], *, stream: Array, dtype: DTypeLike
) -> Leaves:
    """Actions as `decode` takes them: numbers clipped to [-1, 1] in `dtype`, choices as integers.

    Args:
        expected: `action_spaces`.
        leaves: ``{leaf: [E, U, ...]}``.
        stream: Number of each environment, ``[E]``, for messages.
        dtype: Of the numbers.

    Raises:
        ValueError: A leaf holds what is no action; names agent and environment.
    """
    found = {}
    for leaf, space in expected.items():
        values = np.asarray(leaves[leaf])
        if isinstance(space, spaces.Box):
            if not np.isfinite(values).all():
                _refuse(values, ~np.isfinite(values).all(axis=2), stream, "is not finite")
            # Half the overhead of np.clip.
            found[leaf] = np.minimum(np.maximum(values, -1.0), 1.0).astype(dtype, copy=False)
        else:
            sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.empty(0)
            wrong = ((values < 0) | (values >= sizes) | (values != np.floor(values))).any(axis=2)
            if wrong.any():
                _refuse(values, wrong, stream, f"is not among the choices {sizes.tolist()}")
            found[leaf] = values.astype(np.intp, copy=False)
    return found


def decode(config: DownlinkConfig, leaves: Leaves) -> Command:
    """From actions to commands.

    Args:
        config: The settings.
        leaves: Checked actions, ``{leaf: [E, U, ...]}``.
    """
    kind, three = config.actions, config.flight.dimensions == 3
    if isinstance(kind, NumberActions):
        values = leaves["action"]
        flight = _flight_of_velocity if isinstance(kind, VelocityActions) else _flight
        speed, heading, pitch = flight(config, values)
        if not config.channels:
            return Command(speed, heading, pitch, _power(config, kind, values[..., -1]))
        split = split_power(kind.logit_scale * values[..., 2 + three :], config.p_max_w)
        return Command(speed, heading, pitch, split.sum(axis=2), split)
    if isinstance(kind, DiscreteActions):
        values = leaves["action"]
        table = moves(config)
        speed, heading, up = (table[values[..., 0], column] for column in range(3))
        pitch, alloc = (up if three else None), values[..., 1:]
    else:
        speed, heading, pitch = _flight(config, leaves["move"])
        alloc = leaves["alloc"]
    power = (alloc[..., 0] + 1) * speed.dtype.type(config.p_max_w / kind.powers)
    if not config.channels:
        return Command(speed, heading, pitch, power)
    choice = alloc[..., 1:] - 1
    used = choice >= 0
    power = np.where(used.any(axis=2), power, 0)
    share = power / np.maximum(used.sum(axis=2), 1)
    return Command(speed, heading, pitch, power, np.where(used, share[..., None], 0), choice)


def encode(
    config: DownlinkConfig,
    speed: Array,
    heading: Array,
    pitch: Array,
    power: Array,
) -> Leaves:
    """The actions that come nearest to what is wanted.

    Of the choices of flight the one whose displacement is nearest; of powers the nearest one. On sub-channels the power
    is split evenly, and the sub-channels go round the nearest users.

    Args:
        config: The settings.
        speed: ``[E, U]``, in m/s.
        heading: ``[E, U]``, in rad.
        pitch: ``[E, U]``, in rad; ignored in level flight.
        power: ``[E, U]``, in W.

    Returns:
        ``{leaf: [E, U, ...]}``, in the spaces of `action_spaces`.
    """
    kind, count = config.actions, config.channels
    share = power.astype(np.float64) / config.p_max_w
    if isinstance(kind, NumberActions):
        if not count:
            radio = _power_actions(kind, share)[..., None]
        else:
            # Equal logits x give each of K a share of e^x / (K e^x + 1).
            each = np.clip(share, 1e-9, 1 - 1e-9) / count
            logit = np.log(each / (1 - count * each)) / kind.logit_scale
            radio = np.repeat(logit[..., None], count, axis=2)
        if isinstance(kind, VelocityActions):
            pitch = pitch if config.flight.dimensions == 3 else np.zeros_like(speed)
            flight = _velocity(speed, heading, pitch)[..., : config.flight.dimensions] / config.v_max
        else:
            flight = _flight_actions(config, speed, heading, pitch)
        return {"action": np.clip(np.concatenate((flight, radio), axis=2), -1.0, 1.0).astype(np.float32)}
    alloc = [np.clip(np.rint(share * kind.powers) - 1, 0, kind.powers - 1)]
    for channel, choices in enumerate(_users(config)):
        alloc.append(np.full_like(share, 1 + channel % (choices - 1)))
    if isinstance(kind, DiscreteActions):
        table = moves(config)
        offered = _velocity(*table.T)
        # Of the squared distance to each, what depends on the choice.
        wanted = _velocity(speed, heading, pitch if config.flight.dimensions == 3 else np.zeros_like(speed))
        distance = np.square(offered).sum(axis=1) - 2 * wanted @ offered.T
        move = distance.argmin(axis=2)
        return {"action": np.stack((move, *alloc), axis=2).astype(np.int64)}
    move = np.clip(_flight_actions(config, speed, heading, pitch), -1.0, 1.0).astype(np.float32)
    return {"move": move, "alloc": np.stack(alloc, axis=2).astype(np.int64)}


def _power(config: DownlinkConfig, kind: NumberActions, values: Array) -> Array:
    """Transmit power, in W, from numbers in [-1, 1]."""
    if kind.power_scale == "decibel":
        return config.p_max_w * np.exp(0.5 * math.log(kind.power_floor) * (1.0 - values))
    return np.maximum((values + 1.0) * (0.5 * config.p_max_w), kind.power_floor * config.p_max_w)


def _power_actions(kind: NumberActions, share: Array) -> Array:
    """Numbers whose `_power` is nearest to shares of ``p_max_w``."""
    if kind.power_scale == "linear":
        return 2.0 * share - 1.0
    if kind.power_floor == 1:
        return np.ones_like(share)
    return 1.0 - 2.0 * np.log(np.maximum(share, kind.power_floor)) / math.log(kind.power_floor)


def least_power(config: DownlinkConfig) -> float:
    """The lowest transmit power that can be chosen, in W."""
    kind = config.actions
    return config.p_max_w * (kind.power_floor if isinstance(kind, NumberActions) else 1 / kind.powers)


def moves(config: DownlinkConfig) -> Array:
    """The discrete choices of flight: ``[n, 3]`` speed (m/s), heading and pitch (rad); the first is hovering.

    Directions change fastest, then speeds, then pitches.
    """
    kind = config.actions
    assert isinstance(kind, DiscreteActions)
    headings = 2 * math.pi / kind.directions * np.arange(kind.directions)
    speeds = config.v_max / kind.speeds * np.arange(1, kind.speeds + 1)
    steepest = math.radians(config.flight.pitch_max_deg)
    pitches = np.linspace(-steepest, steepest, kind.pitches) if config.flight.dimensions == 3 else np.zeros(1)
    up, fast, way = np.meshgrid(pitches, speeds, headings, indexing="ij")
    table = np.stack((fast.ravel(), way.ravel(), up.ravel()), axis=1)
    return np.concatenate((np.zeros((1, 3)), table))


def _flight(config: DownlinkConfig, values: Array) -> tuple[Array, Array, Array | None]:
    """Speed, heading and pitch of numbers in [-1, 1]."""
    speed = (values[..., 0] + 1.0) * (0.5 * config.v_max)
    heading = values[..., 1] * math.pi
    if config.flight.dimensions == 2:
        return speed, heading, None
    return speed, heading, values[..., 2] * math.radians(config.flight.pitch_max_deg)


def _flight_of_velocity(config: DownlinkConfig, values: Array) -> tuple[Array, Array, Array | None]:
    """Speed, heading and pitch of a velocity over `v_max`: at most `v_max`, climbing no steeper than may be."""
    level, heading = np.hypot(values[..., 0], values[..., 1]), np.arctan2(values[..., 1], values[..., 0])
    if config.flight.dimensions == 2:
        return np.minimum(level, 1.0) * config.v_max, heading, None
    steepest = math.radians(config.flight.pitch_max_deg)
    pitch = np.clip(np.arctan2(values[..., 2], level), -steepest, steepest)
    return np.minimum(level / np.cos(pitch), 1.0) * config.v_max, heading, pitch


def _flight_actions(config: DownlinkConfig, speed: Array, heading: Array, pitch: Array) -> Array:
    columns = [2.0 / config.v_max * speed - 1.0, heading / math.pi]
    if config.flight.dimensions == 3:
        columns.append(pitch / math.radians(config.flight.pitch_max_deg))
    return np.stack(columns, axis=2)


def _velocity(speed: Array, heading: Array, pitch: Array) -> Array:
    level = speed * np.cos(pitch)
    return np.stack((level * np.cos(heading), level * np.sin(heading), speed * np.sin(pitch)), axis=-1)


def _users(config: DownlinkConfig) -> list[int]:
    """Choices of each sub-channel: nobody, or one of the nearest users."""
    return [1 + config.channel_choices] * config.channels


def _box(size: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (size,), np.float32)


def _refuse(values: Array, wrong: Array, stream: Array, why: str) -> None:
    env, uav = (int(index[0]) for index in np.nonzero(wrong))
    raise ValueError(f"action of uav_{uav} in environment {stream[env]} {why}: {values[env, uav]}")
