"""MASPO: a gate on overshooting ratios that knows how probable the action was."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.region.family.mass import MassGain
from marl_tr.region.family.shaping_config import MaspoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, largest_deviation
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Maspo", "gate"]

_WIDEST = 10.0


class Maspo(MassGain):
    """``A sg(g) w`` with ``g = exp(-(w - 1)^2 / (2 s^2))`` where a ratio overshoots, 1 elsewhere.

    A ratio overshoots above 1 if the action was good, below 1 if it was bad. The gate's width ``s`` grows from `width`
    on as the action's old probability falls, and with the advantage: for bad actions it may come out below `width`.

    The gate only fades: the gradient keeps the advantage's sign, so nothing is pushed back. With `attached` it is part
    of the gain, which for good actions turns over at ``w (w - 1) = s^2``, for bad ones nowhere.

    Source: arXiv 2602.17550 and its official code. Bounds of the widths and the detached gate are the code's.
    """

    own_guarantee: str = "none"

    def __init__(self, config: MaspoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._settings = config

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a, settings = decisions.ratio, decisions.advantage, self._settings
        passed = gate(
            w,
            a,
            self.mass(decisions),
            width=settings.width,
            power=settings.mass_power,
            good=settings.good,
            bad=settings.bad,
        )
        return a * (passed if settings.attached else passed.detach()) * w

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` of the batch, beside the gate's width at probability 1."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), self._settings.width)


def gate(ratio: Tensor, advantage: Tensor, p: Tensor, *, width: float, power: float, good: float, bad: float) -> Tensor:
    """``g``, ``[..., k]``.

    Args:
        ratio: ``[..., k]``.
        advantage: ``[..., 1]``.
        p: ``[..., k]``, probability of the action under the old policy.
        width: At probability 1.
        power: ``alpha``.
        good: By what a unit of advantage widens it.
        bad: By what it narrows it.
    """
    by_mass = (width * p.clamp_min(1e-30).pow(-power)).clamp(width, max(width, _WIDEST))
    by_advantage = torch.where(advantage > 0, 1 + good * advantage, 1 / (1 - bad * advantage.clamp_max(0)))
    s = by_mass * by_advantage.clamp(0.1, 10)
    over = ((advantage > 0) & (ratio > 1)) | ((advantage < 0) & (ratio < 1))
    # The ratio at which the gate is certainly closed: squares beyond it leave float32.
    deviation = ratio.clamp_max(1e6) - 1
    return torch.where(over, torch.exp(-0.5 * (deviation / s).square()), 1)
