"""Trust-region supervised fine-tuning: a likelihood whose gradient fades where the policy disagrees."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from marl_tr.preference.config import TrsftConfig
from marl_tr.preference.data import Candidates, LossValue

__all__ = ["Trsft", "trsft_loss"]


def trsft_loss(log_prob: Tensor, log_threshold: Tensor | float) -> Tensor:
    """``-log p`` where ``p >= alpha``, and ``1 - log alpha - p / alpha`` below.

    The gradient is ``-min(1, p / alpha)`` times that of ``log p``. Published is ``-p / sg(max(p, alpha))``, which has
    the same gradient but the value -1 wherever ``p >= alpha``; this one falls as what is learned becomes likelier.

    Args:
        log_prob: ``log p``, any shape.
        log_threshold: ``log alpha``, broadcastable; minus infinity: the likelihood throughout. 0: ``1 - p``.

    Source: arXiv 2512.17636 (TRAPO) and its code, without the factor of an off-policy advantage there.
    """
    limit = torch.as_tensor(log_threshold, dtype=log_prob.dtype, device=log_prob.device)
    share = (log_prob - limit).clamp_max(0).exp()
    return torch.where(log_prob >= limit, -log_prob, 1 - limit - share)


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
