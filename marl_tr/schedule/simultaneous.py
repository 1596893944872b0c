"""All learners at once, each against the old policies of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.schedule.assignment import Assignment
from marl_tr.schedule.budget import budget_of
from marl_tr.schedule.config import SimultaneousConfig

__all__ = ["Simultaneous"]


class Simultaneous:
    """Independent updates (IPPO, MAPPO: Yu et al., arXiv 2103.01955).

    Each learner's own bound holds; the joint divergence is at most their sum (or the joint bound of a budget), and no
    joint improvement is promised.
    """

    def __init__(self, config: SimultaneousConfig) -> None:
        self._config = config

    def update(
        self, assignments: Sequence[Assignment], guard: Guard, generator: torch.Generator, progress: float
    ) -> list[UpdateReport]:
        """One turn a team, all its learners in one stacked pass."""
        reports: list[UpdateReport] = []
        budget = budget_of(self._config, assignments, guard, generator, progress)
        for assignment in assignments:
            rows = tuple(range(len(assignment.learners.names)))
            turn = assignment.turn(rows, weight=None, generator=generator, progress=progress, budget=budget)
            candidate = assignment.region.propose(turn)
            assignment.log(candidate.losses)
            reports += guard.accept(assignment.region, turn, candidate)
        return reports
