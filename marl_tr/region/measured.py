"""Gradient steps whose divergence is measured, and kept by the Guard where a bound is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from marl_tr.errors import Diverged
from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, masked_mean
from marl_tr.region.config import MeasuredConfig
from marl_tr.region.turn import Candidate, Turn
from marl_tr.scenario.schema import OptimizerSection

__all__ = ["Measured"]


class Measured:
    """Epochs of minibatch Adam on the objective, every row with moments of its own.

    The rows of a turn run through one stacked forward and backward pass; each then clips its own gradient norm and
    takes its own optimizer step, so that a learner's step touches its row only.
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
        rate = settings.learning_rate * ((1 - turn.progress) if settings.anneal else 1.0)
        rows = [
            _Row(turn.learners.names[r], turn.learners.parameters([r]), turn.learners.moments[r], rate)
            for r in turn.rows
        ]
        batch, old_log_prob, advantage = self._samples(turn)
        losses: list[Tensor] = []
        for _ in range(settings.epochs):
            # Drawn on the generator's device (CPU) so that runs repeat on any device.
            order = torch.randperm(advantage.shape[2], generator=turn.generator).to(advantage.device)
            for index in order.chunk(min(settings.minibatches, len(order))):
                active = [row for row in rows if not row.stopped]
                if not active:
                    break
                losses.append(self._minibatch(turn, rows, batch, old_log_prob, advantage, index))
        return Candidate(
            parameters={
                name: torch.cat([row.parameters[name].detach() for row in rows]) for name in rows[0].parameters
            },
            moments=[row.moments() for row in rows],
            expected_gain=[None] * len(rows),
            cg_residual=[None] * len(rows),
            backtracks=[0] * len(rows),
            reasons=[""] * len(rows),
            losses={"losses/policy_loss": float(torch.stack(losses).mean()), "charts/learning_rate": rate},
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the moments belong to the learners."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _samples(self, turn: Turn) -> tuple[PolicyBatch, Tensor, Tensor]:
        """Decisions to draw minibatches from: whole trajectories where there is memory, else single decisions."""
        if turn.learners.policy.recurrent:
            return turn.batch, turn.old.log_prob, turn.advantage
        flat = turn.batch.flatten_time()
        return (
            flat,
            turn.old.log_prob.flatten(1, 2).unsqueeze(1),
            turn.advantage.flatten(1, 2).unsqueeze(1),
        )

    def _minibatch(
        self,
        turn: Turn,
        rows: list[_Row],
        batch: PolicyBatch,
        old_log_prob: Tensor,
        advantage: Tensor,
        index: Tensor,
    ) -> Tensor:
        part = batch.trajectories(index)
        stacked: Parameters = {name: torch.cat([row.parameters[name] for row in rows]) for name in rows[0].parameters}
        evaluation = turn.learners.policy.evaluate(stacked, part)
        gain = turn.gain(evaluation, old_log_prob[:, :, index], advantage[:, :, index], part.mask)
        (-gain.sum()).backward()
        if self._stop_at is not None:
            self._mark_stopped(turn, rows, part, evaluation, index)
        for row in rows:
            row.step(self._optimizer.max_grad_norm)
        return -gain.detach().mean()

    def _mark_stopped(
        self, turn: Turn, rows: list[_Row], part: PolicyBatch, evaluation: Evaluation, index: Tensor
    ) -> None:
        with torch.no_grad():
            old = turn.learners.policy.evaluate(turn.learners.parameters(turn.rows), part)
            divergence = turn.learners.policy.divergence(old.law, evaluation.law).sum(-1)
            for row, value in zip(rows, masked_mean(divergence, part.mask).tolist(), strict=True):
                row.stopped = row.stopped or value > (self._stop_at or 0.0)


class _Row:
    """One learner's copy of its parameters, and its optimizer."""

    def __init__(self, name: str, parameters: Parameters, moments: dict[str, Any], rate: float) -> None:
        self.name = name
        self.parameters = {name: p.requires_grad_() for name, p in parameters.items()}
        # eps 1e-5 is the value that PPO implementations share (Huang et al., 2022, detail 3).
        self._adam = torch.optim.Adam(list(self.parameters.values()), lr=rate, eps=1e-5, fused=True)
        self.stopped = False
        if moments:
            # A checkpoint is read onto the CPU, and the optimizer takes its state as it comes.
            for key, p in self.parameters.items():
                self._adam.state[p] = {slot: value.to(p.device, copy=True) for slot, value in moments[key].items()}

    def step(self, max_norm: float) -> None:
        """Clip the row's own gradient norm and step, unless it has stopped.

        Raises:
            Diverged: The gradient is not finite; nothing was committed.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), max_norm)
        if not bool(torch.isfinite(norm)):
            raise Diverged(
                f"learner {self.name!r}: its policy gradient is not finite; likely causes: an exploding reward, a "
                "learning rate that is too high, or a law that collapsed (see losses/entropy)"
            )
        if not self.stopped:
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Any]:
        """Adam's state by parameter name."""
        return {
            name: {key: value.clone() for key, value in self._adam.state[p].items()}
            for name, p in self.parameters.items()
            if p in self._adam.state
        }
