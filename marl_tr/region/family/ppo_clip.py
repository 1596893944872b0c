"""PPO's clipped ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.region.family.core_config import PpoClipConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest_deviation
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["PpoClip"]


class PpoClip(ReshapedGain):
    """``min(w A, clip(w, 1 - e_lo, 1 + e_hi) A)``, for bad actions at least ``c A`` with a dual clip.

    Nothing pulls a ratio back that has left the interval: the gradient is zero there.

    Source: Schulman et al., arXiv 1707.06347, equation 7; dual clip: Ye et al., arXiv 1912.09729.
    """

    own_guarantee: str = "none"

    def __init__(self, config: PpoClipConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._low, self._high = config.clip, config.clip if config.clip_high is None else config.clip_high
        self._dual = config.dual_clip

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a = decisions.ratio, decisions.advantage
        gain = torch.minimum(w * a, w.clamp(1 - self._low, 1 + self._high) * a)
        return gain if self._dual is None else torch.where(a < 0, torch.maximum(gain, self._dual * a), gain)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` of the batch."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), max(self._low, self._high))
