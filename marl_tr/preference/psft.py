"""Proximal supervised fine-tuning: PPO's clip on demonstrations."""

from __future__ import annotations

from torch import Tensor

from marl_tr.objective.ratio import likelihood_ratio
from marl_tr.preference.config import PsftConfig
from marl_tr.preference.data import Candidates, LossValue

__all__ = ["Psft", "psft_loss"]


def psft_loss(log_prob: Tensor, old_log_prob: Tensor, *, clip: float) -> Tensor:
    """``-min(w, 1 + e)``, ``w = pi / pi_old``: the advantage is 1, so the lower clip never acts.

    The gradient is that of the likelihood at the old policy, and zero where ``w > 1 + e``. Shapes as given.

    Source: arXiv 2508.17784 and its code.
    """
    return -likelihood_ratio(log_prob, old_log_prob).clamp_max(1 + clip)


class Psft:
    """`psft_loss`, the mean over demonstrated decisions; the old policy is the one at the start of each update."""

    def __init__(self, config: PsftConfig) -> None:
        self._clip = config.clip

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, candidates: Candidates) -> LossValue:
        """See the class."""
        each = psft_loss(candidates.log_prob, candidates.old, clip=self._clip)
        loss, count = candidates.mean(each, candidates.demonstrated)
        return LossValue(loss, count)
