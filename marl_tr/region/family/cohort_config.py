"""Settings of the mechanisms that compare episodes with each other, or see a trajectory as one."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from marl_tr.region.config import ReshapedConfig, Status

__all__ = ["EtrConfig", "FiberPoConfig", "GbpoConfig", "GrpoConfig", "GspoConfig"]

_AGGREGATION = "Mean over all decisions; or the mean over trajectories of each one's mean, or sum."


class GrpoConfig(ReshapedConfig):
    """Clipped ratios for cohort-relative advantages (GRPO, arXiv 2402.03300).

    The pull to a reference is a regulariser (``kind: position``); the advantage is ``advantage.estimator: cohort``.
    """

    paper: ClassVar[str] = "2402.03300"
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"cohort", "trajectory"})
    wants_cohort_advantage: ClassVar[bool] = True

    clip: float = Field(default=0.2, gt=0, lt=1, description="How far below 1 the ratio's interval reaches.")
    clip_high: float | None = Field(
        default=None, gt=0, description="How far above; empty: as far. 0.28 is Clip-Higher (DAPO)."
    )
    aggregation: Literal["token_mean", "trajectory_mean", "trajectory_sum"] = Field(
        default="trajectory_mean", description=_AGGREGATION
    )


class GspoConfig(ReshapedConfig):
    """A clipped ratio of whole trajectories: the geometric mean of their decisions' (GSPO, arXiv 2507.18071)."""

    paper: ClassVar[str] = "2507.18071"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"trajectory", "whole_trajectories"})

    clip: float = Field(default=3e-4, gt=0, lt=1, description="How far below 1 the interval of a trajectory reaches.")
    clip_high: float = Field(default=4e-4, gt=0, description="How far above.")
    variant: Literal["sequence", "token"] = Field(
        default="sequence",
        description="'token': the same value, but each decision's gradient by its own advantage.",
    )
    aggregation: Literal["token_mean", "trajectory_mean", "trajectory_sum"] = Field(
        default="trajectory_mean", description=_AGGREGATION
    )


class GbpoConfig(ReshapedConfig):
    """Ratios drawn to a bounded target about the cohort's median score (GBPO, arXiv 2604.18578)."""

    paper: ClassVar[str] = "2604.18578"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "soft"
    needs: ClassVar[frozenset[str]] = frozenset({"cohort"})
    wants_cohort_advantage: ClassVar[bool] = True

    low: float = Field(default=0.3, gt=0, lt=1, description="c_l: the least target is 1 - low.")
    high: float = Field(default=0.3, gt=0, description="c_h: the largest is 1 + high.")
    temperature: float = Field(
        default=1e-4,
        gt=0,
        description="Of the step from low to high, in the cohort's standard deviations (scripts: 1e-4; yaml: 1).",
    )
    median: Literal["lower", "midpoint"] = Field(
        default="lower",
        description="Of an even number of scores the lower middle one (torch, as the official code), or the mean of "
        "both (numpy).",
    )


class EtrConfig(ReshapedConfig):
    """Clipped ratios whose interval grows with the advantage (elastic trust regions, arXiv 2601.03723).

    Reconstructed from the abstract: the form and all constants are ours.
    """

    paper: ClassVar[str] = "2601.03723"
    status: ClassVar[Status] = "reconstructed"
    guarantee: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"cohort"})
    wants_cohort_advantage: ClassVar[bool] = True

    clip: float = Field(default=0.2, gt=0, lt=1, description="How far below 1 the interval reaches where |A| = 1.")
    clip_high: float | None = Field(default=0.28, gt=0, description="How far above; empty: as far.")
    micro: float = Field(
        default=0.5, ge=0, description="Growth of the interval with |A|: times 1 + micro (|A| - 1). 0: PPO."
    )
    least: float = Field(default=0.05, gt=0, description="Narrowest the interval becomes by 'micro'.")
    most: float = Field(default=0.6, gt=0, lt=1, description="Widest.")
    macro: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Narrowing with the cohort's variance: times 1 + macro (v - 1), v from 0 (all scores equal) to 1 "
        "(half at each end).",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        highest = self.clip if self.clip_high is None else self.clip_high
        if not self.least <= min(self.clip, highest) or not max(self.clip, highest) <= self.most:
            raise ValueError("least <= clip, clip_high <= most must hold")
        return self


class FiberPoConfig(ReshapedConfig):
    """Log-ratios gated level by level: a trajectory's mean, and what decisions add (FiberPO, arXiv 2603.08239)."""

    paper: ClassVar[str] = "2603.08239"
    status: ClassVar[Status] = "second-hand"
    guarantee: ClassVar[str] = "none"

    levels: Literal["trajectory", "domain"] = Field(
        default="trajectory",
        description="'trajectory': trajectory and decision; 'domain': domain, cohort, trajectory and decision.",
    )
    delta: float = Field(default=0.2, gt=0, description="Budget of a trajectory's mean log-ratio.")
    epsilon: float = Field(default=0.2, gt=0, description="Budget of what a decision adds to it.")
    delta_cohort: float = Field(default=0.15, gt=0, description="Budget of a cohort's (levels: domain).")
    delta_domain: float = Field(default=0.1, gt=0, description="Budget of a domain's (levels: domain).")
    base_gate: Literal["clip", "apc"] = Field(
        default="clip",
        description="Of the trajectory's mean: 'clip' to +- delta; 'apc': decisions share the budget T delta, and each "
        "has what the others leave (reconstructed).",
    )
    pessimistic: bool = Field(
        default=False,
        description="The lesser of gated and plain gain: what goes back to the region keeps its gradient.",
    )
    aggregation: Literal["token_mean", "trajectory_mean", "trajectory_sum"] = Field(
        default="trajectory_mean", description=_AGGREGATION
    )

    @property
    def needs(self) -> frozenset[str]:
        """Whole trajectories; of the four levels whole cohorts."""
        return frozenset({"trajectory", "whole_trajectories" if self.levels == "trajectory" else "whole_cohorts"})

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        if self.levels == "domain" and self.base_gate == "apc":
            raise ValueError("base_gate 'apc' is of two levels; with levels 'domain' use 'clip'")
        return self
