"""What a schedule gets: one team's learners with everything their turns need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.policy import Parameters, PolicyBatch, Rows
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.needs import Need
from marl_tr.region.turn import Learners, Objective, Region, Turn
from marl_tr.rollout.advantage import normalise

__all__ = ["Assignment", "Budget", "Profile", "Schedule", "Trials"]

Profile = Mapping[str, Parameters]
"""Parameters ``[1, ...]`` by learner, of those who do not act by what is in force."""


@dataclass(frozen=True)
class Budget:
    """A joint bound and how it is split.

    Attributes:
        bound: Of the sum of all learners' mean divergences.
        shares: Each learner's, by name; their sum is `bound`.
    """

    bound: float
    shares: Mapping[str, float]


class Trials(Protocol):
    """What the trainer offers a schedule that wants to see a joint policy play before it is in force."""

    def returns(self, profiles: Sequence[Profile], *, episodes: int, seed: int) -> list[dict[str, NDArray[np.float64]]]:
        """Fresh episodes of each profile, paired: the same episodes and the same draws for all of them.

        Args:
            profiles: Who acts by what.
            episodes: ``n``, of each profile.
            seed: Of episodes and draws.

        Returns:
            Of each profile ``{learner: [n]}``: the return that is learned from (scenario's ``env.reward``),
            undiscounted, mean over the learner's agents.
        """
        ...


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
        trials: Plays policies that are not in force, the same object for every team; None: nobody can.
        labels: ``[L, T, N]`` each, for regions that ask (`marl_tr.region.needs.Need`).
    """

    learners: Learners
    batch: PolicyBatch
    advantage: Tensor
    normalise: bool
    objective: Objective
    region: Region
    log: Callable[[Mapping[str, float]], None]
    trials: Trials | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)

    def turn(
        self,
        rows: Sequence[int],
        *,
        weight: Tensor | None,
        generator: torch.Generator,
        progress: float,
        budget: Budget | None = None,
    ) -> Turn:
        """The turn of some rows.

        Args:
            rows: Which learners.
            weight: ``[T, E]``, the other learners' factor, applied after the advantage is normalised; or None.
            generator: For minibatches and subsamples.
            progress: Share of the run that is done.
            budget: Of all learners together; None: each has its region's own bound.
        """
        index = list(rows)
        batch = self.batch.rows(index)
        advantage = self.advantage[index]
        if self.normalise:
            advantage = normalise(advantage, batch.mask)
        labels = {name: x[index] for name, x in self.labels.items()}
        if weight is not None:
            layout: Rows = self.learners.policy.rows
            width = layout.agents if layout.shared else 1
            factor = weight.repeat_interleave(width, dim=1)
            advantage = advantage * factor
            if Need.RAW_ADVANTAGE in labels:
                labels[Need.RAW_ADVANTAGE] = labels[Need.RAW_ADVANTAGE] * factor
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
            shares=None if budget is None else tuple(budget.shares[self.learners.names[row]] for row in rows),
            joint_bound=None if budget is None else budget.bound,
            labels=labels,
        )

    def environment_advantage(self, row: int) -> Tensor:
        """A learner's raw advantage an environment step, ``[T, E]``: the mean over its agents, all steps of their
        lives, those included at which they are not to move."""
        layout = self.learners.policy.rows
        raw = self.advantage[row]
        return raw.unflatten(1, (-1, layout.agents)).mean(-1) if layout.shared else raw

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
