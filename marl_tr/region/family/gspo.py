"""GSPO: one ratio for a whole trajectory."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from marl_tr.region.family.cohort_config import GspoConfig
from marl_tr.region.family.levels import level_mean, log_ratio, measured_log_ratio, turn_trajectories
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Gspo"]


class Gspo(ReshapedGain):
    """``mean_i min(s_i A_i, clip(s_i, 1 - e_lo, 1 + e_hi) A_i)``, ``s_i = exp(mean_t log w_t)``.

    The mean is over a trajectory's decisions and the steps of their chains. ``token``: ``s_t = sg(s_i) w_t / sg(w_t)``,
    equal in value, whose gradient at a decision is by that decision's own advantage; where a trajectory has one
    advantage, as cohorts give it, both are the same.

    Of advantages that differ within a trajectory the sequence form takes their mean: its gradient at the old policy is
    not the policy gradient then. Nor has it a place for what a flow weighs the steps of its chain by: use ``token``.

    Source: Zheng et al., arXiv 2507.18071; the intervals as published implementations have them.
    """

    own_guarantee: str = "none"
    unit_gradient: ClassVar[float | None] = None
    needs = frozenset({Need.WHOLE_TRAJECTORIES})

    def __init__(self, config: GspoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self.needs = self.needs | {Need.TRAJECTORY}
        self._low, self._high, self._token = config.clip, config.clip_high, config.variant == "token"

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        own, a = log_ratio(decisions), decisions.advantage
        s = level_mean(own, decisions.label("trajectory"), decisions.mask).exp()
        if self._token:
            s = s.detach() * torch.exp(own - own.detach())
        gain = torch.minimum(s * a, s.clamp(1 - self._low, 1 + self._high) * a)
        return gain.expand_as(own)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|s - 1|`` of a trajectory."""
        mean = level_mean(measured_log_ratio(turn, measured), turn_trajectories(turn), turn.batch.mask)
        value = largest(torch.expm1(mean), turn.batch.mask)
        return Reach("largest |s - 1| of a trajectory", value, max(self._low, self._high))
