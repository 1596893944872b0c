"""Settings of what happens to the scores of episodes before they are compared."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.scenario.strict import Strict

__all__ = ["TrustGrpoConfig"]


class TrustGrpoConfig(Strict):
    """Trust-GRPO (arXiv 2505.17018): a process score beside the return, trusted as far as it agrees with it."""

    paper: ClassVar[str] = "2505.17018"
    status: ClassVar[str] = "verified"

    kind: Literal["trust_grpo"] = "trust_grpo"
    process: str = Field(
        description="The environment's metric that is the process score: its mean over an episode's steps."
    )
    alpha: float = Field(default=0.3, ge=0, description="Weight of the process score at the start.")
    right: float = Field(default=0.5, description="Return from which an episode counts as right.")
    decay: float | None = Field(
        default=None, gt=0, description="Updates after which that weight has fallen to 1/e; empty: the run's."
    )
    released: bool = Field(
        default=False,
        description="What the released code does beyond the paper: no process score below a return of 0.2, nor in "
        "cohorts whose mean return is at least 0.9 or at most 0.1.",
    )
