"""R2VPO: a multiplier holds the variance of the ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Evaluation, masked_mean
from marl_tr.region.family.shaping_config import R2vpoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["R2vpo", "next_multiplier"]

_MEMORY = "r2vpo/multiplier"


class R2vpo(ReshapedGain):
    """``w A - lambda (w - 1)^2``: the Lagrangian of ``E_old[(w - 1)^2] <= delta``, chi^2(new || old).

    It is largest at ``w = 1 + A / (2 lambda)``, of actions with ``A <= -2 lambda`` at 0. Each learner has a multiplier
    of its own, which follows ``lambda + eta (E[(w - 1)^2] - delta)`` from update to update.

    Source: arXiv 2601.03320 by unofficial code that agrees on the objective; the multiplier's rule is reconstructed,
    its rate and upper end are ours.
    """

    own_guarantee: str = "soft"

    def __init__(self, config: R2vpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._settings = config

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w = decisions.ratio
        multiplier = w.new_tensor(update.remembered(_MEMORY, self._settings.multiplier))
        return w * decisions.advantage - multiplier.reshape(-1, 1, 1, 1) * (w - 1).square()

    def after_step(self, update: Update, seen: Sequence[Samples]) -> None:
        """Move the multipliers by what the step has made of its minibatches."""
        if self._settings.every == "step":
            self._move(update, seen)

    def finish(self, update: Update) -> None:
        """Or by what all steps have made of the whole batch."""
        if self._settings.every == "update":
            self._move(update, [update.samples])

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """``E_old[(w - 1)^2]``."""
        variance = _variance(turn, measured.evaluation, turn.old.log_prob, turn.batch.mask)
        return Reach("variance of the ratio", variance, self._settings.limit)

    @torch.no_grad()
    def _move(self, update: Update, seen: Sequence[Samples]) -> None:
        turn, parameters = update.turn, update.parameters
        found, counts = [], []
        for part in seen:
            evaluation = turn.learners.policy.evaluate(parameters, part.batch)
            found.append(_variance(turn, evaluation, part.old_log_prob, part.batch.mask))
            counts.append(part.batch.mask.sum((1, 2)))
        weights = torch.stack(counts).to(found[0])
        variances = (torch.stack(found) * weights).sum(0) / weights.sum(0).clamp_min(1)
        now = update.remembered(_MEMORY, self._settings.multiplier)
        moved = [
            next_multiplier(
                value, variance, limit=self._settings.limit, rate=self._settings.rate, most=self._settings.most
            )
            # Of a learner that saw nothing, or stands still, there is nothing to learn.
            if has and not row.stopped
            else value
            for value, variance, has, row in zip(
                now, variances.tolist(), (weights.sum(0) > 0).tolist(), update.rows, strict=True
            )
        ]
        update.remember(_MEMORY, moved)


def next_multiplier(value: float, variance: float, *, limit: float, rate: float, most: float) -> float:
    """``lambda + eta (variance - delta)``, in [0, most]."""
    return min(most, max(0.0, value + rate * (variance - limit)))


@torch.no_grad()
def _variance(turn: Turn, evaluation: Evaluation, old_log_prob: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(w - 1)^2`` over decisions and chain steps, ``[R]``."""
    objective = cast(Surrogate, turn.objective)
    ratio = objective.ratio(evaluation.log_prob, old_log_prob, evaluation.dimensions)
    return masked_mean((ratio - 1).square().mean(-1), mask)
