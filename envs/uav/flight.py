"""How UAVs move in a slot: inertia, borders, and how close they come to each other.

Pure functions over arrays ``[E, U, ...]``, in the dtype of their input. Positions are ``[E, U, 3]``, in m; level
flight leaves the third coordinate alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["advance", "closest_approach_sq", "collisions", "limit_speed", "limit_turn"]

Array = NDArray[Any]


def limit_speed(speed: Array, before: Array, *, accel_max: float, dt: float) -> Array:
    """The speed nearest to `speed` that is reached from `before` within a slot.

    Args:
        speed: Wanted, ``[E, U]``, in m/s.
        before: At the end of the last slot, ``[E, U]``, in m/s.
        accel_max: In m/s^2.
        dt: Length of a slot, in s.
    """
    step = accel_max * dt
    limited: Array = np.clip(speed, before - step, before + step)
    return limited


def limit_turn(heading: Array, before: Array, *, rate_max: float, dt: float) -> Array:
    """The heading nearest to `heading` that is reached from `before` within a slot, the shorter way round.

    Args:
        heading: Wanted, ``[E, U]``, in rad.
        before: At the end of the last slot, ``[E, U]``, in rad.
        rate_max: In rad/s.
        dt: Length of a slot, in s.

    Returns:
        ``[E, U]``, in ``[-pi, pi)``; of two equally short ways the one that falls.
    """
    step = rate_max * dt
    turned = before + np.clip(_wrap(heading - before), -step, step)
    return _wrap(turned)


def advance(
    position: Array,
    speed: Array,
    heading: Array,
    pitch: Array | None,
    *,
    dt: float,
    area_m: float,
    altitudes: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """Fly straight for a slot, and stop at the border.

    Args:
        position: ``[E, U, 3]``.
        speed: ``[E, U]``, in m/s.
        heading: ``[E, U]``, in rad; 0 is along x.
        pitch: ``[E, U]``, in rad, positive upwards; None: level flight.
        dt: Length of a slot, in s.
        area_m: Side of the area.
        altitudes: Lowest and highest flight, in m; needed with `pitch`.

    Returns:
        The new position ``[E, U, 3]``, and ``[E, U]`` bool, who was stopped by the border or a limit of altitude.
    """
    length = speed * dt
    level = length if pitch is None else length * np.cos(pitch)
    target = position.copy()
    target[..., 0] += level * np.cos(heading)
    target[..., 1] += level * np.sin(heading)
    if pitch is not None:
        target[..., 2] += length * np.sin(pitch)
    reached = target.copy()
    _bound(reached[..., :2], 0.0, area_m)
    if pitch is not None and altitudes is not None:
        _bound(reached[..., 2], *altitudes)
    stopped = reached != target
    return reached, stopped[..., 0] | stopped[..., 1] | stopped[..., 2]


def closest_approach_sq(before: Array, after: Array) -> Array:
    """Least squared distance of each pair while all fly straight at constant speed.

    Looking at end points alone would let two UAVs swap places unharmed.

    Args:
        before: Positions at the slot's start, ``[E, U, D]``, in m, of any dimension ``D``.
        after: Positions at its end.

    Returns:
        ``[E, U, U]``, in m^2; infinite on the diagonal.
    """
    # Coordinates first: [D, E, U, U].
    start = np.ascontiguousarray(before.transpose(2, 0, 1))
    move = np.ascontiguousarray(after.transpose(2, 0, 1)) - start
    apart, drift = _differences(start), _differences(move)
    # The tiny floor stands for "no relative motion"; the moment is then 0 whatever the distance.
    moment = _total(apart * drift)
    moment /= np.maximum(_total(drift * drift), 1e-12)
    np.negative(moment, out=moment)
    _bound(moment, 0.0, 1.0)
    drift *= moment
    apart += drift
    apart *= apart
    closest = _total(apart)
    uavs = closest.shape[1]
    closest.reshape(len(closest), -1)[:, :: uavs + 1] = np.inf
    return closest


def collisions(before: Array, after: Array, *, separation_m: float, flying: Array | None = None) -> Array:
    """Who came closer than the least separation to another UAV at any moment of the slot.

    Args:
        before: Positions at the slot's start, ``[E, U, D]``, in m.
        after: Positions at its end.
        separation_m: Least separation.
        flying: ``[E, U]`` bool; the others lie on the ground and meet nobody. None: all fly.

    Returns:
        ``[E, U]`` bool.
    """
    if before.shape[1] == 1:
        return np.zeros(before.shape[:2], bool)
    near = closest_approach_sq(before, after) < separation_m**2
    if flying is not None:
        near &= flying[:, :, None] & flying[:, None, :]
    hit: Array = np.any(near, axis=2)
    return hit


def _differences(x: Array) -> Array:
    """``[D, E, U]`` to ``[D, E, U, U]``: first index less second."""
    return x[..., :, None] - x[..., None, :]


def _bound(x: Array, low: float, high: float) -> None:
    """`np.clip` in place, at a fraction of its overhead on arrays as small as these."""
    np.maximum(x, low, out=x)
    np.minimum(x, high, out=x)


def _total(parts: Array) -> Array:
    """Sum over the coordinates, ``[D, ...]`` to ``[...]``."""
    total: Array = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


def _wrap(angle: Array) -> Array:
    """To ``[-pi, pi)``."""
    wrapped: Array = np.mod(angle + math.pi, 2 * math.pi) - math.pi
    return wrapped
