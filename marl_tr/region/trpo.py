"""Trust region policy optimisation: one natural step on the bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Capability, Parameters, PolicyBatch
from marl_tr.region.config import TrpoConfig
from marl_tr.region.natural_step import (
    NaturalStepResult,
    Trial,
    finite_or_none,
    flatten,
    gauss_newton_matvec,
    natural_step,
    unflatten,
)
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Candidate, Turn

__all__ = ["Trpo"]


_FEWEST = 8
"""Fewer trajectories (or decisions) than this say too little of the divergence: most steps would be rejected."""


class Trpo:
    """Maximise ``E[w A]`` subject to ``mean KL(old || new) <= bound`` (Schulman et al., arXiv 1502.05477).

    Each row takes its own step: gradient on the whole batch, conjugate gradients on the damped Fisher matrix
    (products in float64 on a subsample), length by the undamped one, and a line search that
    accepts on the whole batch, in the precision in which the policy acts.
    """

    requires = frozenset({Capability.LOG_PROB, Capability.KL})
    guarantee = "hard"

    def __init__(self, config: TrpoConfig, optimizer: None = None) -> None:
        self.bound: float | None = config.bound
        self._config = config

    def bound_at(self, progress: float) -> float:
        """The bound when a share `progress` of the run is done: geometric from ``bound`` to ``bound_end``."""
        config = self._config
        if config.bound_end is None:
            return config.bound
        return float(config.bound * (config.bound_end / config.bound) ** progress)

    def propose(self, turn: Turn) -> Candidate:
        """One natural step a row; a row whose line search fails keeps its parameters and says why."""
        results: list[NaturalStepResult] = []
        proposed: list[Parameters] = []
        losses: list[float] = []
        for position, row in enumerate(turn.rows):
            single = turn.only(position)
            old = turn.learners.parameters([row])
            result, loss = self._step(single, old)
            results.append(result)
            losses.append(loss)
            proposed.append(old if result.step is None else _moved(old, result.step))
        return Candidate(
            parameters={name: torch.cat([p[name] for p in proposed]) for name in proposed[0]},
            moments=[{} for _ in results],
            expected_gain=[finite_or_none(r.expected_gain) for r in results],
            cg_residual=[finite_or_none(r.cg_residual) for r in results],
            backtracks=[r.backtracks for r in results],
            reasons=["" if r.step is not None else r.reason for r in results],
            losses={"losses/policy_loss": sum(losses) / len(losses)},
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bound follows from the settings and the run's progress."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _step(self, turn: Turn, old: Parameters) -> tuple[NaturalStepResult, float]:
        config = self._config
        gain, gradient = _gradient(turn, old)
        bound = turn.bound(self)
        assert bound is not None
        matvec = _fisher(turn, old, share=config.subsample)

        def accept(step: Tensor) -> Trial:
            measured = turn.measure(_moved(old, step))
            divergence = float(measured.divergence[0])
            # Objectives without an improvement to measure are refused (they are no functions of the likelihood).
            gained = math.nan if measured.gain is None else float(measured.gain[0])
            predicted = float(gradient @ step.to(gradient.dtype))
            accepted = divergence <= bound and gained > 0 and gained >= config.accept_ratio * predicted
            return Trial(accepted=accepted, divergence=divergence, gain=gained)

        result = natural_step(
            matvec=matvec,
            gradient=gradient.double(),
            bound=bound,
            damping=config.damping,
            iterations=config.iterations,
            tolerance=config.tolerance,
            accept=accept,
            backtrack=config.backtrack,
            max_backtracks=config.max_backtracks,
        )
        return result, -gain


def _moved(old: Parameters, step: Tensor) -> Parameters:
    shift = unflatten(step, old)
    return {name: p + shift[name].to(p.dtype) for name, p in old.items()}


def _gradient(turn: Turn, old: Parameters) -> tuple[float, Tensor]:
    """The objective less the regularisers, and its gradient at the old parameters, on the whole batch: ``[P]``."""
    leaves = {name: p.clone().requires_grad_() for name, p in old.items()}
    whole = Samples(turn.batch, turn.old.log_prob, turn.advantage)
    estimate = turn.objective.estimate(turn, leaves, whole)
    gain = estimate.gain
    if turn.terms:
        evaluation = estimate.evaluation or turn.learners.policy.evaluate(leaves, turn.batch)
        references = [
            None if law is None else law.map(lambda x: x.to(gain.dtype) if x.is_floating_point() else x)
            for law in turn.references
        ]
        references = turn.nearby(references, leaves, turn.batch, evaluation)
        gain = gain - turn.penalty(evaluation, references, turn.old.log_prob, turn.batch.mask)
    gain = gain.sum()
    gradients = torch.autograd.grad(gain, list(leaves.values()), allow_unused=True)
    by_name = {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(leaves.items(), gradients, strict=True)
    }
    return float(gain.detach()), flatten(by_name)


def _fisher(turn: Turn, old: Parameters, *, share: float) -> Any:
    """Products with the mean Fisher matrix on a random subsample."""
    policy = turn.learners.policy
    batch = _subsample(turn.batch, share, turn.generator, flat=not policy.recurrent).to(torch.float64)
    parameters = {name: p.double() for name, p in old.items()}
    law = policy.evaluate(parameters, batch).law
    weight = batch.mask.double() / batch.mask.sum().clamp_min(1)

    def metric(tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(weight.unsqueeze(-1) * g for g in policy.fisher_product(law, tangents))

    matvec, _ = gauss_newton_matvec(lambda p: policy.law_parameters(p, batch), parameters, metric)
    return matvec


def _subsample(batch: PolicyBatch, share: float, generator: torch.Generator, *, flat: bool) -> PolicyBatch:
    """Some of the batch: whole trajectories of a recurrent policy, else single decisions of all trajectories.

    Only those in which the learner decides something are counted, and drawn: in a turn-based game of two players the
    other half says nothing of the divergence.

    Decisions of one trajectory are alike (the same scene, hardly moved), so that as many decisions spread over all
    trajectories see far more of the divergence than whole trajectories do.
    """
    if flat:
        batch = batch.flatten_time()
    deciding = batch.mask.any(1).any(0).nonzero().flatten()
    trajectories = len(deciding)
    count = max(min(_FEWEST, trajectories), round(share * trajectories))
    if 0 < count < batch.mask.shape[2]:
        index = torch.randperm(trajectories, generator=generator)[:count].sort().values
        batch = batch.trajectories(deciding[index.to(deciding.device)])
    return batch
