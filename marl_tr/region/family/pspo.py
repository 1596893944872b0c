"""PSPO: ratios of a policy smoothed toward the old one."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from marl_tr.region.family.shaping_config import PspoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Pspo", "smoothed"]


class Pspo(ReshapedGain):
    """``w' A`` with ``w' = (1 - alpha) w + alpha``, the ratio of the mixture ``(1 - alpha) pi + alpha pi_old``.

    The mixture is nearer to the old policy than the policy that acts: its total variation is ``1 - alpha`` of it. The
    gradient is ``1 - alpha`` times that of ``w A`` everywhere, so this is a smaller learning rate (with Adam not even
    that) and no trust region; it is here to be compared with.

    Source: arXiv 2509.21282 (GR-PSPO), by its first author's code for another library.
    """

    own_guarantee: str = "none"
    # Of the default smoothing.
    unit_gradient: ClassVar[float | None] = 0.9

    def __init__(self, config: PspoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._smoothing = config.smoothing

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        return smoothed(decisions.ratio, self._smoothing) * decisions.advantage


def smoothed(ratio: Tensor, smoothing: float) -> Tensor:
    """``(1 - alpha) w + alpha``."""
    return (1 - smoothing) * ratio + smoothing
