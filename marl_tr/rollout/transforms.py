"""What happens to the scores of episodes before they are compared: Trust-GRPO's process scores."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.rollout.advantage import compared_episodes

__all__ = ["trust_grpo_scores", "trust_weight", "with_process_scores"]


def trust_weight(outcome: Tensor, process: Tensor, known: Tensor, group: Tensor, *, right: float = 0.5) -> Tensor:
    """How far each cohort's process scores are trusted: ``gamma [n, A]`` in ``(0, 1]``, equal within a cohort.

    ``gamma = 1`` where the mean process score of right episodes is not below that of wrong ones, else ``exp(mu_right -
    mu_wrong)``. The mean of an empty class counts as 0; with nothing right gamma stays 1.

    Args:
        outcome: Scores of ``n`` episodes, ``[n, A]``.
        process: ``[n, A]``.
        known: ``[n, A]`` bool; the rest is left out.
        group: ``[n]`` int64, cohorts numbered from 0.
        right: Outcome from which an episode counts as right.

    Source: Fan et al., arXiv 2505.17018, with the released code's rules for empty classes.
    """
    good, bad = known & (outcome >= right), known & (outcome < right)
    mu_right, mu_wrong = (_group_mean(process, kept, group) for kept in (good, bad))
    some = _group_sum(good.to(process), group) > 0
    gamma = torch.where(some & (mu_right < mu_wrong), (mu_right - mu_wrong).exp(), 1)
    return gamma[group]


def trust_grpo_scores(
    outcome: Tensor,
    process: Tensor,
    known: Tensor,
    group: Tensor,
    *,
    weight: float,
    right: float = 0.5,
    released: bool = False,
) -> Tensor:
    """``R = R_outcome + gamma weight R_process``, ``[n, A]``; arguments as of `trust_weight`.

    Args:
        weight: ``alpha exp(-step / T)``.
        released: No process score where the outcome is below 0.2, nor in cohorts whose mean outcome is at least 0.9 or
            at most 0.1, as the released code has it.
    """
    process = torch.where(known, process, 0)
    if released:
        process = torch.where(outcome < 0.2, 0, process)
    bonus = weight * trust_weight(outcome, process, known, group, right=right) * process
    if released:
        middle = _group_mean(outcome, known, group)
        bonus = torch.where(((middle > 0.1) & (middle < 0.9))[group], bonus, 0)
    return outcome + bonus


def with_process_scores(
    *,
    reward: Tensor,
    process: Tensor,
    alive: Tensor,
    starts: Tensor,
    done: Tensor,
    cohort: Tensor | None,
    weight: float,
    right: float,
    released: bool,
) -> Tensor:
    """Rewards ``[T, E, A]`` whose sums over episodes are `trust_grpo_scores`: what is added is paid at the end.

    Args:
        process: ``[T, E]``; an episode's score is the mean over its steps.

    Other arguments as of `marl_tr.rollout.advantage.cohort_advantage` and `trust_grpo_scores`.

    Raises:
        BadCohorts: As `cohort_advantage`.
    """
    outcome, known, episode, group = compared_episodes(reward, alive, starts, done, cohort)
    lengths = torch.zeros(len(group), dtype=torch.float64, device=reward.device)
    sums = lengths.index_add(0, episode, process.double().flatten())
    lengths = lengths.index_add(0, episode, torch.ones_like(episode, dtype=torch.float64))
    scores = (sums / lengths).unsqueeze(-1).expand_as(outcome)
    judged = trust_grpo_scores(outcome, scores, known.bool(), group, weight=weight, right=right, released=released)
    paid = (judged - outcome)[episode].unflatten(0, starts.shape)
    return reward + torch.where(done.unsqueeze(-1), paid, 0).to(reward.dtype)


def _group_sum(x: Tensor, group: Tensor) -> Tensor:
    """``[n, A]`` to ``[G, A]``."""
    return torch.zeros(int(group.max()) + 1, x.shape[-1], dtype=x.dtype, device=x.device).index_add(0, group, x)


def _group_mean(x: Tensor, kept: Tensor, group: Tensor) -> Tensor:
    """Mean over what is kept, 0 where nothing is: ``[n, A]`` to ``[G, A]``."""
    count = _group_sum(kept.to(x), group)
    return _group_sum(torch.where(kept, x, 0), group) / count.clamp_min(1)
