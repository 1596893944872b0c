"""Elastic trust regions: an interval for each advantage."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from marl_tr.objective.ratio import Surrogate
from marl_tr.region.family.cohort_config import EtrConfig
from marl_tr.region.family.cohort_scores import cohort_scores, of_cohorts
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Etr"]


class Etr(ReshapedGain):
    """``min(w A, clip(w, 1 - e_lo, 1 + e_hi) A)`` with intervals of each decision's own.

    ``e = clip(e_0 (1 + micro (|A| - 1)), least, most) (1 + macro (v - 1))``: the larger ``|A|`` the wider, for ``A d -
    (k / 2) d^2`` is largest at ``d = |A| / k``. ``v`` is the variance of the cohort's scores over the largest that the
    batch's scores allow, ``4 var / (max - min)^2``: of 0 and 1 it is ``4 p (1 - p)``. Where ``macro`` is 0 cohorts of
    middling difficulty still have the widest intervals, for their mean ``|A|`` is ``2 sqrt(p (1 - p))``.

    Source: arXiv 2601.03723, reconstructed from its abstract: this form and its constants are ours.
    """

    own_guarantee: str = "none"
    needs = frozenset({Need.COHORT})

    def __init__(self, config: EtrConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._low, self._high = config.clip, config.clip if config.clip_high is None else config.clip_high
        self._micro, self._macro = config.micro, config.macro
        self._least, self._most = config.least, config.most

    def prepare(self, update: Update) -> None:
        """Label ``variance``, where it is asked for."""
        super().prepare(update)
        if self._macro:
            labels = update.samples.labels
            labels["variance"] = _relative_variance(update.turn, labels["cohort"])

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a = decisions.ratio, decisions.advantage
        low, high = self._intervals(a, decisions.samples.labels.get("variance"))
        return torch.minimum(w * a, torch.minimum(torch.maximum(w, 1 - low), 1 + high) * a)

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` in the decision's own half-interval."""
        variance = _relative_variance(turn, turn.labels["cohort"]) if self._macro else None
        low, high = self._intervals(turn.advantage.unsqueeze(-1), variance)
        objective = cast(Surrogate, turn.objective)
        off = objective.ratio(measured.log_prob, turn.old.log_prob, measured.evaluation.dimensions) - 1
        share = largest(off / torch.where(off > 0, high, low), turn.batch.mask)
        return Reach("largest |ratio - 1|, of the decision's own interval", share, 1.0)

    def _intervals(self, advantage: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """How far the intervals reach below and above 1, ``[R, T, N, 1]``."""
        growth = 1 + self._micro * (advantage.abs() - 1)
        narrowing = 1.0 if variance is None else 1 + self._macro * (variance.unsqueeze(-1).to(growth) - 1)
        low, high = ((size * growth).clamp(self._least, self._most) * narrowing for size in (self._low, self._high))
        return low, high


def _relative_variance(turn: Turn, cohort: Tensor) -> Tensor:
    """``4 var / (max - min)^2`` of each label's cohort, ``[R, T, N]`` float64 in [0, 1]; 0 where all scores are
    equal."""
    scores = cohort_scores(turn)
    span = scores.span.unsqueeze(-1)
    relative = torch.where(span > 0, 4 * scores.variance / torch.where(span > 0, span, 1).square(), 0)
    return of_cohorts(relative, cohort)
