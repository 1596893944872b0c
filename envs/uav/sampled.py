"""Drawn channels: a line-of-sight state that stays while nobody moves far, correlated shadowing, fading.

All draws are counter-based: what a link gets follows from (seed, stream, moment) and from how its ends have moved
since the episode began, so environment ``j`` of any batch equals a batch of one.

Sources: the decorrelation of shadowing with the distance moved is Gudmundson's ("Correlation model for shadow fading
in mobile radio systems", Electronics Letters 27(23), 1991), with the product of both ends' correlations where both
move. Rician fading with line of sight and Rayleigh without are those of Zeng, Xu, Zhang, IEEE TWC 18(4), 2019. That
the state of a link is kept over one distance and then drawn anew is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from marl_tr.envs.uav.channel_config import SamplingConfig
from marl_tr.envs.uav.links import Geometry, LinkModel, geometry
from marl_tr.philox import philox4x32

__all__ = ["SampledChannel", "fading_power", "words"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_STATE, _SHADOWING, _FADING = 100, 101, 102

_CHUNK = 8192  # Philox blocks at a time: their temporaries stay in the cache, and bounded
_NEPERS_PER_DB = math.log(10) / 10
_STATES = ("los", "uav_anchor", "user_anchor", "shadowing", "last_position", "last_users", "fresh")


class SampledChannel:
    """Links of a block of ``E`` environments, one drawn state each; implements `marl_tr.envs.uav.propagation.Channel`.

    A link's state is drawn with the model's probability and kept until the UAV or the user is `decorrelation_m`
    or farther from where it was then. Shadowing of either state is a Gauss-Markov process with the correlation
    ``exp(-moved / decorrelation_m)`` over a slot, `moved` being the sum of what both ends moved. Fading is new
    each slot. Everything is drawn at an episode's first `gain`.

    Attributes:
        los: ``[E, U, G]`` bool, whether a link has line of sight.
        shadowing: ``[E, 2, U, G]``, standard normal, with and without line of sight; empty where there is none.
    """

    def __init__(
        self,
        model: LinkModel,
        settings: SamplingConfig,
        *,
        num_envs: int,
        num_uavs: int,
        num_users: int,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.model = model
        self.settings = settings
        self.dtype = np.dtype(dtype)
        e, u, g = num_envs, num_uavs, num_users
        self._shadowed = self._has_shadowing()
        self.los = np.zeros((e, u, g), bool)
        self.uav_anchor = np.zeros((e, 3, u, g), dtype)
        self.user_anchor = np.zeros((e, 2, u, g), dtype)
        self.shadowing = np.zeros((e, 2, u, g) if self._shadowed else (e, 0), dtype)
        self.last_position = np.zeros((e, u, 3), dtype)
        self.last_users = np.zeros((e, g, 2), dtype)
        self.fresh = np.ones(e, bool)

    def begin(self, rows: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """Forget the links of the environments `rows`; see `marl_tr.envs.uav.propagation.Channel.begin`."""
        self.fresh[rows] = True

    def gain(self, position: Array, users: Array, *, seed: int, stream: Array, moment: Array) -> Array:
        """Move the links on by a slot; see `marl_tr.envs.uav.propagation.Channel.gain`."""
        position = np.asarray(position, self.dtype)
        users = np.asarray(users, self.dtype)
        links = geometry(position, users)
        count = self.los[0].size
        self._draw_states(position, users, links, seed, stream, moment)
        los_gain, gain = self.model.gains(links.horizontal_sq, links.height)
        np.copyto(gain, los_gain, where=self.los)
        if self._shadowed:
            self._move_shadowing(position, users, seed, stream, moment)
            los_db, nlos_db = self._deviations(links.height)
            level = np.where(self.los, los_db * self.shadowing[:, 0], nlos_db * self.shadowing[:, 1])
            level *= _NEPERS_PER_DB
            gain *= np.exp(level, out=level)
        if self.settings.fading:
            drawn = words(seed, stream, purpose=_FADING, step=moment, count=2 * count)
            gain *= fading_power(drawn.reshape(-1, 2, *self.los.shape[1:]), self.los, self._k, self.dtype)
        self.last_position[:] = position
        self.last_users[:] = users
        self.fresh[:] = False
        return links.silence_landed(gain)

    def mean_gain(self, position: Array, users: Array) -> Array:
        """Expectation over states, shadowing and fading; see `marl_tr.envs.uav.propagation.Channel.mean_gain`.

        Shadowing of mean 0 in dB has a mean above 1 as a factor: ``exp((sigma ln 10 / 10)^2 / 2)``.
        """
        links = geometry(np.asarray(position, self.dtype), np.asarray(users, self.dtype))
        p = self.model.los_probability(links.horizontal_sq, links.height)
        los, nlos = self.model.gains(links.horizontal_sq, links.height)
        if self._shadowed:
            for gain, deviation in zip((los, nlos), self._deviations(links.height), strict=True):
                gain *= np.exp(np.square(_NEPERS_PER_DB * deviation) / 2)
        los *= p
        nlos *= 1.0 - p
        los += nlos
        return links.silence_landed(los)

    def state_dict(self) -> dict[str, Array]:
        """Copies of everything that the next `gain` depends on."""
        return {name: getattr(self, name).copy() for name in _STATES}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: An array is missing or has another shape than this channel's.
        """
        for name in _STATES:
            mine = getattr(self, name)
            if name not in state:
                raise ValueError(f"channel: {name} is missing; the state is of another channel")
            theirs = np.asarray(state[name])
            if mine.shape != theirs.shape:
                raise ValueError(f"channel: {name}: shape {theirs.shape} does not fit a channel with {mine.shape}")
            setattr(self, name, theirs.astype(mine.dtype))

    @property
    def _k(self) -> float:
        return float(10 ** (self.settings.rician_k_db / 10))

    def _has_shadowing(self) -> bool:
        """Whether a deviation can differ from 0; those of the models either never do or always."""
        los_db, nlos_db = self._deviations(np.full(1, 100.0))
        return self.settings.shadowing and bool(los_db.any() or nlos_db.any())

    def _deviations(self, height: Array) -> tuple[Array, Array]:
        """Standard deviations of shadowing in dB with and without line of sight, shaped like `height`."""
        los_db, nlos_db = self.model.shadowing_db(height)
        chosen = self.settings
        if chosen.shadowing_los_db is not None:
            los_db = np.full_like(height, chosen.shadowing_los_db)
        if chosen.shadowing_nlos_db is not None:
            nlos_db = np.full_like(height, chosen.shadowing_nlos_db)
        return los_db, nlos_db

    def _draw_states(
        self,
        position: Array,
        users: Array,
        links: Geometry,
        seed: int,
        stream: Array,
        moment: Array,
    ) -> None:
        limit = self.settings.decorrelation_m**2
        uavs_now = position.transpose(0, 2, 1)[..., None]
        users_now = users.transpose(0, 2, 1)[:, :, None]
        due = _strayed(self.uav_anchor, uavs_now) >= limit
        due |= _strayed(self.user_anchor, users_now) >= limit
        due |= self.fresh[:, None, None]
        rows = np.flatnonzero(due.any(axis=(1, 2)))
        if not rows.size:
            return
        drawn = words(seed, stream[rows], purpose=_STATE, step=moment[rows], count=due[0].size)
        p = self.model.los_probability(links.horizontal_sq[due], np.broadcast_to(links.height, due.shape)[due])
        self.los[due] = drawn.reshape(-1, *due.shape[1:])[due[rows]] * 2.0**-32 < p
        np.copyto(self.uav_anchor, uavs_now, where=due[:, None])
        np.copyto(self.user_anchor, users_now, where=due[:, None])

    def _move_shadowing(self, position: Array, users: Array, seed: int, stream: Array, moment: Array) -> None:
        def moved(now: Array, before: Array) -> Array:
            length: Array = np.sqrt(np.square(now - before).sum(axis=2))
            length[self.fresh] = np.inf
            length /= self.settings.decorrelation_m
            return length

        by_uav, by_user = moved(position, self.last_position), moved(users, self.last_users)
        keep = np.exp(-by_uav)[:, :, None] * np.exp(-by_user)[:, None, :]
        # 1 - keep^2, without a difference of numbers near 1.
        lost = -np.expm1(-2.0 * by_uav)[:, :, None]
        lost = lost + (1.0 - lost) * -np.expm1(-2.0 * by_user)[:, None, :]
        drawn = words(seed, stream, purpose=_SHADOWING, step=moment, count=2 * self.los[0].size)
        new = _normal_pairs(drawn.reshape(-1, 2, *self.los.shape[1:]), self.dtype)
        new *= np.sqrt(lost, out=lost)[:, None]
        self.shadowing *= keep[:, None]
        self.shadowing += new


def words(seed: int, stream: Array, *, purpose: int, step: Array, count: int) -> NDArray[np.uint32]:
    """Random words, the first `count` a stream of what `marl_tr.philox.bits` gives at the same coordinates.

    Works through the blocks in pieces, because a slot of thousands of users needs millions.

    Args:
        seed: The key, in ``[0, 2**64)``.
        stream: Environment indices, ``[E]``.
        purpose: What the numbers are for.
        step: Time, ``[E]``, taken modulo ``2**32``.
        count: Words a stream.

    Returns:
        ``[E, count]`` uint32.
    """
    blocks = -(-count // 4)
    total = len(stream) * blocks
    out = np.empty((total, 4), np.uint32)
    moments = np.asarray(step).astype(np.uint32)
    for first in range(0, total, _CHUNK):
        row, block = np.divmod(np.arange(first, min(first + _CHUNK, total)), blocks)
        counter = np.empty((len(row), 4), np.uint32)
        counter[:, 0] = block
        counter[:, 1] = moments[row]
        counter[:, 2] = np.asarray(stream)[row]
        counter[:, 3] = purpose
        out[first : first + _CHUNK] = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return out.reshape(len(stream), 4 * blocks)[:, :count]


def fading_power(drawn: NDArray[np.uint32], los: Array, k: float, dtype: DTypeLike = np.float64) -> Array:
    """Power of small-scale fading, of mean 1: Rician where `los`, Rayleigh elsewhere.

    ``|sqrt(K / (K + 1)) + sqrt(1 / (K + 1)) z|^2`` and ``|z|^2`` for one complex Gaussian ``z``, ``E |z|^2 = 1``.

    Args:
        drawn: ``[E, 2, ...]`` uint32 random words.
        los: ``[E, ...]`` bool.
        k: The Rician factor, linear.
        dtype: Of the computation.
    """
    power, cosine, _ = _polar(drawn, np.dtype(dtype))
    direct, scattered = math.sqrt(k / (k + 1)), math.sqrt(1 / (k + 1))
    # Sum of two squares rather than the expanded one, which could fall below 0 by rounding.
    rician = np.square(direct + scattered * np.sqrt(power) * cosine)
    rician += scattered**2 * power * (1.0 - np.square(cosine))
    np.copyto(power, rician, where=los)
    return power


def _normal_pairs(drawn: NDArray[np.uint32], dtype: np.dtype[Any]) -> Array:
    """Standard normal numbers of the shape of `drawn`, by Box and Muller's transform of its two halves."""
    power, cosine, sine = _polar(drawn, dtype)
    radius = np.sqrt(2.0 * power)
    return np.stack((radius * cosine, radius * sine), axis=1)


def _polar(drawn: NDArray[np.uint32], dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """An exponential number of mean 1, and cosine and sine of a uniform angle, from ``[E, 2, ...]`` words."""
    # Cell centres, and from below 1 in this dtype: the logarithm is neither 0 nor infinite, and small powers
    # (deep fades) keep their relative precision.
    u = (drawn[:, 0] + 0.5) * 2.0**-32
    u = np.minimum(u.astype(dtype), np.nextafter(dtype.type(1), dtype.type(0)))
    power: Array = np.negative(np.log1p(-u))
    angle = (drawn[:, 1] * (2.0 * math.pi * 2.0**-32)).astype(dtype)
    return power, np.cos(angle), np.sin(angle)


def _strayed(anchor: Array, now: Array) -> Array:
    """Squared distances of `now` from `anchor`, over axis 1, one coordinate at a time."""
    total: Array = np.square(anchor[:, 0] - now[:, 0])
    for axis in range(1, anchor.shape[1]):
        total += np.square(anchor[:, axis] - now[:, axis])
    return total
