"""Settings of what a UAV chooses from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Strict

__all__ = ["ActionsConfig", "ContinuousActions", "DiscreteActions", "HybridActions", "NumberActions", "VelocityActions"]


class NumberActions(Strict):
    """What kinds share whose actions are numbers in [-1, 1]."""

    kind: str
    power_floor: float = Field(
        default=1e-3,
        ge=0,
        le=1,
        description="Least transmit power that can be chosen, over p_max_w (without sub-channels).",
    )
    power_scale: Literal["linear", "decibel"] = Field(
        default="linear",
        description="Equal steps of an action are equal steps of power in W ('linear': the middle is half of p_max_w), "
        "or in dB from power_floor to p_max_w ('decibel') (without sub-channels).",
    )
    logit_scale: float = Field(
        default=5.0,
        gt=0,
        le=20,
        description="Of the power of each sub-channel: shares are a softmax of this times the action, and of 0 for "
        "power that is not used (sub-channels only).",
    )

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.power_scale == "decibel" and not self.power_floor:
            raise ValueError("power_scale 'decibel' begins at power_floor, which is 0; give a power_floor above 0")
        return self


class ContinuousActions(NumberActions):
    """Numbers in [-1, 1]: speed, heading, (3-D) pitch, and transmit power."""

    kind: Literal["continuous"] = "continuous"


class VelocityActions(NumberActions):
    """Numbers in [-1, 1]: velocity along x and y (3-D: and z), and transmit power."""

    kind: Literal["velocity"] = "velocity"


class DiscreteActions(Strict):
    """Choices: one for the flight, one for the power (and, with sub-channels, one user each)."""

    kind: Literal["discrete"] = "discrete"
    directions: int = Field(default=8, ge=1, le=360, description="Headings, evenly spaced; the first is along x.")
    speeds: int = Field(default=2, ge=1, le=100, description="Speeds n: 1/n, 2/n ... 1 of v_max, and hovering.")
    pitches: int = Field(
        default=3, ge=2, le=91, description="Pitch angles, evenly spaced from steepest descent to climb (3-D)."
    )
    powers: int = Field(default=4, ge=1, le=100, description="Transmit powers n: 1/n, 2/n ... 1 of p_max_w.")


class HybridActions(Strict):
    """Flight as numbers in [-1, 1], power (and, with sub-channels, users) as choices."""

    kind: Literal["hybrid"] = "hybrid"
    powers: int = Field(default=4, ge=1, le=100, description="Transmit powers n: 1/n, 2/n ... 1 of p_max_w.")


ActionsConfig = Annotated[
    ContinuousActions | VelocityActions | DiscreteActions | HybridActions, Field(discriminator="kind")
]
