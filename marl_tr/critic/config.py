"""Settings of the critics and of their fits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict
from marl_tr.scenario.strict import Activation, Width

__all__ = ["AdamFitConfig", "CriticConfig", "Fit", "MlpCriticConfig", "TrustRegionFitConfig"]


class AdamFitConfig(Strict):
    """Minibatch regression with Huber loss and clipped values."""

    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Adam's step size.")
    epochs: int = Field(default=5, ge=1, le=1000, description="Passes over a rollout.")
    minibatches: int = Field(default=8, ge=1, le=4096, description="Minibatches a pass, whole trajectories.")
    max_grad_norm: float = Field(default=10.0, gt=0, description="Gradient norm, clipped above.")
    huber: float = Field(default=10.0, gt=0, description="Where the loss turns linear, in normalised value units.")
    value_clip: float | None = Field(
        default=0.2,
        gt=0,
        description="Half-width around the old value, in normalised value units; empty: none.",
    )


class TrustRegionFitConfig(Strict):
    """Gauss-Newton under a trust region (arXiv 1506.02438 section 5, with one variance an agent)."""

    kind: Literal["trust_region"] = "trust_region"
    bound: float = Field(default=0.3, gt=0, description="D = mean (V - V_old)^2 / (2 sigma^2) of one fit, at most.")
    steps: int = Field(
        default=2, ge=1, le=50, description="Re-linearised steps a fit; D is always from the same V_old."
    )
    iterations: int = Field(default=10, ge=1, le=1000, description="Products of conjugate gradients a step.")
    damping: float = Field(default=0.1, ge=0, description="Added to the Gauss-Newton matrix inside the solve only.")
    tolerance: float = Field(default=1e-10, ge=0, description="Squared residual, relative, at which CG stops.")
    max_backtracks: int = Field(default=10, ge=0, le=100, description="Shortenings of a step at most.")
    subsample: float = Field(
        default=0.1, gt=0, le=1, description="Share of the windows that the products see; at least one."
    )
    window: int = Field(
        default=10,
        ge=1,
        description="Steps of a window in the products of a recurrent critic; its memory enters as a constant.",
    )


Fit = Annotated[TrustRegionFitConfig | AdamFitConfig, Field(discriminator="kind")]


class CriticConfig(Strict):
    """What every critic has."""

    fit: Fit = Field(default=TrustRegionFitConfig(), description="How the critic is fitted: trust_region or adam.")
    normalise_value: bool = Field(
        default=True,
        description="Learn values in running mean/std units; outputs are kept when the units move.",
    )


class MlpCriticConfig(CriticConfig):
    """Concatenated observations (and the global state, where there is one) through an MLP."""

    scope: Literal["centralized", "local"] = Field(
        default="centralized", description="'local': each agent's value sees its own observation only (IPPO)."
    )
    hidden: list[Width] = Field(default=[128, 128], min_length=1, description="Widths of the hidden layers.")
    activation: Activation = Field(default="silu", description="Between the layers.")
    normalise_observation: bool = Field(default=False, description="Running mean/std of the inputs, law-preserving.")
