"""Users whose slot is one formula: random walk and Gauss-Markov."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.draws import gaussian, unit, words
from marl_tr.envs.uav.mobility_config import GaussMarkovConfig, RandomWalkConfig
from marl_tr.envs.uav.motion import Moving

__all__ = ["GaussMarkov", "RandomWalk", "reflect"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_WALK, _GAUSS_MARKOV, _GAUSS_MARKOV_START = 20, 21, 22


class RandomWalk(Moving):
    """Heading uniform, speed uniform in ``[0, v_max]``, both anew each slot; reflected at the borders.

    Away from borders the mean squared displacement after ``n`` slots is ``n v_max^2 slot_s^2 / 3``.
    """

    def __init__(self, config: RandomWalkConfig, **block: Any) -> None:
        super().__init__(**block)
        self.config = config

    def begin(self, rows: Array, start: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """See `Mobility.begin`."""
        self._put(rows, start)

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """See `Mobility.move`."""
        envs, users = self.position.shape[:2]
        drawn = words(seed, stream, purpose=_WALK, step=moment, count=2 * users).reshape(envs, users, 2)
        heading = unit(drawn[..., 0], self.dtype) * (2.0 * math.pi)
        length = unit(drawn[..., 1], self.dtype) * (self.config.v_max * self.slot_s)
        place = self._place + _along(heading, length)
        self._go(reflect(place, self.area_m)[0])


class GaussMarkov(Moving):
    """Speed and heading with a memory ``a``.

    In each slot ``s' = a s + (1 - a) mean_speed + sqrt(1 - a^2) speed_deviation w`` with ``w`` standard normal, and
    the heading ``d`` likewise round a mean heading of each user's own. Episodes begin in the stationary law. Within
    `margin_m` of a border a mean heading that points towards it is mirrored at it; a user who meets the border is
    reflected. Users move at ``s`` clipped to ``[0, v_max]``; what the recursion remembers is not clipped.

    Source: Liang and Haas, "Predictive distance-based mobility management for PCS networks", INFOCOM 1999.

    Attributes:
        speed: ``[E, G]``, ``s``, in m/s.
        heading: ``[E, G]``, ``d``, in rad.
        mean_heading: ``[E, G]``, in rad.
    """

    def __init__(self, config: GaussMarkovConfig, **block: Any) -> None:
        super().__init__(**block)
        self.config = config
        shape = self.position.shape[:2]
        self.speed = np.zeros(shape, self.dtype)
        self.heading = np.zeros(shape, self.dtype)
        self.mean_heading = np.zeros(shape, self.dtype)
        self._margin = min(config.margin_m, 0.5 * self.area_m)

    def begin(self, rows: Array, start: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """See `Mobility.begin`."""
        envs, users = start.shape[:2]
        drawn = words(seed, stream, purpose=_GAUSS_MARKOV_START, step=episode, count=4 * users)
        drawn = drawn.reshape(envs, users, 4)
        of_speed, of_heading = gaussian(drawn[..., :2])
        mean_heading = 2.0 * math.pi * unit(drawn[..., 2])
        self.speed[rows] = self.config.mean_speed + self.config.speed_deviation * of_speed
        self.mean_heading[rows] = mean_heading
        self.heading[rows] = mean_heading + self.config.heading_deviation * of_heading
        self._put(rows, start)

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """See `Mobility.move`."""
        config = self.config
        self._turn_inward()
        envs, users = self.position.shape[:2]
        drawn = words(seed, stream, purpose=_GAUSS_MARKOV, step=moment, count=2 * users).reshape(envs, users, 2)
        of_speed, of_heading = gaussian(drawn, self.dtype)
        fresh = math.sqrt(1.0 - config.memory**2)
        for value, mean, deviation, noise in (
            (self.speed, config.mean_speed, config.speed_deviation, of_speed),
            (self.heading, self.mean_heading, config.heading_deviation, of_heading),
        ):
            value *= config.memory
            value += (1.0 - config.memory) * mean
            noise *= fresh * deviation
            value += noise
        length = np.clip(self.speed, 0.0, config.v_max) * self.slot_s
        place, mirrored = reflect(self._place + _along(self.heading, length), self.area_m)
        self._go(place)
        if mirrored is not None:
            self._mirror(mirrored)

    def _arrays(self) -> dict[str, Array]:
        own = {"speed": self.speed, "heading": self.heading, "mean_heading": self.mean_heading}
        return {**super()._arrays(), **own}

    def _turn_inward(self) -> None:
        """Mirror mean headings that point towards a near border."""
        half = 0.5 * self.area_m
        from_centre = self._place - half
        close = np.abs(from_centre) > half - self._margin
        near = np.nonzero(close[..., 0] | close[..., 1])
        mean = self.mean_heading[near]
        ahead = np.stack((np.cos(mean), np.sin(mean)), axis=-1)
        outward = close[near] & (ahead * from_centre[near] > 0)
        turning = outward[:, 0] | outward[:, 1]
        self._set_mean((near[0][turning], near[1][turning]), _mirrored(mean[turning], outward[turning]))

    def _mirror(self, mirrored: Array) -> None:
        """Headings after reflection, ``mirrored [E, G, 2]`` by axis; the mean points inward wherever it can."""
        hit = np.nonzero(mirrored[..., 0] | mirrored[..., 1])
        self.heading[hit] = _mirrored(self.heading[hit], mirrored[hit])
        mean = self.mean_heading[hit]
        ahead = np.stack((np.cos(mean), np.sin(mean)), axis=-1)
        outward = ahead * (self._place[hit] - 0.5 * self.area_m) > 0
        self._set_mean(hit, _mirrored(mean, mirrored[hit] & outward))

    def _set_mean(self, where: tuple[Array, ...], mean: Array) -> None:
        """Set mean headings; headings keep their direction, counted so that the turn to the mean is the short one."""
        apart = _principal(self.heading[where] - mean)
        mean = _principal(mean)
        self.mean_heading[where] = mean
        self.heading[where] = mean + apart


def reflect(place: Array, side: float) -> tuple[Array, Array | None]:
    """Reflect at the borders of ``[0, side]``, as often as needed.

    Args:
        place: ``[...]``; changed in place.
        side: In m.

    Returns:
        `place`, and where the direction of motion is mirrored by it, ``[...]`` bool (an even number of reflections
        leaves it); None if every coordinate was inside.
    """
    outside = (place < 0.0) | (place > side)
    if not outside.any():
        return place, None
    beyond = place[outside]
    folded = np.mod(beyond, 2.0 * side)
    # The clip is for what rounding does to a coordinate on a border.
    place[outside] = np.clip(side - np.abs(side - folded), 0.0, side)
    mirrored = np.zeros_like(outside)
    mirrored[outside] = folded > side
    return place, mirrored


def _along(heading: Array, length: Array) -> Array:
    step = np.empty((*heading.shape, 2), heading.dtype)
    np.multiply(np.cos(heading), length, out=step[..., 0])
    np.multiply(np.sin(heading), length, out=step[..., 1])
    return step


def _principal(angle: Array) -> Array:
    """The same angles in ``[-pi, pi]``."""
    turn = 2.0 * math.pi
    return angle - turn * np.round(angle / turn)


def _mirrored(heading: Array, axes: Array) -> Array:
    """Headings ``[n]`` mirrored in x, y, both or neither, ``axes [n, 2]`` bool."""
    heading = np.where(axes[:, 0], math.pi - heading, heading)
    return np.where(axes[:, 1], -heading, heading)
