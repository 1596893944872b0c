"""Trust-region supervised fine-tuning: a likelihood whose gradient fades where the policy disagrees."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from marl_tr.preference.config import TrsftConfig
from marl_tr.preference.data import Candidates, LossValue

__all__ = ["Trsft", "trsft_loss", "trsft_potential"]


def trsft_loss(log_prob: Tensor, log_threshold: Tensor | float) -> Tensor:
    """``-p / sg(max(p, alpha))``: its gradient is ``-min(1, p / alpha)`` times that of ``l = log p``.

    Args:
        log_prob: ``l``, any shape.
        log_threshold: ``log alpha``, broadcastable; minus infinity: the gradient of the likelihood throughout.

    Source: arXiv 2512.17636 (TRAPO) and its code, without the factor of an off-policy advantage there.
    """
    limit = torch.as_tensor(log_threshold, dtype=log_prob.dtype, device=log_prob.device)
    return -torch.exp(log_prob - torch.maximum(log_prob, limit).detach())


def trsft_potential(p: Tensor, threshold: float) -> Tensor:
    """What `trsft_loss` has the gradient of: ``-ln p`` from the threshold on, ``1 - ln alpha - p / alpha`` below."""
    if threshold == 0:
        return -p.log()
    return torch.where(p >= threshold, -p.clamp_min(threshold).log(), 1 - math.log(threshold) - p / threshold)


class Trsft:
    """`trsft_loss`, the mean over demonstrated decisions.

    Of choices the threshold is a probability. Densities have none, and there ``alpha`` is the given quantile of the
    minibatch's own log-densities (ours).
    """

    def __init__(self, config: TrsftConfig) -> None:
        self._config = config

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, candidates: Candidates) -> LossValue:
        """See the class."""
        chosen = candidates.mask & candidates.demonstrated
        limit = self._limit(candidates.log_prob.detach(), chosen)
        loss, count = candidates.mean(trsft_loss(candidates.log_prob, limit), chosen)
        return LossValue(loss, count)

    def _limit(self, log_prob: Tensor, chosen: Tensor) -> Tensor | float:
        share = self._config.threshold
        if share == 0:
            return -math.inf
        if self._config.of == "probability":
            return math.log(share)
        known = torch.where(chosen.unsqueeze(-1), log_prob, torch.nan).flatten(1)
        limits = known.nanquantile(share, dim=-1).nan_to_num(0.0)
        return limits[:, None, None, None]
