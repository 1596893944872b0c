"""Settings of the mechanisms that other families are compared with."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.region.config import ReshapedConfig, Status

__all__ = ["BpoConfig", "FixpoConfig", "MdpoConfig", "PpoClipConfig", "PpoPenaltyConfig", "SpoConfig"]


class PpoClipConfig(ReshapedConfig):
    """Clipped ratios (PPO, arXiv 1707.06347); not a trust region by itself."""

    paper: ClassVar[str] = "1707.06347"
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "none"

    clip: float = Field(default=0.2, gt=0, lt=1, description="How far below 1 the ratio's interval reaches.")
    clip_high: float | None = Field(
        default=None, gt=0, description="How far above; empty: as far. 0.28 is Clip-Higher (DAPO)."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Floor of the gain of bad actions, dual_clip A (verl: 3); empty: none."
    )


class SpoConfig(ReshapedConfig):
    """Simple policy optimization (arXiv 2401.16025, v9): each ratio is drawn to ``1 + epsilon sign(A)``."""

    paper: ClassVar[str] = "2401.16025"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "soft"

    epsilon: float = Field(default=0.2, gt=0, lt=1, description="Half-width of the ratio's interval.")


class PpoPenaltyConfig(ReshapedConfig):
    """PPO with a penalty on KL(old||new) whose weight follows a target (arXiv 1707.06347, section 4)."""

    paper: ClassVar[str] = "1707.06347"
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "soft"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})
    needs: ClassVar[frozenset[str]] = frozenset({"old_law"})

    target: float = Field(default=0.01, gt=0, description="Mean KL(old||new) that an update is drawn to, in nats.")
    beta: float = Field(default=1.0, gt=0, description="Weight of the penalty in a learner's first update.")
    tolerance: float = Field(
        default=1.5, ge=1, description="Beyond tolerance times the target, or below 1/tolerance of it, beta changes."
    )
    factor: float = Field(default=2.0, gt=1, description="By how much.")


class FixpoConfig(ReshapedConfig):
    """FixPO (arXiv 2312.05405): no decision of the batch moves farther than a KL, by steps back where one has."""

    paper: ClassVar[str] = "2312.05405"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "hard"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})
    needs: ClassVar[frozenset[str]] = frozenset({"old_law"})

    epsilon: float = Field(
        default=0.2, gt=0, description="KL(old||new) of one decision, in nats, at most (the authors' launcher: 0.5)."
    )
    caution: float = Field(
        default=2.0,
        ge=1,
        description="C_beta: epochs aim at KLs of epsilon / caution, so that few steps back are needed (launcher: 3).",
    )
    beta: float = Field(default=1.0, ge=0, description="Weight of the penalty at the start of a run.")
    beta_learning_rate: float = Field(default=0.01, ge=0, description="Of Adam, which moves beta at every step.")
    statistic: Literal["max", "mean"] = Field(
        default="max", description="What of a minibatch's KLs moves beta. The guarantee is of the largest either way."
    )
    fixup: Literal["epoch", "end"] = Field(default="epoch", description="Steps back after every epoch, or after all.")
    fixup_batch: int = Field(default=1024, ge=1, description="Decisions a step back looks at.")
    max_fixup_steps: int = Field(
        default=200,
        ge=0,
        description="Steps back a learner and update at most; what they leave undone a shorter step does (ours).",
    )


class MdpoConfig(ReshapedConfig):
    """Mirror descent policy optimization, on-policy (arXiv 2005.09814): KL(new||old), weighted ever more."""

    paper: ClassVar[str] = "2005.09814"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "soft"
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})
    needs: ClassVar[frozenset[str]] = frozenset({"old_law"})

    weight: float = Field(default=1.0, ge=0, description="1 / t at the start of a run, the penalty's weight.")
    schedule: Literal["linear", "constant"] = Field(
        default="linear", description="t falls linearly to 0 over the run (as published), or stays."
    )
    ceiling: float = Field(
        default=100.0,
        gt=0,
        description="Largest weight. 'linear' alone would end at `weight` times the number of updates of the run.",
    )


class BpoConfig(ReshapedConfig):
    """Bounded policy optimization (arXiv 2604.18578): each ratio is drawn to the best one within its bounds."""

    paper: ClassVar[str] = "2604.18578"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "soft"
    needs: ClassVar[frozenset[str]] = frozenset({"raw_advantage"})

    epsilon: float = Field(default=0.3, gt=0, lt=1, description="How far below 1 a ratio may be wanted.")
    epsilon_high: float | None = Field(default=None, gt=0, description="How far above; empty: as far.")
    temperature: float = Field(
        default=1e-3,
        gt=0,
        description="lambda, in reward units: how far from the median an action must be to be wanted at a bound.",
    )
    mu_temp: Literal["consistent", "code"] = Field(
        default="consistent",
        description="The median head is fitted at the target's temperature, so that wanted ratios are 1 on average; or "
        "at 1, as the official code does.",
    )
    weighted: bool = Field(default=True, description="Distances to the wanted ratio count by |advantage|.")
    hidden: list[int] = Field(default=[64, 64], description="Widths of the median head, an MLP on the observation.")
    head_learning_rate: float = Field(default=3e-4, gt=0, le=1, description="Of the head's Adam.")
