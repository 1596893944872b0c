"""Policies and placements that need no learning, to hold a learned policy against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.actions import encode, least_power
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.coverage import Gain
from marl_tr.envs.uav.recording import GROUP, read_state
from marl_tr.envs.uav.search import SAMPLE, Utility, placement_problem, search, steps_for
from marl_tr.philox import uniform
from marl_tr.vector.contract import Actions, EnvSpec, Reference, Step
from marl_tr.vector.sampling import random_actions

__all__ = ["REPLAN_SLOTS", "assign", "k_means", "references", "steer"]

Array = NDArray[Any]

REPLAN_SLOTS = 10
"""Where users have moved, places are looked for anew after so many slots."""


def references(
    spec: EnvSpec, config: DownlinkConfig, *, gain: Gain | None = None, utility: Utility | None = None
) -> Sequence[Reference]:
    """Random actions; hovering; flying to the users' k-means centroids, or to places that a search improved.

    One start of Lloyd's algorithm is what the published ladder of this environment calls k-means; the best of
    eight is the stronger opponent. The searches begin at the first kind. One UAV that serves everybody without
    interference is what learners that share a reward tend to find (docs/results.md): a policy that does no better has
    not learned to use the others.

    Args:
        spec: Of the batch that they act in.
        config: Its settings.
        gain: Mean channel that the searches assume; the configuration's where left out.
        utility: What the searches make large; the static reward where left out.
    """
    generator = np.random.default_rng(0)
    sampled = "" if config.num_users <= SAMPLE else f" on {SAMPLE} users"

    def searched(powers: bool) -> _Fly:
        return _Fly(config, _searched(config, gain, utility, powers=powers))

    return (
        Reference("random", lambda step: random_actions(spec, generator)),
        Reference("hover, full power", _Fly(config, _at_starts(config))),
        Reference("k-means, full power", _Fly(config, _at_centroids(config, restarts=1))),
        Reference("k-means best of 8, full power", _Fly(config, _at_centroids(config, restarts=8))),
        Reference(f"position search{sampled}, full power", searched(powers=False)),
        Reference(f"position and power search{sampled}", searched(powers=True)),
        Reference("one UAV for all, others silent", _Fly(config, _one_for_all(config))),
    )


def k_means(points: Array, clusters: int, *, stream: Array, restarts: int = 1, start: Array | None = None) -> Array:
    """Centroids of least squared distance: Lloyd's algorithm from users drawn at random.

    Args:
        points: ``[E, G, 2]``; each of the ``E`` sets is clustered alone.
        clusters: ``U``, at most ``G`` of them distinct.
        stream: Index of each set in the random streams, ``[E]``.
        restarts: Independent starts; the one with the least sum of squared distances is kept.
        start: ``[E, U, 2]``, centroids to start from in place of users drawn at random.

    Returns:
        ``[E, U, 2]`` float64; from a `start`, in its order.

    Source: Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982.
    """
    users = points.astype(np.float64)
    if start is not None:
        return _lloyd(users, start.astype(np.float64))
    picks = np.arange(clusters) % users.shape[1]  # with more UAVs than users, the surplus doubles up
    runs = []
    for restart in range(restarts):
        order = uniform(0, stream, purpose=0, step=restart, count=users.shape[1]).argsort(axis=1)
        runs.append(_lloyd(users, np.take_along_axis(users, order[:, picks, None], axis=1)))
    inertia = np.stack([_distance_sq(users, run).min(axis=2).sum(axis=1) for run in runs])
    best: Array = np.stack(runs)[inertia.argmin(axis=0), np.arange(len(users))]
    return best


def assign(starts: Array, targets: Array) -> Array:
    """Give each UAV one target so that flights are short: no swap of two lowers the sum of squares.

    Args:
        starts: ``[E, U, D]``.
        targets: ``[E, U, D]``.

    Returns:
        `targets`, reordered along ``U``.
    """
    return np.take_along_axis(targets, _shortest(starts, targets)[:, :, None], axis=1)


def _shortest(starts: Array, targets: Array) -> Array:
    """Index of each UAV's target, ``[E, U]``, see `assign`."""
    cost = _distance_sq(starts.astype(np.float64), targets.astype(np.float64))
    e, u, _ = cost.shape
    rows = np.arange(e)
    order = np.tile(np.arange(u), (e, 1))
    improved = True
    while improved:
        improved = False
        for i in range(u):
            for j in range(i + 1, u):
                a, b = order[:, i], order[:, j]
                gain = cost[rows, i, a] + cost[rows, j, b] - cost[rows, i, b] - cost[rows, j, a]
                swap = gain > 1e-9
                if swap.any():
                    order[swap, i], order[swap, j] = b[swap], a[swap]
                    improved = True
    return order


def _lloyd(points: Array, centroids: Array) -> Array:
    """Until nothing moves, or for 100 rounds; scenes that came to rest are left out of the later ones."""
    found, moving = centroids.copy(), np.arange(len(points))
    clusters = np.arange(centroids.shape[1])
    for _ in range(100):
        users, before = points[moving], found[moving]
        nearest = _distance_sq(users, before).argmin(axis=2)
        mine = nearest[:, None, :] == clusters[:, None]
        count = mine.sum(axis=2)[:, :, None]
        after = mine.astype(np.float64) @ users / np.maximum(count, 1)
        after = np.where(count > 0, after, before)  # an empty cluster stays where it is
        found[moving] = after
        moving = moving[(after != before).any(axis=(1, 2))]
        if not len(moving):
            break
    return found


def _distance_sq(a: Array, b: Array) -> Array:
    """``[E, N, D]``, ``[E, M, D]`` to ``[E, N, M]``."""
    squares = np.zeros((len(a), a.shape[1], b.shape[1]))
    for axis in range(a.shape[2]):
        difference = a[:, :, None, axis] - b[:, None, :, axis]
        difference *= difference
        squares += difference
    return squares


def steer(config: DownlinkConfig, way: Array, power_w: Array) -> Actions:
    """The actions that fly `way` ``[E, U, D]`` (in m), or as far as a slot allows, at powers ``[E, U]``.

    Height that is too far for the steepest pitch comes first, also past the target, to which the UAV then returns.
    """
    level = np.hypot(way[..., 0], way[..., 1])
    heading = np.arctan2(way[..., 1], way[..., 0])
    pitch, distance = np.zeros_like(level), level
    if config.flight.dimensions == 3:
        steepest, rise = math.radians(config.flight.pitch_max_deg), way[..., 2]
        pitch = np.clip(np.arctan2(rise, level), -steepest, steepest)
        steep = np.abs(rise) > math.tan(steepest) * level + 1e-6
        distance = np.where(steep, np.abs(rise) / math.sin(steepest), np.hypot(level, rise))
    speed = np.minimum(distance / config.slot_s, config.v_max)
    if config.flight.accel_max_m_s2 is not None:
        # As fast as can still be braked to a stop on the way.
        speed = np.minimum(speed, np.sqrt(2 * config.flight.accel_max_m_s2 * distance))
    return {GROUP: encode(config, speed, heading, pitch, power_w)}


@dataclass(frozen=True)
class _Plan:
    """Where to hover, ``[E, U, D]`` in m, and how loudly to send from the first slot on, ``[E, U]`` in W."""

    targets: Array
    power_w: Array


Place = Callable[[Array, Array, Array, "_Plan | None"], _Plan]
"""From UAVs ``[E, U, D]``, users ``[E, G, 2 or more]`` (in m), streams ``[E]`` and the plan of the same episodes before
the users moved, or None at an episode's start, to a plan."""


class _Fly:
    """Fly straight to a place at full speed and hover there, at a constant power.

    Users who move are followed: every `REPLAN_SLOTS` slots the plan is mended.
    """

    def __init__(self, config: DownlinkConfig, place: Place) -> None:
        self._config = config
        self._place = place
        self._slots = np.empty(0, np.int64)
        self._users, self._targets, self._power = np.empty(0), np.empty(0), np.empty(0)

    def __call__(self, step: Step) -> Actions:
        config = self._config
        moment = read_state(config, step.state)
        position, users = moment.position, moment.users
        slot = np.rint(step.state["time"][:, 0] * config.horizon).astype(np.int64)
        fresh = slot == 0
        if self._targets.shape != position.shape:
            self._users, self._targets = np.empty_like(users), np.empty_like(position)
            self._power, self._slots = np.empty_like(moment.power_w), slot
            fresh = np.ones_like(fresh)
        due = ~fresh & (slot - self._slots >= REPLAN_SLOTS)
        if due.any():
            due[due] = (self._users[due] != users[due]).any(axis=(1, 2))
        for rows, again in ((fresh, False), (due, True)):
            if rows.any():
                last = _Plan(self._targets[rows], self._power[rows]) if again else None
                plan = self._place(position[rows], users[rows], np.flatnonzero(rows), last)
                self._targets[rows], self._power[rows] = plan.targets, plan.power_w
                self._users[rows], self._slots[rows] = users[rows], slot[rows]
        return steer(config, self._targets - position, self._power)


def _at_starts(config: DownlinkConfig) -> Place:
    """All where they are, at full power."""

    def place(position: Array, users: Array, stream: Array, last: _Plan | None) -> _Plan:
        return last or _Plan(position, np.full(position.shape[:2], config.p_max_w))

    return place


def _at_centroids(config: DownlinkConfig, *, restarts: int) -> Place:
    """All at the centroids of the users, at full power."""

    def place(position: Array, users: Array, stream: Array, last: _Plan | None) -> _Plan:
        if last is None:
            targets = assign(
                position[..., :2], k_means(users[..., :2], position.shape[1], stream=stream, restarts=restarts)
            )
        else:
            targets = k_means(users[..., :2], position.shape[1], stream=stream, start=last.targets[..., :2])
        return _Plan(_at_height(targets, position), np.full(position.shape[:2], config.p_max_w))

    return place


def _searched(config: DownlinkConfig, gain: Gain | None, utility: Utility | None, *, powers: bool) -> Place:
    """Where a hill climb that begins at the centroids ends; later, one of a fifth of the steps from the last places."""
    problem = placement_problem(config, gain=gain, utility=utility)
    centroids = _at_centroids(config, restarts=1)
    steps = steps_for(config.num_uavs, config.num_users)
    dimensions = config.flight.dimensions

    def place(position: Array, users: Array, stream: Array, last: _Plan | None) -> _Plan:
        start = last or centroids(position, users, stream, None)
        found = search(
            problem,
            users.astype(np.float32),
            start.targets[..., :dimensions],
            start.power_w,
            stream=stream,
            powers=powers,
            steps=steps if last is None else -(-steps // 5),
        )
        targets, power_w = found.position, found.power_w
        if last is None:
            order = _shortest(position[..., :dimensions], targets)
            targets = np.take_along_axis(targets, order[:, :, None], axis=1)
            power_w = np.take_along_axis(power_w, order, axis=1)
        return _Plan(np.concatenate((targets, position[..., dimensions:]), axis=2), power_w)

    return place


def _one_for_all(config: DownlinkConfig) -> Place:
    """The UAV that is nearest to the users' mean serves them all from there; the others hover at least power."""

    def place(position: Array, users: Array, stream: Array, last: _Plan | None) -> _Plan:
        mean = _at_height(users[..., :2].mean(axis=1, keepdims=True), position[:, :1])
        if last is None:
            nearest = np.square(position - mean)[..., :2].sum(axis=2).argmin(axis=1)
            serves = nearest[:, None] == np.arange(position.shape[1])
            others = position
        else:
            serves, others = last.power_w > 0.5 * config.p_max_w, last.targets
        return _Plan(
            np.where(serves[..., None], mean, others),
            np.where(serves, config.p_max_w, least_power(config)),
        )

    return place


def _at_height(targets: Array, position: Array) -> Array:
    """Level targets ``[E, N, 2]`` with the other coordinates of `position`."""
    return np.concatenate((targets, position[..., 2:]), axis=2)
