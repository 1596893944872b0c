"""One learner after the other, in a random order, each knowing what those before it did."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from marl_tr.policy import Capability
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.schedule.assignment import Assignment
from marl_tr.schedule.budget import budget_of
from marl_tr.schedule.config import SequentialConfig

__all__ = ["Sequential"]


class Sequential:
    """Sequential updates with a compounding factor (HAPPO, HATRPO: Kuba et al., arXiv 2109.11251, algorithm 1).

    ``M_1 = A`` and ``M_{m+1} = w_m M_m``, where ``w_m`` is the ratio new to old of the m-th learner's recorded action,
    taken after the Guard has decided. The factor weighs the advantage after its normalisation and never reaches
    below ``1 / limit`` or above ``limit``.

    Learners without a likelihood go last, in random order among themselves: they see the factor of those before them,
    and as their own ratio is unknown they multiply it by 1. So no learner's advantage lacks a factor that could have
    been known; what such learners did to one another stays out of account.

    A budget is split before the first turn, on the old policies.
    """

    def __init__(self, config: SequentialConfig) -> None:
        self._config = config
        self._limit = config.factor_limit

    def update(
        self, assignments: Sequence[Assignment], guard: Guard, generator: torch.Generator, progress: float
    ) -> list[UpdateReport]:
        """One turn a learner; reports in the order of the turns."""
        learners = [(a, row) for a in assignments for row in range(len(a.learners.names))]
        budget = budget_of(self._config, assignments, guard, generator, progress)
        order = torch.randperm(len(learners), generator=generator).tolist()
        # Stable: among those with a likelihood, and among those without, the order stays random.
        order.sort(key=lambda k: Capability.LOG_PROB not in learners[k][0].learners.policy.capabilities)
        log_factor: Tensor | None = None
        reports: list[UpdateReport] = []
        for k in order:
            assignment, row = learners[k]
            weight = None if log_factor is None else self._weight(log_factor)
            turn = assignment.turn((row,), weight=weight, generator=generator, progress=progress, budget=budget)
            candidate = assignment.region.propose(turn)
            assignment.log(candidate.losses)
            report = guard.accept(assignment.region, turn, candidate)[0]
            reports.append(report)
            moved = assignment.environment_log_ratio(row, report.log_ratio)
            log_factor = moved if log_factor is None else log_factor + moved
        return reports

    def _weight(self, log_factor: Tensor) -> Tensor:
        return log_factor.exp().clamp(1 / self._limit, self._limit)
