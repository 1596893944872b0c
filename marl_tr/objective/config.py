"""Settings of the objectives."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["ClippedRatioConfig", "SurrogateConfig"]


class SurrogateConfig(Strict):
    """``E[w A]``: the plain importance-weighted surrogate."""

    requires: ClassVar[frozenset[str]] = frozenset({"log_prob"})

    entropy: float = Field(default=0.0, ge=0, description="Weight of the entropy bonus.")
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="Log-ratios over an action's dimensions, and gains over a flow's chain: 'sum' is the likelihood's, "
        "'mean' that of published flow GRPO (its clip is then of the order 0.1 / sqrt(dimensions)).",
    )


class ClippedRatioConfig(SurrogateConfig):
    """``E[min(w A, clip(w, 1 - clip, 1 + clip) A)]`` (PPO, arXiv 1707.06347)."""

    entropy: float = Field(default=0.01, ge=0, description="Weight of the entropy bonus.")
    clip: float = Field(
        default=0.2, gt=0, lt=1, description="Half-width of the ratio's interval (of each chain step's ratio)."
    )
