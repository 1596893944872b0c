"""The batched simulator: one block of environments, pure array code.

``E`` here is the block's size. The vector environment runs as many blocks as keep the temporaries of one step in the
cache, the PettingZoo view one of size 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from marl_tr.envs.uav.actions import Command, action_spaces, checked, decode
from marl_tr.envs.uav.association import nearest_users
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.energy import climb_power, propulsion_power
from marl_tr.envs.uav.fairness import fairness
from marl_tr.envs.uav.flight import advance, collisions, limit_speed, limit_turn
from marl_tr.envs.uav.flight_config import DepotStarts, UniformStarts
from marl_tr.envs.uav.layout import draw_starts, draw_users
from marl_tr.envs.uav.mobility import make_mobility
from marl_tr.envs.uav.propagation import make_channel
from marl_tr.envs.uav.radio import Links, with_rates
from marl_tr.envs.uav.reward import Objectives, reward, utility
from marl_tr.envs.uav.traffic import make_traffic
from marl_tr.envs.uav.transmission import transmit
from marl_tr.envs.uav.utility import outage_share, rate_deviation
from marl_tr.philox import uniform

__all__ = ["Outcome", "Simulator"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_ALTITUDES, _CHARGES = 60, 61

_PLACES = ("position", "velocity", "heading", "power", "battery", "alive")
_RADIO = ("serving", "sinr", "rates", "mean_rates", "load", "uav_rates", "levels")
_PARTS = ("channel", "mobility", "traffic")
"""What keeps a state of its own."""
_ARRAYS = (*_PLACES, *_RADIO, "slot", "episode")


@dataclass(frozen=True)
class Outcome:
    """What one slot brought.

    Attributes:
        reward: ``[E, U]``.
        flew: ``[E, U]`` bool, took part in the slot.
        flying: The same where some may not, else None.
        terminated: ``[E, U]`` bool, ran out of energy in it, or met an end with all others in a collision.
        energy_j: ``[E, U]``, propulsion and radio electronics.
        objectives: The parts of the reward.
        measures: Named ``[E]`` arrays; rates in Mb/s.
    """

    reward: Array
    flew: Array
    flying: Array | None
    terminated: Array
    energy_j: Array
    objectives: Objectives
    measures: dict[str, Array]

    @property
    def metrics(self) -> dict[str, Array]:
        """`measures`, and the mean of each objective over the UAVs that flew; named ``[E]`` arrays."""
        means = self.objectives.means(self.measures["collisions"], self.measures["out_of_bounds"], flying=self.flying)
        return {**self.measures, **{f"objective_{name}": mean for name, mean in means.items()}}

    @property
    def collision(self) -> Array:
        """``[E, U]`` bool, came closer than the least separation to another UAV within the slot."""
        return self.objectives.collision

    @property
    def out(self) -> Array:
        """``[E, U]`` bool, was stopped by the border or a limit of altitude."""
        return self.objectives.out


class Simulator:
    """A block of ``E`` environments.

    Before an episode's first slot nothing has been sent: powers, loads, rates and SINRs are 0, `serving` -1.

    Attributes:
        actions: Space of each leaf of a UAV's action.
        position: ``[E, U, 3]``, in m.
        velocity: ``[E, U, 3]``, as flown in the last slot, in m/s.
        heading: ``[E, U]``, as commanded and reached in the last slot, in rad; along x at first.
        power: ``[E, U]``, as sent in the last slot, in W.
        battery: ``[E, U]``, energy left, in J; infinite without batteries.
        alive: ``[E, U]`` bool, takes part in the next slot. The others lie on the ground and are silent.
        channel: The links' gains, and what was drawn for them.
        mobility: The users' places, and how they move.
        traffic: What users ask for.
        serving: ``[E, G]``, index of the serving UAV, -1 for nobody.
        sinr: ``[E, G]``, linear; 0 of users who are not sent to.
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
        self.stream = np.arange(env_offset, env_offset + num_envs)
        self.actions = action_spaces(config)
        e, u, g = num_envs, config.num_uavs, config.num_users
        self.channel = make_channel(
            config.channel, carrier_hz=config.carrier_hz, num_envs=e, num_uavs=u, num_users=g, dtype=dtype
        )
        self.mobility = make_mobility(
            config.mobility,
            area_m=config.area_m,
            slot_s=config.slot_s,
            horizon=config.horizon,
            num_envs=e,
            num_users=g,
            dtype=dtype,
        )
        self.position = np.zeros((e, u, 3), dtype)
        self.velocity = np.zeros((e, u, 3), dtype)
        self.heading = np.zeros((e, u), dtype)
        self.power = np.zeros((e, u), dtype)
        self.battery = np.full((e, u), np.inf, dtype)
        self.alive = np.ones((e, u), bool)
        self.traffic = make_traffic(
            config.traffic, num_envs=e, num_users=g, slot_s=config.slot_s, horizon=config.horizon, dtype=dtype
        )
        self.serving = np.full((e, g), -1, np.intp)
        self.sinr = np.zeros((e, g), dtype)
        self.rates = np.zeros((e, g), dtype)
        self.mean_rates = np.zeros((e, g), dtype)
        self.load = np.zeros((e, u), np.intp)
        self.uav_rates = np.zeros((e, u), dtype)
        self.levels = np.zeros((e, u, u), dtype)
        self.slot = np.zeros(e, np.int64)
        self.episode = np.zeros(e, np.int64)

    @property
    def users(self) -> Array:
        """``[E, G, 2]``, where the users are, in m."""
        return self.mobility.position

    @property
    def moment(self) -> Array:
        """``[E]`` int64, number of the present moment, different for every slot of every episode."""
        return self.episode * (self.config.horizon + 1) + self.slot

    @property
    def over(self) -> Array:
        """``[E]`` bool, the episode has come to its horizon, or nobody flies any more."""
        over: Array = self.slot >= self.config.horizon
        return over if self.config.fixed_length else over | ~self.alive.any(axis=1)

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
        config, stream, episode = self.config, self.stream[rows], self.episode[rows]
        of: dict[str, Any] = {"seed": self.seed, "stream": stream, "episode": episode}
        self.position[rows, :, 2] = config.altitude_m
        if isinstance(config.starts, DepotStarts):
            of_depot: dict[str, Any] = {"kind": "depot", "spacing_m": config.starts.spacing_m}
            self.position[rows, :, :2] = draw_starts(config, **of, **of_depot)
        else:
            self.position[rows, :, :2] = draw_starts(config, **of)
        if config.flight.dimensions == 3 and isinstance(config.starts, UniformStarts):
            low, high = config.altitudes_m
            self.position[rows, :, 2] = low + (high - low) * self._draw(_ALTITUDES, rows)
        if config.battery is not None:
            least = config.battery.least_charge
            charge = 1.0 if least == 1 else least + (1 - least) * self._draw(_CHARGES, rows)
            self.battery[rows] = config.battery.capacity_j * charge
        self.mobility.begin(rows, draw_users(config, **of, centres=config.hotspot_centres), **of)
        self.channel.begin(rows, **of)
        self.traffic.begin(rows, **of)
        for array in (self.velocity, self.heading, self.power, self.sinr, self.rates, self.mean_rates, self.load):
            array[rows] = 0
        self.uav_rates[rows] = 0
        self.levels[rows] = 0
        self.serving[rows] = -1
        self.alive[rows] = True
        self.slot[rows] = 0

    def _draw(self, purpose: int, rows: Array) -> Array:
        """``[E, U]`` uniform, for the beginning of an episode."""
        count = self.config.num_uavs
        return uniform(self.seed, self.stream[rows], purpose=purpose, step=self.episode[rows], count=count)

    def step(self, actions: Mapping[str, Array] | Array) -> Outcome:
        """Fly one slot, then serve the users from where the UAVs are.

        Args:
            actions: ``{leaf: [E, U, ...]}``, see `marl_tr.envs.uav.actions`; an array is the leaf ``action``.

        Raises:
            ValueError: An action has the wrong shape, is not finite or not among the choices.
        """
        config = self.config
        leaves = actions if isinstance(actions, Mapping) else {"action": actions}
        command = decode(config, checked(self.actions, leaves, stream=self.stream, dtype=self.dtype))
        chosen = self._chosen(command)
        flew = self.alive
        flying = None if config.battery is None else flew
        before, dimensions = self.position, config.flight.dimensions
        out = self._fly(command)
        collision = collisions(
            before[..., :dimensions],
            self.position[..., :dimensions],
            separation_m=config.min_separation_m,
            flying=flying,
        )
        self.slot = self.slot + 1
        draw: dict[str, Any] = {"seed": self.seed, "stream": self.stream, "moment": self.moment}
        self.mobility.move(**draw)
        gain = self.channel.gain(self.position, self.users, **draw)
        sent = transmit(config, gain, command, position=self.position, users=self.users, chosen=chosen, flying=flying)
        links, served = self._deliver(sent.links, draw)
        self.power = sent.power
        self.serving, self.sinr, self.rates = links.serving, links.sinr, links.rates
        self.load, self.uav_rates, self.levels = links.load, links.uav_rates, links.levels
        self.mean_rates += (self.rates - self.mean_rates) / self.slot[:, None].astype(self.dtype)

        propulsion, energy, terminated = self._spend()
        if config.flight.terminate_on_collision:
            terminated = terminated | (collision.any(axis=1, keepdims=True) & flew)
            self.alive = self.alive & ~terminated
        metrics = fairness(self.rates)
        parts = Objectives(
            utility=utility(config, links),
            deviation=self._deviation(metrics, flying),
            collision=collision,
            out=out,
            propulsion_w=propulsion,
        )
        metrics["mean_sinr_db"] = self._mean_sinr_db()
        # The ufunc itself rather than its method: at a batch of one, calls are what a step costs.
        count = np.add.reduce
        hits, stops = count(collision, axis=1, dtype=self.dtype), count(out, axis=1, dtype=self.dtype)
        metrics |= {"collisions": hits, "out_of_bounds": stops, "energy_j": count(energy, axis=1)}
        metrics |= served | self._shares(flew)
        return Outcome(reward(config, parts, flying=flying), flew, flying, terminated, energy, parts, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; arrays are copies."""
        state: dict[str, Any] = {name: getattr(self, name).copy() for name in _ARRAYS}
        for name in _PARTS:
            state[name] = getattr(self, name).state_dict()
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
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.seed = int(state["seed"])

    def _fly(self, command: Command) -> Array:
        """Set velocity, heading and position; returns ``out [E, U]``."""
        config, flight = self.config, self.config.flight
        speed, heading = command.speed, command.heading
        if flight.accel_max_m_s2 is not None:
            flown = np.sqrt(np.square(self.velocity).sum(axis=2))
            speed = limit_speed(speed, flown, accel_max=flight.accel_max_m_s2, dt=config.slot_s)
        if flight.yaw_rate_max_deg_s is not None:
            rate = math.radians(flight.yaw_rate_max_deg_s)
            heading = limit_turn(heading, self.heading, rate_max=rate, dt=config.slot_s)
        if config.battery is not None:
            speed = speed * self.alive
        self.heading = heading.astype(self.dtype, copy=False)
        position, out = advance(
            self.position,
            speed,
            heading,
            command.pitch,
            dt=config.slot_s,
            area_m=config.area_m,
            altitudes=(flight.altitude_min_m, flight.altitude_max_m),
        )
        if config.battery is not None:
            # Who lies on the ground stays there: below the lowest flight, which is no fault of its own.
            position[..., 2] = np.where(self.alive, position[..., 2], 0.0)
            out &= self.alive
        # As flown: a UAV that the border stops does not pay for, nor show, the speed that it asked for.
        self.velocity = (position - self.position) / config.slot_s
        self.position = position
        return out

    def _chosen(self, command: Command) -> Array | None:
        """Users whom the sub-channels are for, among those nearest when the action was chosen; ``[E, U, K]``."""
        if command.choice is None:
            return None
        nearest = nearest_users(self.position, self.users, self.config.channel_choices)
        chosen = np.take_along_axis(nearest, np.maximum(command.choice, 0), axis=2)
        return np.where(command.choice >= 0, chosen, -1)

    def _deliver(self, links: Links, draw: dict[str, Any]) -> tuple[Links, dict[str, Array]]:
        """The links at the rates that users make use of, and the traffic's metrics."""
        if not self.config.queues:
            return links, {}
        served = self.traffic.serve(links.rates, **draw)
        return with_rates(links, served.rates), served.metrics

    def _deviation(self, metrics: dict[str, Array], flying: Array | None) -> Array:
        """What the reward calls unequal, ``[E]``, over ``R_ref``."""
        config = self.config
        if config.std_over == "users":
            deviation = metrics["std_rate_mbps"]
        else:
            deviation = rate_deviation(
                config.std_over,
                rates=self.rates,
                mean_rates=self.mean_rates,
                uav_rates=self.uav_rates,
                flying=flying,
            )
        return deviation * (1e6 / config.rate_ref)

    def _mean_sinr_db(self) -> Array:
        """``[E]``, over the users who are sent to; 0 where none is."""
        if self.config.all_served:
            decibel = 10.0 * np.log10(self.sinr)
            count = np.asarray(self.config.num_users, self.dtype)
        else:
            heard = self.sinr > 0
            decibel = 10.0 * np.log10(self.sinr, out=np.zeros_like(self.sinr), where=heard)
            count = np.maximum(heard.sum(axis=1), 1).astype(self.dtype)
        mean: Array = np.add.reduce(decibel, axis=1) / count
        return mean

    def _shares(self, flew: Array) -> dict[str, Array]:
        """Metrics that only some settings have."""
        config = self.config
        found: dict[str, Array] = {}
        if not config.all_served:
            found["unserved_users"] = (self.serving < 0).sum(axis=1).astype(self.dtype)
        if config.battery is not None:
            found["flying_uavs"] = flew.sum(axis=1).astype(self.dtype)
        if config.outage_mbps is not None:
            found["outage_share"] = outage_share(self.rates, threshold=1e6 * config.outage_mbps)
        return found

    def _spend(self) -> tuple[Array, Array, Array]:
        """Energy of the slot, ``[E, U]``: propulsion power (W), energy (J), and who ran out of it."""
        config = self.config
        vx, vy = self.velocity[..., 0], self.velocity[..., 1]
        propulsion = propulsion_power(vx * vx + vy * vy)
        if config.flight.dimensions == 3:
            propulsion += climb_power(self.velocity[..., 2])
        energy = (propulsion + config.comm_power_w) * config.slot_s
        if config.battery is None:
            return propulsion, energy, np.zeros_like(self.alive)
        propulsion *= self.alive
        energy = np.minimum(energy * self.alive, self.battery)
        self.battery = self.battery - energy
        empty = self.alive & (self.battery <= 0)
        self.alive = self.alive & ~empty
        self.position[..., 2][empty] = 0.0
        self.velocity[empty] = 0.0
        return propulsion, energy, empty
