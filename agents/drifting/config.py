"""Settings of drifting policies and of positive-only drift.

What is reconstructed of PODPO (arXiv 2604.16519, whose text was not available) and what is known is told in
``docs/drifting.md``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Activation, Strict, Width

__all__ = ["BalancedPodpoConfig", "DriftingConfig", "PodpoConfig"]


class DriftingConfig(Strict):
    """A generator ``a = f(o, z)``, ``z ~ N(0, I)``: an encoder of the observation, and a head that takes the noise."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"sample_distance"})

    network: Literal["mlp", "gru"] = Field(
        default="mlp", description="'gru' puts a GRU cell behind the encoder; the noise enters after it."
    )
    hidden: list[Width] = Field(default=[128], min_length=1, description="Widths of the encoder of the observation.")
    head: list[Width] = Field(
        default=[128], min_length=1, description="Widths of the layers after the noise has come in."
    )
    activation: Activation = Field(default="silu", description="Between the layers.")
    conditioning: Literal["film", "concat"] = Field(
        default="film",
        description="'film': features of the noise are scaled and shifted by the observation's (arXiv 1709.07871), "
        "which turns modes with the observation; 'concat': both side by side.",
    )
    latent: int | None = Field(
        default=None, ge=1, le=1024, description="Dimensions of the noise, at least the action's; empty: as many."
    )
    latent_gain: float = Field(default=2.0, gt=0, le=10, description="Factor of the noise where it enters the head.")
    initial_spread: float = Field(
        default=0.5, gt=0, le=10, description="Standard deviation of actions at the start, half the range being 1."
    )
    head_gain: float = Field(default=0.1, ge=0, description="Gain of the last layer's orthogonal start.")
    exploration: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Standard deviation of the noise added to sampled actions, in the same unit.",
    )
    reach: float = Field(
        default=1.2,
        ge=1,
        description="Actions are learned from as far out as this, half a bounded range being 1; what acts is clipped.",
    )
    mode: Literal["medoid", "densest", "zero", "sample"] = Field(
        default="medoid",
        description="How evaluations in the mode act: the medoid of samples, the one where samples are densest, the "
        "action of zero noise, or a sample without exploration. Never a mean, which lies between modes.",
    )
    medoid_samples: int = Field(
        default=32, ge=2, le=4096, description="Samples that the medoid, or the densest, is one of."
    )
    normalise_observation: bool = Field(
        default=False, description="Running mean/std of the inputs; what the generator does is kept when they move."
    )


class PodpoConfig(Strict):
    """Positive-only drifting policy optimization, as reconstructed: actions of positive advantage attract samples.

    The drifting field is that of arXiv 2602.04770.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"sample_distance"})

    samples: int = Field(default=8, ge=2, le=1024, description="Fresh actions G generated for each decision.")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.1, 0.3, 1.0],
        min_length=1,
        description="Bandwidths of the fields that are summed, in units of the mean distance of a batch's points.",
    )
    field: Literal["joint", "row", "separate", "sharp", "attraction"] = Field(
        default="joint",
        description="How the kernel is normalised: 'joint' over targets and over samples, 'row' over targets. "
        "'separate', 'sharp' (arXiv 2604.06333) and 'attraction' average modes where each decision has one positive "
        "action; they are there to be compared with.",
    )
    kernel: Literal["laplacian", "gaussian"] = Field(default="laplacian", description="Of the distance of two points.")
    negatives: Literal["own", "independent"] = Field(
        default="own",
        description="What repels a sample: the others, or as many fresh ones (twice the generator's cost, no bias).",
    )
    normalise_drift: bool = Field(default=True, description="Divide the field of each temperature by its RMS.")
    positive_only: bool = Field(default=True, description="Leave out decisions whose advantage is not positive.")
    weights: Literal["linear", "uniform", "exp"] = Field(
        default="linear", description="Of a positive action by its advantage A in standard deviations: A, 1 or exp(A)."
    )
    weight_cap: float = Field(default=4.0, gt=0, description="Of A in the weights.")
    weight_power: float = Field(
        default=1.0,
        gt=0,
        le=16,
        description="Exponent p of linear weights, A^p: the larger, the farther an update goes, and the fewer actions "
        "say where. 1 makes the policy times the positive part of A the target.",
    )
    balance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Exponent kappa: weights are divided by the density of the action among the samples to this power, "
        "so that good modes stay although they are rare. 0: plain.",
    )
    final_balance: float | None = Field(
        default=None, ge=0, le=1, description="Where kappa moves to, linearly over the run; empty: it stays."
    )
    balance_cap: float = Field(default=5.0, ge=1, description="Of the weights with balance, in units of their mean.")
    density_bandwidth: float = Field(
        default=0.3, gt=0, description="Of the density's kernel, in units of the mean distance between samples."
    )
    density_floor: float = Field(default=0.05, gt=0, description="Added to that density, whose largest value is 1.")
    minimum_positives: int = Field(
        default=32, ge=1, description="A minibatch with fewer positive decisions of a learner takes no step of it."
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.positive_only and self.weights == "linear":
            raise ValueError(
                "positive_only: false with weights: linear gives the decisions it adds a weight of zero; use weights: "
                "exp or uniform"
            )
        if self.weight_power != 1 and self.weights != "linear":
            raise ValueError(f"weight_power is of weights: linear, not of {self.weights}")
        return self


class BalancedPodpoConfig(PodpoConfig):
    """PODPO-balanced: ours, not the publication's. Equally good modes keep equal shares."""

    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.1, 0.3],
        min_length=1,
        description="Bandwidths of the fields that are summed, in units of the mean distance of a batch's points.",
    )
    balance: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Exponent kappa of the density by which weights are divided; shares of modes go as the positive "
        "part of their advantage to the power 1 / kappa.",
    )
