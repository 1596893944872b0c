"""What a schedule gets: one team's learners with everything their turns need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from marl_tr.policy import PolicyBatch, Rows
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.turn import Learners, Objective, Region, Turn
from marl_tr.rollout.advantage import normalise

__all__ = ["Assignment", "Schedule"]


@dataclass(frozen=True)
class Assignment:
    """One team's update problem, before it is cut into turns.

    Attributes:
        learners: The team's learners.
        batch: ``[L, T, N, ...]``.
        advantage: ``[L, T, N]``, raw.
        normalise: Whether turns see normalised advantages.
        objective: What to gain.
        region: What bounds it.
        log: Receives the losses of a proposal.
    """

    learners: Learners
    batch: PolicyBatch
    advantage: Tensor
    normalise: bool
    objective: Objective
    region: Region
    log: Callable[[Mapping[str, float]], None]

    def turn(self, rows: Sequence[int], *, weight: Tensor | None, generator: torch.Generator, progress: float) -> Turn:
        """The turn of some rows.

        Args:
            rows: Which learners.
            weight: ``[T, E]``, the other learners' factor, applied after the advantage is normalised; or None.
            generator: For minibatches and subsamples.
            progress: Share of the run that is done.
        """
        index = list(rows)
        batch = self.batch.rows(index)
        advantage = self.advantage[index]
        if self.normalise:
            advantage = normalise(advantage, batch.mask)
        if weight is not None:
            layout: Rows = self.learners.policy.rows
            width = layout.agents if layout.shared else 1
            advantage = advantage * weight.repeat_interleave(width, dim=1)
        policy = self.learners.policy
        with torch.no_grad():
            # Ratios and divergences are from the policy that acted, which an expensive one has on record.
            recall = getattr(policy, "recall", None)
            old = policy.evaluate(self.learners.parameters(rows), batch) if recall is None else recall(batch)
        return Turn(
            learners=self.learners,
            rows=tuple(rows),
            batch=batch,
            advantage=advantage,
            objective=self.objective,
            old=old,
            generator=generator,
            progress=progress,
            terms=self.learners.regularisers.terms(rows, progress),
        )

    def environment_log_ratio(self, row: int, log_ratio: Tensor) -> Tensor:
        """A learner's log-ratio an environment step: ``[T, N, K]`` summed over chain and its agents to ``[T, E]``."""
        masked = torch.where(self.batch.mask[row], log_ratio.sum(-1), 0)
        layout = self.learners.policy.rows
        return masked.unflatten(1, (-1, layout.agents)).sum(-1) if layout.shared else masked


class Schedule(Protocol):
    """How several learners update on one rollout."""

    def update(
        self, assignments: Sequence[Assignment], guard: Guard, generator: torch.Generator, progress: float
    ) -> list[UpdateReport]:
        """Every learner proposes once; the Guard decides."""
        ...
