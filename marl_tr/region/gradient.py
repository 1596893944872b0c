"""Regions that take gradient steps: epochs of minibatches, with slots that a mechanism fills in."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, masked_mean
from marl_tr.region.config import GradientConfig
from marl_tr.region.needs import Need, blocks_of, trajectories
from marl_tr.region.optimizer import RowOptimizer
from marl_tr.region.samples import Pass, Samples, passes_of_an_epoch
from marl_tr.region.turn import Candidate, Estimate, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["GradientRegion", "Update"]

_IDLE = (
    "no minibatch held enough of this learner's decisions to step on; take longer rollouts, fewer "
    "optimizer.minibatches, or a lower objective.minimum_positives where there is one"
)


@dataclass
class Update:
    """One proposal while it is made.

    Attributes:
        turn: Whose update, and on what.
        rows: The learners' parameters as they move, with their optimizers; ``RowOptimizer.stopped`` ends a row's steps.
        samples: What minibatches are drawn from.
        memory: What the region remembers of each row, copies: what it leaves here is committed with the step.
        epoch: Which, from 0.
        estimates: Of all passes so far.
        scalars: ``[R]`` each, what a mechanism wants logged of the proposal, by tag; NaN where there is nothing to say.
        scratch: What a mechanism keeps while the proposal is made, and only then.
    """

    turn: Turn
    rows: list[RowOptimizer]
    samples: Samples
    memory: list[dict[str, Any]]
    epoch: int = 0
    estimates: list[Estimate] = field(default_factory=list)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Parameters:
        """The rows' parameters stacked, ``[R, ...]``; gradients flow back into each row."""
        return {name: torch.cat([row.parameters[name] for row in self.rows]) for name in self.rows[0].parameters}

    def remembered(self, name: str, default: float) -> list[float]:
        """A number that is remembered of each row."""
        return [float(memory.get(name, default)) for memory in self.memory]

    def remember(self, name: str, values: Sequence[float]) -> None:
        """Set it."""
        for memory, value in zip(self.memory, values, strict=True):
            memory[name] = float(value)


class GradientRegion:
    """Epochs of minibatch steps on the objective, every row with moments of its own.

    The rows of a turn run through one stacked forward and backward pass; each then clips its own gradient norm and
    takes its own optimizer step, so that a learner's step touches its row only. A pass sees a minibatch of decisions
    and, of flows, some steps of each one's chain; an optimizer step has the gradient of one or more passes.

    A mechanism is a subclass that fills in some of the slots `prepare`, `estimate`, `gradients`, `transform_gradients`,
    `after_step`, `after_epoch` and `finish`; each of them does nothing here (`estimate` asks the objective, `gradients`
    runs its passes).

    Attributes:
        own_guarantee: Of the mechanism itself: ``"soft"`` or ``"none"`` where nothing keeps it, ``"hard"`` where the
            mechanism's own limit (see `reach`) is met by every proposal, and kept by the Guard. `guarantee` is of the
            mean divergence: ``"hard"`` with a ``bound``, which the Guard keeps.
        unit_gradient: The gradient at the old policy is this times the policy gradient of the surrogate; None: it has
            another direction there.
        needs: See `marl_tr.region.needs.Need`.
    """

    own_guarantee: str = "none"
    unit_gradient: ClassVar[float | None] = 1.0
    requires: frozenset[Capability] = frozenset()
    needs: frozenset[Need] = frozenset()

    def __init__(self, config: GradientConfig, optimizer: OptimizerSection) -> None:
        self.config = config
        self.bound = config.bound
        unbounded = "soft" if self.own_guarantee == "soft" else "none"
        self.guarantee = unbounded if config.bound is None else "hard"
        self.optimizer = optimizer

    # The slots.

    def prepare(self, update: Update) -> None:
        """Once a proposal, before the first step, without gradient: group statistics, radii, labels of the samples."""

    def estimate(self, update: Update, parameters: Parameters, samples: Samples) -> Estimate:
        """What a pass maximises: the mean gain of `parameters` over a minibatch, ``[R]``."""
        return update.turn.objective.estimate(update.turn, parameters, samples)

    def gradients(
        self, update: Update, seen: Sequence[Samples], shares: Tensor, *, stops: bool = True
    ) -> list[Estimate]:
        """Leave the gradient of a step in the rows' parameters: a forward and backward pass over each of `seen`.

        Args:
            update: With the rows where the gradient is wanted.
            seen: Minibatches.
            shares: ``[passes, R]``, of each pass in the mean.
            stops: Rows whose divergence is beyond ``stop_at`` are stopped.
        """
        return [self._pass(update, part, share, stops=stops) for part, share in zip(seen, shares, strict=True)]

    def transform_gradients(self, update: Update) -> None:
        """After the backward passes of a step, before norms are clipped and the optimizer moves."""

    def after_step(self, update: Update, seen: Sequence[Samples]) -> None:
        """After every optimizer step; `seen` are the minibatches that it had its gradient from."""

    def after_epoch(self, update: Update) -> None:
        """After every pass over the samples."""

    def finish(self, update: Update) -> None:
        """After the last epoch."""

    # What does not change.

    def propose(self, turn: Turn) -> Candidate:
        """Run the epochs on copies of the rows."""
        settings = self.optimizer
        decay = (1 - turn.progress) if settings.anneal else 1.0
        update = Update(
            turn=turn,
            rows=self._rows(turn, decay),
            samples=self._samples(turn),
            memory=[copy.deepcopy(turn.learners.memory[row]) for row in turn.rows],
        )
        with torch.no_grad():
            self.prepare(update)
        for epoch in range(settings.epochs):
            update.epoch = epoch
            passes = list(passes_of_an_epoch(update.samples, settings, turn.generator))
            for start in range(0, len(passes), settings.accumulate):
                if all(row.stopped for row in update.rows):
                    break
                self._step(update, passes[start : start + settings.accumulate])
            self.after_epoch(update)
        self.finish(update)
        rows = update.rows
        return Candidate(
            parameters={name: p.detach() for name, p in update.parameters.items()},
            moments=[row.moments() for row in rows],
            expected_gain=[None] * len(rows),
            cg_residual=[None] * len(rows),
            backtracks=[0] * len(rows),
            reasons=["" if row.steps or row.stopped else _IDLE for row in rows],
            losses={
                "losses/policy_loss": float(-torch.stack([e.gain.mean() for e in update.estimates]).mean()),
                "charts/learning_rate": settings.learning_rate * decay,
                **_scalars(turn.names, [*update.estimates, Estimate(torch.zeros(len(rows)), scalars=update.scalars)]),
            },
            before=_previous(rows),
            memory=update.memory,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: moments and memory belong to the learners."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _samples(self, turn: Turn) -> Samples:
        """What minibatches are drawn from, with everything that the mechanism asks for."""
        if not self.needs:
            return turn.objective.samples(turn)
        labels = turn.labels | {"trajectory": trajectories(turn.batch.starts)}
        whole = self.needs & {Need.WHOLE_TRAJECTORIES, Need.WHOLE_COHORTS}
        samples = Samples(
            turn.batch,
            turn.old.log_prob,
            turn.advantage,
            law=turn.old.law,
            labels=labels,
            blocks=blocks_of(labels["cohort"]) if Need.WHOLE_COHORTS in self.needs else None,
        )
        if whole or turn.learners.policy.recurrent:
            return samples
        samples = samples.flatten_time()
        mask = samples.batch.mask
        return samples if bool(mask.all()) else samples.packed(mask)

    def _rows(self, turn: Turn, decay: float) -> list[RowOptimizer]:
        steps = next((term.reference for term in turn.terms if term.kind == "before"), None)
        return [
            RowOptimizer(
                turn.learners.names[row],
                turn.learners.parameters([row]),
                turn.learners.moments[row],
                self.optimizer,
                decay=decay,
                previous=None if steps is None else {name: p[k : k + 1] for name, p in steps.items()},
            )
            for k, row in enumerate(turn.rows)
        ]

    def _step(self, update: Update, passes: list[Pass]) -> None:
        """One optimizer step with the gradient of the mean over everything that `passes` see."""
        samples, rows = update.samples, update.rows
        counts = torch.stack([samples.counts(part) for part in passes])
        # One for a single pass, exactly; a row without a decision gains nothing whatever its share.
        shares = counts / counts.sum(0).clamp_min(1) if len(passes) > 1 else torch.ones_like(counts)
        seen = [samples.part(part) for part in passes]
        estimates = self.gradients(update, seen, shares)
        found = counts > 0
        for estimate, has in zip(estimates, found, strict=True):
            if estimate.active is not None:
                has &= estimate.active
        self.transform_gradients(update)
        for row, active in zip(rows, found.any(0).tolist(), strict=True):
            # A row that sees nothing stands still: its moments would carry it on.
            row.step(self.optimizer.max_grad_norm) if active else row.skip()
        update.estimates += estimates
        self.after_step(update, seen)

    def _pass(self, update: Update, part: Samples, share: Tensor, *, stops: bool) -> Estimate:
        turn, rows, stacked = update.turn, update.rows, update.parameters
        estimate = self.estimate(update, stacked, part)
        evaluation = estimate.evaluation
        stop_at = self.config.stop_at if stops else None
        if evaluation is None and (turn.terms or stop_at is not None):
            evaluation = turn.learners.policy.evaluate(stacked, part.batch)
        penalised = estimate.gain
        if turn.terms and evaluation is not None:
            penalised = penalised - _penalty(turn, rows, part, stacked, evaluation)
        (-(share.to(penalised) * penalised).sum()).backward()
        if stop_at is not None and evaluation is not None:
            _mark_stopped(turn, rows, part.batch, evaluation, stop_at)
        return replace(estimate, gain=estimate.gain.detach(), evaluation=None)


def _penalty(
    turn: Turn, rows: list[RowOptimizer], part: Samples, parameters: Parameters, evaluation: Evaluation
) -> Tensor:
    """The regularisers, the velocity's against each row's parameters before its last step."""
    steps = _previous(rows)
    references = [
        None if not term.active else steps if term.kind == "before" else term.reference for term in turn.terms
    ]
    laws = turn.nearby(turn.laws_of(references, part.batch), parameters, part.batch, evaluation, turn.generator)
    return turn.penalty(evaluation, laws, part.old_log_prob, part.batch.mask)


def _mark_stopped(
    turn: Turn, rows: list[RowOptimizer], batch: PolicyBatch, evaluation: Evaluation, stop_at: float
) -> None:
    with torch.no_grad():
        old = turn.learners.policy.evaluate(turn.learners.parameters(turn.rows), batch)
        divergence = turn.learners.policy.divergence(old.law, evaluation.law).sum(-1)
        # Of some chain steps, what all of them would give.
        divergence = divergence * (turn.old.log_prob.shape[-1] / evaluation.log_prob.shape[-1])
        for row, value in zip(rows, masked_mean(divergence, batch.mask).tolist(), strict=True):
            row.stopped = row.stopped or value > stop_at


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
