"""Advantages from rewards and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Advantage", "generalised_advantage", "normalise"]

_EQUAL = 1e-6
"""Advantages that differ by less than this share of the largest are equal."""


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
