"""Neighbours agree on the ratios of everybody's actions, by the alternating direction method of multipliers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.policy import Capability, Evaluation, Parameters
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Candidate, Estimate, Objective, Turn
from marl_tr.schedule.assignment import Assignment
from marl_tr.schedule.config import ConsensusConfig

__all__ = ["Consensus", "edges_of"]


class Consensus:
    """Decentralised updates of policies over joint actions (MATRPO: Li and He, arXiv 2010.07916).

    ``maximise sum_i E[w_i A_i]`` subject to equal ratios ``w_i = w_j`` on every edge of the agents' graph, for each
    agent's action and each sample, and to every learner's bound. With ``l_i`` the log-ratios ``[samples, agents]`` of
    learner ``i``'s law, ``c = +1`` at the first end of an edge and ``-1`` at the other, each edge in turn has both
    its ends take a step of their region, always from the old policy, on

        ``E[w_i A_i] - sum_j E[y_ij (c_ij l_i - z_ij) + (beta / 2) |c_ij l_i - z_ij|^2]``

    and then exchange: ``y = (y_ij + y_ji) / 2 + (beta / 2)(c_ij l_i + c_ji l_j)``, ``z_ij = (y_ij - y) / beta + c_ij
    l_i``. Nothing is in force before the last round; then the Guard measures and commits, and what it shortens agrees
    less.

    Differences from the published code: multipliers start at 0 and not 1 (a constant has no expected gradient); a
    step is kept within the bound and not within 1.5 of it; an end whose step finds nothing better stays at its last
    one; values are the central critic's, one an agent.
    """

    def __init__(self, config: ConsensusConfig) -> None:
        self._config = config

    def update(
        self, assignments: Sequence[Assignment], guard: Guard, generator: torch.Generator, progress: float
    ) -> list[UpdateReport]:
        """Rounds over all edges, then one commit a learner, in the learners' own order.

        Raises:
            UserError: Edges that name no learner, or that leave the graph in parts.
        """
        ends = [
            _End(a, a.turn((row,), weight=None, generator=generator, progress=progress))
            for a in assignments
            for row in range(len(a.learners.names))
        ]
        names = [end.turn.names[0] for end in ends]
        edges = [_Edge(i, j, ends) for i, j in edges_of(names, self._config)]
        first: float | None = None
        for _ in range(self._config.rounds if edges else 0):
            for edge in edges:
                for at in (edge.first, edge.second):
                    ends[at].step([e.seen_by(at) for e in edges if at in (e.first, e.second)], self._config.penalty)
                edge.exchange(ends, self._config.penalty)
            first = _disagreement(edges, ends) if first is None else first
        for end in ends if not edges else ():
            end.step([], self._config.penalty)
        if first is not None:
            ends[0].assignment.log(
                {"consensus/first_disagreement": first, "consensus/disagreement": _disagreement(edges, ends)}
            )
        return [end.commit(guard) for end in ends]


def edges_of(names: Sequence[str], config: ConsensusConfig) -> list[tuple[int, int]]:
    """The graph's edges as positions in `names`, the smaller first.

    Raises:
        UserError: An edge names no learner, or the same at both ends; or some learners are not connected.
    """
    n = len(names)
    if config.edges is None:
        if config.graph == "complete":
            return list(itertools.combinations(range(n), 2))
        return sorted({(min(i, (i + 1) % n), max(i, (i + 1) % n)) for i in range(n) if n > 1})
    found = set()
    for a, b in config.edges:
        if a not in names or b not in names or a == b:
            raise UserError(f"schedule.edges: [{a}, {b}] joins no two of the learners {', '.join(names)}")
        found.add((min(names.index(a), names.index(b)), max(names.index(a), names.index(b))))
    reached = {0}
    for _ in names:
        reached |= {k for edge in found if reached & {*edge} for k in edge}
    apart = [name for position, name in enumerate(names) if position not in reached]
    if apart:
        raise UserError(
            f"schedule.edges: no path leads from {names[0]} to {', '.join(apart)}; nobody could agree with them"
        )
    return sorted(found)


@dataclass(frozen=True)
class _Constraint:
    """What one end of an edge sees of it: sign, multipliers, estimates, and where they count; ``[T, N, A]``."""

    sign: float
    multiplier: Tensor
    estimate: Tensor
    valid: Tensor


class _Augmented:
    """A learner's objective less what disagreement costs it; of its whole batch only."""

    def __init__(self, base: Objective, constraints: Sequence[_Constraint], penalty: float) -> None:
        self._base, self._constraints, self._penalty = base, constraints, penalty
        self.requires: frozenset[Capability] = base.requires

    def samples(self, turn: Turn) -> Samples:
        return self._base.samples(turn)

    def estimate(self, turn: Turn, parameters: Parameters, samples: Samples) -> Estimate:
        estimate = self._base.estimate(turn, parameters, samples)
        evaluation = estimate.evaluation or turn.learners.policy.evaluate(parameters, samples.batch)
        return replace(estimate, gain=estimate.gain - self._cost(turn, evaluation), evaluation=evaluation)

    def improvement(self, turn: Turn, evaluation: Evaluation) -> Tensor | None:
        gain = self._base.improvement(turn, evaluation)
        return None if gain is None else gain - self._cost(turn, evaluation) + self._cost(turn, turn.old)

    def _cost(self, turn: Turn, evaluation: Evaluation) -> Tensor:
        moved = _log_ratios(turn, evaluation)
        total = moved.new_zeros(())
        for edge in self._constraints:
            off = torch.where(edge.valid, edge.sign * moved - edge.estimate.to(moved), 0)
            total = total + (edge.multiplier.to(moved) * off + self._penalty / 2 * off.square()).sum()
        return (total / turn.batch.mask.sum().clamp_min(1)).unsqueeze(0)


class _End:
    """One learner: its turn on the old policy, and the newest step that it would take.

    Attributes:
        log_ratios: ``[T, N, A]`` float64, of that step.
    """

    def __init__(self, assignment: Assignment, turn: Turn) -> None:
        self.assignment, self.turn = assignment, turn
        self.valid = turn.batch.record["acting"][0] & turn.batch.mask[0].unsqueeze(-1)
        self.log_ratios = torch.zeros(self.valid.shape, dtype=torch.float64, device=self.valid.device)
        self._candidate: Candidate | None = None
        self._found = False

    def step(self, constraints: Sequence[_Constraint], penalty: float) -> None:
        """A step of the region on the augmented objective; where it finds none, the last one stays."""
        turn = replace(self.turn, objective=_Augmented(self.turn.objective, constraints, penalty))
        candidate = self.assignment.region.propose(turn)
        if candidate.reasons[0]:
            self._candidate = self._candidate or candidate
            return
        self._candidate = candidate
        with torch.no_grad():
            evaluation = turn.learners.policy.evaluate(candidate.parameters, turn.batch)
            self.log_ratios = torch.where(self.valid, _log_ratios(turn, evaluation), 0).double()

    def commit(self, guard: Guard) -> UpdateReport:
        """What the Guard makes of the newest step, by the learner's own objective."""
        if self._candidate is None:
            raise RuntimeError("a learner commits a step that it never took")
        self.assignment.log(self._candidate.losses)
        return guard.accept(self.assignment.region, self.turn, self._candidate)[0]


class _Edge:
    """Two learners who are to agree."""

    def __init__(self, first: int, second: int, ends: Sequence[_End]) -> None:
        self.first, self.second = first, second
        self.valid = ends[first].valid & ends[second].valid
        zero = torch.zeros_like(ends[first].log_ratios)
        self._multiplier = zero
        self._estimates = {first: zero, second: zero}

    def seen_by(self, at: int) -> _Constraint:
        return _Constraint(self._sign(at), self._multiplier, self._estimates[at], self.valid)

    def exchange(self, ends: Sequence[_End], penalty: float) -> None:
        """New multipliers, the same at both ends, and estimates."""
        signed = {at: self._sign(at) * ends[at].log_ratios for at in (self.first, self.second)}
        multiplier = self._multiplier + penalty / 2 * (signed[self.first] + signed[self.second])
        self._estimates = {at: (self._multiplier - multiplier) / penalty + signed[at] for at in signed}
        self._multiplier = multiplier

    def gap(self, ends: Sequence[_End]) -> Tensor:
        """Sum of squares of the differences, and of the log-ratios themselves: ``[2]``."""
        a, b = (torch.where(self.valid, ends[at].log_ratios, 0) for at in (self.first, self.second))
        return torch.stack([(a - b).square().sum(), (a.square().sum() + b.square().sum()) / 2])

    def _sign(self, at: int) -> float:
        return 1.0 if at == self.first else -1.0


def _disagreement(edges: Sequence[_Edge], ends: Sequence[_End]) -> float:
    """Root mean square of the differences on edges, in those of the log-ratios; 0: all agree, about 1.4: nothing
    shared."""
    apart, size = torch.stack([edge.gap(ends) for edge in edges]).sum(0).tolist()
    return float((apart / size) ** 0.5) if size > 0 else 0.0


def _log_ratios(turn: Turn, evaluation: Evaluation) -> Tensor:
    """New to old, of each agent's action: ``[T, N, A]``."""
    record: Mapping[str, Tensor] = turn.batch.record
    moved: Tensor = evaluation.law.components(record) - turn.old.law.components(record)
    return moved[0]
