"""Settings of the schedules."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["MetaGameConfig", "SequentialConfig", "SimultaneousConfig"]


class SimultaneousConfig(Strict):
    """No settings: every learner updates against the old policies of the others."""


class SequentialConfig(Strict):
    """Kuba et al., arXiv 2109.11251: a random order, and the ratios of those before as a factor.

    Learners without a likelihood go last.
    """

    needs_own_parameters: ClassVar[bool] = True
    wants_shared_reward: ClassVar[bool] = True

    factor_limit: float = Field(
        default=10.0,
        ge=1,
        description="The compounding factor is clipped to [1 / limit, limit]; 1 switches the factor off.",
    )


class MetaGameConfig(Strict):
    """Wen et al., arXiv 2106.06828 (MATRL): a game about who moves to its candidate, and a best response to it."""

    needs_own_parameters: ClassVar[bool] = True

    payoffs: Literal["ratios", "rollouts", "none"] = Field(
        default="ratios",
        description="Of the meta-game: 'ratios': raw advantages and likelihood ratios of the rollout at hand; 'rollouts': "
        "fresh paired episodes of every profile (2^n of n learners), needed by agents without a likelihood; 'none': no "
        "game, everybody moves.",
    )
    ratio_clip: float = Field(
        default=0.1, gt=0, description="In payoffs of ratios each learner's is clipped to [1 - clip, 1 + clip]."
    )
    episodes: int = Field(default=32, ge=1, le=65_536, description="Fresh episodes of a profile, of payoffs 'rollouts'.")
    players: int = Field(
        default=4,
        ge=2,
        le=4,
        description="Learners in one table; more are split at random, anew in each iteration, into groups that play apart.",
    )
    best_response: bool = Field(
        default=True,
        description="Each learner's step is a best response to where the others are headed; false: the mixed policies "
        "themselves are committed.",
    )
    factor_limit: float = Field(
        default=10.0,
        ge=1,
        description="The others' ratios that weigh a best response are together clipped to [1 / limit, limit].",
    )

    @property
    def requires(self) -> frozenset[str]:
        """Ratios need a likelihood."""
        return frozenset({"log_prob"}) if self.payoffs == "ratios" else frozenset()

    @property
    def instead(self) -> str:
        """How to do without."""
        return "'payoffs: rollouts'"
