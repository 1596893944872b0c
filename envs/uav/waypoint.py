"""Random waypoint in continuous time, begun in its stationary law; and groups, which are made of two of it.

Legs are not cut to slots: who arrives within a slot pauses, and leaves again, within it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.draws import unit, words_at
from marl_tr.envs.uav.mobility_config import GroupConfig, RandomWaypointConfig
from marl_tr.envs.uav.motion import Moving

__all__ = ["Disc", "Groups", "RandomWaypoint", "Square", "Walkers"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning. A set of
# walkers has two: as an episode begins, and as a leg ends.
_WAYPOINT, _LEADERS, _MEMBERS = (23, 24), (25, 26), (27, 28)

MOST_LEGS = 100
"""Legs that a user may finish in a slot, in the mean; more are a slot that does not suit the area."""


@dataclass(frozen=True)
class Square:
    """``[0, side]^2``, in m."""

    side: float

    @property
    def longest(self) -> float:
        """Between two points, in m."""
        return math.sqrt(2.0) * self.side

    @property
    def mean_distance(self) -> float:
        """Of two independent uniform points, in m: ``(2 + sqrt 2 + 5 asinh 1) / 15`` sides."""
        return (2.0 + math.sqrt(2.0) + 5.0 * math.asinh(1.0)) / 15.0 * self.side

    def points(self, first: Array, second: Array) -> Array:
        """Uniform points ``[n, 2]`` of two uniform numbers in ``[0, 1)`` each."""
        return self.side * np.stack((first, second), axis=-1)


@dataclass(frozen=True)
class Disc:
    """Round the origin, in m."""

    radius: float

    @property
    def longest(self) -> float:
        """Between two points, in m."""
        return 2.0 * self.radius

    @property
    def mean_distance(self) -> float:
        """Of two independent uniform points, in m: ``128 / (45 pi)`` radii."""
        return 128.0 / (45.0 * math.pi) * self.radius

    def points(self, first: Array, second: Array) -> Array:
        """Uniform points ``[n, 2]`` of two uniform numbers in ``[0, 1)`` each."""
        radius, angle = self.radius * np.sqrt(first), 2.0 * math.pi * second
        return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)


class Walkers:
    """``[E, N]`` points that walk through a region by random waypoint, in float64.

    Attributes:
        place: ``[E, N, 2]``, in m.
        target: ``[E, N, 2]``, end of the leg, in m.
        motion: ``[E, N, 2]``, velocity on it, in m/s.
        wait: ``[E, N]``, pause left before it, in s.
        travel: ``[E, N]``, time left on it, in s.
    """

    def __init__(
        self,
        region: Square | Disc,
        num_envs: int,
        count: int,
        *,
        speeds: tuple[float, float],
        pause_max_s: float,
        slot_s: float,
        purposes: tuple[int, int],
    ) -> None:
        low, high = speeds
        slowness = math.log(high / low) / (high - low) if high > low else 1.0 / low
        moving, standing = region.mean_distance * slowness, 0.5 * pause_max_s
        if slot_s > MOST_LEGS * (moving + standing):
            raise ValueError(
                f"a slot of {slot_s:g} s lasts {slot_s / (moving + standing):.0f} mean legs of random waypoint "
                f"(at most {MOST_LEGS}); make slots shorter, or speeds lower"
            )
        self._region = region
        self._speeds = speeds
        self._pause_max_s = pause_max_s
        self._slot_s = slot_s
        self._moving_share = moving / (moving + standing)
        self._at_begin, self._at_arrival = purposes
        self.place = np.zeros((num_envs, count, 2))
        self.target = np.zeros((num_envs, count, 2))
        self.motion = np.zeros((num_envs, count, 2))
        self.wait = np.zeros((num_envs, count))
        self.travel = np.zeros((num_envs, count))

    def begin(self, rows: Array, place: Array | None, *, seed: int, stream: Array, episode: Array) -> None:
        """Begin a leg at each `place` ``[n, N, 2]``; None: begin in the stationary law.

        The stationary law, sampled exactly (Navidi and Camp, "Stationary distributions for the random waypoint
        mobility model", IEEE TMC 3(1), 2004): who pauses, stands anywhere with the residual of a uniform pause; who
        moves, is uniform on a leg whose ends have a density proportional to its length, at a speed with a density
        proportional to 1/v.
        """
        count = self.place.shape[1]
        index = np.tile(np.arange(count), len(rows))
        streams, steps = np.repeat(stream, count), np.repeat(episode, count)

        def draw(number: int, who: Array | slice = slice(None)) -> Array:
            block = number * count + index[who]
            drawn = words_at(seed, streams[who], purpose=self._at_begin, step=steps[who], block=block)
            return unit(drawn)

        where, leg = draw(0), draw(1)
        target = self._region.points(leg[:, 0], leg[:, 1])
        speed = self._uniform_speed(leg[:, 2])
        wait = np.zeros(len(index))
        if place is None:
            here = self._region.points(where[:, 0], where[:, 1])
            # The residual of a pause that is uniform in [0, P] has the density 2 (1 - x / P) / P.
            wait = self._pause_max_s * (1.0 - np.sqrt(1.0 - where[:, 2]))
            moving = np.nonzero(where[:, 3] < self._moving_share)[0]
            low, high = self._speeds
            speed[moving] = low * (high / low) ** leg[moving, 2]
            wait[moving] = 0.0
            pending, number = moving, 2
            while len(pending):
                ends, more = draw(number, pending), draw(number + 1, pending)
                first, last = self._region.points(*ends[:, :2].T), self._region.points(*ends[:, 2:].T)
                accepted = more[:, 0] * self._region.longest < _length(last - first)
                done, share = pending[accepted], more[accepted, 1, None]
                here[done] = first[accepted] + share * (last - first)[accepted]
                target[done] = last[accepted]
                pending, number = pending[~accepted], number + 2
        else:
            here = place.reshape(-1, 2)
        shape = (len(rows), count)
        self.place[rows] = here.reshape(*shape, 2)
        self.wait[rows] = wait.reshape(shape)
        env, walker = np.repeat(rows, count), index
        self._head_for((env, walker), target, speed)

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """Walk for a slot."""
        stand = np.minimum(self.wait, self._slot_s)
        self.wait -= stand
        left = self._slot_s - stand
        arrived = np.nonzero(self.travel <= left)
        over = left[arrived] - self.travel[arrived]
        self.place += self.motion * left[..., None]
        self.travel -= left
        count, number = self.place.shape[1], 0
        while len(over):
            env, walker = arrived
            block = number * count + walker
            drawn = unit(words_at(seed, stream[env], purpose=self._at_arrival, step=moment[env], block=block))
            self.place[arrived] = self.target[arrived]
            self._head_for(arrived, self._region.points(drawn[:, 0], drawn[:, 1]), self._uniform_speed(drawn[:, 2]))
            pause = self._pause_max_s * drawn[:, 3]
            stand = np.minimum(pause, over)
            self.wait[arrived] = pause - stand
            left = over - stand
            travel = self.travel[arrived]
            self.place[arrived] += self.motion[arrived] * left[:, None]
            self.travel[arrived] = travel - left
            again = travel <= left
            over = (left - travel)[again]
            arrived, number = (env[again], walker[again]), number + 1

    def arrays(self, whose: str) -> dict[str, Array]:
        """The arrays that the next slot depends on, themselves, by ``<whose>_<name>``."""
        names = ("place", "target", "motion", "wait", "travel")
        return {f"{whose}_{name}": getattr(self, name) for name in names}

    def _head_for(self, who: tuple[Array, ...], target: Array, speed: Array) -> None:
        way = target - self.place[who]
        # The floor is for a target that is where the walker stands.
        length = np.maximum(_length(way), 1e-9)
        self.target[who] = target
        self.travel[who] = length / speed
        self.motion[who] = way * (speed / length)[:, None]

    def _uniform_speed(self, number: Array) -> Array:
        low, high = self._speeds
        return low + (high - low) * number


class RandomWaypoint(Moving):
    """Users who walk by random waypoint (Johnson and Maltz, 1996).

    Its stationary law is neither uniform in the area nor of the mean speed of the legs, but of
    ``(v_hi - v_lo) / ln(v_hi / v_lo)`` while moving: slow legs last longer.

    Raises:
        ValueError: A slot is so long that users would finish more than `MOST_LEGS` legs in it.
    """

    def __init__(self, config: RandomWaypointConfig, **block: Any) -> None:
        super().__init__(**block)
        self.config = config
        envs, users = self.position.shape[:2]
        self._walkers = Walkers(
            Square(self.area_m),
            envs,
            users,
            speeds=(config.v_lo, config.v_hi),
            pause_max_s=config.pause_max_s,
            slot_s=self.slot_s,
            purposes=_WAYPOINT,
        )

    def begin(self, rows: Array, start: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """See `Mobility.begin`; `start` counts where the settings say ``start: layout``."""
        place = start if self.config.start == "layout" else None
        self._walkers.begin(rows, place, seed=seed, stream=stream, episode=episode)
        self._put(rows, np.clip(self._walkers.place[rows], 0.0, self.area_m))

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """See `Mobility.move`."""
        self._walkers.move(seed=seed, stream=stream, moment=moment)
        self._go(np.clip(self._walkers.place, 0.0, self.area_m))

    def _arrays(self) -> dict[str, Array]:
        return {**super()._arrays(), **self._walkers.arrays("walkers")}


class Groups(Moving):
    """Reference-point group mobility: user ``g`` follows leader ``g groups // G`` (integer division).

    Leaders walk through the area by random waypoint; a member's offset from its leader walks through a disc by
    random waypoint without pauses. Both begin in their stationary laws, wherever the layout put the users. Members
    whose place would be outside the area are at the nearest point of it.

    Source: Hong, Gerla, Pei and Chiang, "A group mobility model for ad hoc wireless networks", MSWiM 1999, whose
    members jump to a fresh offset each step; here they walk there, so that they have a highest speed.

    Raises:
        ValueError: There are more groups than users, or a slot is too long (see `RandomWaypoint`).
    """

    def __init__(self, config: GroupConfig, **block: Any) -> None:
        super().__init__(**block)
        self.config = config
        envs, users = self.position.shape[:2]
        if config.groups > users:
            raise ValueError(f"mobility.groups: {config.groups} groups need at least as many users, got {users}")
        self._group = np.arange(users) * config.groups // users
        self._leaders = Walkers(
            Square(self.area_m),
            envs,
            config.groups,
            speeds=(config.v_lo, config.v_hi),
            pause_max_s=config.pause_max_s,
            slot_s=self.slot_s,
            purposes=_LEADERS,
        )
        self._members = Walkers(
            Disc(config.radius_m),
            envs,
            users,
            speeds=(config.member_v_lo, config.member_v_hi),
            pause_max_s=0.0,
            slot_s=self.slot_s,
            purposes=_MEMBERS,
        )

    def begin(self, rows: Array, start: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """See `Mobility.begin`; `start` does not count."""
        self._leaders.begin(rows, None, seed=seed, stream=stream, episode=episode)
        self._members.begin(rows, None, seed=seed, stream=stream, episode=episode)
        self._put(rows, self._together()[rows])

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """See `Mobility.move`."""
        self._leaders.move(seed=seed, stream=stream, moment=moment)
        self._members.move(seed=seed, stream=stream, moment=moment)
        self._go(self._together())

    def _arrays(self) -> dict[str, Array]:
        return {**super()._arrays(), **self._leaders.arrays("leaders"), **self._members.arrays("members")}

    def _together(self) -> Array:
        place: Array = self._leaders.place[:, self._group] + self._members.place
        return np.clip(place, 0.0, self.area_m, out=place)


def _length(way: Array) -> Array:
    length: Array = np.sqrt(way[..., 0] * way[..., 0] + way[..., 1] * way[..., 1])
    return length
