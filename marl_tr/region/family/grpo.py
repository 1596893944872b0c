"""GRPO's clipped ratio, every trajectory counted alike."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.region.family.cohort_config import GrpoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest_deviation
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Grpo"]


class Grpo(ReshapedGain):
    """``mean_i mean_t min(w A_i, clip(w, 1 - e_lo, 1 + e_hi) A_i)`` over trajectories ``i`` and their decisions ``t``.

    ``A_i`` is the cohort-relative advantage (`marl_tr.rollout.advantage.cohort_advantage`). The published penalty
    ``beta (pi_ref / pi - log(pi_ref / pi) - 1)`` (k3, beta 0.04) estimates KL(pi || pi_ref) from the action taken; the
    regulariser ``position`` has that KL exactly, with the anchor that is wanted, and is what takes its place.

    Source: Shao et al., arXiv 2402.03300, equations 3 and 4.
    """

    own_guarantee: str = "none"
    needs = frozenset({Need.COHORT})

    def __init__(self, config: GrpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._low, self._high = config.clip, config.clip if config.clip_high is None else config.clip_high

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a = decisions.ratio, decisions.advantage
        return torch.minimum(w * a, w.clamp(1 - self._low, 1 + self._high) * a)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` of the batch."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), max(self._low, self._high))
