"""Settings of the objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["ClippedRatioConfig", "NucleusSupport", "SupportConfig", "SurrogateConfig", "TopKSupport"]


class TopKSupport(Strict):
    """The likeliest choices (TRE-K, arXiv 2602.03635)."""

    kind: Literal["top_k"] = "top_k"
    count: int = Field(
        default=2, ge=1, description="K; of 1 the bonus is the min-entropy, -ln of the largest probability."
    )


class NucleusSupport(Strict):
    """The fewest likeliest choices that hold a share of the probability (TRE-P, arXiv 2602.03635)."""

    kind: Literal["nucleus"] = "nucleus"
    mass: float = Field(default=0.99, gt=0, le=1, description="P, which they hold together.")
    most: int = Field(default=256, ge=1, description="No more choices than this.")


SupportConfig = Annotated[TopKSupport | NucleusSupport, Field(discriminator="kind")]


class SurrogateConfig(Strict):
    """``E[w A]``: the plain importance-weighted surrogate."""

    entropy: float = Field(default=0.0, ge=0, description="Weight of the entropy bonus.")
    entropy_support: SupportConfig | None = Field(
        default=None,
        description="Of actions that are choices: take the entropy of the likely ones alone, renormalised and scaled "
        "by ln V / ln |S| (TRE; published weight 0.001). Empty: of the whole law.",
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="Log-ratios over an action's dimensions, and gains over a flow's chain: 'sum' is the likelihood's, "
        "'mean' that of published flow GRPO (its clip is then of the order 0.1 / sqrt(dimensions)).",
    )

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities that the agents need."""
        return frozenset({"log_prob"} if self.entropy_support is None else {"log_prob", "mass"})

    @property
    def instead(self) -> str:
        """How to do without."""
        return "" if self.entropy_support is None else "leave 'entropy_support' out"


class ClippedRatioConfig(SurrogateConfig):
    """``E[min(w A, clip(w, 1 - clip, 1 + clip) A)]`` (PPO, arXiv 1707.06347)."""

    entropy: float = Field(default=0.01, ge=0, description="Weight of the entropy bonus.")
    clip: float = Field(
        default=0.2, gt=0, lt=1, description="Half-width of the ratio's interval (of each chain step's ratio)."
    )
