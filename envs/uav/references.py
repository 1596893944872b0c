"""Policies and placements that need no learning, to hold a learned policy against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.vector.contract import Actions, Reference, Step

__all__ = ["GROUP", "assign", "k_means", "references"]

Array = NDArray[Any]

GROUP = "uav"
"""Name of the one group of agents."""


def references(config: DownlinkConfig) -> Sequence[Reference]:
    """Random actions, hovering where the episode begins, and flying to the users' k-means centroids."""
    return (
        Reference("random", _Random(seed=0)),
        Reference("hover, full power", _hover),
        Reference("k-means, full power", _KMeans(config)),
    )


def k_means(points: Array, clusters: int, generator: np.random.Generator, *, restarts: int = 8) -> Array:
    """Centroids of least squared distance: Lloyd's algorithm from k-means++ starts, the best of some restarts.

    Args:
        points: ``[E, G, 2]``; each of the ``E`` sets is clustered alone.
        clusters: ``U``.
        generator: Draws the starts.
        restarts: Independent starts of each set.

    Returns:
        ``[E, U, 2]`` float64.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    tiled = np.repeat(points.astype(np.float64), restarts, axis=0)
    centroids = _plus_plus(tiled, clusters, generator)
    for _ in range(100):
        mine = _distance_sq(tiled, centroids).argmin(axis=2)[:, None, :] == np.arange(clusters)[:, None]
        count = mine.sum(axis=2)
        moved = mine.astype(np.float64) @ tiled / np.maximum(count, 1)[:, :, None]
        moved = np.where(count[:, :, None] > 0, moved, centroids)  # an empty cluster stays where it is
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    inertia = _distance_sq(tiled, centroids).min(axis=2).sum(axis=1).reshape(-1, restarts)
    best = inertia.argmin(axis=1)
    return centroids.reshape(-1, restarts, clusters, 2)[np.arange(len(points)), best]


def assign(starts: Array, targets: Array) -> Array:
    """Give each UAV one target so that flights are short: no swap of two UAVs' targets shortens the sum of squares.

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


def _plus_plus(points: Array, clusters: int, generator: np.random.Generator) -> Array:
    e, g, _ = points.shape
    rows = np.arange(e)
    centroids = points[rows, generator.integers(g, size=e)][:, None, :]
    for _ in range(clusters - 1):
        weight = _distance_sq(points, centroids).min(axis=2).cumsum(axis=1)
        at = (generator.random(e) * weight[:, -1])[:, None]
        pick = np.minimum((weight <= at).sum(axis=1), g - 1)
        centroids = np.concatenate((centroids, points[rows, pick][:, None, :]), axis=1)
    return centroids


def _distance_sq(a: Array, b: Array) -> Array:
    """``[E, N, 2]``, ``[E, M, 2]`` to ``[E, N, M]``."""
    difference: Array = a[:, :, None, :] - b[:, None, :, :]
    return np.square(difference).sum(axis=3)


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


class _KMeans:
    """Fly straight to a centroid at full speed, hover there, always at full power."""

    def __init__(self, config: DownlinkConfig) -> None:
        self._config = config
        self._targets = np.empty((0, config.num_uavs, 2))

    def __call__(self, step: Step) -> Actions:
        config = self._config
        position = step.state["uavs"][..., :2] * config.area_m
        fresh = step.state["time"][:, 0] == 0
        if len(self._targets) != len(fresh):
            self._targets = np.empty((len(fresh), config.num_uavs, 2))
            fresh = np.ones_like(fresh)
        if fresh.any():
            users = step.state["users"][fresh, :, :2] * config.area_m
            # The same starts for every scene: what a scene gets does not depend on its neighbours in the batch.
            found = [k_means(scene[None], config.num_uavs, np.random.default_rng(0))[0] for scene in users]
            self._targets[fresh] = assign(position[fresh], np.stack(found))
        way = self._targets - position
        distance = np.sqrt(np.square(way).sum(axis=2))
        speed = np.minimum(distance / (config.v_max * config.slot_s), 1.0)
        heading = np.arctan2(way[..., 1], way[..., 0]) / math.pi
        return _actions(np.stack((2.0 * speed - 1.0, heading, np.ones_like(speed)), axis=2))
