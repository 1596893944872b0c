"""The Guard: the one place that measures a candidate, keeps the bounds, commits, and writes the audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.chain import chain_measures
from marl_tr.region.measures import likelihood_measures
from marl_tr.region.own_limit import OWN, own_slack
from marl_tr.region.report import AnchorReport, UpdateReport
from marl_tr.region.turn import Candidate, Measurement, Reach, Region, Turn

__all__ = ["AnchorReport", "Guard", "UpdateReport"]


@dataclass(frozen=True)
class _Limit:
    """One divergence that what is committed may not exceed.

    Attributes:
        term: Name of the position term, or ``"own"``: the region's own limit; None: of the update itself.
        bound: As the scenario says.
        before: The divergence of the old parameters.
        own: The region's own measure, where that is what is limited.
    """

    term: str | None
    bound: float
    before: float
    own: Callable[[Measurement], Reach] | None = None

    @property
    def limit(self) -> float:
        return max(self.bound, self.before)

    def of(self, measured: Measurement) -> float:
        if self.own is not None:
            return float(self.own(measured).value)
        return float(measured.divergence if self.term is None else measured.anchors[self.term])

    def kept(self, measured: Measurement) -> bool:
        # Written so that a nan, of which no comparison is true, is beyond the limit.
        return self.of(measured) <= self.limit + (0.0 if self.own is None else own_slack(self.limit))

    def shortening(self, measured: Measurement) -> float:
        """Factor of a step that led to `measured`, after which it should be at the limit, a little inside.

        Along a short segment a divergence is a parabola, whose curvature is that of the step's own divergence:
        ``f(s) = before + a s + divergence s^2``. For Gaussians whose means alone move that is exact.
        """
        value, curvature = self.of(measured), float(measured.divergence)
        if not (math.isfinite(value) and math.isfinite(curvature) and curvature > 0):
            return 0.5
        if self.before == 0:
            return 0.98 * math.sqrt(self.limit / value)
        slope = value - self.before - curvature
        root = (math.sqrt(slope**2 + 4 * curvature * (self.limit - self.before)) - slope) / (2 * curvature)
        return 0.98 * root if root > 0 else 0.5

    def said(self, value: float) -> tuple[str, str]:
        """The value, and what it is compared with, in words."""
        if self.own is not None:
            return f"the region's own measure {value:.3g}", f"its limit {self.limit:.3g}"
        if self.term is None:
            return f"divergence {value:.3g}", "the bound"
        beyond = ", where the policy already was on this batch" if self.before > self.bound else ""
        return f"KL {value:.3g} to {self.term!r}", f"its limit {self.limit:.3g}{beyond}"


@dataclass(frozen=True)
class _Verdict:
    """What is to become of one row of a candidate.

    Attributes:
        parameters: To be in force, ``[1, ...]``: the old ones where it is rejected.
        proposal: What the candidate does.
        measured: What `parameters` do.
        limits: What was to be kept.
        outcome: ``"accepted" | "interpolated" | "rejected"``.
        reason: Why it is not accepted as proposed.
        tries: Interpolations.
    """

    parameters: Parameters
    proposal: Measurement
    measured: Measurement
    limits: list[_Limit]
    outcome: str
    reason: str
    tries: int


class Guard:
    """Accepts, interpolates or rejects candidates, a row at a time.

    Where the ``hard`` bound of the region, its own hard limit (``own_guarantee``, by its `reach`) or the bound of a
    position term is exceeded the row is interpolated back
    towards its old parameters until all hold; if no interpolation does, or something is not finite, the row is
    rejected: parameters, optimizer moments, anchors and weights stay bit-identical. After an interpolation the moments
    are reset, for they belong to a step that was not taken.

    Args:
        audit: Receives one line a learner and update, and one for each of its bounds to an anchor.
        max_interpolations: Tries before a rejection.
    """

    def __init__(self, audit: Callable[[Mapping[str, Any]], None], *, max_interpolations: int = 20) -> None:
        self._audit = audit
        self._max_interpolations = max_interpolations

    def accept(self, region: Region, turn: Turn, candidate: Candidate) -> list[UpdateReport]:
        """Measure and commit `candidate`, each row alone as it will act; one report a row of the turn."""
        reports = [self._row(region, turn.only(k), candidate, k) for k in range(len(turn.rows))]
        for report in reports:
            self._audit(report.audit_line())
            for anchor in report.anchors:
                self._audit(anchor.audit_line())
        return reports

    def within(self, region: Region, turn: Turn, candidate: Candidate) -> Candidate:
        """What `accept` would put in force of `candidate`; nothing is committed and nothing written to the audit.

        For schedules that weigh candidates before any of them is in force. A rejected row has its old parameters, and
        its reason says why; interpolated rows come without moments.
        """
        verdicts = [self._settle(region, turn.only(k), candidate, k) for k in range(len(turn.rows))]
        return replace(
            candidate,
            parameters={
                name: torch.cat([verdict.parameters[name] for verdict in verdicts]) for name in candidate.parameters
            },
            moments=[
                candidate.moments[k] if verdict.outcome == "accepted" else {} for k, verdict in enumerate(verdicts)
            ],
            reasons=[verdict.reason if verdict.outcome == "rejected" else "" for verdict in verdicts],
            before=None,
        )

    def _row(self, region: Region, turn: Turn, candidate: Candidate, k: int) -> UpdateReport:
        row = turn.rows[0]
        old = turn.learners.parameters([row])
        verdict = self._settle(region, turn, candidate, k)
        outcome, measured = verdict.outcome, verdict.measured
        # Before the commit: a step is told from the parameters and the memory that it was proposed with.
        measures = _measures(region, turn, verdict.parameters, measured)
        steps: dict[str, float] = {}
        if outcome != "rejected":
            whole = outcome == "accepted"
            before = old if candidate.before is None or not whole else _row_of(candidate.before, k)
            steps = _step_values(turn, measured, before)
            values = {name: float(value) for name, value in measured.terms.items()} | steps
            moments = candidate.moments[k] if whole else {}
            # What a region has learned of its multipliers holds for a shorter step as well.
            memory = candidate.memory[k] if candidate.memory else None
            turn.learners.commit(row, verdict.parameters, moments, before=before, measured=values, memory=memory)
        return UpdateReport(
            learner=turn.names[0],
            guarantee=region.guarantee,
            bound=turn.bound(region),
            direction=turn.learners.policy.direction,
            proposed=float(verdict.proposal.divergence),
            accepted=0.0 if outcome == "rejected" else float(measured.divergence),
            outcome=outcome,
            backtracks=candidate.backtracks[k] + verdict.tries,
            surrogate_gain=0.0 if outcome == "rejected" else _number(measured.gain),
            expected_gain=candidate.expected_gain[k],
            cg_residual=candidate.cg_residual[k],
            reason=verdict.reason,
            log_ratio=(measured.log_prob - turn.old.log_prob)[0],
            entropy=_number(measured.entropy),
            anchors=tuple(
                _anchor_report(turn.names[0], limit, verdict.proposal, measured, outcome)
                for limit in verdict.limits
                if limit.term is not None
            ),
            regularisers=_scalars(turn, measured, steps),
            chain=chain_measures(turn, measured),
            measures=measures,
            joint_bound=turn.joint_bound,
        )

    def _settle(self, region: Region, turn: Turn, candidate: Candidate, k: int) -> _Verdict:
        """Measure row `k` of `candidate`, the only one of `turn`, and decide; nothing changes."""
        old = turn.learners.parameters([turn.rows[0]])
        new = _row_of(candidate.parameters, k)
        proposal = measured = turn.measure(new)
        limits = _limits(region, turn)
        broken = [limit for limit in limits if not limit.kept(measured)]
        outcome, reason, tries = "accepted", candidate.reasons[k], 0
        if reason:
            outcome = "rejected"
        elif not all(bool(torch.isfinite(p).all()) for p in new.values()):
            outcome, reason = "rejected", "the candidate is not finite"
        elif broken:
            found = self._interpolate(turn, old, new, limits, measured)
            if found is None:
                outcome, reason = "rejected", _told(broken, proposal, "exceeds {} at every interpolation")
            else:
                outcome, reason = "interpolated", _told(broken, proposal, "exceeded {}")
                new, measured, tries = found
        elif not _finite(new, measured):
            outcome, reason = "rejected", "what the candidate does is not finite"
        if outcome == "rejected":
            new, measured = old, turn.measure(old)
        return _Verdict(new, proposal, measured, limits, outcome, reason, tries)

    def _interpolate(
        self, turn: Turn, old: Parameters, new: Parameters, limits: Sequence[_Limit], measured: Measurement
    ) -> tuple[Parameters, Measurement, int] | None:
        """Shorten the step until every measured divergence is within its limit."""
        share = 1.0
        for tries in range(1, self._max_interpolations + 1):
            broken = [limit for limit in limits if not limit.kept(measured)]
            share *= min([0.9, *(limit.shortening(measured) for limit in broken)])
            point = {name: torch.lerp(old[name], new[name], share) for name in old}
            measured = turn.measure(point)
            if all(limit.kept(measured) for limit in limits) and _finite(point, measured):
                return point, measured, tries
        return None


def _limits(region: Region, turn: Turn) -> list[_Limit]:
    """What an update of the turn's one row must keep."""
    limits = []
    if getattr(region, "own_guarantee", "") == "hard":
        own = partial(region.reach, turn)  # type: ignore[attr-defined]
        limits.append(_Limit(OWN, own(turn.measure(turn.learners.parameters(turn.rows))).limit, before=0.0, own=own))
    bound = turn.bound(region)
    if region.guarantee == "hard" and bound is not None:
        limits.append(_Limit(term=None, bound=bound, before=0.0))
    bounded = [term for term in turn.terms if term.bound is not None]
    if bounded:
        now = turn.measure(turn.learners.parameters(turn.rows))
        limits += [_Limit(term.name, term.bound, float(now.anchors[term.name])) for term in bounded if term.bound]
    return limits


def _told(broken: Sequence[_Limit], proposal: Measurement, verb: str) -> str:
    told = []
    for limit in broken:
        value, against = limit.said(limit.of(proposal))
        told.append(f"{value} {verb.format(against)}")
    return "; ".join(told)


def _anchor_report(
    learner: str, limit: _Limit, proposal: Measurement, measured: Measurement, outcome: str
) -> AnchorReport:
    reason = "" if limit.kept(proposal) else _told([limit], proposal, "exceeded {}")
    if not reason and limit.before > limit.bound:
        reason = f"the policy was at {limit.before:.3g} on this batch before the update, and may not go farther"
    return AnchorReport(
        learner=learner,
        kind=limit.term or "",
        bound=limit.bound,
        before=limit.before,
        proposed=limit.of(proposal),
        accepted=limit.of(measured),
        outcome=outcome,
        reason=reason,
        direction="kl_anchor_new" if limit.own is None else limit.own(measured).what,
    )


def _step_values(turn: Turn, measured: Measurement, before: Parameters) -> dict[str, float]:
    """The terms whose reference is the policy before the last optimizer step, which has been taken since."""
    return {
        term.name: float(turn.against(term, measured.evaluation, before))
        for term in turn.terms
        if term.kind == "before"
    }


def _scalars(turn: Turn, measured: Measurement, steps: Mapping[str, float]) -> dict[str, float]:
    """Every term in nats, with its weight and bound."""
    scalars: dict[str, float] = {}
    size = measured.evaluation.dimensions * measured.log_prob.shape[-1]
    for term in turn.terms:
        if term.kind == "anchor":
            value = float(measured.anchors[term.name])
        else:
            own = steps.get(term.name, 0.0) if term.kind == "before" else float(measured.terms[term.name])
            value = own * (size if term.reduction == "mean" else 1)
        scalars[f"kl_{term.name}"] = value
        scalars[f"kl_{term.name}_weight"] = float(term.weight)
        if term.bound is not None:
            scalars[f"kl_{term.name}_bound"] = term.bound
    return scalars


def _measures(region: Region, turn: Turn, parameters: Parameters, measured: Measurement) -> dict[str, float]:
    """What the objective says of what is in force, how far the update went in the region's own measure, and what all
    regions are compared by."""
    found = likelihood_measures(turn, measured)
    reach = getattr(region, "reach", None)
    if reach is not None:
        found |= {"region/reach": float(reach(turn, measured).value), "region/limit": reach(turn, measured).limit}
    hook = getattr(turn.objective, "measures", None)
    if hook is not None:
        found |= hook(turn, parameters, measured)
    return {f"{tag}/{turn.names[0]}": value for tag, value in found.items()}


def _number(x: Tensor | None) -> float | None:
    return None if x is None else float(x)


def _row_of(parameters: Parameters, k: int) -> Parameters:
    return {name: p[k : k + 1] for name, p in parameters.items()}


def _finite(parameters: Parameters, measured: Measurement) -> bool:
    gain = [] if measured.gain is None else [measured.gain]
    values = [measured.divergence, *gain, *measured.anchors.values(), *parameters.values()]
    return all(bool(torch.isfinite(value).all()) for value in values)
