"""Places and powers that serve users who stand still well: a random hill climb, all scenes at once.

What is climbed is the reward of one slot in which the UAVs hover, with the channel's mean gain. The result is a good
opponent for a learned policy, not an optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.actions import Command, least_power
from marl_tr.envs.uav.actions_config import NumberActions
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.coverage import Gain, mean_gain
from marl_tr.envs.uav.reward import utility as worth
from marl_tr.envs.uav.transmission import transmit
from marl_tr.envs.uav.utility import StdOver, rate_deviation
from marl_tr.philox import normal, uniform

__all__ = ["SAMPLE", "Placement", "Problem", "Utility", "climb", "placement_problem", "search", "steps_for"]

Array = NDArray[Any]

Utility = Callable[[Array, Array, Array, Array], Array]
"""From mean gains ``[E, U, G]``, transmit powers ``[E, U]`` in W, and positions of UAVs ``[E, U, D]`` and users
``[E, G, 2 or more]`` in m to what is to be made large, ``[E]``."""

SAMPLE = 256
"""Users that `search` looks at; of more, so many are drawn."""

_STEPS_A_UAV = 200
_MOST_STEPS = 1500
_MOST_LINKS = 1_000_000
_DRAWS = 100
"""Steps whose random numbers are drawn together."""

# Widths of the normal steps: from a third of the area, which finds other hot spots, to a two-hundredth.
_WIDEST, _NARROWEST = 0.3, 0.005
# Powers move by factors: from silence to full power are three decades, and the best are often at either end.
_DECADES = 1.0

_MOVES, _SAMPLE_ORDER = 1, 2  # purposes of random streams; 0 is k-means' own


@dataclass(frozen=True)
class Placement:
    """Where the UAVs hover and how loudly they send.

    Attributes:
        position: ``[E, U, D]``, in m.
        power_w: ``[E, U]``.
        value: ``[E]``, of the problem.
    """

    position: Array
    power_w: Array
    value: Array


@dataclass(frozen=True)
class Problem:
    """What a search may do, and what it is for.

    Attributes:
        gain: Mean channel.
        utility: To be made large.
        low: Least coordinates, ``[D]``, in m.
        high: Greatest coordinates, ``[D]``, in m.
        least_w: Least transmit power of a UAV.
        most_w: Greatest.
        separation_m: UAVs closer than this collide.
        collision: What a share 1 of colliding UAVs costs.
        levels: Powers are `most_w` times ``1 / levels, 2 / levels, ...``; 0: any.
    """

    gain: Gain
    utility: Utility
    low: Array
    high: Array
    least_w: float
    most_w: float
    separation_m: float = 0.0
    collision: float = 0.0
    levels: int = 0

    def value(self, position: Array, power_w: Array, users: Array) -> Array:
        """Utility less collisions, ``[E]``; arguments as in `climb`."""
        return self.worth(self.gain(position, users), power_w, position, users)

    def worth(self, gain: Array, power_w: Array, position: Array, users: Array) -> Array:
        """`value` where the gains are known."""
        worth = self.utility(gain, power_w, position, users)
        uavs = position.shape[1]
        if uavs > 1 and self.collision and self.separation_m:
            apart = np.square(position[:, :, None] - position[:, None]).sum(axis=3)
            apart[:, np.arange(uavs), np.arange(uavs)] = np.inf
            worth = worth - self.collision * (apart < self.separation_m**2).any(axis=2).mean(axis=1)
        return worth

    def allowed(self, power_w: Array) -> Array:
        """The nearest power that may be sent (of levels, the next one up)."""
        power: Array = np.clip(power_w, self.least_w, self.most_w)
        if self.levels:
            level = np.ceil(power * (self.levels / self.most_w) - 1e-6)  # rounding must not lift a level to the next
            power = np.clip(level, 1, self.levels) * (self.most_w / self.levels)
        return power


def placement_problem(
    config: DownlinkConfig,
    *,
    gain: Gain | None = None,
    utility: Utility | None = None,
    lambda_sigma: float | None = None,
) -> Problem:
    """Hovering well in `config`: inside the area and the limits of altitude, at powers that the actions allow.

    Args:
        config: Area, powers, radio and the reward's weights.
        gain: Mean channel; the configuration's where left out.
        utility: What to make large; the mean over UAVs of the reward of a slot without collisions where left out: of
            rates ``(mean rate - lambda_sigma std) / R_ref``, the same for every `rho`.
        lambda_sigma: Weight of the deviation in place of the configuration's.
    """
    weight = config.lambda_sigma if lambda_sigma is None else lambda_sigma
    # Users who stand still have had the rates that they have.
    over: StdOver = "users" if config.std_over == "running_users" else config.std_over
    three = config.flight.dimensions == 3
    count = config.channels

    def reward(gain: Array, power_w: Array, position: Array, users: Array) -> Array:
        seen = _of_a_sample(config, gain.shape[2])
        split = np.repeat(power_w[..., None] / count, count, axis=2) if count else None
        command = Command(np.zeros_like(power_w), np.zeros_like(power_w), None, power_w, split)
        links = transmit(seen, gain, command, position=position, users=users).links
        deviation = rate_deviation(over, rates=links.rates, mean_rates=links.rates, uav_rates=links.uav_rates)
        value: Array = worth(seen, links).mean(axis=1) - weight * 1e6 / seen.rate_ref * deviation
        return value

    (lowest, highest), side = config.altitudes_m, config.area_m
    return Problem(
        gain=gain or mean_gain(config),
        utility=utility or reward,
        low=np.array([0.0, 0.0, lowest][: 2 + three]),
        high=np.array([side, side, highest][: 2 + three]),
        least_w=least_power(config),
        most_w=config.p_max_w,
        separation_m=config.min_separation_m,
        collision=config.c_collision,
        levels=0 if isinstance(config.actions, NumberActions) else config.actions.powers,
    )


def _of_a_sample(config: DownlinkConfig, users: int) -> DownlinkConfig:
    """The settings as they are for some of the users: each stands for several, and has their share of everything."""
    if users == config.num_users:
        return config
    cap, radio = config.radio.max_users_per_uav, config.radio
    if cap is not None:
        radio = radio.model_copy(update={"max_users_per_uav": math.ceil(cap * users / config.num_users)})
    return config.model_copy(update={"num_users": users, "radio": radio})


def climb(
    problem: Problem,
    users: Array,
    position: Array,
    power_w: Array,
    *,
    steps: int,
    stream: Array,
    powers: bool,
) -> Placement:
    """Move one UAV at a time, in turns, by a normal step; keep what raises the value.

    The steps' width shrinks geometrically. With `powers` the same step also multiplies the UAV's power by ten to a
    standard normal number. A scene's result depends on its own row and its stream alone.

    Args:
        problem: What is to be made large.
        users: ``[E, G, 2 or more]``, in m.
        position: Where to start, ``[E, U, D]``, in m.
        power_w: Powers to start with, ``[E, U]``.
        steps: Of each scene; each costs one evaluation of all its links.
        stream: Index of each scene in the random streams, ``[E]``.
        powers: Whether powers move too.

    Returns:
        Values are never below those of the start.
    """
    low, high = (bound.astype(users.dtype) for bound in (problem.low, problem.high))
    position, power = position.astype(users.dtype), power_w.astype(users.dtype)
    uavs, axes = position.shape[1:]
    gain = problem.gain(position, users)
    value = problem.worth(gain, power, position, users)
    shrink = (_NARROWEST / _WIDEST) ** (1.0 / max(steps - 1, 1))
    for step in range(steps):
        chunk, within = divmod(step, _DRAWS)
        if within == 0:
            count = min(_DRAWS, steps - step) * (axes + 1)
            draws = normal(0, stream, purpose=_MOVES, step=chunk, count=count)
            draws = draws.reshape(len(stream), -1, axes + 1).astype(users.dtype)
        u, drawn = step % uavs, draws[:, within]
        held = position[:, u].copy(), power[:, u].copy(), gain[:, u].copy()
        width = (_WIDEST * shrink**step) * (high - low)
        position[:, u] = np.clip(held[0] + width * drawn[:, :axes], low, high)
        if powers:
            power[:, u] = problem.allowed(held[1] * 10.0 ** (_DECADES * drawn[:, axes]))
        gain[:, u] = problem.gain(position[:, u : u + 1], users)[:, 0]
        trial = problem.worth(gain, power, position, users)
        worse = ~(trial > value)
        for array, old in zip((position, power, gain), held, strict=True):
            array[worse, u] = old[worse]
        value = np.where(worse, value, trial)
    return Placement(position, power, value)


def search(
    problem: Problem,
    users: Array,
    position: Array,
    power_w: Array,
    *,
    stream: Array,
    powers: bool,
    steps: int | None = None,
) -> Placement:
    """`climb` in bounded time: `steps_for` steps, on `SAMPLE` users drawn where there are more.

    A result that serves all the users worse than the start did is given up for the start.

    Args:
        problem: As in `climb`, as are the others.
        users: ``[E, G, 2 or more]``.
        position: ``[E, U, D]``.
        power_w: ``[E, U]``.
        stream: ``[E]``.
        powers: Whether powers move too.
        steps: In place of `steps_for`'s.

    Returns:
        Values are of all users, and never below those of the start.
    """
    count = users.shape[1]
    steps = steps_for(position.shape[1], count) if steps is None else steps
    if count <= SAMPLE:
        return climb(problem, users, position, power_w, steps=steps, stream=stream, powers=powers)
    order = uniform(0, stream, purpose=_SAMPLE_ORDER, step=0, count=count).argsort(axis=1)[:, :SAMPLE]
    drawn = np.take_along_axis(users, order[:, :, None], axis=1)
    found = climb(problem, drawn, position, power_w, steps=steps, stream=stream, powers=powers)
    before, after = problem.value(position, power_w, users), problem.value(found.position, found.power_w, users)
    better = after > before
    return Placement(
        position=np.where(better[:, None, None], found.position, position),
        power_w=np.where(better[:, None], found.power_w, power_w),
        value=np.where(better, after, before),
    )


def steps_for(uavs: int, users: int) -> int:
    """Steps of `search`: 200 a UAV, at most 1,500, and at most a million links a scene."""
    links = uavs * min(users, SAMPLE)
    return max(1, min(_STEPS_A_UAV * uavs, _MOST_STEPS, _MOST_LINKS // links))
