"""What each UAV sees, and what the centralized critic sees.

All features are scaled to about [-1, 1]: positions by the area's side, speeds and powers by their highest,
loads by the number of users, users' rates by ``R_ref``, a UAV's sum rate by ``(G / U) R_ref`` (as in the
reward), SINRs by 40 dB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.simulator import Simulator

__all__ = [
    "OWN",
    "PER_OTHER",
    "PER_USER",
    "observation_shapes",
    "observation_size",
    "observe",
    "split_observation",
    "state_shapes",
    "write_state",
]

Array = NDArray[Any]

OWN = 8
"""Position (2), velocity (2), power, load, sum rate, time over horizon."""
PER_OTHER = 7
"""Another UAV, nearest first: mask, relative position (2), velocity (2), power, load."""
PER_USER = 7
"""A user: mask, relative position (2), served by me, rate, running mean of the rate, SINR."""

_UAV = 7
_USER = 5
_EDGE = 4
_LEVEL_FLOOR = 1e-3
"""Powers 30 dB under the noise, and no power at all, look alike."""


def observation_size(config: DownlinkConfig) -> int:
    """Features of one UAV's observation."""
    return OWN + (config.num_uavs - 1) * PER_OTHER + config.num_users * PER_USER


def observation_shapes(config: DownlinkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of one UAV's observation: ``observation`` alone, or ``own``, ``others`` and ``users``."""
    if config.observation == "flat":
        return {"observation": (observation_size(config),)}
    shapes: dict[str, tuple[int, ...]] = {"own": (OWN,)}
    if config.num_uavs > 1:
        shapes["others"] = (config.num_uavs - 1, PER_OTHER)
    return {**shapes, "users": (config.num_users, PER_USER)}


def split_observation(config: DownlinkConfig, flat: Array) -> dict[str, Array]:
    """The leaves of `observation_shapes`, C-contiguous, from flat observations ``[..., D]``; one leaf is a view."""
    leaves: dict[str, Array] = {}
    start = 0
    for name, shape in observation_shapes(config).items():
        stop = start + int(np.prod(shape))
        leaves[name] = np.ascontiguousarray(flat[..., start:stop]).reshape(*flat.shape[:-1], *shape)
        start = stop
    return leaves


def state_shapes(config: DownlinkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of the global state, without ``E``.

    ``uavs``: position (2), velocity (2), power, load, sum rate. ``users``: position (2), rate, running mean,
    SINR, then one column a UAV that is 1 where it serves the user. ``time``: slot over horizon. ``edges``
    (row: receiver, column: sender): relative position (2), distance, and a tenth of log10 of the power that
    the sender brings to the receiver's users, over the noise. ``adjacency``: 1 within communication range and
    on the diagonal.
    """
    u, g = config.num_uavs, config.num_users
    return {
        "uavs": (u, _UAV),
        "users": (g, _USER + u),
        "time": (1,),
        "edges": (u, u, _EDGE),
        "adjacency": (u, u),
    }


def observe(sim: Simulator, out: Array) -> None:
    """Write every UAV's observation.

    Args:
        sim: The block.
        out: ``[E, U, observation_size]``, overwritten.
    """
    config = sim.config
    e, u, g = sim.num_envs, config.num_uavs, config.num_users
    nodes = _nodes(sim)
    out[..., :7] = nodes
    out[..., 7] = _time(sim)
    split = OWN + (u - 1) * PER_OTHER
    _observe_others(config, nodes, out[..., OWN:split].reshape(e, u, u - 1, PER_OTHER))
    _observe_users(sim, nodes, out[..., split:].reshape(e, u, g, PER_USER))


def write_state(sim: Simulator, out: dict[str, Array]) -> None:
    """Write the global state.

    Args:
        sim: The block.
        out: Arrays ``[E, ...]`` of `state_shapes`, overwritten.
    """
    config = sim.config
    nodes = _nodes(sim)
    out["uavs"][:] = nodes
    rows = out["users"]
    rows[..., :2] = sim.users * (1 / config.area_m)
    rows[..., 2] = sim.rates * (1 / config.rate_ref)
    rows[..., 3] = sim.mean_rates * (1 / config.rate_ref)
    rows[..., 4] = _sinr(sim)
    rows[..., 5:] = sim.serving[:, :, None] == np.arange(config.num_uavs)
    out["time"][:] = _time(sim)
    edges = out["edges"]
    dx, dy, distance = _between(nodes)
    edges[..., 0] = dx
    edges[..., 1] = dy
    edges[..., 2] = distance
    edges[..., 3] = 0.1 * np.log10(np.maximum(sim.levels, _LEVEL_FLOOR))
    near = np.inf if config.comm_range_m is None else config.comm_range_m / config.area_m
    out["adjacency"][:] = distance <= near


def _nodes(sim: Simulator) -> Array:
    config = sim.config
    nodes = np.empty((sim.num_envs, config.num_uavs, _UAV), sim.dtype)
    nodes[..., 0:2] = sim.position * (1 / config.area_m)
    nodes[..., 2:4] = sim.velocity * (1 / config.v_max)
    nodes[..., 4] = sim.power * (1 / config.p_max_w)
    nodes[..., 5] = sim.load * (1 / config.num_users)
    nodes[..., 6] = sim.uav_rates * (config.num_uavs / (config.num_users * config.rate_ref))
    return nodes


def _time(sim: Simulator) -> Array:
    return (sim.slot / sim.config.horizon)[:, None]


def _sinr(sim: Simulator) -> Array:
    """SINR over 40 dB; 0 before anything was sent."""
    decibel = np.zeros_like(sim.sinr)
    np.log10(sim.sinr, out=decibel, where=sim.sinr > 0)
    decibel *= 10 / 40
    return decibel


def _between(nodes: Array) -> tuple[Array, Array, Array]:
    """Position of the second index relative to the first, and distance, ``[E, U, U]`` over ``L``."""
    dx = nodes[:, None, :, 0] - nodes[:, :, None, 0]
    dy = nodes[:, None, :, 1] - nodes[:, :, None, 1]
    return dx, dy, np.sqrt(dx * dx + dy * dy)


def _observe_others(config: DownlinkConfig, nodes: Array, rows: Array) -> None:
    u = config.num_uavs
    if u == 1:
        return
    dx, dy, distance = _between(nodes)
    diagonal = np.arange(u)
    distance[:, diagonal, diagonal] = -1.0  # first in the order, and dropped with it
    order = np.argsort(distance, axis=2, kind="stable")[:, :, 1:]
    rows[..., 0] = 1.0
    # Flat indices: half the time of take_along_axis for so small arrays.
    pair = order + u * np.arange(len(nodes) * u).reshape(-1, u, 1)
    rows[..., 1] = dx.take(pair)
    rows[..., 2] = dy.take(pair)
    other = order + u * np.arange(len(nodes))[:, None, None]
    rows[..., 3:] = nodes.reshape(-1, _UAV)[:, 2:6][other]
    if config.comm_range_m is not None:
        rows[distance.take(pair) * config.area_m > config.comm_range_m] = 0.0


def _observe_users(sim: Simulator, nodes: Array, rows: Array) -> None:
    config = sim.config
    users = sim.users * (1 / config.area_m)
    rows[..., 0] = 1.0
    np.subtract(users[:, None, :, 0], nodes[:, :, 0, None], out=rows[..., 1])
    np.subtract(users[:, None, :, 1], nodes[:, :, 1, None], out=rows[..., 2])
    rows[..., 3] = sim.serving[:, None, :] == np.arange(config.num_uavs)[:, None]
    rows[..., 4] = (sim.rates * (1 / config.rate_ref))[:, None, :]
    rows[..., 5] = (sim.mean_rates * (1 / config.rate_ref))[:, None, :]
    rows[..., 6] = _sinr(sim)[:, None, :]
    if config.sense_range_m is not None:
        limit = (config.sense_range_m / config.area_m) ** 2
        rows[np.square(rows[..., 1:3]).sum(axis=3) > limit] = 0.0
