"""What became of a learner's candidate: for the log, for the audit, and for schedules that go on from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["AnchorReport", "UpdateReport"]


@dataclass(frozen=True)
class AnchorReport:
    """What became of the bound to an anchor in one learner's update, or of a region's own hard limit (kind ``own``).

    The policy may be beyond the bound on this batch, which is another one than the bound was last kept on; then the
    update may not take it farther away: the limit is the larger of bound and `before`.

    Attributes:
        learner: Name.
        kind: The term's name, ``anchor`` or ``anchor_2`` and so on.
        bound: Mean KL(anchor || new), nats.
        before: The same of the policy before the update, on this batch.
        proposed: Of the candidate.
        accepted: Of what is now in force.
        outcome: Of the update.
        reason: What became of this bound, where there is something to say.
        direction: Which measure.
    """

    learner: str
    kind: str
    bound: float
    before: float
    proposed: float
    accepted: float
    outcome: str
    reason: str
    direction: str = "kl_anchor_new"

    @property
    def limit(self) -> float:
        """What was kept."""
        return max(self.bound, self.before)

    def audit_line(self) -> dict[str, Any]:
        """The report for ``audit.jsonl``."""
        return {
            "learner": self.learner,
            "kind": self.kind,
            "guarantee": "hard",
            "bound": self.bound,
            "before": self.before,
            "limit": self.limit,
            "direction": self.direction,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "outcome": self.outcome,
            "backtracks": 0,
            "reason": self.reason,
        }


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
        surrogate_gain: Of what is now in force; None where the objective cannot say.
        expected_gain: First-order prediction, or None.
        cg_residual: Of the solve, or None.
        reason: Why it was not accepted as proposed.
        log_ratio: ``[T, N, K]`` of what is now in force, for schedules with a compounding factor.
        entropy: Mean entropy of what is now in force; None where the policy cannot say.
        anchors: One entry a bound to an anchor, and one of a region's own hard limit.
        regularisers: Scalars of the terms: ``kl_<term>`` in nats of what is now in force, ``kl_<term>_weight``, and
            ``kl_<term>_bound`` where there is one.
        chain: Measures by chain step (`marl_tr.region.chain.chain_measures`); empty where ``K`` is 1.
        measures: What the objective has to say of what is now in force, by tag.
        joint_bound: The bound of several learners together of which `bound` is this one's share, or None.
    """

    learner: str
    guarantee: str
    bound: float | None
    direction: str
    proposed: float
    accepted: float
    outcome: str
    backtracks: int
    surrogate_gain: float | None
    expected_gain: float | None
    cg_residual: float | None
    reason: str
    log_ratio: Tensor
    entropy: float | None
    anchors: tuple[AnchorReport, ...] = ()
    regularisers: dict[str, float] = field(default_factory=dict)
    chain: dict[str, list[float]] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    joint_bound: float | None = None

    def audit_line(self) -> dict[str, Any]:
        """The report without its tensor, for ``audit.jsonl``."""
        joint = {} if self.joint_bound is None else {"joint_bound": self.joint_bound}
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
            **joint,
        }
