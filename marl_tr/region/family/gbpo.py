"""GBPO: bounded ratios about the median of a cohort."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from marl_tr.region.family.cohort_config import GbpoConfig
from marl_tr.region.family.cohort_scores import cohort_scores, of_cohorts
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest_deviation
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Gbpo", "target_ratio"]

_SPREAD = 1e-6
"""Added to a cohort's deviation, as published."""


def target_ratio(x: Tensor, *, low: float, high: float) -> Tensor:
    """``rho* = 1 - c_l + (c_l + c_h) sigmoid(x)``, between ``1 - c_l`` and ``1 + c_h``."""
    return 1 - low + (low + high) * torch.sigmoid(x)


class Gbpo(ReshapedGain):
    """``-|w - rho*| |A|`` with ``rho* = 1 - c_l + (c_l + c_h) sigmoid((R - median) / (std + 1e-6) / tau)``.

    ``R`` is the score of the decision's episode; median and deviation (of the sample, with ``n - 1``) are its cohort's.
    An episode alone in its cohort has median 0 and deviation 1. An episode that scores the median itself has ``rho* = 1
    + (c_h - c_l) / 2``: of two outcomes the more frequent one is held where it is, and the other one alone moves.

    Source: bounded ratio reinforcement learning, arXiv 2604.18578, and its official code.
    """

    own_guarantee: str = "soft"
    # A at the old policy has the sign of rho* - 1 and the magnitude of |A|; where rho* = 1 it has none.
    unit_gradient: ClassVar[float | None] = None
    needs = frozenset({Need.COHORT})

    def __init__(self, config: GbpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._low, self._high = config.low, config.high
        self._temperature, self._median = config.temperature, config.median

    def prepare(self, update: Update) -> None:
        """Label ``target``, from the scores of all of the turn."""
        super().prepare(update)
        scores, labels = cohort_scores(update.turn), update.samples.labels
        alone = scores.count == 1
        median = torch.where(alone, 0, scores.lower if self._median == "lower" else scores.midpoint)
        deviation = (scores.variance * scores.count / (scores.count - 1).clamp_min(1)).sqrt()
        deviation = torch.where(alone, 1, deviation)
        cohort = labels["cohort"]
        x = (labels["score"].double() - of_cohorts(median, cohort)) / (of_cohorts(deviation, cohort) + _SPREAD)
        target = target_ratio(x / self._temperature, low=self._low, high=self._high)
        labels["target"] = target.to(update.samples.advantage.dtype)

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        return -(decisions.ratio - decisions.label("target").unsqueeze(-1)).abs() * decisions.advantage.abs()

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` of the batch."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), max(self._low, self._high))
