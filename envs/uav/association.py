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

# As fast as larger blocks, whose temporaries leave the cache, and faster than smaller ones.
_BLOCK = 2**18


_FEW = 2048
"""Below, it is the number of NumPy's calls that counts."""


def row_blocks(rows: int, row_size: int) -> Iterator[slice]:
    """Cut `rows` into blocks of about 2**18 numbers, and at least one row, to bound the memory of temporaries.

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
    serving, signal = _strongest(received)
    cap = limits.max_users_per_uav
    if cap is not None and cap < received.shape[2]:
        serving = _admit(received, serving, signal, cap)
        best = np.take_along_axis(received, np.maximum(serving, 0)[:, None, :], axis=1)[:, 0]
        signal = np.where(serving >= 0, best, 0)
    return Association(serving, signal)


def _strongest(received: Array) -> tuple[Array, Array]:
    """Index of the UAV of the highest power, the lowest of equals, -1 where all are 0; and that power; ``[E, G]``."""
    if received.size < _FEW:
        serving, signal = received.argmax(axis=1), received.max(axis=1)
        serving[signal <= 0] = -1
        return serving, signal
    # A loop over few UAVs: of many numbers faster than a reduction over a middle axis.
    signal = received[:, 0].copy()
    serving = np.zeros(signal.shape, np.intp)
    serving[signal <= 0] = -1
    for uav in range(1, received.shape[1]):
        np.copyto(serving, uav, where=received[:, uav] > signal)
        np.maximum(signal, received[:, uav], out=signal)
    return serving, signal


def _admit(received: Array, asked_first: Array, signal: Array, cap: int) -> Array:
    """The rounds of `associate`, over a list of the users who still ask. Returns ``[E, G]``, the UAV or -1."""
    envs, uavs, users = received.shape
    admitted = np.full((envs, users), -1, np.intp)
    room = np.full(envs * uavs, cap)
    env, user = np.nonzero(asked_first >= 0)
    uav, strength = asked_first[env, user], signal[env, user]
    options: Array | None = None
    for _ in range(uavs):
        cell = env * uavs + uav
        asking = np.bincount(cell, minlength=envs * uavs)
        taken = (asking <= room)[cell]
        # Where not all fit, the strongest do; the sort is stable, which settles ties by the user's index.
        (contested,) = np.nonzero(~taken)
        contested = contested[np.lexsort((-strength[contested], cell[contested]))]
        queue = cell[contested]
        taken[contested] = np.arange(len(queue)) - np.searchsorted(queue, queue) < room[queue]
        admitted[env[taken], user[taken]] = uav[taken]
        room -= np.minimum(asking, room)

        env, user = env[~taken], user[~taken]
        # What each of them receives, kept from round to round: gathering it is the dearest part.
        options = received[env, :, user] if options is None else options[~taken]
        options *= (room > 0).reshape(envs, uavs)[env]
        uav, strength = options.argmax(axis=1), options.max(axis=1)
        hopeful = strength > 0
        if not hopeful.all():
            env, user, uav, strength, options = (a[hopeful] for a in (env, user, uav, strength, options))
        if not len(env):
            break
    return admitted


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
