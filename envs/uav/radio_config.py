"""Settings of the radio beyond the band and its noise: limits of association and rate, sub-channels, backhaul."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["BackhaulConfig", "LinkLimits", "RadioConfig", "SubchannelsConfig"]


class LinkLimits(Strict):
    """What a link may be at most, and must be at least. All off by default."""

    max_users_per_uav: int | None = Field(
        default=None, ge=1, description="Users that a UAV serves at most; empty: any number."
    )
    coverage_radius_m: float | None = Field(
        default=None, gt=0, description="A UAV serves users up to this horizontal distance, in m; empty: any."
    )
    min_sinr_db: float | None = Field(
        default=None,
        ge=-100,
        le=100,
        description="Below this SINR, in dB, the rate is 0 (the share of the band is lost); empty: no such limit.",
    )
    max_spectral_efficiency: float | None = Field(
        default=None, gt=0, description="Highest rate per bandwidth, in b/s/Hz (256-QAM: 7.4); empty: Shannon's."
    )


class SubchannelsConfig(Strict):
    """The band in parts that UAVs assign to single users."""

    count: int = Field(default=4, ge=1, le=1024, description="Sub-channels K, each of width B/K.")
    nearest: int = Field(
        default=8, ge=1, le=1024, description="A discrete action chooses among this many nearest users, or none."
    )


class BackhaulConfig(Strict):
    """The link from a macro base station to the UAVs, which bounds what each UAV can deliver."""

    place: Literal["centre", "edge"] | tuple[float, float] = Field(
        default="centre",
        description="Of the macro: the area's centre, the middle of its edge y = 0, or x and y in m (also outside).",
    )
    height_m: float = Field(default=25.0, ge=0, le=1000, description="Height of the macro's antenna, in m.")
    power_w: float = Field(default=40.0, gt=0, le=1000, description="The macro's power over its whole band, in W.")
    bandwidth_hz: float = Field(
        default=1e6, gt=0, description="The backhaul's whole band, in Hz, apart from the users'; split equally."
    )
    carrier_hz: float = Field(default=2e9, gt=0, description="Carrier frequency, in Hz.")
    noise_dbm_hz: float = Field(default=-174.0, ge=-250, le=0, description="Noise power density, in dBm/Hz.")
    noise_figure_db: float = Field(default=7.0, ge=0, le=60, description="Noise figure of the UAVs' receivers, in dB.")
    channel: Literal["free_space", "mean_gain"] = Field(
        default="free_space",
        description="'free_space', or Al-Hourani's 'mean_gain' over line of sight or not, with the constants of "
        "the users' channel.",
    )
    max_spectral_efficiency: float | None = Field(
        default=None, gt=0, description="Highest rate per bandwidth, in b/s/Hz; empty: Shannon's."
    )

    @property
    def noise_w(self) -> float:
        """Noise power over the whole backhaul band, in W."""
        return float(10 ** ((self.noise_dbm_hz + self.noise_figure_db - 30) / 10) * self.bandwidth_hz)


class RadioConfig(LinkLimits):
    """Limits of links, sub-channels and backhaul."""

    subchannels: SubchannelsConfig | None = Field(
        default=None, description="Assign sub-channels to users; empty: a UAV's users share its band equally."
    )
    backhaul: BackhaulConfig | None = Field(
        default=None, description="Link budget of the UAVs' own supply; empty: it never binds."
    )
