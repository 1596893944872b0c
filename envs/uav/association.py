"""Which UAV serves which user, and which users are near."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.radio_config import LinkLimits

__all__ = ["Association", "associate", "nearest_users", "row_blocks"]

Array = NDArray[Any]

_BLOCK = 2**20


def row_blocks(rows: int, row_size: int) -> Iterator[slice]:
    """Cut `rows` into blocks of about a million numbers (at least one row), to bound the memory of temporaries.

    Environments do not depend on each other, so results do not depend on the cut.

    Args:
        rows: Number of environments.
        row_size: Numbers of an environment in the largest temporary array.
    """
    height = max(1, _BLOCK // max(1, row_size))
    for first in range(0, rows, height):
        yield slice(first, min(first + height, rows))


@dataclass(frozen=True)
class Association:
    """Who serves whom.

    Attributes:
        serving: ``[E, G]`` int, index of each user's UAV; -1: nobody.
        signal: ``[E, G]``, power received from it; 0 from nobody.
    """

    serving: Array
    signal: Array


def associate(received: Array, *, limits: LinkLimits, horizontal_sq: Array | None = None) -> Association:
    """Give every user the UAV that it receives best, within coverage and up to the cap of each UAV.

    A UAV that a user does not receive at all (it is silent) never serves it. Without a cap, that is all. With
    one, there are rounds, at most U: each user without a UAV asks the one that it receives best among those
    with room; a UAV with more askers than room takes those that receive it best and is full from then on.
    A user once taken stays (a cell does not drop its users for better ones), so the result need not be a stable
    matching. It depends on the order of users or UAVs only where two powers are exactly equal: the lower index
    then comes first.

    Args:
        received: Power of each UAV at each user, in any unit, ``[E, U, G]``.
        limits: `max_users_per_uav` and `coverage_radius_m` are used.
        horizontal_sq: Squared horizontal distances, in m^2, ``[E, U, G]``; needed with a coverage radius.

    Raises:
        ValueError: There is a coverage radius and no `horizontal_sq`.
    """
    if limits.coverage_radius_m is not None:
        if horizontal_sq is None:
            raise ValueError("coverage_radius_m is set: pass horizontal_sq, the squared horizontal distances")
        received = np.where(horizontal_sq <= limits.coverage_radius_m**2, received, 0)
    serving, signal = received.argmax(axis=1), received.max(axis=1)
    serving[signal <= 0] = -1
    cap, uavs, users = limits.max_users_per_uav, *received.shape[1:]
    if cap is None or cap >= users:
        return Association(serving, signal)
    crowded = np.flatnonzero((_count(serving, uavs) > cap).any(axis=1))
    if len(crowded):
        serving[crowded] = _admit(received[crowded], serving[crowded], signal[crowded], cap)
        best = np.take_along_axis(received, np.maximum(serving, 0)[:, None, :], axis=1)[:, 0]
        signal = np.where(serving >= 0, best, 0)
    return Association(serving, signal)


def _admit(left: Array, asked: Array, strength: Array, cap: int) -> Array:
    """The rounds of `associate`; `left` is overwritten. Returns ``[E, G]``, the UAV or -1."""
    envs, uavs, users = left.shape
    admitted = np.full((envs, users), -1, np.intp)
    # A last column for those who ask nobody, with no room in it.
    room = np.full((envs, uavs + 1), cap, np.intp)
    room[:, uavs] = 0
    for _ in range(uavs):
        seeking = (admitted < 0) & (asked >= 0)
        if not seeking.any():
            break
        asked = np.where(seeking, asked, uavs)
        # By UAV asked, the strongest first; both sorts are stable, which settles ties by index.
        order = np.lexsort((-strength, asked), axis=-1)
        queue = np.take_along_axis(asked, order, axis=1)
        askers = _count(asked, uavs + 1)
        first = np.cumsum(askers, axis=1) - askers
        place = np.arange(users) - np.take_along_axis(first, queue, axis=1)
        taken = np.empty((envs, users), bool)
        np.put_along_axis(taken, order, place < np.take_along_axis(room, queue, axis=1), axis=1)
        admitted = np.where(taken, asked, admitted)
        room -= np.minimum(askers, room)
        left[room[:, :uavs] == 0] = 0
        asked, strength = left.argmax(axis=1), left.max(axis=1)
        asked[strength <= 0] = -1
    return admitted


def _count(choice: Array, options: int) -> Array:
    """How many of each row chose each option, ``[E, options]`` from ``[E, G]``; negative choices do not count."""
    rows = np.arange(len(choice))[:, None] * (options + 1)
    counted = np.bincount((rows + choice + 1).ravel(), minlength=len(choice) * (options + 1))
    return counted.reshape(len(choice), options + 1)[:, 1:]


def nearest_users(position: Array, users: Array, count: int, *, among: Array | None = None) -> Array:
    """Each UAV's nearest users by horizontal distance, nearest first; of equally far ones the lower index.

    Args:
        position: UAV positions, ``[E, U, 2]`` or ``[E, U, 3]``, in m; heights do not count.
        users: User positions, ``[E, G, 2]`` or ``[E, G, 3]``, in m.
        count: How many users a UAV, at least 1.
        among: ``[E, U, G]`` bool, the users to choose from; all by default.

    Returns:
        ``[E, U, count]`` int, indices of users; -1 where a UAV has fewer than `count` to choose from.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    envs, uavs, total = *position.shape[:2], users.shape[1]
    nearest = np.full((envs, uavs, count), -1, np.intp)
    for rows in row_blocks(envs, uavs * total):
        distance_sq = np.square(users[rows, None, :, 0] - position[rows, :, None, 0])
        distance_sq += np.square(users[rows, None, :, 1] - position[rows, :, None, 1])
        if among is not None:
            distance_sq[~among[rows]] = np.inf
        picked = _smallest(distance_sq, min(count, total))
        nearest[rows, :, : picked.shape[2]] = picked
    return nearest


def _smallest(values: Array, count: int) -> Array:
    """Indices of the `count` smallest of the last axis in order, ties by index; -1 for infinite ones."""
    limit = np.partition(values, count - 1, axis=-1)[..., count - 1, None]
    chosen = values <= limit
    if np.count_nonzero(chosen) > chosen.shape[0] * chosen.shape[1] * count:
        # Ties at the limit: as many of them as are wanted, from the left. A partition alone takes any.
        tied = values == limit
        chosen &= ~tied
        wanted = count - chosen.sum(axis=-1, keepdims=True)
        chosen |= tied & (np.cumsum(tied, axis=-1) <= wanted)
    index = np.nonzero(chosen)[2].reshape(*values.shape[:2], count)
    found = np.take_along_axis(values, index, axis=-1)
    order = np.argsort(found, axis=-1, kind="stable")
    nearest: Array = np.take_along_axis(np.where(np.isinf(found), -1, index), order, axis=-1)
    return nearest
