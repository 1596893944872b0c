"""Advantages from rewards and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_tr.errors import UserError

__all__ = [
    "Advantage",
    "BadCohorts",
    "cohort_advantage",
    "cohort_labels",
    "compared_episodes",
    "generalised_advantage",
    "normalise",
]

_EQUAL = 1e-6
"""Advantages that differ by less than this share of the largest are equal."""


_SPREAD = 1e-6
"""Least standard deviation of a cohort's returns that is divided by, as published."""


class BadCohorts(UserError):
    """Samples that cannot be compared with each other; the message says which and what to set."""


@dataclass(frozen=True)
class Advantage:
    """Advantages ``[T, E, A]`` as they are, and the targets that the critic is fitted to.

    Attributes:
        raw: ``A``, in reward units.
        target: ``A + V_old``, the lambda-return.
    """

    raw: Tensor
    target: Tensor


def generalised_advantage(
    *,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    alive: Tensor,
    gamma: float,
    lam: float,
) -> Advantage:
    """Generalised advantage estimation, an agent at a time.

    ``delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)`` and
    ``A_t = delta_t + gamma lam (1 - terminated_t)(1 - truncated_t) A_{t+1}``.

    Args:
        reward: ``[T, E, A]``.
        value: ``[T, E, A]``, V of the observation before each decision.
        next_value: ``[T, E, A]``, V of what followed: after a truncation the value of the final observation.
        terminated: ``[T, E, A]`` bool; nothing follows.
        truncated: ``[T, E, A]`` bool; something follows that was not played.
        alive: ``[T, E, A]`` bool; advantages of the dead are zero.
        gamma: Discount.
        lam: Weight of longer estimates: 0 gives the TD error, 1 the return minus the value.

    Source: Schulman et al., arXiv 1506.02438, equations 11-16; truncation as in section 3 of Pardo et al.,
    arXiv 1712.00378.
    """
    follows = ~terminated
    continues = follows & ~truncated
    delta = reward + gamma * torch.where(follows, next_value, 0) - value
    raw = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for t in reversed(range(delta.shape[0])):
        running = torch.where(alive[t], delta[t] + gamma * lam * torch.where(continues[t], running, 0), 0)
        raw[t] = running
    return Advantage(raw=raw, target=raw + torch.where(alive, value, 0))


def cohort_advantage(
    *, reward: Tensor, alive: Tensor, starts: Tensor, done: Tensor, cohort: Tensor | None, clip: float
) -> Tensor:
    """An episode's return relative to the returns of its cohort, the same at each of its decisions.

    ``A = (R - mean R) / max(std R, 1e-6)`` over the episodes that share a cohort and the step they began at, with the
    population's standard deviation, an agent at a time. An agent that was never alive in an episode (a sample that
    failed) is left out of mean and deviation and gets zero.

    Args:
        reward: ``[T, E, A]``, zero for the dead.
        alive: ``[T, E, A]`` bool.
        starts: ``[T, E]`` bool, an episode begins at this step.
        done: ``[T, E]`` bool, an episode ends with this step.
        cohort: ``[T, E]`` int64, or None where the environment compares nothing.
        clip: Largest magnitude.

    Returns:
        ``[T, E, A]``, zero for the dead.

    Raises:
        BadCohorts: There are none, they are of unequal sizes or of one sample, or episodes are cut by the rollout.

    Source: Shao et al., arXiv 2402.03300, section 4.1.2, with the population's deviation as in SAGE-GRPO's code.
    """
    returns, known, episode, group = compared_episodes(reward, alive, starts, done, cohort)

    def mean(x: Tensor) -> Tensor:
        sums = torch.zeros(int(group.max()) + 1, x.shape[-1], dtype=x.dtype, device=x.device)
        total, weight = (sums.index_add(0, group, each) for each in (x * known, known))
        return torch.index_select(total / weight.clamp_min(1), 0, group)

    centred = (returns - mean(returns)) * known
    relative = (centred / mean(centred.square()).sqrt().clamp_min(_SPREAD)).clamp(-clip, clip)
    return torch.where(alive, relative[episode].unflatten(0, starts.shape), 0).to(reward.dtype)


def cohort_labels(
    *, reward: Tensor, alive: Tensor, starts: Tensor, done: Tensor, cohort: Tensor | None
) -> dict[str, Tensor]:
    """Labels of decisions for regions that compare episodes (`marl_tr.region.needs.Need.COHORT`).

    Arguments as of `cohort_advantage`.

    Returns:
        ``cohort`` int64 and ``score``, each ``[T, E, A]``: which decisions are compared with each other (an agent at a
        time), and the undiscounted return of the decision's episode.

    Raises:
        BadCohorts: As `cohort_advantage`.
    """
    returns, _, episode, group = compared_episodes(reward, alive, starts, done, cohort)
    agents = torch.arange(reward.shape[-1], device=reward.device)
    named = group[episode].unflatten(0, starts.shape).unsqueeze(-1) * reward.shape[-1] + agents
    return {"cohort": named, "score": returns[episode].unflatten(0, starts.shape).to(reward.dtype)}


def compared_episodes(
    reward: Tensor, alive: Tensor, starts: Tensor, done: Tensor, cohort: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns ``[n, A]`` of the ``n`` episodes and whether they are known, the episode of each moment ``[T E]``, and
    the cohort of each episode ``[n]``; arguments as of `cohort_advantage`."""
    if cohort is None:
        raise BadCohorts(
            "advantage.estimator: this environment forms no cohorts (its steps hold none), so there is nothing to "
            "compare; use 'gae'"
        )
    if not bool(starts[0].all() & done[-1].all()):
        raise BadCohorts(
            "advantage.estimator: cohorts compare whole episodes, and this rollout cuts some; make "
            "trainer.rollout_steps a multiple of the episodes' length"
        )
    steps, environments = starts.shape
    # Episodes are numbered through, environment after environment.
    number = starts.long().cumsum(0) - 1
    first = torch.cat([torch.zeros_like(number[-1:, 0]), (number[-1] + 1).cumsum(0)[:-1]])
    episode = (number + first).flatten()
    count = int(episode.max()) + 1

    def per_episode(x: Tensor) -> Tensor:
        return torch.zeros(count, x.shape[-1], dtype=torch.float64, device=x.device).index_add_(
            0, episode, x.double().flatten(0, 1)
        )

    returns, known = per_episode(reward), (per_episode(alive) > 0).double()
    began = torch.arange(steps, device=starts.device).unsqueeze(-1).expand(-1, environments)
    # In the episodes' own order: environment first, then time.
    keys = torch.stack([cohort, began], -1).transpose(0, 1)[starts.T]
    group = _groups(keys)
    return returns, known, episode, group


def _groups(keys: Tensor) -> Tensor:
    """The cohort of each episode, ``[n]``, from ``[n, 2]`` (name, first step).

    Raises:
        BadCohorts: They are of unequal sizes, or of one.
    """
    group: Tensor
    names, group, sizes = keys.unique(dim=0, return_inverse=True, return_counts=True)
    least, most = int(sizes.min()), int(sizes.max())
    if least != most or most == 1:
        odd = [f"{int(n)} (from step {int(t)}): {int(s)}" for (n, t), s in zip(names, sizes, strict=True)][:8]
        what = "hold one sample each" if most == 1 else f"are of unequal sizes, {least} to {most}"
        raise BadCohorts(
            f"advantage.estimator: the cohorts of this rollout {what} ({', '.join(odd)}); samples are compared within "
            "cohorts of equal size (env.num_envs, and the environment's own setting of their size)"
        )
    return group


def normalise(advantage: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over each learner's decisions.

    Args:
        advantage: ``[L, T, N]``.
        mask: ``[L, T, N]`` bool; the rest is returned as zero.

    A row whose advantages are all equal, but for rounding, has nothing to say and becomes zero.
    """
    known = torch.where(mask, advantage, 0).double()
    count = mask.sum((-2, -1), keepdim=True).clamp_min(1)
    mean = known.sum((-2, -1), keepdim=True) / count
    centred = torch.where(mask, known - mean, 0)
    std = (centred.square().sum((-2, -1), keepdim=True) / count).sqrt()
    # Of the size of float32's rounding of the largest: blown up to 1, it would be noise to learn from.
    least = _EQUAL * known.abs().amax((-2, -1), keepdim=True)
    return torch.where(std > least, centred / std, 0).to(advantage.dtype)
