"""Settings of how ground users move; which values are assumed is said in ``docs/uav-users.md``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.schema import Strict

__all__ = [
    "GaussMarkovConfig",
    "GroupConfig",
    "MobilityConfig",
    "RandomWalkConfig",
    "RandomWaypointConfig",
    "StaticConfig",
    "TraceConfig",
]


class StaticConfig(Strict):
    """Users stand where they were drawn."""

    kind: Literal["static"] = "static"


class RandomWalkConfig(Strict):
    """A new heading and a new speed each slot, both uniform; reflected at the borders."""

    kind: Literal["random_walk"] = "random_walk"
    v_max: float = Field(default=1.5, ge=0, le=100, description="Highest speed v_g, in m/s; the least is 0.")


class RandomWaypointConfig(Strict):
    """Straight to a uniform point at a uniform speed, a pause, and so on."""

    kind: Literal["random_waypoint"] = "random_waypoint"
    v_lo: float = Field(default=0.5, gt=0, le=100, description="Least speed of a leg, in m/s.")
    v_hi: float = Field(default=1.5, gt=0, le=100, description="Highest speed of a leg, in m/s.")
    pause_max_s: float = Field(default=60.0, ge=0, le=1e6, description="Longest pause after a leg, in s; from 0.")
    start: Literal["stationary", "layout"] = Field(
        default="stationary",
        description="'stationary': from the motion's stationary law, whatever the hot spots are; 'layout': from where "
        "the users were drawn, each at the beginning of a leg.",
    )

    @model_validator(mode="after")
    def _check_speeds(self) -> Self:
        _check_order("v_lo", self.v_lo, "v_hi", self.v_hi)
        return self


class GaussMarkovConfig(Strict):
    """Speed and heading with a memory: first-order autoregressions round a mean speed and a mean heading."""

    kind: Literal["gauss_markov"] = "gauss_markov"
    memory: float = Field(default=0.85, ge=0, lt=1, description="a, the correlation from one slot to the next.")
    mean_speed: float = Field(default=1.0, ge=0, le=100, description="Mean speed, in m/s.")
    speed_deviation: float = Field(default=0.25, ge=0, le=100, description="Its stationary deviation, in m/s.")
    v_max: float = Field(
        default=1.5, gt=0, le=100, description="Users move at the speed clipped to [0, v_max], in m/s."
    )
    heading_deviation: float = Field(
        default=0.4, ge=0, le=10, description="Stationary deviation of the heading round its mean, in rad."
    )
    margin_m: float = Field(
        default=50.0, ge=0, description="Nearer to a border than this, the mean heading turns inward, in m."
    )

    @model_validator(mode="after")
    def _check_speeds(self) -> Self:
        _check_order("mean_speed", self.mean_speed, "v_max", self.v_max)
        return self


class GroupConfig(Strict):
    """Reference-point groups: leaders by random waypoint, members by a random waypoint in a disc round their leader."""

    kind: Literal["group"] = "group"
    groups: int = Field(default=4, ge=1, le=10_000, description="Groups, of sizes that differ by at most one user.")
    v_lo: float = Field(default=0.5, gt=0, le=100, description="Least speed of a leader's leg, in m/s.")
    v_hi: float = Field(default=1.2, gt=0, le=100, description="Highest speed of a leader's leg, in m/s.")
    pause_max_s: float = Field(default=60.0, ge=0, le=1e6, description="Longest pause of a leader, in s; from 0.")
    radius_m: float = Field(default=50.0, gt=0, le=1e5, description="Members stay within this of their leader, in m.")
    member_v_lo: float = Field(
        default=0.1, gt=0, le=100, description="Least speed of a member relative to its leader, in m/s."
    )
    member_v_hi: float = Field(
        default=0.3, gt=0, le=100, description="Highest speed of a member relative to its leader, in m/s."
    )

    @model_validator(mode="after")
    def _check_speeds(self) -> Self:
        _check_order("v_lo", self.v_lo, "v_hi", self.v_hi)
        _check_order("member_v_lo", self.member_v_lo, "member_v_hi", self.member_v_hi)
        return self


class TraceConfig(Strict):
    """Positions from a CSV file with the columns ``t,id,x,y``, straight between its lines."""

    kind: Literal["trace"] = "trace"
    path: str = Field(min_length=1, description="The file; a relative path starts at the working directory.")
    begin_s: float | None = Field(
        default=None,
        ge=0,
        description="Time after the file's first at which episodes begin, in s; empty: drawn for each episode.",
    )
    after_end: Literal["hold", "loop"] = Field(
        default="hold",
        description="Beyond the file's last time users stand still ('hold') or begin the file again ('loop').",
    )


MobilityConfig = Annotated[
    StaticConfig | RandomWalkConfig | RandomWaypointConfig | GaussMarkovConfig | GroupConfig | TraceConfig,
    Field(discriminator="kind"),
]


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise ValueError(f"{low_name} must not exceed {high_name}: {low:g} > {high:g}")
