"""Policies and placements that need no learning, to hold a learned policy against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.philox import uniform
from marl_tr.vector.contract import Actions, Reference, Step

__all__ = ["GROUP", "assign", "k_means", "references"]

Array = NDArray[Any]

GROUP = "uav"
"""Name of the one group of agents."""


def references(config: DownlinkConfig) -> Sequence[Reference]:
    """Random actions, hovering where the episode begins, and flying to the users' k-means centroids.

    One start of Lloyd's algorithm is what the published ladder of this environment calls k-means; the best of
    eight is the stronger opponent. One UAV that serves everybody without interference is what learners that share
    a reward tend to find (docs/results.md): a policy that does no better has not learned to use the others.
    """
    return (
        Reference("random", _Random(seed=0)),
        Reference("hover, full power", _hover),
        Reference("k-means, full power", _Fly(config, _at_centroids(restarts=1))),
        Reference("k-means best of 8, full power", _Fly(config, _at_centroids(restarts=8))),
        Reference("one UAV for all, others silent", _Fly(config, _one_for_all)),
    )


def k_means(points: Array, clusters: int, *, stream: Array, restarts: int = 1) -> Array:
    """Centroids of least squared distance: Lloyd's algorithm from users drawn at random.

    Args:
        points: ``[E, G, 2]``; each of the ``E`` sets is clustered alone.
        clusters: ``U``, at most ``G`` of them distinct.
        stream: Index of each set in the random streams, ``[E]``.
        restarts: Independent starts; the one with the least sum of squared distances is kept.

    Returns:
        ``[E, U, 2]`` float64.

    Source: Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982.
    """
    users = points.astype(np.float64)
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
        starts: ``[E, U, 2]``.
        targets: ``[E, U, 2]``.

    Returns:
        `targets`, reordered along ``U``.
    """
    cost = _distance_sq(starts.astype(np.float64), targets)
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
    return np.take_along_axis(targets, order[:, :, None], axis=1)


def _lloyd(points: Array, centroids: Array) -> Array:
    clusters = np.arange(centroids.shape[1])
    for _ in range(100):
        nearest = _distance_sq(points, centroids).argmin(axis=2)
        mine = nearest[:, None, :] == clusters[:, None]
        count = mine.sum(axis=2)[:, :, None]
        moved = mine.astype(np.float64) @ points / np.maximum(count, 1)
        moved = np.where(count > 0, moved, centroids)  # an empty cluster stays where it is
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _distance_sq(a: Array, b: Array) -> Array:
    """``[E, N, 2]``, ``[E, M, 2]`` to ``[E, N, M]``."""
    squares: Array = np.square(a[:, :, None, :] - b[:, None, :, :]).sum(axis=3)
    return squares


def _actions(array: Array) -> Actions:
    return {GROUP: {"action": array.astype(np.float32)}}


def _hover(step: Step) -> Actions:
    e, u = step.state["uavs"].shape[:2]
    return _actions(np.broadcast_to(np.array([-1.0, 0.0, 1.0]), (e, u, 3)))


class _Random:
    """Uniform actions."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, step: Step) -> Actions:
        e, u = step.state["uavs"].shape[:2]
        return _actions(self._generator.uniform(-1.0, 1.0, size=(e, u, 3)))


Place = Callable[[Array, Array, Array], tuple[Array, Array]]
"""From UAVs ``[E, U, 2]``, users ``[E, G, 2]`` (in m) and streams ``[E]`` to targets ``[E, U, 2]`` and power actions
``[E, U]``."""


class _Fly:
    """Fly straight to a place at full speed and hover there, at a constant power."""

    def __init__(self, config: DownlinkConfig, place: Place) -> None:
        self._config = config
        self._place = place
        self._targets = np.empty((0, config.num_uavs, 2))
        self._power = np.empty((0, config.num_uavs))

    def __call__(self, step: Step) -> Actions:
        config = self._config
        position = step.state["uavs"][..., :2] * config.area_m
        fresh = step.state["time"][:, 0] == 0
        if len(self._targets) != len(fresh):
            self._targets = np.empty((len(fresh), config.num_uavs, 2))
            self._power = np.empty((len(fresh), config.num_uavs))
            fresh = np.ones_like(fresh)
        if fresh.any():
            users = step.state["users"][fresh, :, :2] * config.area_m
            self._targets[fresh], self._power[fresh] = self._place(position[fresh], users, np.flatnonzero(fresh))
        way = self._targets - position
        distance = np.sqrt(np.square(way).sum(axis=2))
        speed = np.minimum(distance / (config.v_max * config.slot_s), 1.0)
        heading = np.arctan2(way[..., 1], way[..., 0]) / math.pi
        return _actions(np.stack((2.0 * speed - 1.0, heading, self._power), axis=2))


def _at_centroids(restarts: int) -> Place:
    """All at the centroids of the users, at full power."""

    def place(position: Array, users: Array, stream: Array) -> tuple[Array, Array]:
        centroids = k_means(users, position.shape[1], stream=stream, restarts=restarts)
        return assign(position, centroids), np.ones(position.shape[:2])

    return place


def _one_for_all(position: Array, users: Array, stream: Array) -> tuple[Array, Array]:
    """The UAV that is nearest to the users' mean serves them all from there; the others hover at least power."""
    mean = users.mean(axis=1, keepdims=True)
    serves = np.square(position - mean).sum(axis=2).argmin(axis=1)[:, None] == np.arange(position.shape[1])
    return np.where(serves[..., None], mean, position), np.where(serves, 1.0, -1.0)
