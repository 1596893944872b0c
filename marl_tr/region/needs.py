"""What a region asks to know of decisions, beyond observation, action and advantage."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

__all__ = ["Need", "blocks_of", "trajectories"]


class Need(StrEnum):
    """A region's `needs` are a set of these; what cannot be served is refused when the scenario is read."""

    OLD_LAW = "old_law"
    """``Samples.law``: the old policy's whole law on the decisions of a minibatch."""
    TRAJECTORY = "trajectory"
    """Label ``trajectory``: which life of an agent a decision belongs to, numbered within each learner."""
    WHOLE_TRAJECTORIES = "whole_trajectories"
    """Minibatches hold every decision of a trajectory, and all steps of its chain. Implies the label."""
    COHORT = "cohort"
    """Labels ``cohort`` (which decisions are compared with each other, numbered within each learner) and ``score``
    (the return of the decision's episode). Of environments that form cohorts."""
    WHOLE_COHORTS = "whole_cohorts"
    """Minibatches hold whole cohorts. Implies the labels, and whole trajectories."""
    RAW_ADVANTAGE = "raw_advantage"
    """Label ``raw_advantage``: before it is normalised, in reward units, times the weight from other learners."""


def trajectories(starts: Tensor) -> Tensor:
    """Number of the life of each decision, unlike within a learner: ``[R, T, N]`` bool starts to int64."""
    lives = starts.long().cumsum(1)
    lives = lives - lives[:, :1]
    most = int(lives.max()) + 1 if lives.numel() else 1
    return lives + most * torch.arange(starts.shape[2], device=starts.device)


def blocks_of(cohort: Tensor) -> Tensor:
    """Which trajectories ``[N]`` share a cohort, directly or through others, in any row: int64, numbered from 0.

    Args:
        cohort: ``[R, T, N]`` int64.
    """
    count = cohort.shape[2]
    block = torch.arange(count)
    # Cohorts are of few trajectories: joining them one cohort at a time is short.
    for row in cohort.cpu():
        for name in row.unique():
            joined = (row == name).any(0).nonzero().flatten()
            least = int(block[joined].min())
            for other in block[joined].unique().tolist():
                block[block == other] = least
    numbered: Tensor = block.unique(return_inverse=True)[1]
    return numbered.to(cohort.device)
