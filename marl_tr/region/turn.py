"""One turn: some learners of one policy, their rollout and what they are to gain; and what they propose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from marl_tr.policy import Capability, Evaluation, Parameters, Policy, PolicyBatch, masked_mean

__all__ = ["Candidate", "Learners", "Measurement", "Objective", "Region", "Turn"]


class Objective(Protocol):
    """What an update wants; maximised.

    Attributes:
        entropy: Weight of the entropy bonus.
        reduction: How gains are brought together over the policy's chain.
    """

    requires: frozenset[Capability]
    entropy: float
    reduction: Literal["sum", "mean"]

    def ratio(self, log_prob: Tensor, old_log_prob: Tensor, dimensions: int) -> Tensor:
        """The likelihood ratio of each chain step, ``[L, T, N, k]``."""
        ...

    def gain(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Per decision and chain step: ``[L, T, N, k]`` and ``[L, T, N, 1]`` to ``[L, T, N, k]``."""
        ...


class Learners:
    """A policy's learners: current parameters and optimizer moments, changed by the Guard alone.

    Attributes:
        policy: Their policy.
        names: One a row.
        moments: One optimizer state a row (empty where the region has no optimizer).
    """

    def __init__(self, policy: Policy, names: Sequence[str]) -> None:
        if len(names) != policy.rows.learners:
            raise ValueError(f"{policy.rows.learners} learners need as many names, got {list(names)}")
        self.policy = policy
        self.names = tuple(names)
        self.moments: list[dict[str, Any]] = [{} for _ in names]

    def parameters(self, rows: Sequence[int]) -> Parameters:
        """A copy of some rows, detached."""
        index = list(rows)
        return {name: p.detach()[index].clone() for name, p in self.policy.module.named_parameters()}

    def commit(self, row: int, parameters: Parameters, moments: dict[str, Any]) -> None:
        """Write one row, ``[1, ...]`` each; no other row is touched."""
        with torch.no_grad():
            for name, p in self.policy.module.named_parameters():
                p[row] = parameters[name][0]
        self.moments[row] = moments

    def state_dict(self) -> dict[str, Any]:
        """The policy and the optimizer moments."""
        return {"policy": self.policy.state_dict(), "moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.moments = [dict(m) for m in state["moments"]]


@dataclass(frozen=True)
class Measurement:
    """What a set of parameters does on the whole batch, a row each.

    Attributes:
        divergence: ``[R]`` float64, mean KL(old || new) over decisions, summed over dimensions and chain, in nats.
        gain: ``[R]``, mean objective minus the old policy's, entropy bonus included.
        log_prob: ``[R, T, N, K]``.
        entropy: ``[R]``, mean.
    """

    divergence: Tensor
    gain: Tensor
    log_prob: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Turn:
    """The update problem of some learners (rows) of one policy.

    Attributes:
        learners: Whose parameters.
        rows: Which of them, ``R`` in number.
        batch: Their decisions, ``[R, T, N, ...]``.
        advantage: ``[R, T, N]``, normalised, times the weight that comes from other learners.
        objective: What to gain.
        old: The evaluation under the current parameters, without gradient: anchor of ratio and divergence.
        generator: For minibatch orders and subsamples.
        progress: Share of the run that is done, for schedules of rates.
    """

    learners: Learners
    rows: tuple[int, ...]
    batch: PolicyBatch
    advantage: Tensor
    objective: Objective
    old: Evaluation
    generator: torch.Generator
    progress: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The learners' names, in the order of `rows`."""
        return tuple(self.learners.names[row] for row in self.rows)

    def gain(self, evaluation: Evaluation, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        """Mean objective a row, ``[R]``, entropy bonus included; differentiable in `evaluation`.

        `old_log_prob`, `advantage` and `mask` are those of the decisions and chain steps in `evaluation` (a minibatch,
        perhaps; of some chain steps the sum over the chain is estimated).
        """
        ratio = self.objective.ratio(evaluation.log_prob, old_log_prob, evaluation.dimensions)
        per_step = self.objective.gain(ratio, advantage.unsqueeze(-1))
        if evaluation.weight is not None:
            per_step = per_step * evaluation.weight
        per_decision = per_step.mean(-1)
        if self.objective.reduction == "sum":
            per_decision = per_decision * self.old.log_prob.shape[-1]
        if self.objective.entropy:
            per_decision = per_decision + self.objective.entropy * evaluation.entropy
        return masked_mean(per_decision, mask)

    @torch.no_grad()
    def measure(self, parameters: Parameters) -> Measurement:
        """Evaluate `parameters` on the whole batch; the divergence is summed and averaged in float64."""
        policy, mask = self.learners.policy, self.batch.mask
        evaluation = policy.evaluate(parameters, self.batch)

        def double(x: Tensor) -> Tensor:
            return x.double() if x.is_floating_point() else x

        divergence = policy.divergence(self.old.law.map(double), evaluation.law.map(double)).sum(-1)
        return Measurement(
            divergence=masked_mean(divergence, mask),
            gain=self.gain(evaluation, self.old.log_prob, self.advantage, mask)
            - self.gain(self.old, self.old.log_prob, self.advantage, mask),
            log_prob=evaluation.log_prob,
            entropy=masked_mean(evaluation.entropy, mask),
        )

    def only(self, position: int) -> Turn:
        """The same turn for one of its rows."""
        if len(self.rows) == 1:
            return self
        index = [position]
        return Turn(
            learners=self.learners,
            rows=(self.rows[position],),
            batch=self.batch.rows(index),
            advantage=self.advantage[index],
            objective=self.objective,
            old=self.old.rows(index),
            generator=self.generator,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Candidate:
    """New parameters for the rows of a turn; nothing of it is in force before the Guard accepts it.

    Attributes:
        parameters: ``[R, ...]`` each.
        moments: Optimizer state a row.
        expected_gain: First-order prediction a row, or None.
        cg_residual: Relative residual of the solve a row, or None.
        backtracks: How often the region shortened its own step, a row.
        reasons: Why a row proposes no change; empty where it does.
        losses: Scalars for the log, by tag.
    """

    parameters: Parameters
    moments: list[dict[str, Any]]
    expected_gain: list[float | None]
    cg_residual: list[float | None]
    backtracks: list[int]
    reasons: list[str]
    losses: dict[str, float] = field(default_factory=dict)


class Region(Protocol):
    """Bounds an update.

    Attributes:
        guarantee: ``"hard"``: the Guard keeps the bound; ``"soft"``: pulled back, not kept; ``"none"``: measured.
        requires: What a policy must be able to say of itself.
        bound: Mean KL(old || new) a learner and update, or None.
        direction: Name of the divergence, for the audit.
    """

    guarantee: str
    requires: frozenset[Capability]
    bound: float | None
    direction: str

    def propose(self, turn: Turn) -> Candidate:
        """New parameters for the turn's rows; nothing is committed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Duals, radii and the like."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...
