"""Settings of the trust regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["GradientConfig", "MeasuredConfig", "NaturalStepConfig", "ReshapedConfig", "TrpoConfig"]

Status = Literal["verified", "second-hand", "classic", "reconstructed"]
"""Where a formula is from: the paper or its official code; somebody else's account; the field's common knowledge; our
reading of an abstract."""


class GradientConfig(Strict):
    """What all regions have that take gradient steps.

    Class attributes, for the listing and the checks: ``paper`` (arXiv), ``status`` (`Status`), ``guarantee`` without a
    bound, ``requires``, ``needs``, ``only_objective``.
    """

    paper: ClassVar[str] = ""
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "none"

    bound: float | None = Field(
        default=None,
        gt=0,
        description="Mean KL(old||new) a learner and update, in nats (of drifting policies the mean squared step of an "
        "action, in its own units); beyond, the Guard interpolates or rejects. Empty: measured and logged only.",
    )
    stop_at: float | None = Field(
        default=None, gt=0, description="End a learner's epochs once its minibatch divergence exceeds this."
    )


class MeasuredConfig(GradientConfig):
    """Gradient steps; the divergence is measured, and kept only where a bound is given."""


class ReshapedConfig(GradientConfig):
    """Mechanisms with a gain of their own a decision."""

    requires: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    only_objective: ClassVar[str] = "surrogate"

    aggregation: Literal["token_mean", "trajectory_mean", "trajectory_sum"] = Field(
        default="token_mean",
        description="Mean over all decisions; or the mean over trajectories of each one's mean, or sum.",
    )


class NaturalStepConfig(Strict):
    """Conjugate gradients and line search."""

    iterations: int = Field(default=10, ge=1, le=1000, description="Products of conjugate gradients at most.")
    damping: float = Field(default=0.1, ge=0, description="Added to the Fisher matrix inside the solve only.")
    tolerance: float = Field(default=1e-10, ge=0, description="Squared residual, relative, at which CG stops.")
    backtrack: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="Factor of a step that kept the bound and gained too little; one beyond it is cut to just inside.",
    )
    max_backtracks: int = Field(default=10, ge=0, le=100, description="How often the step is shortened.")
    subsample: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of the batch that the Fisher products see: decisions, or a recurrent policy's trajectories.",
    )


class TrpoConfig(NaturalStepConfig):
    """Trust region policy optimisation (arXiv 1502.05477)."""

    paper: ClassVar[str] = "1502.05477"
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "hard"
    takes_own_step: ClassVar[bool] = True
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})
    refuses_objectives: ClassVar[Mapping[str, str]] = {
        "clip": "its one step starts at ratio 1 and never meets the clip; use 'surrogate'"
    }

    bound: float = Field(default=0.01, gt=0, description="Mean KL(old||new) a learner and update, in nats.")
    bound_end: float | None = Field(
        default=None,
        gt=0,
        description="The bound at the end of the run, to which it goes geometrically, by the share of iterations that "
        "are done; empty: bound all along.",
    )
    accept_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Least share of the linear prediction that the surrogate must gain.",
    )
