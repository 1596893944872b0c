"""Gradient steps whose divergence is measured, and kept by the Guard where a bound is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, masked_mean
from marl_tr.region.config import MeasuredConfig
from marl_tr.region.optimizer import RowOptimizer
from marl_tr.region.samples import Pass, Samples, passes_of_an_epoch
from marl_tr.region.turn import Candidate, Estimate, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Measured"]


class Measured:
    """Epochs of minibatch steps on the objective, every row with moments of its own.

    The rows of a turn run through one stacked forward and backward pass; each then clips its own gradient norm and
    takes its own optimizer step, so that a learner's step touches its row only. A pass sees a minibatch of decisions
    and, of flows, some steps of each one's chain; an optimizer step has the gradient of one or more passes.
    """

    requires: frozenset[Capability] = frozenset()

    def __init__(self, config: MeasuredConfig, optimizer: OptimizerSection) -> None:
        self.bound = config.bound
        self.guarantee = "none" if config.bound is None else "hard"
        self._stop_at = config.stop_at
        self._optimizer = optimizer

    def propose(self, turn: Turn) -> Candidate:
        """Run the epochs on copies of the rows."""
        settings = self._optimizer
        decay = (1 - turn.progress) if settings.anneal else 1.0
        rows = self._rows(turn, decay)
        samples = turn.objective.samples(turn)
        estimates: list[Estimate] = []
        for _ in range(settings.epochs):
            passes = list(passes_of_an_epoch(samples, settings, turn.generator))
            for start in range(0, len(passes), settings.accumulate):
                active = [row for row in rows if not row.stopped]
                if not active:
                    break
                estimates += self._step(turn, rows, samples, passes[start : start + settings.accumulate])
        idle = (
            "no minibatch held enough of this learner's decisions to step on; take longer rollouts, fewer "
            "optimizer.minibatches, or a lower objective.minimum_positives where there is one"
        )
        return Candidate(
            parameters={
                name: torch.cat([row.parameters[name].detach() for row in rows]) for name in rows[0].parameters
            },
            moments=[row.moments() for row in rows],
            expected_gain=[None] * len(rows),
            cg_residual=[None] * len(rows),
            backtracks=[0] * len(rows),
            reasons=["" if row.steps or row.stopped else idle for row in rows],
            losses={
                "losses/policy_loss": float(-torch.stack([estimate.gain.mean() for estimate in estimates]).mean()),
                "charts/learning_rate": settings.learning_rate * decay,
                **_scalars(turn.names, estimates),
            },
            before=_previous(rows),
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the moments belong to the learners."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _rows(self, turn: Turn, decay: float) -> list[RowOptimizer]:
        steps = next((term.reference for term in turn.terms if term.kind == "before"), None)
        return [
            RowOptimizer(
                turn.learners.names[row],
                turn.learners.parameters([row]),
                turn.learners.moments[row],
                self._optimizer,
                decay=decay,
                previous=None if steps is None else {name: p[k : k + 1] for name, p in steps.items()},
            )
            for k, row in enumerate(turn.rows)
        ]

    def _step(self, turn: Turn, rows: list[RowOptimizer], samples: Samples, passes: list[Pass]) -> list[Estimate]:
        """One optimizer step with the gradient of the mean over everything that `passes` see."""
        counts = torch.stack([samples.counts(part) for part in passes])
        # One for a single pass, exactly; a row without a decision gains nothing whatever its share.
        shares = counts / counts.sum(0).clamp_min(1) if len(passes) > 1 else torch.ones_like(counts)
        estimates = [self._pass(turn, rows, samples.part(p), share) for p, share in zip(passes, shares, strict=True)]
        found = counts > 0
        for estimate, has in zip(estimates, found, strict=True):
            if estimate.active is not None:
                has &= estimate.active
        for row, active in zip(rows, found.any(0).tolist(), strict=True):
            # A row that sees nothing stands still: its moments would carry it on.
            row.step(self._optimizer.max_grad_norm) if active else row.skip()
        return estimates

    def _pass(self, turn: Turn, rows: list[RowOptimizer], part: Samples, share: Tensor) -> Estimate:
        stacked: Parameters = {name: torch.cat([row.parameters[name] for row in rows]) for name in rows[0].parameters}
        estimate = turn.objective.estimate(turn, stacked, part)
        evaluation = estimate.evaluation
        if evaluation is None and (turn.terms or self._stop_at is not None):
            evaluation = turn.learners.policy.evaluate(stacked, part.batch)
        penalised = estimate.gain
        if turn.terms and evaluation is not None:
            penalised = penalised - self._penalty(turn, rows, part, evaluation)
        (-(share.to(penalised) * penalised).sum()).backward()
        if self._stop_at is not None and evaluation is not None:
            self._mark_stopped(turn, rows, part.batch, evaluation)
        return replace(estimate, gain=estimate.gain.detach(), evaluation=None)

    def _penalty(self, turn: Turn, rows: list[RowOptimizer], part: Samples, evaluation: Evaluation) -> Tensor:
        """The regularisers, the velocity's against each row's parameters before its last step."""
        steps = _previous(rows)
        references = [
            None if not term.active else steps if term.kind == "before" else term.reference for term in turn.terms
        ]
        laws = turn.laws_of(references, part.batch)
        return turn.penalty(evaluation, laws, part.old_log_prob, part.batch.mask)

    def _mark_stopped(self, turn: Turn, rows: list[RowOptimizer], batch: PolicyBatch, evaluation: Evaluation) -> None:
        with torch.no_grad():
            old = turn.learners.policy.evaluate(turn.learners.parameters(turn.rows), batch)
            divergence = turn.learners.policy.divergence(old.law, evaluation.law).sum(-1)
            # Of some chain steps, what all of them would give.
            divergence = divergence * (turn.old.log_prob.shape[-1] / evaluation.log_prob.shape[-1])
            for row, value in zip(rows, masked_mean(divergence, batch.mask).tolist(), strict=True):
                row.stopped = row.stopped or value > (self._stop_at or 0.0)


def _scalars(names: Sequence[str], estimates: Sequence[Estimate]) -> dict[str, float]:
    """What the objective said of its minibatches, the mean over them a learner."""
    found: dict[str, float] = {}
    for tag in dict.fromkeys(tag for estimate in estimates for tag in estimate.scalars):
        means = torch.stack([estimate.scalars[tag] for estimate in estimates if tag in estimate.scalars]).nanmean(0)
        found |= {f"{tag}/{name}": value for name, value in zip(names, means.tolist(), strict=True) if value == value}
    return found


def _previous(rows: list[RowOptimizer]) -> Parameters | None:
    """The rows' parameters before their last steps, stacked; None where nobody asks for them."""
    kept = [row.previous for row in rows if row.previous is not None]
    if len(kept) < len(rows):
        return None
    return {name: torch.cat([previous[name] for previous in kept]) for name in kept[0]}
