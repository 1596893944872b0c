"""Entropy of what is likely: a bonus that does not feed the tail of a law of many choices (TRE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from marl_tr.nn.discrete import choices_of
from marl_tr.objective.config import SupportConfig, TopKSupport

__all__ = ["nucleus", "support_entropy", "support_entropy_of", "top_k"]


def support_entropy_of(law: Any, support: SupportConfig) -> Tensor:
    """`support_entropy` of a policy's law, of several choices the sum: ``[L, T, N]``."""
    parts = []
    for choice, _ in choices_of(law):
        log_p = choice.log_probabilities
        if isinstance(support, TopKSupport):
            chosen = top_k(log_p.detach(), support.count)
        else:
            chosen = nucleus(log_p.detach(), support.mass, most=support.most)
        parts.append(
            support_entropy(log_p, chosen, min_entropy=isinstance(support, TopKSupport) and support.count == 1)
        )
    return torch.stack(parts).sum(0)


def support_entropy(log_p: Tensor, chosen: Tensor, *, min_entropy: bool = False) -> Tensor:
    """``H_S ln V / ln |S|``: the entropy of a law renormalised on ``S``, scaled to the range of the whole's, ``[...]``.

    The gradient in logits outside of ``S`` is zero. ``V`` is the number of choices that are allowed. Of a single choice
    it is 0, or with `min_entropy` the min-entropy ``-ln max p``.

    Args:
        log_p: ``[..., C]``; the lowest finite number where a choice is forbidden.
        chosen: ``S``, ``[..., C]`` bool.
        min_entropy: What is said of a single choice.

    Source: arXiv 2602.03635 and its official code. With that scale a weight is larger than it looks where ``V`` is
    large.
    """
    lowest = torch.finfo(log_p.dtype).min
    chosen = chosen & (log_p > lowest)
    inside = torch.log_softmax(log_p.masked_fill(~chosen, lowest), -1)
    # Zero times something finite, where a choice is not in S.
    inside = torch.where(chosen, inside, 0)
    entropy = -torch.where(chosen, inside.exp() * inside, 0).sum(-1)
    size, allowed = chosen.sum(-1), (log_p > lowest).sum(-1)
    scale = allowed.to(log_p.dtype).log() / size.clamp_min(2).to(log_p.dtype).log()
    single = -log_p.amax(-1) if min_entropy else torch.zeros_like(entropy)
    return torch.where(size > 1, entropy * scale, single)


def top_k(log_p: Tensor, count: int) -> Tensor:
    """The `count` likeliest choices, ``[..., C]`` bool."""
    found = log_p.topk(min(count, log_p.shape[-1]), -1).indices
    return torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, found, True)


def nucleus(log_p: Tensor, mass: float, *, most: int) -> Tensor:
    """The fewest likeliest choices that hold `mass` together, at most `most`: ``[..., C]`` bool."""
    ordered = log_p.sort(-1, descending=True)
    p = ordered.values.double().exp()
    kept = (p.cumsum(-1) - p < mass) & (torch.arange(p.shape[-1], device=p.device) < most)
    return torch.zeros_like(kept).scatter(-1, ordered.indices, kept)
