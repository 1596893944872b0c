"""The batched simulator: one block of environments, pure array code.

A block of about 64 environments keeps its temporaries in the cache, which is faster than one batch of a
thousand (``E`` here is the block's size). The vector environment runs several, the PettingZoo view one of
size 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from marl_tr.envs.uav.channel import ENVIRONMENTS, power_gain
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.energy import HOVER_POWER_W, propulsion_power
from marl_tr.envs.uav.layout import draw_starts, draw_users
from marl_tr.envs.uav.radio import Links, serve

__all__ = ["Outcome", "Simulator", "closest_approach_sq", "fairness"]

Array = NDArray[Any]

_PLACES = ("position", "velocity", "power", "users")
_RADIO = ("serving", "sinr", "rates", "mean_rates", "load", "uav_rates", "levels")
_ARRAYS = (*_PLACES, *_RADIO, "slot", "episode")


@dataclass(frozen=True)
class Outcome:
    """What one slot brought.

    Attributes:
        reward: ``[E, U]``.
        collision: ``[E, U]`` bool, came closer than the least separation to another UAV within the slot.
        out: ``[E, U]`` bool, was stopped by the border.
        energy_j: ``[E, U]``, propulsion and radio electronics.
        metrics: Named ``[E]`` arrays; rates in Mb/s.
    """

    reward: Array
    collision: Array
    out: Array
    energy_j: Array
    metrics: dict[str, Array]


class Simulator:
    """A block of ``E`` environments.

    Before an episode's first slot nothing has been sent: powers, loads, rates and SINRs are 0, `serving` -1.

    Attributes:
        position: ``[E, U, 2]``, in m.
        velocity: ``[E, U, 2]``, as flown in the last slot, in m/s.
        power: ``[E, U]``, transmit power of the last slot, in W.
        users: ``[E, G, 2]``, in m.
        serving: ``[E, G]``, index of the serving UAV.
        sinr: ``[E, G]``, linear.
        rates: ``[E, G]``, in b/s.
        mean_rates: ``[E, G]``, mean over the episode's slots so far, in b/s.
        load: ``[E, U]``, users served.
        uav_rates: ``[E, U]``, in b/s.
        levels: ``[E, U, U]``, see `Links.levels`.
        slot: ``[E]`` int, slots flown in this episode.
        episode: ``[E]`` int, episodes begun since the reset, less one.
    """

    def __init__(
        self, config: DownlinkConfig, num_envs: int, *, env_offset: int = 0, dtype: DTypeLike = np.float32
    ) -> None:
        self.config = config
        self.num_envs = num_envs
        self.dtype = np.dtype(dtype)
        self.seed = 0
        self._stream = np.arange(env_offset, env_offset + num_envs)
        self._channel = ENVIRONMENTS[config.environment]
        e, u, g = num_envs, config.num_uavs, config.num_users
        self.position = np.zeros((e, u, 2), dtype)
        self.velocity = np.zeros((e, u, 2), dtype)
        self.power = np.zeros((e, u), dtype)
        self.users = np.zeros((e, g, 2), dtype)
        self.serving = np.full((e, g), -1, np.intp)
        self.sinr = np.zeros((e, g), dtype)
        self.rates = np.zeros((e, g), dtype)
        self.mean_rates = np.zeros((e, g), dtype)
        self.load = np.zeros((e, u), np.intp)
        self.uav_rates = np.zeros((e, u), dtype)
        self.levels = np.zeros((e, u, u), dtype)
        self.slot = np.zeros(e, np.int64)
        self.episode = np.zeros(e, np.int64)

    def reset(self, seed: int, episode: int = 0) -> None:
        """Begin episode number `episode` of `seed` in every environment.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        self.seed = seed
        self.episode[:] = episode
        self._begin(np.arange(self.num_envs))

    def next_episode(self, rows: Array) -> None:
        """Begin the next episode in the environments with the indices `rows`."""
        self.episode[rows] += 1
        self._begin(rows)

    def _begin(self, rows: Array) -> None:
        stream, episode = self._stream[rows], self.episode[rows]
        self.position[rows] = draw_starts(self.config, self.seed, stream, episode)
        self.users[rows] = draw_users(self.config, self.seed, stream, episode)
        for array in (self.velocity, self.power, self.sinr, self.rates, self.mean_rates, self.load):
            array[rows] = 0
        self.uav_rates[rows] = 0
        self.levels[rows] = 0
        self.serving[rows] = -1
        self.slot[rows] = 0

    def step(self, actions: Array) -> Outcome:
        """Fly one slot, then serve the users from where the UAVs are.

        Args:
            actions: ``[E, U, 3]`` in ``[-1, 1]`` (clipped): speed from hover to `v_max`, heading over pi,
                transmit power from 0.001 `p_max` to `p_max`.

        Raises:
            ValueError: An action is not finite.
        """
        config = self.config
        before = self.position
        out = self._fly(self._checked(actions))
        closest = closest_approach_sq(before, self.position)
        collision: Array = np.any(closest < config.min_separation_m**2, axis=2)
        self.transmit()
        self.slot += 1
        self.mean_rates += (self.rates - self.mean_rates) / self.slot[:, None].astype(self.dtype)

        propulsion = propulsion_power(np.square(self.velocity).sum(axis=2))
        energy = (propulsion + config.comm_power_w) * config.slot_s
        metrics = fairness(self.rates)
        reward = self._reward(metrics["std_rate_mbps"], collision, out, propulsion)
        metrics["mean_sinr_db"] = (10.0 * np.log10(self.sinr)).mean(axis=1)
        metrics["collisions"] = collision.sum(axis=1).astype(self.dtype)
        metrics["out_of_bounds"] = out.sum(axis=1).astype(self.dtype)
        metrics["energy_j"] = energy.sum(axis=1)
        return Outcome(reward, collision, out, energy, metrics)

    def transmit(self) -> Links:
        """Serve the users from the present positions at the present powers; sets what the radio decides."""
        config = self.config
        dx = self.users[:, None, :, 0] - self.position[:, :, 0, None]
        dy = self.users[:, None, :, 1] - self.position[:, :, 1, None]
        dx *= dx
        dy *= dy
        dx += dy
        gain = power_gain(
            dx,
            config.altitude_m,
            constants=self._channel,
            carrier_hz=config.carrier_hz,
            averaging=config.averaging,
        )
        links = serve(
            gain,
            self.power,
            noise_w=config.noise_w,
            bandwidth_hz=config.bandwidth_hz,
            resources=config.resources,
        )
        self.serving, self.sinr, self.rates = links.serving, links.sinr, links.rates
        self.load, self.uav_rates, self.levels = links.load, links.uav_rates, links.levels
        return links

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; arrays are copies."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in _ARRAYS}
        return {**state, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: An array has another shape than this simulator's.
        """
        for name in _ARRAYS:
            mine, theirs = getattr(self, name), np.asarray(state[name])
            if mine.shape != theirs.shape:
                raise ValueError(f"{name}: shape {theirs.shape} does not fit a simulator with {mine.shape}")
            setattr(self, name, theirs.astype(mine.dtype))
        self.seed = int(state["seed"])

    def _checked(self, actions: Array) -> Array:
        if not np.isfinite(actions).all():
            env, uav = (int(i[0]) for i in np.nonzero(~np.isfinite(actions).all(axis=2)))
            raise ValueError(
                f"action of uav_{uav} in environment {self._stream[env]} is not finite: {actions[env, uav]}"
            )
        return np.clip(actions, -1.0, 1.0).astype(self.dtype, copy=False)

    def _fly(self, actions: Array) -> Array:
        """Set power, velocity and position from actions in [-1, 1]; returns ``out [E, U]``."""
        config = self.config
        self.power = np.maximum((actions[..., 2] + 1.0) * (0.5 * config.p_max_w), 1e-3 * config.p_max_w)
        length = (actions[..., 0] + 1.0) * (0.5 * config.v_max * config.slot_s)
        heading = actions[..., 1] * math.pi
        target = np.empty_like(self.position)
        target[..., 0] = length * np.cos(heading)
        target[..., 1] = length * np.sin(heading)
        target += self.position
        position = np.clip(target, 0.0, config.area_m)
        out: Array = (position != target).any(axis=2)
        # As flown: a UAV that the border stops does not pay for, nor show, the speed that it asked for.
        self.velocity = (position - self.position) / config.slot_s
        self.position = position
        return out

    def _reward(self, std_mbps: Array, collision: Array, out: Array, propulsion: Array) -> Array:
        config = self.config
        per_uav = config.num_users / config.num_uavs * config.rate_ref
        own = self.uav_rates / per_uav
        own -= (config.lambda_sigma * 1e6 / config.rate_ref * std_mbps)[:, None]
        own -= config.c_collision * collision.astype(self.dtype)
        own -= config.c_out * out.astype(self.dtype)
        if config.w_energy:
            own -= config.w_energy / HOVER_POWER_W * propulsion
        if config.rho:
            own = (1 - config.rho) * own + config.rho * own.mean(axis=1, keepdims=True)
        return own


def closest_approach_sq(before: Array, after: Array) -> Array:
    """Least squared distance of each pair while both fly straight at constant speed.

    Looking at end points alone would let two UAVs swap places unharmed.

    Args:
        before: Positions at the slot's start, ``[E, U, 2]``, in m.
        after: Positions at its end.

    Returns:
        ``[E, U, U]``, in m^2; infinite on the diagonal.
    """
    dx = before[:, :, None, 0] - before[:, None, :, 0]
    dy = before[:, :, None, 1] - before[:, None, :, 1]
    move = after - before
    wx = move[:, :, None, 0] - move[:, None, :, 0]
    wy = move[:, :, None, 1] - move[:, None, :, 1]
    speed = wx * wx + wy * wy
    # The tiny floor stands for "no relative motion"; the moment is then 0 whatever the distance.
    moment = np.clip(-(dx * wx + dy * wy) / np.maximum(speed, 1e-12), 0.0, 1.0)
    dx += moment * wx
    dy += moment * wy
    closest: Array = dx * dx + dy * dy
    diagonal = np.arange(closest.shape[1])
    closest[:, diagonal, diagonal] = np.inf
    return closest


def fairness(rates: Array) -> dict[str, Array]:
    """How the users' rates are spread.

    Args:
        rates: ``[E, G]``, in b/s.

    Returns:
        ``[E]`` arrays: sum, mean, population standard deviation, 5th percentile (linear interpolation) and
        least rate in Mb/s, and Jain's index ``(sum R)^2 / (G sum R^2)``.
    """
    mbps = np.sort(rates, axis=1) * 1e-6
    users = rates.shape[1]
    total = mbps.sum(axis=1)
    mean = total / users
    deviation = mbps - mean[:, None]
    at = 0.05 * (users - 1)
    low = math.floor(at)
    high = min(low + 1, users - 1)
    return {
        "throughput_mbps": total,
        "mean_rate_mbps": mean,
        "std_rate_mbps": np.sqrt(np.square(deviation).mean(axis=1)),
        "p5_rate_mbps": mbps[:, low] + (at - low) * (mbps[:, high] - mbps[:, low]),
        "min_rate_mbps": mbps[:, 0],
        "jain": total * mean / np.square(mbps).sum(axis=1),
    }
