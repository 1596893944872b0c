"""The Guard: the one place that measures a candidate, keeps the bound, commits, and writes the audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.turn import Candidate, Measurement, Region, Turn

__all__ = ["Guard", "UpdateReport"]


@dataclass(frozen=True)
class UpdateReport:
    """What became of one learner's candidate.

    Attributes:
        learner: Name.
        guarantee: Of the region: ``"hard" | "soft" | "none"``.
        bound: Of the region, or None.
        direction: Which divergence.
        proposed: Divergence of the candidate as proposed, nats.
        accepted: Divergence of what is now in force (0 where rejected).
        outcome: ``"accepted" | "interpolated" | "rejected"``.
        backtracks: Shortenings by the region and by the Guard together.
        surrogate_gain: Of what is now in force.
        expected_gain: First-order prediction, or None.
        cg_residual: Of the solve, or None.
        reason: Why it was not accepted as proposed.
        log_ratio: ``[T, N, K]`` of what is now in force, for schedules with a compounding factor.
        entropy: Mean entropy of what is now in force.
    """

    learner: str
    guarantee: str
    bound: float | None
    direction: str
    proposed: float
    accepted: float
    outcome: str
    backtracks: int
    surrogate_gain: float
    expected_gain: float | None
    cg_residual: float | None
    reason: str
    log_ratio: Tensor
    entropy: float

    def audit_line(self) -> dict[str, Any]:
        """The report without its tensor, for ``audit.jsonl``."""
        return {
            "learner": self.learner,
            "kind": "policy",
            "guarantee": self.guarantee,
            "bound": self.bound,
            "direction": self.direction,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "outcome": self.outcome,
            "backtracks": self.backtracks,
            "surrogate_gain": self.surrogate_gain,
            "expected_gain": self.expected_gain,
            "cg_residual": self.cg_residual,
            "reason": self.reason,
        }


class Guard:
    """Accepts, interpolates or rejects candidates, a row at a time.

    Where a ``hard`` bound is exceeded the row is interpolated back towards its old parameters; if no interpolation
    meets the bound, or something is not finite, the row is rejected: parameters and optimizer moments stay
    bit-identical. After an interpolation the moments are reset, for they belong to a step that was not taken.

    Args:
        audit: Receives one line a learner and update.
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
        return reports

    def _row(self, region: Region, turn: Turn, candidate: Candidate, k: int) -> UpdateReport:
        row = turn.rows[0]
        old = turn.learners.parameters([row])
        new = {name: p[k : k + 1] for name, p in candidate.parameters.items()}
        measured = turn.measure(new)
        proposed = float(measured.divergence)
        outcome, reason, tries = "accepted", candidate.reasons[k], 0
        hard_bound = region.bound if region.guarantee == "hard" else None
        if reason:
            outcome = "rejected"
        elif not all(bool(torch.isfinite(p).all()) for p in new.values()):
            outcome, reason = "rejected", "the candidate is not finite"
        elif hard_bound is not None and not proposed <= hard_bound:
            found = self._interpolate(turn, old, new, hard_bound, proposed)
            if found is None:
                outcome, reason = (
                    "rejected",
                    f"divergence {proposed:.3g} exceeds the bound at every interpolation",
                )
            else:
                outcome, reason = "interpolated", f"divergence {proposed:.3g} exceeded the bound"
                new, measured, tries = found
        elif not _finite(new, measured):
            outcome, reason = "rejected", "what the candidate does is not finite"
        if outcome == "rejected":
            measured = turn.measure(old)
        else:
            moments = candidate.moments[k] if outcome == "accepted" else {}
            turn.learners.commit(row, new, moments)
        return UpdateReport(
            learner=turn.names[0],
            guarantee=region.guarantee,
            bound=region.bound,
            direction=region.direction,
            proposed=proposed,
            accepted=0.0 if outcome == "rejected" else float(measured.divergence),
            outcome=outcome,
            backtracks=candidate.backtracks[k] + tries,
            surrogate_gain=0.0 if outcome == "rejected" else float(measured.gain),
            expected_gain=candidate.expected_gain[k],
            cg_residual=candidate.cg_residual[k],
            reason=reason,
            log_ratio=(measured.log_prob - turn.old.log_prob)[0],
            entropy=float(measured.entropy),
        )

    def _interpolate(
        self, turn: Turn, old: Parameters, new: Parameters, bound: float, divergence: float
    ) -> tuple[Parameters, Measurement, int] | None:
        """Shorten the step until the measured divergence meets `bound`.

        The divergence is quadratic in a short step, so the first try is the length at which the parabola through
        the last measurement meets the bound, a little inside.
        """
        share = 1.0
        for tries in range(1, self._max_interpolations + 1):
            share *= min(0.9, 0.98 * math.sqrt(bound / divergence)) if math.isfinite(divergence) else 0.5
            point = {name: torch.lerp(old[name], new[name], share) for name in old}
            measured = turn.measure(point)
            divergence = float(measured.divergence)
            if divergence <= bound and _finite(point, measured):
                return point, measured, tries
        return None


def _finite(parameters: Parameters, measured: Measurement) -> bool:
    values = [measured.divergence, measured.gain, *parameters.values()]
    return all(bool(torch.isfinite(value).all()) for value in values)
