"""DISPO: clipped importance weights, with bounds of their own for good and for bad actions."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.region.family.mass import as_score
from marl_tr.region.family.shaping_config import DispoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Dispo"]


class Dispo(ReshapedGain):
    """``sg(clip(w, 1 - e_lo, 1 + e_hi)) A log pi``, the bounds those of the advantage's sign.

    The weight is clipped, not the gradient: no decision stops to count unless its weight is 0. Bad actions that are
    already rarer than they were (``w < 1``) may come down to weight 0, good ones may weigh as much as 11; with one pair
    of bounds for both this is CISPO, with all bounds 0 plain REINFORCE. No trust region.

    Source: arXiv 2602.00983, objective and bounds by others' accounts. The source also leaves groups out whose members
    all have one reward; their advantages are 0 anyway.
    """

    own_guarantee: str = "none"

    def __init__(self, config: DispoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._good = (max(0.0, 1 - config.good_low), 1 + config.good_high)
        self._bad = (max(0.0, 1 - config.bad_low), 1 + config.bad_high)

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a = decisions.ratio, decisions.advantage
        weight = torch.where(a > 0, w.clamp(*self._good), w.clamp(*self._bad))
        return a * as_score(weight, decisions)
