"""Trust-region DPO: direct preference optimization whose reference follows the policy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from marl_tr.preference.config import TrDpoConfig
from marl_tr.preference.data import Candidates, LossValue

__all__ = ["TrDpo", "dpo_loss"]


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """``-log sigmoid(beta (d_w - d_l))`` of log-ratios ``d = L - L_ref`` of whole candidates; shapes as broadcast.

    Source: Rafailov et al., arXiv 2305.18290, equation 7.
    """
    return -logsigmoid(beta * (chosen - rejected))


class TrDpo:
    """`dpo_loss`, the mean over all pairs of a group whose scores differ.

    What makes it a trust region is the reference, which is the settings' ``anchor``: ``soft`` with ``rate`` a goes
    ``ref <- a theta + (1 - a) ref`` after every update, ``period`` copies the policy after every ``every``-th. A soft
    anchor with ``every`` mixes only then, which is how TRL reproduces the paper. ``frozen`` is DPO.

    Source: arXiv 2404.09656, after TRL's page of the paper, defaults too.
    """

    def __init__(self, config: TrDpoConfig) -> None:
        self._beta = config.beta

    def labels(self, candidates: Candidates) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, candidates: Candidates) -> LossValue:
        """See the class."""
        groups = candidates.groups
        ratio = groups.gather(candidates.total(candidates.log_prob - candidates.reference))
        first, second = ratio.unsqueeze(-1), ratio.unsqueeze(-2)
        pairs = groups.better(candidates.of_candidate("score"))
        loss, count = groups.mean(dpo_loss(first, second, beta=self._beta), pairs)
        agree, _ = groups.mean((first > second).to(ratio.dtype).detach(), pairs)
        said = torch.where(count > 0, agree, torch.nan)
        return LossValue(loss, count, {"preference/agreement": said})
