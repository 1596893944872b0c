"""Settings of how UAVs move: where from, how fast, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Strict

__all__ = ["BatteryConfig", "DepotStarts", "FlightConfig", "StartsConfig", "UniformStarts"]


class FlightConfig(Strict):
    """How the UAVs move."""

    dimensions: Literal[2, 3] = Field(
        default=2,
        description="2: level flight at altitude_m; 3: they also climb and descend, by a pitch angle.",
    )
    altitude_min_m: float = Field(default=50.0, gt=0, le=1e4, description="Lowest flight (3-D), in m.")
    altitude_max_m: float = Field(default=150.0, gt=0, le=1e4, description="Highest flight (3-D), in m.")
    pitch_max_deg: float = Field(default=30.0, gt=0, le=90, description="Steepest climb and descent (3-D), in degrees.")
    yaw_rate_max_deg_s: float | None = Field(
        default=None, gt=0, description="Fastest turn, in degrees a second; empty: turns take no time."
    )
    accel_max_m_s2: float | None = Field(
        default=None, gt=0, description="Largest change of speed, in m/s^2; empty: at once."
    )
    terminate_on_collision: bool = Field(
        default=False, description="A collision ends the episode for all; otherwise it only costs."
    )

    @property
    def inertia(self) -> bool:
        """Whether turning or accelerating takes time."""
        return self.yaw_rate_max_deg_s is not None or self.accel_max_m_s2 is not None

    @model_validator(mode="after")
    def _check_altitudes(self) -> Self:
        if self.altitude_min_m >= self.altitude_max_m:
            raise ValueError(
                f"altitude_min_m must be below altitude_max_m, not {self.altitude_min_m:g} and {self.altitude_max_m:g}"
            )
        return self


class BatteryConfig(Strict):
    """Energy that does not come back: an empty UAV lies on the ground, silent, for the rest of the episode."""

    capacity_j: float = Field(gt=0, description="Energy of a full battery, in J; hovering takes 173 J a second.")
    least_charge: float = Field(
        default=1.0, gt=0, le=1, description="Each UAV starts with a share of the capacity drawn from [this, 1]."
    )


class UniformStarts(Strict):
    """Anywhere in the area, and in 3-D at any height."""

    kind: Literal["uniform"] = "uniform"


class DepotStarts(Strict):
    """Side by side in the area's corner (0, 0), at altitude_m: a square grid that is filled along x first."""

    kind: Literal["depot"] = "depot"
    spacing_m: float = Field(default=50.0, gt=0, le=1e5, description="Between neighbours, in m.")


StartsConfig = Annotated[UniformStarts | DepotStarts, Field(discriminator="kind")]
