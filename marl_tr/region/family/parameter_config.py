"""Settings of the mechanisms that bound steps in the space of parameters."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.region.config import GradientConfig, Status

__all__ = ["DirectionalConfig", "TramConfig"]


class TramConfig(GradientConfig):
    """Gradients from the worst point nearby, as near as the policy has just moved (TRAM, arXiv 2310.03646)."""

    paper: ClassVar[str] = "2310.03646"
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "none"
    requires: ClassVar[frozenset[str]] = frozenset({"kl"})

    target: Literal["previous", "old"] = Field(
        default="previous",
        description="The ascent's length is mean KL(target || policy), of the policy before the last optimizer step or "
        "of the one that acted.",
    )
    adaptive: bool = Field(
        default=False,
        description="Ascend along w^2 g / ||w g|| in place of g / ||g||: farther where weights are large.",
    )


class DirectionalConfig(GradientConfig):
    """Later updates within the directions of a learner's first ones (arXiv 2605.25189)."""

    paper: ClassVar[str] = "2605.25189"
    status: ClassVar[Status] = "reconstructed"
    guarantee: ClassVar[str] = "none"

    commits: int = Field(
        default=10, ge=1, description="A learner's committed updates that the directions are learned of; they are free."
    )
    energy: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="As many directions of each matrix as hold this share of the sum of squares of its updates.",
    )
    rank: int | None = Field(default=None, ge=1, description="As many directions as this in place of 'energy'.")
    sides: Literal["first", "second", "both"] = Field(
        default="first",
        description="Directions of which axis of a matrix, as it is stored, U U^T G, G V V^T or both; the first is the "
        "input of the networks built in.",
    )
    apply: Literal["gradient", "update"] = Field(
        default="gradient",
        description="'gradient': project gradients, which the optimizer may turn out of the span. 'update': project "
        "what a rollout changes, after every step; the Guard then keeps the span.",
    )
