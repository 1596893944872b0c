"""Anchored direct preference optimization: a group's log-ratios to an anchor against a target over the group."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.preference.config import AdpoConfig
from marl_tr.preference.data import Candidates, LossValue

__all__ = ["Adpo", "adpo_loss", "group_target"]

_SPREAD = 1e-6
"""Least standard deviation of a group's scores that is divided by."""


def adpo_loss(
    log_prob: Tensor, anchor: Tensor, target: Tensor, *, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """``-sum_i q_i log softmax_i((L_i - L_i^a) / tau)``, a group: ``[..., G]`` to ``[...]``.

    At ``L = L^a`` the gradient is ``(1/G - q) / tau`` and the Hessian ``(diag p - p p^T) / tau^2``, ``p = 1/G``: that
    curvature is the method's trust region, in log-ratios relative to the group (what shifts all ``L_i`` alike is free).
    For a pair, a one-hot target and ``tau = 1/beta`` it is DPO's loss.

    Args:
        log_prob: ``L``, of whole candidates, ``[..., G]``.
        anchor: The anchor's, ``[..., G]``.
        target: ``q``, ``[..., G]``, with sum 1.
        temperature: ``tau``.
        valid: Which of the ``G`` there are, ``[..., G]`` bool; None: all.

    Source: arXiv 2510.18913.
    """
    u = (log_prob - anchor) / temperature
    if valid is not None:
        u = u.masked_fill(~valid, -torch.inf)
    log_share = u.log_softmax(-1)
    if valid is not None:
        log_share = log_share.masked_fill(~valid, 0)
    return -(target * log_share).sum(-1)


def group_target(score: Tensor, valid: Tensor, settings: AdpoConfig) -> Tensor:
    """``q`` of each group, ``[g, G]``, by the settings; zero where there is no candidate."""
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    known = torch.where(valid, score, 0)
    if settings.target == "given":
        q = known / known.sum(-1, keepdim=True).clamp_min(1e-12)
    elif settings.target == "best":
        top = torch.where(valid, score, -torch.inf)
        best = (valid & (top == top.amax(-1, keepdim=True))).to(score.dtype)
        q = best / best.sum(-1, keepdim=True).clamp_min(1)
    else:
        centred = torch.where(valid, known - known.sum(-1, keepdim=True) / count, 0)
        deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
        standard = centred / deviation.clamp_min(_SPREAD)
        q = (standard / settings.score_temperature).masked_fill(~valid, -torch.inf).softmax(-1)
    even = valid.to(q.dtype) / count
    return (1 - settings.smoothing) * q + settings.smoothing * even


class Adpo:
    """See `adpo_loss`; the mean over groups of two candidates or more.

    Source: arXiv 2510.18913; group form and defaults from an integration by its author. Scores are standardised with
    the population's deviation (ours). The adaptive temperature is left out: it reads the size of a vocabulary.
    """

    def __init__(self, config: AdpoConfig) -> None:
        self._config = config

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, candidates: Candidates) -> LossValue:
        """See the class."""
        settings, groups = self._config, candidates.groups
        anchor = candidates.old if settings.anchor == "old" else candidates.reference
        # The difference is taken a decision at a time: sums of long chains would cancel in float32.
        ratio = groups.gather(candidates.total(candidates.log_prob - anchor))
        score = groups.gather(candidates.of_candidate("score")).to(ratio.dtype)
        if settings.target == "given" and bool((score < 0).any()):
            raise ValueError("a given target is of probabilities, and a score is negative")
        target = group_target(score, groups.valid, settings)
        each = adpo_loss(ratio, torch.zeros_like(ratio), target, temperature=settings.temperature, valid=groups.valid)
        teaches = groups.valid.sum(-1) > 1
        if settings.drop_below is not None:
            teaches = teaches & ((score >= settings.drop_below) & groups.valid).any(-1)
        loss, count = groups.mean(each, teaches)
        return LossValue(loss, count)
