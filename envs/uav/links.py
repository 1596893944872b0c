"""What a channel model says of single links, and the geometry that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Geometry", "LinkModel", "geometry"]

Array = NDArray[Any]

_NOMINAL_HEIGHT_M = 100.0
"""Of a UAV on the ground, whose gain is 0 whatever a model says: one at which every model holds."""


class LinkModel(Protocol):
    """A link is in one of two states, with line of sight or without.

    Everywhere: `horizontal_sq` is the squared horizontal distance in m^2, `height` the UAV's height over the
    ground in m, shaped to broadcast with it. Results have the shape of `horizontal_sq` and its dtype.
    """

    def los_probability(self, horizontal_sq: Array, height: Array) -> Array:
        """Probability of line of sight."""
        ...

    def gains(self, horizontal_sq: Array, height: Array) -> tuple[Array, Array]:
        """Power gains with and without line of sight, linear."""
        ...

    def mean(self, horizontal_sq: Array, height: Array, averaging: Literal["mean_gain", "mean_db"]) -> Array:
        """Gain averaged over the two states, linear: of the gain, or of the loss in dB."""
        ...

    def shadowing_db(self, height: Array) -> tuple[Array, Array]:
        """The model's own standard deviations of shadowing with and without line of sight, shaped like `height`."""
        ...


@dataclass(frozen=True)
class Geometry:
    """Where the ends of all links are from each other.

    Attributes:
        horizontal_sq: ``[E, U, G]``, squared horizontal distance, in m^2.
        height: ``[E, U, 1]``, in m; at least 1, to which gains are referred, and nominal where `flying` is False.
        flying: ``[E, U, 1]`` bool, or None where all are.
    """

    horizontal_sq: Array
    height: Array
    flying: Array | None

    def silence_landed(self, gain: Array) -> Array:
        """`gain`, in place and C-contiguous, 0 where the UAV is on the ground: no model holds there."""
        if self.flying is not None:
            gain *= self.flying
        return np.ascontiguousarray(gain)


def geometry(position: Array, users: Array) -> Geometry:
    """Distances and heights.

    Args:
        position: ``[E, U, 3]``, in m.
        users: ``[E, G, 2]``, in m.
    """
    dx = np.ascontiguousarray(users[:, None, :, 0] - position[:, :, 0, None])
    dy = users[:, None, :, 1] - position[:, :, 1, None]
    dx *= dx
    dy *= dy
    dx += dy
    height = position[:, :, 2:]
    if height.min() >= 1.0:  # nearly always; the rest is many calls for arrays as small as this
        return Geometry(dx, height, None)
    flying = height > 0
    height = np.where(flying, np.maximum(height, 1.0), _NOMINAL_HEIGHT_M).astype(dx.dtype, copy=False)
    return Geometry(dx, height, None if flying.all() else flying)
