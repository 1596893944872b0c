"""One turn: some learners of one policy, their rollout and what they are to gain; and what they propose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, in_float64, masked_mean
from marl_tr.region.learners import Learners
from marl_tr.region.regulariser import Term
from marl_tr.region.samples import Samples
from marl_tr.region.smoothness import farthest_law

__all__ = ["Candidate", "Estimate", "Learners", "Measurement", "Objective", "Reach", "Region", "Turn", "bound_at"]

_START = 0
"""Seed of the search for observations nearby where it is to be the same for all parameters that are measured."""


@dataclass(frozen=True)
class Estimate:
    """What an objective says of a minibatch.

    Attributes:
        gain: ``[R]``, to be maximised; differentiable in the parameters.
        evaluation: Of the minibatch, where one was made on the way.
        active: ``[R]`` bool, the rows that are to take a step; None: those with a decision.
        scalars: ``[R]`` each, for the log, by tag; NaN where there is nothing to say.
    """

    gain: Tensor
    evaluation: Evaluation | None = None
    active: Tensor | None = None
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What an update wants; maximised. `marl_tr.objective.ratio.Surrogate` is the base of those made of ratios.

    Optional hooks, looked up by name: ``clipped(log_prob, old_log_prob, dimensions) -> [..., K] bool``, which ratios
    are cut off; ``measures(turn, parameters, measured) -> {tag: value}``, what is to be logged of one learner's
    committed parameters.
    """

    requires: frozenset[Capability]

    def samples(self, turn: Turn) -> Samples:
        """What minibatches are drawn from; single decisions where the policy has no memory."""
        ...

    def estimate(self, turn: Turn, parameters: Parameters, samples: Samples) -> Estimate:
        """The mean gain of `parameters` ``[R, ...]`` over a minibatch, or over all of a turn."""
        ...

    def improvement(self, turn: Turn, evaluation: Evaluation) -> Tensor | None:
        """``[R]``: the gain of an evaluation of the whole batch less the old policy's; None: it cannot be said."""
        ...


@dataclass(frozen=True)
class Measurement:
    """What a set of parameters does on the whole batch, a row each.

    Attributes:
        divergence: ``[R]`` float64, mean of `Policy.divergence` from the old policy over decisions, summed over the
            chain: of policies with a likelihood KL(old || new) in nats.
        gain: ``[R]``, mean objective minus the old policy's, entropy bonus and weighted regularisers included; None
            where the objective cannot be evaluated so.
        log_prob: ``[R, T, N, K]``.
        entropy: ``[R]``, mean; None where the policy cannot say.
        evaluation: Of the whole batch.
        parameters: What was measured, ``[R, ...]``.
        anchors: Mean KL(anchor || new) of each position term, ``[R]`` float64 nats, by name.
        terms: Value of each regulariser in its own unit, ``[R]`` float64, by name.
    """

    divergence: Tensor
    gain: Tensor | None
    log_prob: Tensor
    entropy: Tensor | None
    evaluation: Evaluation
    parameters: Parameters = field(default_factory=dict)
    anchors: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


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
        terms: The learners' regularisers.
        shares: Each row's share of a bound that several learners have together, in place of the region's own bound;
            None: the region's holds for every row.
        joint_bound: That bound; None where there are no shares.
        labels: ``[R, T, N]`` each, what else is known of the decisions (`marl_tr.region.needs.Need`).
    """

    learners: Learners
    rows: tuple[int, ...]
    batch: PolicyBatch
    advantage: Tensor
    objective: Objective
    old: Evaluation
    generator: torch.Generator
    progress: float = 0.0
    terms: tuple[Term, ...] = ()
    shares: tuple[float, ...] | None = None
    joint_bound: float | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    _measured_last: list[Measurement] = field(default_factory=list, init=False, repr=False, compare=False)

    def bound(self, region: Region, position: int = 0) -> float | None:
        """What the divergence of one of the turn's rows may come to: its share where there is one."""
        return bound_at(region, self.progress) if self.shares is None else self.shares[position]

    @property
    def names(self) -> tuple[str, ...]:
        """The learners' names, in the order of `rows`."""
        return tuple(self.learners.names[row] for row in self.rows)

    def penalty(self, evaluation: Evaluation, references: Sequence[Any], old_log_prob: Tensor, mask: Tensor) -> Tensor:
        """What the regularisers take off the gain a row, ``[R]``; differentiable in `evaluation`.

        `references` are the laws of `laws_of` on the decisions and chain steps of `evaluation`, of which `old_log_prob`
        and `mask` are too, with those of `nearby`.
        """
        total = torch.zeros(len(self.rows), dtype=evaluation.log_prob.dtype, device=evaluation.log_prob.device)
        for term, reference in zip(self.terms, references, strict=True):
            if term.active:
                total = total + term.weight.to(total) * self._value(term, evaluation, reference, old_log_prob, mask)
        return total

    @torch.no_grad()
    def laws_of(self, references: Sequence[Parameters | None], batch: PolicyBatch) -> list[Any]:
        """The law of each set of parameters ``[R, ...]`` on `batch`; None where there is none."""
        policy = self.learners.policy
        return [None if p is None else policy.evaluate(p, batch).law for p in references]

    def nearby(
        self,
        references: Sequence[Any],
        parameters: Parameters,
        batch: PolicyBatch,
        evaluation: Evaluation,
        generator: torch.Generator | None = None,
    ) -> list[Any]:
        """`references` with what smoothness terms compare `evaluation` with: the law of `parameters` at observations
        nearby, differentiable.

        Args:
            references: Of `laws_of`.
            parameters: ``[R, ...]``, of which `evaluation` is.
            batch: On which it is.
            evaluation: See there.
            generator: Of where the search for the observations starts; None: everywhere the same, so that parameters
                can be compared.
        """
        return [
            self._nearby(term, parameters, batch, evaluation, generator)
            if term.ball is not None and term.active
            else reference
            for term, reference in zip(self.terms, references, strict=True)
        ]

    @cached_property
    def references(self) -> list[Any]:
        """The law of each term's reference on the whole batch, in float64; None for the rollout's, and of ``smooth``
        terms, whose reference is of the parameters to be measured."""
        laws = self.laws_of([term.reference for term in self.terms], self.batch)
        return [None if law is None else in_float64(law) for law in laws]

    def measure(self, parameters: Parameters) -> Measurement:
        """Evaluate `parameters` on the whole batch; divergences are summed and averaged in float64.

        The last measurement is kept: what a line search has just accepted, the Guard measures once more. It is the
        same function of the same parameters, bit for bit, and is not computed again for them.
        """
        for measured in self._measured_last:
            if all(torch.equal(p, measured.parameters[name]) for name, p in parameters.items()):
                return measured
        # A copy: who measures may go on to move its parameters in place.
        measured = self._measure({name: p.detach().clone() for name, p in parameters.items()})
        self._measured_last[:] = [measured]
        return measured

    @torch.no_grad()
    def _measure(self, parameters: Parameters) -> Measurement:
        policy, mask = self.learners.policy, self.batch.mask
        evaluation = policy.evaluate(parameters, self.batch)
        law = in_float64(evaluation.law)
        gain = self.objective.improvement(self, evaluation)
        anchors: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for term, reference in zip(self.terms, self.references, strict=True):
            terms[term.name] = self._measured(term, reference, parameters, evaluation)
            if term.kind == "anchor":
                anchors[term.name] = masked_mean(policy.divergence(reference, law).sum(-1), mask)
            if term.active and gain is not None:
                change = terms[term.name] - self._before[term.name]
                gain = gain - (term.weight.to(change) * change).to(gain)
        return Measurement(
            divergence=masked_mean(policy.divergence(in_float64(self.old.law), law).sum(-1), mask),
            gain=gain,
            log_prob=evaluation.log_prob,
            entropy=None if evaluation.entropy is None else masked_mean(evaluation.entropy, mask),
            evaluation=evaluation,
            parameters=parameters,
            anchors=anchors,
            terms=terms,
        )

    @torch.no_grad()
    def against(self, term: Term, evaluation: Evaluation, reference: Parameters) -> Tensor:
        """The value of `term` for an evaluation of the whole batch, had it another reference: ``[R]`` float64."""
        (law,) = self.laws_of([reference], self.batch)
        doubled = replace(evaluation, law=in_float64(evaluation.law))
        return self._value(term, doubled, in_float64(law), self.old.log_prob, self.batch.mask)

    def only(self, position: int) -> Turn:
        """The same turn for one of its rows."""
        if len(self.rows) == 1:
            return self
        index = [position]
        return replace(
            self,
            rows=(self.rows[position],),
            batch=self.batch.rows(index),
            advantage=self.advantage[index],
            old=self.old.rows(index),
            terms=tuple(term.rows(index) for term in self.terms),
            shares=None if self.shares is None else (self.shares[position],),
            labels={name: x[index] for name, x in self.labels.items()},
        )

    @cached_property
    def _before(self) -> dict[str, Tensor]:
        """The value of each term under the old parameters, ``[R]`` float64."""
        old = self.learners.parameters(self.rows)
        return {
            term.name: self._measured(term, reference, old, self.old)
            for term, reference in zip(self.terms, self.references, strict=True)
        }

    def _measured(self, term: Term, reference: Any, parameters: Parameters, evaluation: Evaluation) -> Tensor:
        """The value of `term` for an evaluation of the whole batch, in float64."""
        if term.ball is not None:
            reference = in_float64(self._nearby(term, parameters, self.batch, evaluation, None))
        doubled = replace(evaluation, law=in_float64(evaluation.law))
        return self._value(term, doubled, reference, self.old.log_prob, self.batch.mask)

    def _nearby(
        self,
        term: Term,
        parameters: Parameters,
        batch: PolicyBatch,
        evaluation: Evaluation,
        generator: torch.Generator | None,
    ) -> Any:
        assert term.ball is not None
        start = torch.Generator().manual_seed(_START) if generator is None else generator
        return farthest_law(self.learners.policy, parameters, batch, evaluation.law, ball=term.ball, generator=start)

    def _value(self, term: Term, evaluation: Evaluation, reference: Any, old_log_prob: Tensor, mask: Tensor) -> Tensor:
        length = self.old.log_prob.shape[-1]
        return term.value(self.learners.policy, evaluation, reference, old_log_prob, mask, chain_length=length)


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
        before: Parameters before the last optimizer step, ``[R, ...]``; None: those before the update.
        memory: What the region wants to remember of each learner (`Learners.memory`), a row; empty: it stays.
    """

    parameters: Parameters
    moments: list[dict[str, Any]]
    expected_gain: list[float | None]
    cg_residual: list[float | None]
    backtracks: list[int]
    reasons: list[str]
    losses: dict[str, float] = field(default_factory=dict)
    before: Parameters | None = None
    memory: list[dict[str, Any]] = field(default_factory=list)

    def only(self, position: int) -> Candidate:
        """The same for one of its rows."""
        one = slice(position, position + 1)
        return replace(
            self,
            parameters={name: p[one] for name, p in self.parameters.items()},
            moments=self.moments[one],
            expected_gain=self.expected_gain[one],
            cg_residual=self.cg_residual[one],
            backtracks=self.backtracks[one],
            reasons=self.reasons[one],
            before=None if self.before is None else {name: p[one] for name, p in self.before.items()},
            memory=self.memory[one],
        )


class Reach(NamedTuple):
    """How far parameters go in a region's own measure, where it has one beside the mean divergence.

    Attributes:
        what: Of what, in words: ``largest |ratio - 1|``.
        value: ``[R]``.
        limit: What it is held to, hard or softly.
    """

    what: str
    value: Tensor
    limit: float


class Region(Protocol):
    """Bounds an update.

    Optional hooks, looked up by name: ``bound_at(progress) -> float``, the bound when that share of the run is done, in
    place of `bound`; ``reach(turn, measured) -> Reach``, of a measurement of the whole batch, before anything of it is
    committed; ``deployed(policy) -> Policy``, what acts, learns and is stored in place of a new policy, or a
    `UserError`.

    Attributes:
        guarantee: ``"hard"``: the Guard keeps the bound; ``"soft"``: pulled back, not kept; ``"none"``: measured.
        requires: What a policy must be able to say of itself.
        bound: Mean divergence (`Policy.divergence`) from the old policy a learner and update, or None. Where a turn has
            shares (`Turn.bound`), those are kept in its place.
    """

    guarantee: str
    requires: frozenset[Capability]
    bound: float | None

    def propose(self, turn: Turn) -> Candidate:
        """New parameters for the turn's rows; nothing is committed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Duals, radii and the like."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


def bound_at(region: Region, progress: float) -> float | None:
    """The bound of `region` when a share `progress` of the run is done."""
    hook = getattr(region, "bound_at", None)
    return region.bound if hook is None else float(hook(progress))
