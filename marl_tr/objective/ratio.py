"""Objectives made of the likelihood ratio ``w = pi(a | o) / pi_old(a | o)``."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.objective.config import ClippedRatioConfig, SurrogateConfig
from marl_tr.policy import Capability

__all__ = ["LOG_RATIO_LIMIT", "ClippedRatio", "Surrogate", "likelihood_ratio"]

LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: beyond it a ratio says nothing more and squares of it leave float32."""


def likelihood_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """``w``, finite for every pair of finite log-probabilities; shapes as given."""
    return torch.exp((log_prob - old_log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


class Surrogate:
    """``w A``: its gradient at ``w = 1`` is the policy gradient (arXiv 1502.05477, equation 14)."""

    requires = frozenset({Capability.LOG_PROB})

    def __init__(self, config: SurrogateConfig) -> None:
        self.entropy = config.entropy
        self.reduction = config.reduction

    def ratio(self, log_prob: Tensor, old_log_prob: Tensor, dimensions: int) -> Tensor:
        """The ratio of each chain step ``[L, T, N, k]``, or its root of that degree where reductions are means."""
        scale = dimensions if self.reduction == "mean" else 1
        return likelihood_ratio(log_prob / scale, old_log_prob / scale)

    def gain(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """What is to be maximised, a decision: shapes ``[L, T, N, K]`` and ``[L, T, N, 1]`` to ``[L, T, N, K]``."""
        return ratio * advantage


class ClippedRatio(Surrogate):
    """``min(w A, clip(w, 1 - c, 1 + c) A)`` (PPO, arXiv 1707.06347, equation 7).

    Not a trust region: beyond the interval the gradient is zero, so nothing pulls a ratio back.
    """

    def __init__(self, config: ClippedRatioConfig) -> None:
        super().__init__(config)
        self.clip = config.clip

    def gain(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """The pessimistic of the two surrogates; shapes as in `Surrogate.gain`."""
        return torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
