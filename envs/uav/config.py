"""Settings of the multi-UAV downlink, with the constants that follow from them."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from marl_tr.envs.uav.actions_config import ActionsConfig, ContinuousActions
from marl_tr.envs.uav.channel_config import AlHouraniConfig, ChannelConfig, GainMapConfig
from marl_tr.envs.uav.flight_config import BatteryConfig, DepotStarts, FlightConfig, StartsConfig, UniformStarts
from marl_tr.envs.uav.layout import checked_centres, depot_places
from marl_tr.envs.uav.mobility import make_mobility
from marl_tr.envs.uav.mobility_config import MobilityConfig, StaticConfig
from marl_tr.envs.uav.propagation import check_coverage
from marl_tr.envs.uav.radio_config import RadioConfig
from marl_tr.envs.uav.reward_config import RateUtility, UtilityConfig
from marl_tr.envs.uav.traffic import make_traffic
from marl_tr.envs.uav.traffic_config import FullBufferConfig, TrafficConfig
from marl_tr.envs.uav.utility import StdOver
from marl_tr.scenario.strict import Strict

__all__ = ["DownlinkConfig"]


class DownlinkConfig(Strict):
    """``uav/downlink-v0``: UAV base stations serve users on the ground."""

    num_uavs: int = Field(default=3, ge=1, le=64, description="UAV base stations U, one agent each.")
    num_users: int = Field(default=20, ge=1, le=10_000, description="Ground users G.")
    horizon: int = Field(default=100, ge=1, le=1_000_000, description="Slots T until an episode is truncated.")
    slot_s: float = Field(default=1.0, gt=0, le=3600, description="Length of a slot, in s.")

    area_m: float = Field(default=1000.0, gt=0, le=1e5, description="Side L of the square area, in m.")
    altitude_m: float = Field(
        default=100.0,
        gt=0,
        le=1e4,
        description="Height of level flight above the users, in m; in 3-D that of a depot.",
    )
    v_max: float = Field(default=20.0, gt=0, le=100, description="Highest speed, in m/s.")
    min_separation_m: float = Field(
        default=10.0, ge=0, description="Two UAVs closer than this at any moment of a slot collide, in m."
    )
    starts: StartsConfig = Field(default=UniformStarts(), description="Where UAVs begin: uniform or depot.")
    flight: FlightConfig = Field(default=FlightConfig(), description="Dimensions, inertia, collisions.")
    battery: BatteryConfig | None = Field(
        default=None, description="Energy that runs out; empty: energy is counted, and never lacks."
    )
    actions: ActionsConfig = Field(
        default=ContinuousActions(), description="What a UAV chooses from: continuous, velocity, discrete or hybrid."
    )

    hotspots: int = Field(default=4, ge=1, le=1000, description="Hot spots that users gather round.")
    hotspot_centres: list[tuple[float, float]] | None = Field(
        default=None,
        min_length=1,
        description="Where the hot spots are, x and y of each in m, instead of drawn ones; then hotspots is not used.",
    )
    hotspot_share: float = Field(default=0.75, ge=0, le=1, description="Share of users in hot spots.")
    hotspot_sigma_m: float = Field(
        default=80.0,
        ge=0,
        description="Standard deviation of users round their hot spot, per axis, in m.",
    )
    mobility: MobilityConfig = Field(
        default=StaticConfig(),
        description="How users move: static, random_walk, random_waypoint, gauss_markov, group or trace.",
    )

    channel: ChannelConfig = Field(
        default=AlHouraniConfig(), description="Gains of the links: al_hourani, power_law, tr36777 or gain_map."
    )
    carrier_hz: float = Field(default=2e9, gt=0, description="Carrier frequency, in Hz.")
    bandwidth_hz: float = Field(default=1e6, gt=0, description="Whole bandwidth B, in Hz.")
    resources: Literal["equal_share", "orthogonal"] = Field(
        default="equal_share",
        description="'equal_share': every UAV uses the whole band (interference); 'orthogonal': B/U each. "
        "In both, a UAV's users split its band equally, unless radio.subchannels divides it.",
    )
    radio: RadioConfig = Field(default=RadioConfig(), description="Limits of links, sub-channels, backhaul.")
    traffic: TrafficConfig = Field(
        default=FullBufferConfig(), description="What users ask for: full_buffer or poisson."
    )
    p_max_w: float = Field(default=0.1, gt=0, le=1000, description="Highest transmit power of a UAV, in W.")
    noise_dbm_hz: float = Field(default=-174.0, ge=-250, le=0, description="Noise power density, in dBm/Hz.")
    noise_figure_db: float = Field(default=7.0, ge=0, le=60, description="Receivers' noise figure, in dB.")

    utility: UtilityConfig = Field(
        default=RateUtility(), description="What a UAV's users are worth to it: rate or alpha_fair."
    )
    lambda_sigma: float = Field(
        default=0.5, ge=0, description="Weight of the users' rate deviation (population std over R_ref)."
    )
    std_over: StdOver = Field(
        default="users",
        description="What the deviation is of: 'users': their rates; 'running_users': their mean rates over the "
        "episode so far; 'uavs': the flying UAVs' sum rates over G/U.",
    )
    rho: float = Field(
        default=0.0, ge=0, le=1, description="0: each UAV its own reward; 1: all get the mean (cooperative)."
    )
    c_collision: float = Field(default=1.0, ge=0, description="Penalty of a slot with a collision.")
    c_out: float = Field(default=0.2, ge=0, description="Penalty of a slot in which the border stopped it.")
    w_energy: float = Field(default=0.0, ge=0, description="Weight of propulsion power over hover power.")
    comm_power_w: float = Field(default=5.0, ge=0, description="Power of a UAV's radio electronics, in W.")

    outage_mbps: float | None = Field(
        default=None, gt=0, description="Report the share of users below this rate, in Mb/s; empty: do not."
    )

    observation: Literal["flat", "entities", "graph"] = Field(
        default="flat",
        description="'flat': one vector; 'entities': own features, and a table each of the other UAVs and of the "
        "users, for encoders whose answer must not depend on their order; 'graph': these, and the UAV's edges to "
        "all UAVs.",
    )
    nearest_users: int | None = Field(
        default=None,
        ge=1,
        description="A UAV sees only so many users, the nearest ones first; empty: all, in a fixed order.",
    )
    cells: bool = Field(
        default=False,
        description="A UAV sees also its cell, the users whom no other UAV is nearer to: their mean place and share, "
        "and of each user whether it is one and by how much the nearest other UAV is farther.",
    )
    comm_range_m: float | None = Field(
        default=None,
        gt=0,
        description="UAVs see each other up to this distance, in m; empty: always.",
    )
    sense_range_m: float | None = Field(
        default=None, gt=0, description="UAVs see users up to this horizontal distance, in m; empty: always."
    )
    csi_sigma: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Error of observed channels: SINRs and interference levels in observations are multiplied by "
        "lognormal(0, this). The transmission itself and the critic's state are exact.",
    )

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        flight = self.flight
        if flight.dimensions == 3 and not flight.altitude_min_m <= self.altitude_m <= flight.altitude_max_m:
            raise ValueError(
                f"altitude_m must lie between flight.altitude_min_m and altitude_max_m in 3-D flight, "
                f"{flight.altitude_min_m:g} and {flight.altitude_max_m:g}, not be {self.altitude_m:g}"
            )
        if self.hotspot_centres is not None:
            checked_centres(self.hotspot_centres, self.area_m)
        if isinstance(self.starts, DepotStarts):
            depot_places(self.num_uavs, self.starts.spacing_m, self.area_m)
        backhaul = self.radio.backhaul
        if backhaul is not None and backhaul.channel == "mean_gain" and not isinstance(self.channel, AlHouraniConfig):
            raise ValueError("radio.backhaul.channel: mean_gain is Al-Hourani's; with another channel use free_space")
        lowest, highest = self.altitudes_m
        check_coverage(self.channel, carrier_hz=self.carrier_hz, area_m=self.area_m, lowest_m=lowest, highest_m=highest)
        return self

    @model_validator(mode="after")
    def _check_users(self) -> Self:
        # Built for one environment and dropped: what does not suit is then said where the settings stand.
        block: dict[str, Any] = {
            "num_envs": 1,
            "num_users": self.num_users,
            "slot_s": self.slot_s,
            "horizon": self.horizon,
        }
        make_mobility(self.mobility, area_m=self.area_m, **block)
        make_traffic(self.traffic, **block)
        return self

    @property
    def shared_reward(self) -> bool:
        """Whether all agents get the same reward, ``rho = 1``."""
        return self.rho == 1.0

    @property
    def altitudes_m(self) -> tuple[float, float]:
        """Lowest and highest flight, in m."""
        if self.flight.dimensions == 2:
            return self.altitude_m, self.altitude_m
        return self.flight.altitude_min_m, self.flight.altitude_max_m

    @property
    def coordinates(self) -> int:
        """3 where heights differ: in 3-D flight, and where a UAV may lie on the ground; else 2."""
        return 2 if self.flight.dimensions == 2 and self.battery is None else 3

    @property
    def noise_w(self) -> float:
        """Noise power over the whole band, in W."""
        return 10 ** ((self.noise_dbm_hz + self.noise_figure_db - 30) / 10) * self.bandwidth_hz

    @property
    def rate_ref(self) -> float:
        """``R_ref``: a user's rate at 10 dB and an even share, in b/s; makes rewards of order one."""
        return self.num_uavs * self.bandwidth_hz / self.num_users * math.log2(11)

    @property
    def fixed_length(self) -> bool:
        """Whether every episode has `horizon` slots."""
        return self.battery is None and not self.flight.terminate_on_collision

    @property
    def all_served(self) -> bool:
        """Whether every user always has a UAV."""
        limits = self.radio
        free = limits.max_users_per_uav is None and limits.coverage_radius_m is None and limits.subchannels is None
        return free and self.battery is None and not isinstance(self.channel, GainMapConfig)

    @property
    def moving_users(self) -> bool:
        """Whether users move."""
        return not isinstance(self.mobility, StaticConfig)

    @property
    def queues(self) -> bool:
        """Whether something can wait for users."""
        return not isinstance(self.traffic, FullBufferConfig)

    @property
    def channels(self) -> int:
        """Sub-channels K; 0 where the band is not divided so."""
        return 0 if self.radio.subchannels is None else self.radio.subchannels.count

    @property
    def channel_choices(self) -> int:
        """Users among whom a choice for a sub-channel is made; 0 without sub-channels."""
        return 0 if self.radio.subchannels is None else min(self.radio.subchannels.nearest, self.num_users)

    @property
    def seen_users(self) -> int:
        """Rows of users in an observation."""
        return self.num_users if self.nearest_users is None else min(self.nearest_users, self.num_users)

    @property
    def agents(self) -> tuple[str, ...]:
        """``("uav_0", ...)``."""
        return tuple(f"uav_{u}" for u in range(self.num_uavs))
