"""Settings of the schedules."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["SequentialConfig", "SimultaneousConfig"]


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
