"""Simple policy optimization."""

from __future__ import annotations

from torch import Tensor

from marl_tr.region.family.core_config import SpoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest_deviation
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Spo"]


class Spo(ReshapedGain):
    """``w A - |A| (w - 1)^2 / (2 e)``: the largest at ``w = 1 + e sign(A)``, and beyond it the gradient points back.

    With all ratios within ``e`` the total variation of a decision is at most ``e / 2``.

    Source: Xie et al., arXiv 2401.16025 (v9; up to v6 the name stood for another objective), and its official code.
    """

    own_guarantee: str = "soft"

    def __init__(self, config: SpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._epsilon = config.epsilon

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a = decisions.ratio, decisions.advantage
        return w * a - a.abs() * (w - 1).square() / (2 * self._epsilon)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` of the batch."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), self._epsilon)
