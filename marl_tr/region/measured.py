"""Gradient steps whose divergence is measured, and kept by the Guard where a bound is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, masked_mean
from marl_tr.region.config import MeasuredConfig
from marl_tr.region.optimizer import RowOptimizer
from marl_tr.region.turn import Candidate, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Measured"]


class Measured:
    """Epochs of minibatch steps on the objective, every row with moments of its own.

    The rows of a turn run through one stacked forward and backward pass; each then clips its own gradient norm and
    takes its own optimizer step, so that a learner's step touches its row only. A pass sees a minibatch of decisions
    and, of flows, some steps of each one's chain; an optimizer step has the gradient of one or more passes.
    """

    requires = frozenset({Capability.LOG_PROB, Capability.KL})
    direction = "kl_old_new"

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
        samples = _Samples.of(turn)
        losses: list[Tensor] = []
        for _ in range(settings.epochs):
            passes = list(_passes(samples, settings, turn.generator))
            for start in range(0, len(passes), settings.accumulate):
                active = [row for row in rows if not row.stopped]
                if not active:
                    break
                losses += self._step(turn, rows, samples, passes[start : start + settings.accumulate])
        return Candidate(
            parameters={
                name: torch.cat([row.parameters[name].detach() for row in rows]) for name in rows[0].parameters
            },
            moments=[row.moments() for row in rows],
            expected_gain=[None] * len(rows),
            cg_residual=[None] * len(rows),
            backtracks=[0] * len(rows),
            reasons=[""] * len(rows),
            losses={
                "losses/policy_loss": float(torch.stack(losses).mean()),
                "charts/learning_rate": settings.learning_rate * decay,
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

    def _step(self, turn: Turn, rows: list[RowOptimizer], samples: _Samples, passes: list[_Pass]) -> list[Tensor]:
        """One optimizer step with the gradient of the mean over everything that `passes` see."""
        counts = torch.stack([samples.counts(part) for part in passes])
        # One for a single pass, exactly; a row without a decision gains nothing whatever its share.
        shares = counts / counts.sum(0).clamp_min(1) if len(passes) > 1 else torch.ones_like(counts)
        losses = [self._pass(turn, rows, samples.part(p), share) for p, share in zip(passes, shares, strict=True)]
        for row in rows:
            row.step(self._optimizer.max_grad_norm)
        return losses

    def _pass(self, turn: Turn, rows: list[RowOptimizer], part: _Samples, share: Tensor) -> Tensor:
        stacked: Parameters = {name: torch.cat([row.parameters[name] for row in rows]) for name in rows[0].parameters}
        evaluation = turn.learners.policy.evaluate(stacked, part.batch)
        gain = turn.gain(evaluation, part.old_log_prob, part.advantage, part.batch.mask)
        penalised = gain - self._penalty(turn, rows, part, evaluation) if turn.terms else gain
        (-(share.to(gain) * penalised).sum()).backward()
        if self._stop_at is not None:
            self._mark_stopped(turn, rows, part.batch, evaluation)
        return -gain.detach().mean()

    def _penalty(self, turn: Turn, rows: list[RowOptimizer], part: _Samples, evaluation: Evaluation) -> Tensor:
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


@dataclass(frozen=True)
class _Samples:
    """What passes see: whole trajectories where there is memory, else single decisions.

    Attributes:
        batch: ``[R, T, N, ...]``.
        old_log_prob: ``[R, T, N, k]``, of the chain steps that `batch` asks for.
        advantage: ``[R, T, N]``.
    """

    batch: PolicyBatch
    old_log_prob: Tensor
    advantage: Tensor

    @classmethod
    def of(cls, turn: Turn) -> _Samples:
        """All of a turn's."""
        if turn.learners.policy.recurrent:
            return cls(turn.batch, turn.old.log_prob, turn.advantage)
        return cls(
            turn.batch.flatten_time(),
            turn.old.log_prob.flatten(1, 2).unsqueeze(1),
            turn.advantage.flatten(1, 2).unsqueeze(1),
        )

    def part(self, chosen: _Pass) -> _Samples:
        """Those of a pass."""
        batch = self.batch.trajectories(chosen.index)
        old_log_prob = self.old_log_prob[:, :, chosen.index]
        if chosen.chain is not None:
            batch = replace(batch, chain=chosen.chain)
            old_log_prob = old_log_prob.gather(-1, chosen.chain)
        return _Samples(batch, old_log_prob, self.advantage[:, :, chosen.index])

    def counts(self, chosen: _Pass) -> Tensor:
        """How many decisions and chain steps of each row are in a pass: ``[R]`` float64."""
        steps = self.old_log_prob.shape[-1] if chosen.chain is None else chosen.chain.shape[-1]
        return self.batch.mask[:, :, chosen.index].sum((1, 2)).double() * steps


@dataclass(frozen=True)
class _Pass:
    """What one forward and backward pass sees.

    Attributes:
        index: ``[n]``, which samples.
        chain: ``[R, T, n, k]``, which steps of each decision's chain; None: all.
    """

    index: Tensor
    chain: Tensor | None


def _passes(samples: _Samples, settings: OptimizerSection, generator: torch.Generator) -> Iterator[_Pass]:
    """One epoch: minibatches in random order, and of each the chain in chunks."""
    device = samples.advantage.device
    # Drawn on the generator's device (CPU) so that runs repeat on any device.
    order = torch.randperm(samples.advantage.shape[2], generator=generator).to(device)
    chain = _chain_order(samples.old_log_prob.shape, settings, generator)
    for index in order.chunk(min(settings.minibatches, len(order))):
        if chain is None:
            yield _Pass(index, None)
            continue
        for steps in chain.split(settings.chain_batch or chain.shape[-1], -1):
            yield _Pass(index, steps.to(device)[:, :, index])


def _chain_order(shape: torch.Size, settings: OptimizerSection, generator: torch.Generator) -> Tensor | None:
    """The chain steps of an epoch in random order, each decision its own: ``[R, T, N, k]``; None: all at once.

    Source: the timestep permutation and fraction of published flow GRPO (specification 5).
    """
    length = shape[-1]
    kept = max(1, round(settings.chain_fraction * length))
    if kept == length and (settings.chain_batch or length) >= length:
        return None
    return torch.rand(shape, generator=generator).argsort(-1)[..., :kept]


def _previous(rows: list[RowOptimizer]) -> Parameters | None:
    """The rows' parameters before their last steps, stacked; None where nobody asks for them."""
    kept = [row.previous for row in rows if row.previous is not None]
    if len(kept) < len(rows):
        return None
    return {name: torch.cat([previous[name] for previous in kept]) for name in kept[0]}
