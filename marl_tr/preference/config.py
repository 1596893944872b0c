"""Settings of preference learning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from marl_tr.region.config import Status
from marl_tr.scenario.optimizer import OptimizerSection
from marl_tr.scenario.regularisers import PositionConfig, RegulariserConfig
from marl_tr.scenario.strict import Strict

__all__ = [
    "AdpoConfig",
    "ErpdConfig",
    "LossConfig",
    "PreferenceSettings",
    "PsftConfig",
    "TrDpoConfig",
    "TrpaConfig",
    "TrsftConfig",
]


class _LossConfig(Strict):
    """Class attributes, for the listing and the checks: ``paper`` (arXiv), ``status``, ``guarantee`` of the loss
    itself, and ``uses``: which fields of `PreferenceData` it needs."""

    paper: ClassVar[str] = ""
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "soft"
    uses: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})


class AdpoConfig(_LossConfig):
    """Anchored direct preference optimization (arXiv 2510.18913)."""

    paper: ClassVar[str] = "2510.18913"
    uses: ClassVar[frozenset[str]] = frozenset({"group", "score"})

    kind: Literal["adpo"] = "adpo"
    temperature: float = Field(
        default=0.8, gt=0, description="tau of the log-ratios; the curvature at the anchor is 1/tau^2."
    )
    anchor: Literal["old", "reference"] = Field(
        default="old",
        description="'old': the policy before the update (online, noisy scores); 'reference': the settings' anchor "
        "(distillation).",
    )
    target: Literal["softmax", "best", "given"] = Field(
        default="softmax",
        description="'softmax' of the group's standardised scores; all on the 'best' one; or the scores are 'given' "
        "probabilities (a teacher's).",
    )
    score_temperature: float = Field(default=0.5, gt=0, description="beta_r, of the 'softmax' target.")
    smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target that is spread evenly over the group."
    )
    drop_below: float | None = Field(
        default=None, description="Groups whose scores all lie below teach nothing. Empty: all teach."
    )


class TrDpoConfig(_LossConfig):
    """Trust-region DPO (arXiv 2404.09656): the settings' ``anchor`` says how the reference follows."""

    paper: ClassVar[str] = "2404.09656"
    uses: ClassVar[frozenset[str]] = frozenset({"group", "score"})

    kind: Literal["tr_dpo"] = "tr_dpo"
    beta: float = Field(default=0.05, gt=0, description="Factor of the difference of log-ratios.")


class TrpaConfig(_LossConfig):
    """Trust region preference approximation (arXiv 2504.04524)."""

    paper: ClassVar[str] = "2504.04524"
    uses: ClassVar[frozenset[str]] = frozenset({"group", "level"})

    kind: Literal["trpa"] = "trpa"
    beta: float = Field(default=0.1, gt=0, description="Factor of the difference of mean log-ratios.")
    kappa: float = Field(default=2.5, gt=0, description="A further factor where the better one is of level 1.")
    pull: float = Field(default=1e-3, ge=0, description="c_tr, weight of the divergence from the old policy.")
    root: bool = Field(default=False, description="Pull by sqrt(k3 + 1/4) in place of k3.")


class TrsftConfig(_LossConfig):
    """Trust-region supervised fine-tuning (inside TRAPO, arXiv 2512.17636)."""

    paper: ClassVar[str] = "2512.17636"

    kind: Literal["trsft"] = "trsft"
    threshold: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="alpha: below, the gradient is that of -p/alpha; 0: likelihood throughout; 1: -p throughout.",
    )
    of: Literal["probability", "quantile"] = Field(
        default="probability",
        description="What 'threshold' is: a probability (choices only), or the share of a minibatch's decisions whose "
        "log-density lies below (densities too; ours).",
    )


class PsftConfig(_LossConfig):
    """Proximal supervised fine-tuning (arXiv 2508.17784)."""

    paper: ClassVar[str] = "2508.17784"
    guarantee: ClassVar[str] = "none"

    kind: Literal["psft"] = "psft"
    clip: float = Field(default=0.28, gt=0, description="e_hi: no gradient where the ratio exceeds 1 + e_hi.")


class ErpdConfig(_LossConfig):
    """Second stage of ERPD (arXiv 2605.25582): the teacher's log-ratio to the base policy as dense advantage."""

    paper: ClassVar[str] = "2605.25582"
    status: ClassVar[Status] = "reconstructed"

    kind: Literal["erpd"] = "erpd"
    clip: float = Field(default=0.2, gt=0, lt=1, description="PPO's clip on either side.")
    normalise: bool = Field(default=True, description="Advantages of mean 0 and deviation 1 over each batch.")
    consistent: bool = Field(
        default=False, description="Only where its sign is that of score minus group mean; for weak teachers."
    )


LossConfig = Annotated[
    AdpoConfig | TrDpoConfig | TrpaConfig | TrsftConfig | PsftConfig | ErpdConfig, Field(discriminator="kind")
]


class PreferenceSettings(Strict):
    """How a policy learns from preference data."""

    loss: LossConfig = Field(description="What is learned; marl_tr.preference.LOSSES lists the kinds.")
    anchor: PositionConfig = Field(
        default=PositionConfig(weight=0.0),
        description="The reference of log-ratios, and how it follows; its weight pulls on top (0: it does not), its "
        "bound is kept by the Guard.",
    )
    regularisers: tuple[RegulariserConfig, ...] = Field(default=(), description="More of them, as in a scenario.")
    bound: float | None = Field(
        default=None,
        gt=0,
        description="Mean KL(old||new) a learner and update, nats, on the update's data; the Guard keeps it. Empty: "
        "measured and logged only.",
    )
    optimizer: OptimizerSection = Field(
        default=OptimizerSection(epochs=1, max_grad_norm=2.0),
        description="Steps within an update; epochs times minibatches of them share one old policy.",
    )
    updates: int = Field(default=100, ge=1, description="Updates of a training.")
    batch: int | None = Field(
        default=None, ge=1, description="Groups (candidates where there are none) an update; empty: all the data."
    )
    seed: int = Field(default=0, ge=0, description="Of orders and minibatches.")

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if self.loss.kind == "erpd" and self.anchor.anchor.kind != "frozen":
            raise ValueError("loss 'erpd' measures from the base policy: its anchor is to be frozen")
        return self
