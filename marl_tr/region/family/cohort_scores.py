"""What cohorts scored: median and variance of each, every episode counted once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_tr.region.turn import Turn

__all__ = ["CohortScores", "cohort_scores", "of_cohorts"]


@dataclass(frozen=True)
class CohortScores:
    """Of the ``C`` cohorts of each row, ``[R, C]`` float64; zero where a row has none of that number.

    Attributes:
        count: Episodes.
        lower: Median; of an even number the lower middle score (as `torch.median`).
        midpoint: Median; of an even number the mean of both (as `numpy.median`).
        variance: Of the population.
        span: ``[R]``: largest score less the least of all the row's episodes.
    """

    count: Tensor
    lower: Tensor
    midpoint: Tensor
    variance: Tensor
    span: Tensor


def cohort_scores(turn: Turn) -> CohortScores:
    """From the labels ``cohort`` and ``score`` of a turn; an episode is what an agent decided in it, if anything."""
    first = _first_decisions(turn)
    cohort, score = turn.labels["cohort"], turn.labels["score"].double()
    rows, cohorts = cohort.shape[0], int(cohort.max()) + 1
    numbered = cohort + cohorts * torch.arange(rows, device=cohort.device)[:, None, None]
    group, value = numbered[first], score[first]
    ordered = _by_group(value, group)
    count = torch.zeros(rows * cohorts, dtype=torch.int64, device=group.device)
    count = count.index_add(0, group, torch.ones_like(group))
    start = count.cumsum(0) - count

    def at(position: Tensor) -> Tensor:
        return torch.where(count > 0, ordered[(start + position).clamp(0, len(ordered) - 1)], 0)

    def mean(x: Tensor) -> Tensor:
        return torch.zeros(rows * cohorts, dtype=x.dtype, device=x.device).index_add(0, group, x) / count.clamp_min(1)

    lower, upper = at((count - 1) // 2), at(count // 2)
    variance = mean((value - mean(value)[group]).square())
    most = torch.where(first, score, -torch.inf).flatten(1).amax(1)
    least = torch.where(first, score, torch.inf).flatten(1).amin(1)
    shape = (rows, cohorts)
    return CohortScores(
        count=count.double().reshape(shape),
        lower=lower.reshape(shape),
        midpoint=((lower + upper) / 2).reshape(shape),
        variance=variance.reshape(shape),
        span=(most - least).clamp_min(0),
    )


def of_cohorts(table: Tensor, cohort: Tensor) -> Tensor:
    """The entry of ``[R, C]`` for each label ``[R, T, N]``."""
    return table.gather(1, cohort.flatten(1)).reshape(cohort.shape)


def _first_decisions(turn: Turn) -> Tensor:
    """``[R, T, N]`` bool: one decision of every episode, its first."""
    cohort, mask = turn.labels["cohort"], turn.batch.mask
    rows, steps, count = mask.shape
    device = mask.device
    # An environment's next episode is of another cohort, so a column and a cohort name an episode.
    names = cohort * count + torch.arange(count, device=device)
    names = names + (int(cohort.max()) + 1) * count * torch.arange(rows, device=device)[:, None, None]
    episode: Tensor = names.unique(return_inverse=True)[1]
    moment = torch.arange(steps, device=device)[None, :, None].expand_as(episode)
    earliest = torch.full((int(episode.max()) + 1,), steps, device=device)
    earliest = earliest.scatter_reduce(0, episode[mask], moment[mask], "amin")
    return mask & (moment == earliest[episode])


def _by_group(value: Tensor, group: Tensor) -> Tensor:
    """Values in ascending order within each group, groups one after the other; at least one entry."""
    if not len(value):
        return value.new_zeros(1)
    order = value.argsort(stable=True)
    return value[order][group[order].argsort(stable=True)]
