"""Tables of a flown episode, for CSV files and data frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.recording import GROUP, Moment, read_state
from marl_tr.vector.contract import Table, Trajectory

__all__ = ["tables", "uav_table"]

Array = NDArray[Any]


def tables(config: DownlinkConfig, trajectory: Trajectory) -> dict[str, Table]:
    """An episode by UAV, by user and by slot.

    ``t`` is the time since the episode's start in s; ``x``, ``y`` and ``z`` are in m. Before the first slot (``t = 0``)
    nothing was sent: rates and powers are 0, `serving` is -1, what was not measured is NaN.

    Args:
        config: Units.
        trajectory: The episode, of ``T`` slots.

    Returns:
        ``uavs`` (``(T + 1) U`` rows, by time and then UAV): ``t, uav, x, y, z, vx_m_s, vy_m_s`` (``vz_m_s`` where UAVs
        climb), ``power_w, users, rate_bps, reward``.
        ``users`` (``(T + 1) G`` rows): ``t, id, x, y`` (a mobility trace), ``serving`` (index of the UAV, -1 where
        nobody serves), ``rate_bps, sinr_db``.
        ``slots`` (``T`` rows, where the episode has metrics): ``t, reward_mean`` (over UAVs) and the metrics.
    """
    moment = read_state(config, trajectory.state)
    reward = np.asarray(trajectory.reward[GROUP])
    time = np.arange(len(moment.position)) * config.slot_s
    found = {"uavs": uav_table(config, moment, reward, time), "users": _users(moment, time)}
    if trajectory.metrics:
        found["slots"] = {"t": time[1:], "reward_mean": reward.mean(axis=1), **trajectory.metrics}
    return found


def uav_table(config: DownlinkConfig, moment: Moment, reward: Array, time: Array) -> Table:
    """The table ``uavs`` of `tables`.

    Args:
        config: Height of level flight.
        moment: Of every time, ``... = T + 1``.
        reward: ``[T, U]``.
        time: ``[T + 1]``, in s.
    """
    shape = slots, uavs = moment.power_w.shape
    level = np.full(shape, config.altitude_m, moment.position.dtype)
    axes = moment.position.shape[2]
    paid = np.concatenate((np.full((1, uavs), np.nan, reward.dtype), reward))
    columns = {
        "t": np.repeat(time, uavs),
        "uav": np.tile(np.arange(uavs), slots),
        "x": moment.position[..., 0],
        "y": moment.position[..., 1],
        "z": moment.position[..., 2] if axes == 3 else level,
        **{f"v{'xyz'[axis]}_m_s": moment.velocity[..., axis] for axis in range(axes)},
        "power_w": moment.power_w,
        "users": moment.load,
        "rate_bps": moment.uav_rates_bps,
        "reward": paid,
    }
    return {name: column.reshape(-1) for name, column in columns.items()}


def _users(moment: Moment, time: Array) -> Table:
    slots, users = moment.rates_bps.shape
    columns = {
        "t": np.repeat(time, users),
        "id": np.tile(np.arange(users), slots),
        "x": moment.users[..., 0],
        "y": moment.users[..., 1],
        "serving": moment.serving,
        "rate_bps": moment.rates_bps,
        "sinr_db": moment.sinr_db,
    }
    return {name: column.reshape(-1) for name, column in columns.items()}
