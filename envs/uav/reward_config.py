"""Settings of what a UAV's users are worth to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from marl_tr.scenario.strict import Strict

__all__ = ["AlphaFairUtility", "RateUtility", "UtilityConfig"]


class RateUtility(Strict):
    """The sum of their rates."""

    kind: Literal["rate"] = "rate"


class AlphaFairUtility(Strict):
    """The sum of what their rates are worth with an aversion to inequality: alpha-fair utility."""

    kind: Literal["alpha_fair"] = "alpha_fair"
    alpha: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="0: the sum of rates; 1: of their logarithms (proportional fairness); 2: least potential delay.",
    )
    floor: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="For alpha of 1 and above: a rate, over R_ref, that is worth as little as none.",
    )


UtilityConfig = Annotated[RateUtility | AlphaFairUtility, Field(discriminator="kind")]
