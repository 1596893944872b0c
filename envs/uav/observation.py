"""What each UAV sees, and what the centralized critic sees.

All features are scaled to about [-1, 1]: positions by the area's side, heights by the highest flight, speeds and powers
by their highest, loads by the number of users, users' rates by ``R_ref``, a UAV's sum rate by ``(G / U) R_ref`` (as in
the reward), SINRs by 40 dB. What only some settings have (heights, headings, batteries) follows the features that all
have, so that a feature keeps its place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.association import nearest_users
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.simulator import Simulator
from marl_tr.philox import normal

__all__ = [
    "OWN",
    "PER_OTHER",
    "PER_USER",
    "View",
    "observation_shapes",
    "observation_size",
    "observe",
    "own_extras",
    "split_observation",
    "state_shapes",
    "write_state",
]

Array = NDArray[Any]

OWN = 8
"""Position (2), velocity (2), power, load, sum rate, time over horizon; `own_extras` follow."""
PER_OTHER = 7
"""Another UAV, nearest first: mask, relative position (2), velocity (2), power, load; 3-D: relative height, climb."""
PER_USER = 7
"""A user: mask, relative position (2), served by me, rate, running mean of the rate, SINR; with queues: the queue; with
cells: 1 if no other UAV is nearer, and by how much the nearest other one is farther."""

_UAV = 7
_USER = 5
_EDGE = 4
_CELL = ("cell_x", "cell_y", "cell_share")
_LEVEL_FLOOR = 1e-3
"""Powers 30 dB under the noise, and no power at all, look alike."""

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_SINR_ERROR, _LEVEL_ERROR = 62, 63


def own_extras(config: DownlinkConfig) -> tuple[str, ...]:
    """Names of a UAV's own features that only some settings have, in their order."""
    flight = config.flight
    return (
        *(("height", "climb") if flight.dimensions == 3 else ()),
        *(("cos_heading", "sin_heading") if flight.inertia else ()),
        *(("battery",) if config.battery is not None else ()),
        *(_CELL if config.cells else ()),
    )


def observation_size(config: DownlinkConfig) -> int:
    """Features of one UAV's observation."""
    return sum(math.prod(shape) for shape in _blocks(config).values())


def observation_shapes(config: DownlinkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of one UAV's observation.

    ``observation`` alone, or ``own``, ``others`` (of several UAVs) and ``users``, and with the graph ``edges``
    ``[U, F]`` and ``adjacency`` ``[U]``, the UAV's rows of the leaves that `state_shapes` describes.
    """
    return {"observation": (observation_size(config),)} if config.observation == "flat" else _blocks(config)


def split_observation(config: DownlinkConfig, flat: Array) -> dict[str, Array]:
    """The leaves of `observation_shapes`, C-contiguous, from flat observations ``[..., D]``; one leaf is a view."""
    leaves: dict[str, Array] = {}
    start = 0
    for name, shape in observation_shapes(config).items():
        stop = start + math.prod(shape)
        leaves[name] = np.ascontiguousarray(flat[..., start:stop]).reshape(*flat.shape[:-1], *shape)
        start = stop
    return leaves


def state_shapes(config: DownlinkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of the global state, without ``E``.

    ``uavs``: position (2), velocity (2), power, load, sum rate, then `own_extras`. ``users``: position (2), rate,
    running mean, SINR, then one column a UAV that is 1 where it serves the user, then the queue where there are
    queues, and velocity (2) where users move. ``time``: slot over horizon. ``edges`` (row: receiver, column: sender):
    relative position (2), distance, a tenth of log10 of the power that the sender brings to the receiver's users,
    over the noise, and in 3-D relative height. ``adjacency``: 1 within communication range and on the diagonal; UAVs
    on the ground have no neighbours.
    """
    u, g = config.num_uavs, config.num_users
    return {
        "uavs": (u, _UAV + len(own_extras(config))),
        "users": (g, _USER + u + config.queues + 2 * config.moving_users),
        "time": (1,),
        "edges": (u, u, _edge(config)),
        "adjacency": (u, u),
    }


class View:
    """What observations and the state have in common, computed once a moment.

    Args:
        sim: The block, as it is now.
    """

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim
        self.nodes = _nodes(sim)
        """Features of each UAV, ``[E, U, 7 + extras]``."""
        self.dx, self.dy, self.distance = _between(sim, self.nodes)
        """Level position of the second index relative to the first, and distance, ``[E, U, U]`` over ``L``."""
        self.sinr = _sinr(sim)
        """``[E, G]``, over 40 dB."""
        self.rates, self.mean_rates = sim.rates * (1 / sim.config.rate_ref), sim.mean_rates * (1 / sim.config.rate_ref)
        """``[E, G]``, over ``R_ref``."""
        self.users = sim.users * (1 / sim.config.area_m)
        """``[E, G, 2]``, over ``L``."""
        self.ahead = _ahead(self) if sim.config.cells else None
        """How much farther from each user the nearest other UAV in sight is, ``[E, U, G]`` over ``L``; None without
        cells."""
        if self.ahead is not None:
            self.nodes[..., -len(_CELL) :] = _cells(self, self.ahead)
        self.queues = _queues(sim) if sim.config.queues else None
        """``[E, G]``, a logarithm of what waits; None without queues."""


def observe(view: View, out: Array, *, who: Array | None = None) -> None:
    """Write every UAV's observation.

    Args:
        view: Of the block.
        out: ``[E, U, observation_size]``, overwritten.
        who: ``[E, U]`` bool, whose observations are wanted: the others' are 0. None: those of UAVs that fly.
    """
    sim, nodes = view.sim, view.nodes
    config = sim.config
    start = 0
    for name, shape in _blocks(config).items():
        stop = start + math.prod(shape)
        rows = out[..., start:stop].reshape(*out.shape[:2], *shape)
        start = stop
        if name == "own":
            rows[..., :_UAV] = nodes[..., :_UAV]
            rows[..., _UAV] = _time(sim)
            rows[..., OWN:] = nodes[..., _UAV:]
        elif name == "others":
            _observe_others(view, rows)
        elif name == "users":
            _observe_users(view, rows)
        elif name == "edges":
            _write_edges(view, rows, exact=False)
        else:
            _write_adjacency(view, rows)
    if config.battery is not None:
        out[~(sim.alive if who is None else who)] = 0.0


def write_state(view: View, out: dict[str, Array]) -> None:
    """Write the global state.

    Args:
        view: Of the block.
        out: Arrays ``[E, ...]`` of `state_shapes`, overwritten.
    """
    sim = view.sim
    out["uavs"][:] = view.nodes
    rows = out["users"]
    rows[..., :2] = view.users
    rows[..., 2] = view.rates
    rows[..., 3] = view.mean_rates
    rows[..., 4] = view.sinr
    served = _USER + sim.config.num_uavs
    rows[..., _USER:served] = sim.serving[:, :, None] == np.arange(sim.config.num_uavs)
    if view.queues is not None:
        rows[..., served] = view.queues
    if sim.config.moving_users:
        rows[..., -2:] = sim.mobility.velocity * (1 / sim.config.v_max)
    out["time"][:] = _time(sim)
    _write_edges(view, out["edges"], exact=True)
    _write_adjacency(view, out["adjacency"])


def _blocks(config: DownlinkConfig) -> dict[str, tuple[int, ...]]:
    """The parts of an observation in their order."""
    u = config.num_uavs
    blocks: dict[str, tuple[int, ...]] = {"own": (OWN + len(own_extras(config)),)}
    if u > 1:
        blocks["others"] = (u - 1, PER_OTHER + (2 if config.flight.dimensions == 3 else 0))
    blocks["users"] = (config.seen_users, PER_USER + config.queues + 2 * config.cells)
    if config.observation == "graph":
        blocks |= {"edges": (u, _edge(config)), "adjacency": (u,)}
    return blocks


def _edge(config: DownlinkConfig) -> int:
    return _EDGE + (config.flight.dimensions == 3)


def _nodes(sim: Simulator) -> Array:
    """Features of each UAV, ``[E, U, 7 + extras]``."""
    config, flight = sim.config, sim.config.flight
    extras = own_extras(config)
    nodes = np.empty((sim.num_envs, config.num_uavs, _UAV + len(extras)), sim.dtype)
    nodes[..., 0:2] = sim.position[..., :2] * (1 / config.area_m)
    nodes[..., 2:4] = sim.velocity[..., :2] * (1 / config.v_max)
    nodes[..., 4] = sim.power * (1 / config.p_max_w)
    nodes[..., 5] = sim.load * (1 / config.num_users)
    nodes[..., 6] = sim.uav_rates * (config.num_uavs / (config.num_users * config.rate_ref))
    for column, name in enumerate(extras, start=_UAV):
        if name == "height":
            nodes[..., column] = sim.position[..., 2] * (1 / flight.altitude_max_m)
        elif name == "climb":
            nodes[..., column] = sim.velocity[..., 2] * (1 / config.v_max)
        elif name == "cos_heading":
            nodes[..., column] = np.cos(sim.heading)
        elif name == "sin_heading":
            nodes[..., column] = np.sin(sim.heading)
        elif name == "battery" and config.battery is not None:
            nodes[..., column] = sim.battery * (1 / config.battery.capacity_j)
    return nodes  # the view adds the cells


def _time(sim: Simulator) -> Array:
    return (sim.slot / sim.config.horizon)[:, None]


def _sinr(sim: Simulator) -> Array:
    """SINR over 40 dB; 0 before anything was sent, and of users whom nobody serves."""
    decibel = np.zeros_like(sim.sinr)
    np.log10(sim.sinr, out=decibel, where=sim.sinr > 0)
    decibel *= 10 / 40
    return decibel


def _queues(sim: Simulator) -> Array:
    """``log10(1 + b)`` of what waits for each user, ``b`` in what a slot at ``R_ref`` would carry."""
    waiting = np.log1p(sim.traffic.backlog * (1 / (sim.config.rate_ref * sim.config.slot_s))) / math.log(10)
    return waiting.astype(sim.dtype, copy=False)


def _between(sim: Simulator, nodes: Array) -> tuple[Array, Array, Array]:
    """Level position of the second index relative to the first, and distance, ``[E, U, U]`` over ``L``."""
    dx = nodes[:, None, :, 0] - nodes[:, :, None, 0]
    dy = nodes[:, None, :, 1] - nodes[:, :, None, 1]
    square = dx * dx + dy * dy
    if sim.config.flight.dimensions == 3:
        z = sim.position[..., 2] * (1 / sim.config.area_m)
        square += np.square(z[:, None, :] - z[:, :, None])
    return dx, dy, np.sqrt(square)


def _rise(nodes: Array) -> Array:
    """Height of the second index relative to the first, ``[E, U, U]``, over the highest flight."""
    rise: Array = nodes[:, None, :, _UAV] - nodes[:, :, None, _UAV]
    return rise


def _write_edges(view: View, edges: Array, *, exact: bool) -> None:
    sim = view.sim
    edges[..., 0] = view.dx
    edges[..., 1] = view.dy
    edges[..., 2] = view.distance
    levels = sim.levels
    if not exact and sim.config.csi_sigma:
        levels = levels * np.exp(_error(sim, _LEVEL_ERROR, levels.shape[1:]))
    edges[..., 3] = 0.1 * np.log10(np.maximum(levels, _LEVEL_FLOOR))
    if sim.config.flight.dimensions == 3:
        edges[..., 4] = _rise(view.nodes)


def _write_adjacency(view: View, adjacency: Array) -> None:
    sim, config = view.sim, view.sim.config
    if config.comm_range_m is None:
        adjacency[:] = 1.0
    else:
        adjacency[:] = view.distance <= config.comm_range_m / config.area_m
    if config.battery is not None:
        adjacency *= sim.alive[:, :, None] & sim.alive[:, None, :]
        diagonal = np.arange(config.num_uavs)
        adjacency[:, diagonal, diagonal] = 1.0


def _observe_others(view: View, rows: Array) -> None:
    sim, nodes, config = view.sim, view.nodes, view.sim.config
    u, width = config.num_uavs, nodes.shape[2]
    distance = view.distance.copy()
    if config.battery is not None:
        distance[np.broadcast_to(~sim.alive[:, None, :], distance.shape)] = np.inf
    distance.reshape(len(distance), -1)[:, :: u + 1] = -1.0  # the diagonal: first in the order, and dropped with it
    order = np.argsort(distance, axis=2, kind="stable")[:, :, 1:]
    rows[..., 0] = 1.0
    # Flat indices: half the time of take_along_axis for so small arrays.
    pair = order + u * np.arange(len(nodes) * u).reshape(-1, u, 1)
    rows[..., 1] = view.dx.take(pair)
    rows[..., 2] = view.dy.take(pair)
    other = order + u * np.arange(len(nodes))[:, None, None]
    theirs = nodes.reshape(-1, width).take(other, axis=0)
    rows[..., 3:7] = theirs[..., 2:6]
    if config.flight.dimensions == 3:
        rows[..., 7] = _rise(nodes).take(pair)
        rows[..., 8] = theirs[..., _UAV + 1]
    if config.comm_range_m is not None or config.battery is not None:
        furthest = np.finfo(sim.dtype).max if config.comm_range_m is None else config.comm_range_m
        rows[distance.take(pair) * config.area_m > furthest] = 0.0


def _observe_users(view: View, rows: Array) -> None:
    sim, config = view.sim, view.sim.config
    picked: Any = None
    if config.nearest_users is not None:
        nearest = nearest_users(sim.position, sim.users, config.seen_users)
        picked = np.arange(sim.num_envs)[:, None, None], nearest

    def seen(feature: Array) -> Array:
        """Of the users that each UAV sees: ``[E, G]`` to ``[E, 1 or U, rows]``."""
        of: Array = feature[:, None, :] if picked is None else feature[picked]
        return of

    rows[..., 0] = 1.0
    np.subtract(seen(view.users[..., 0]), view.nodes[:, :, 0, None], out=rows[..., 1])
    np.subtract(seen(view.users[..., 1]), view.nodes[:, :, 1, None], out=rows[..., 2])
    rows[..., 3] = seen(sim.serving) == np.arange(config.num_uavs)[:, None]
    rows[..., 4] = seen(view.rates)
    rows[..., 5] = seen(view.mean_rates)
    rows[..., 6] = seen(view.sinr)
    if view.queues is not None:
        rows[..., 7] = seen(view.queues)
    if view.ahead is not None:
        ahead = view.ahead
        if picked is not None:
            ahead = np.take_along_axis(ahead, picked[1], axis=2)
        rows[..., -2] = ahead >= 0
        rows[..., -1] = ahead
    if config.csi_sigma:
        error = _error(sim, _SINR_ERROR, (config.num_uavs, config.num_users)) * (10 / math.log(10) / 40)
        if picked is not None:
            error = np.take_along_axis(error, picked[1], axis=2)
        rows[..., 6] += np.where(seen(sim.sinr) > 0, error, 0)
    if config.sense_range_m is not None:
        limit = (config.sense_range_m / config.area_m) ** 2
        rows[np.square(rows[..., 1:3]).sum(axis=3) > limit] = 0.0


def _ahead(view: View) -> Array:
    """Level distances to the nearest other UAV in sight less those to this one, ``[E, U, G]`` over ``L``.

    1 at most, which is also what a UAV has that sees no other.
    """
    config, nodes = view.sim.config, view.nodes
    away = np.hypot(*(view.users[:, None, :, axis] - nodes[:, :, None, axis] for axis in (0, 1)))
    rivals = _in_sight(view)
    each = np.arange(config.num_uavs)
    rivals[:, each, each] = False
    others = np.empty_like(away)
    for uav in each:
        others[:, uav] = np.where(rivals[:, uav, :, None], away, np.inf).min(axis=1)
    ahead: Array = np.minimum(others - away, 1.0)
    return ahead


def _cells(view: View, ahead: Array) -> Array:
    """Of the users whom a UAV sees and no other is nearer to: mean place relative to it, over ``L``, and share.

    ``[E, U, 3]``; 0 without such users.
    """
    sim, config = view.sim, view.sim.config
    mine = ahead >= 0
    if config.nearest_users is not None:
        picked = np.zeros_like(mine)
        np.put_along_axis(picked, nearest_users(sim.position, sim.users, config.seen_users), True, axis=2)
        mine &= picked
    if config.sense_range_m is not None:
        offset = view.users[:, None] - view.nodes[:, :, None, :2]
        mine &= np.square(offset).sum(axis=3) <= (config.sense_range_m / config.area_m) ** 2
    if config.battery is not None:
        mine &= sim.alive[:, :, None]
    count = mine.sum(axis=2)[..., None]
    middle = mine.astype(sim.dtype) @ view.users / np.maximum(count, 1)
    offset = np.where(count > 0, middle - view.nodes[..., :2], 0)
    return np.concatenate((offset, count / config.num_users), axis=2).astype(sim.dtype, copy=False)


def _in_sight(view: View) -> Array:
    """Whether the first index sees the second, ``[E, U, U]``: within range, and flying."""
    sim, config = view.sim, view.sim.config
    seen = np.ones(view.distance.shape, bool)
    if config.comm_range_m is not None:
        seen &= view.distance <= config.comm_range_m / config.area_m
    if config.battery is not None:
        seen &= sim.alive[:, None, :]
    return seen


def _error(sim: Simulator, purpose: int, shape: tuple[int, ...]) -> Array:
    """Logarithm of the factor by which observed gains are off, ``[E, *shape]``; the same whenever a moment is seen."""
    drawn = normal(sim.seed, sim.stream, purpose=purpose, step=sim.moment % 2**32, count=math.prod(shape))
    return (sim.config.csi_sigma * drawn).reshape(-1, *shape).astype(sim.dtype)
