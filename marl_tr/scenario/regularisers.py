"""Settings of regularisers: what holds a policy near another one while it learns."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Strict

__all__ = [
    "AnchorConfig",
    "ControllerWeight",
    "FrozenAnchor",
    "PeriodAnchor",
    "PositionConfig",
    "RegulariserConfig",
    "SmoothConfig",
    "SoftAnchor",
    "TwoStageWeight",
    "VelocityConfig",
    "WeightConfig",
]


class FrozenAnchor(Strict):
    """The policy at the start of the run, for good."""

    kind: Literal["frozen"] = "frozen"


class PeriodAnchor(Strict):
    """The policy of the learner's latest ``every``-th update."""

    kind: Literal["period"] = "period"
    every: int = Field(default=10, ge=1, description="The learner's committed updates between two refreshes.")


class SoftAnchor(Strict):
    """A running average of the learner's policies: ``anchor += rate (weights - anchor)`` after each update, or after
    every ``every``-th."""

    kind: Literal["soft"] = "soft"
    rate: float = Field(gt=0, le=1, description="Share of the way that the anchor goes an update.")
    every: int = Field(default=1, ge=1, description="The learner's committed updates between two moves.")


AnchorConfig = Annotated[FrozenAnchor | PeriodAnchor | SoftAnchor, Field(discriminator="kind")]


class TwoStageWeight(Strict):
    """One weight early in the run, another one late, a straight line between them."""

    kind: Literal["two_stage"] = "two_stage"
    early: float = Field(ge=0, description="Weight until 'switch'.")
    late: float = Field(ge=0, description="Weight from 'switch' + 'ramp' on.")
    switch: float = Field(default=0.5, ge=0, le=1, description="Share of the run after which the weight changes.")
    ramp: float = Field(default=0.0, ge=0, le=1, description="Share of the run that the change takes.")


class ControllerWeight(Strict):
    """A weight that rises while the term is above its target and falls while it is below."""

    kind: Literal["controller"] = "controller"
    target: float = Field(gt=0, description="Of the term, in its own unit (see 'reduction').")
    initial: float = Field(gt=0, description="Weight at the start.")
    least: float = Field(gt=0, description="Lowest weight.")
    most: float = Field(gt=0, description="Highest weight.")
    rate: float = Field(
        default=0.1, gt=0, le=1, description="Largest relative change an update: weight *= exp(rate error)."
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.least <= self.initial <= self.most:
            raise ValueError(f"least <= initial <= most must hold, not {self.least:g}, {self.initial:g}, {self.most:g}")
        return self


WeightConfig = Annotated[float, Field(ge=0)] | Annotated[TwoStageWeight | ControllerWeight, Field(discriminator="kind")]


class PositionConfig(Strict):
    """Pull to an anchor: mean KL(new || anchor) on the rollout's states, and a bound that the Guard keeps."""

    kind: Literal["position"] = "position"
    anchor: AnchorConfig = Field(default=FrozenAnchor(), description="Where to: frozen, period or soft.")
    weight: WeightConfig = Field(
        description="What the term is multiplied by in the loss: a number, two_stage or controller. 0: no pull."
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="'sum': nats, over an action's dimensions and a flow's chain. 'mean': divided by dimensions and "
        "chain length, as published.",
    )
    direction: Literal["new_anchor", "symmetric"] = Field(
        default="new_anchor",
        description="Of the pull: 'new_anchor' is KL(new || anchor); 'symmetric' adds KL(anchor || new), with a soft "
        "anchor SMART's Bregman term (arXiv 1911.03437).",
    )
    bound: float | None = Field(
        default=None,
        gt=0,
        description="Mean KL(anchor || new), nats, summed over dimensions and chain, that the Guard lets no update "
        "exceed. Empty: the pull alone.",
    )

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities that the agents need."""
        return frozenset({"kl"})


class VelocityConfig(Strict):
    """A brake: the KL between the policy and the one just before it."""

    kind: Literal["velocity"] = "velocity"
    form: Literal["exact", "monte_carlo"] = Field(
        default="exact",
        description="'exact': KL(new || policy before the last optimizer step). 'monte_carlo': mean of log pi_old - "
        "log pi on the rollout's samples, signed, as published; its gradient is noise around 0 at the "
        "first optimizer step of a rollout.",
    )
    weight: WeightConfig = Field(
        description="What the term is multiplied by in the loss: a number, two_stage or controller."
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="'sum': nats, over an action's dimensions and a flow's chain. 'mean': divided by dimensions and "
        "chain length, as published.",
    )

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities that the agents need."""
        return frozenset({"kl" if self.form == "exact" else "log_prob"})


class SmoothConfig(Strict):
    """Alike decisions at alike observations: mean of the largest symmetric KL within a small box (arXiv 1911.03437)."""

    kind: Literal["smooth"] = "smooth"
    radius: float = Field(
        gt=0,
        description="How far each number of an observation may be moved, in its own units. Where that moves a law's "
        "parameters by less than about 1e-3, single precision hardly measures the KL.",
    )
    weight: WeightConfig = Field(
        description="What the term is multiplied by in the loss: a number, two_stage or controller."
    )
    noise: float | None = Field(
        default=None, gt=0, description="Standard deviation of the random start, cut off at the box; empty: radius."
    )
    step: float | None = Field(
        default=None,
        gt=0,
        description="How far an ascent moves the number that moves most, before the box cuts it off; empty: 100 "
        "radius, as published, which takes nearly every number to the box's edge.",
    )
    ascents: int = Field(default=1, ge=1, le=100, description="Projected ascents, a forward and backward pass each.")
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="'sum': nats, over an action's dimensions and a flow's chain. 'mean': divided by dimensions and "
        "chain length.",
    )

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities that the agents need."""
        return frozenset({"kl"})


RegulariserConfig = Annotated[PositionConfig | VelocityConfig | SmoothConfig, Field(discriminator="kind")]
