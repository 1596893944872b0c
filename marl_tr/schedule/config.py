"""Settings of the schedules."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.schema import Strict

__all__ = ["BudgetConfig", "ConsensusConfig", "MetaGameConfig", "SequentialConfig", "SimultaneousConfig"]


class BudgetConfig(Strict):
    """A joint bound split among the learners (the idea of Shek et al., arXiv 2508.10340)."""

    budget: Literal["equal", "water_filling", "greedy"] | None = Field(
        default=None,
        description="Split of a bound that all learners have together: 'equal'; 'water_filling': the largest predicted "
        "sum of gains; 'greedy': the most for whose nats gain most. Empty: each has its region's own bound.",
    )
    joint_bound: float | None = Field(
        default=None,
        gt=0,
        description="Of the sum of all learners' mean KL(old||new), in nats; empty: the sum of their regions' bounds.",
    )
    least_share: float = Field(default=0.25, ge=0, le=1, description="A learner's share at least, in equal shares.")
    most_share: float = Field(default=2.0, ge=1, description="A learner's share at most, in equal shares.")

    @property
    def needs_bounds(self) -> bool:
        """Only bounds in one unit can be split."""
        return self.budget is not None

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if self.joint_bound is not None and self.budget is None:
            raise ValueError("joint_bound has nothing to bound: add 'budget: equal', 'water_filling' or 'greedy'")
        return self


class SimultaneousConfig(BudgetConfig):
    """Every learner updates against the old policies of the others."""

    @property
    def needs_own_parameters(self) -> bool:
        """A share is of one agent's divergence."""
        return self.budget is not None


class SequentialConfig(BudgetConfig):
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
        description="Of the meta-game: 'ratios': raw advantages and likelihood ratios of the rollout at hand; "
        "'rollouts': fresh paired episodes of every profile (2^n of n learners), needed by agents without a "
        "likelihood; 'none': no game, everybody moves.",
    )
    ratio_clip: float = Field(
        default=0.1, gt=0, description="In payoffs of ratios each learner's is clipped to [1 - clip, 1 + clip]."
    )
    episodes: int = Field(
        default=32, ge=1, le=65_536, description="Fresh episodes of a profile, of payoffs 'rollouts'."
    )
    players: int = Field(
        default=4,
        ge=2,
        le=4,
        description="Learners in one table; more are split at random, anew in each iteration, into groups that play "
        "apart.",
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


class ConsensusConfig(Strict):
    """Li and He, arXiv 2010.07916 (MATRPO): neighbours agree on the ratios of everybody's actions."""

    needs_own_parameters: ClassVar[bool] = True
    needs_scope: ClassVar[str] = "joint"
    needs_own_step: ClassVar[bool] = True
    requires: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})

    graph: Literal["complete", "ring"] = Field(default="complete", description="Who has to agree with whom.")
    edges: list[tuple[str, str]] | None = Field(
        default=None, min_length=1, description="Pairs of learners who have to agree, in place of `graph`; connected."
    )
    rounds: int = Field(default=5, ge=1, description="Visits of each edge an iteration, two steps of a region each.")
    penalty: float = Field(default=1.0, gt=0, description="Beta, of the squared disagreement.")
