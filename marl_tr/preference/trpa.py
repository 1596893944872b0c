"""Trust region preference approximation: pairs across the levels of a group, and a pull to the old policy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from marl_tr.objective.ratio import LOG_RATIO_LIMIT
from marl_tr.preference.config import TrpaConfig
from marl_tr.preference.data import Candidates, LossValue
from marl_tr.preference.groups import Groups

__all__ = ["Trpa", "k3", "trpa_loss"]


def k3(log_prob: Tensor, other: Tensor) -> Tensor:
    """``exp(d) - 1 - d`` of ``d = other - log_prob``: at least 0, and of samples of pi unbiased for KL(pi||other)."""
    d = (other - log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(d) - d


def trpa_loss(rho: Tensor, level: Tensor, groups: Groups, *, beta: float, kappa: float) -> tuple[Tensor, Tensor]:
    """Mean ``-log sigmoid(kappa beta (rho_w - rho_l))`` over pairs across levels, ``[R]``, and their number.

    ``kappa`` counts where the better one is of level 1. A row without a pair has ``-log sigmoid(+-rho)`` instead, plus
    for level 1, minus for all others, the mean over its candidates; neither beta nor kappa is in it.

    Args:
        rho: Mean log-ratio to the reference of each candidate, ``[R, N]``.
        level: ``[R, N]`` int64, 1 is best.
        groups: Who is compared with whom.
        beta: Factor.
        kappa: Factor for level 1.

    Source: arXiv 2504.04524, and its code for the fallback.
    """
    own, levels = groups.gather(rho), groups.gather(level)
    pairs = groups.better(-level)
    factor = torch.where(levels == 1, kappa * beta, beta).to(own.dtype).unsqueeze(-1)
    paired, count = groups.mean(-logsigmoid(factor * (own.unsqueeze(-1) - own.unsqueeze(-2))), pairs)
    alone, candidates = groups.mean(-logsigmoid(torch.where(levels == 1, own, -own)), groups.valid)
    found = count > 0
    return torch.where(found, paired, alone), torch.where(found, count, candidates)


class Trpa:
    """`trpa_loss` of ``rho = mean_t (l - l_ref)`` plus ``c_tr`` times the mean of k3 to the old policy.

    The form ``sqrt(k3 + 1/4)`` is taken a decision at a time. No magnitude of a reward enters, and nothing is clipped.
    """

    def __init__(self, config: TrpaConfig) -> None:
        self._config = config

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, candidates: Candidates) -> LossValue:
        """See the class."""
        settings = self._config
        rho = candidates.average(candidates.log_prob - candidates.reference)
        level = candidates.of_candidate("level")
        loss, count = trpa_loss(rho, level, candidates.groups, beta=settings.beta, kappa=settings.kappa)
        if settings.pull:
            apart = k3(candidates.log_prob, candidates.old)
            pull, _ = candidates.mean((apart + 0.25).sqrt() if settings.root else apart)
            loss = loss + settings.pull * pull
        return LossValue(loss, count)
