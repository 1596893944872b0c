"""Was every bound kept? An independent reading of the runs' audit.jsonl.

Nothing of the Guard is used here: the lines are read, their chain of digests is computed anew, and each
update that was committed under a hard bound is compared with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marl_tr.errors import UserError
from marl_tr.events.audit_log import AUDIT_FILE, GENESIS, chained_line
from marl_tr.events.strict_json import number
from marl_tr.region.own_limit import OWN, own_slack

__all__ = ["TOLERANCE", "AuditError", "AuditReport", "Finding", "LearnerAudit", "audit"]

TOLERANCE = 1e-6
"""A divergence up to ``bound * (1 + TOLERANCE)`` keeps the bound: the rounding of a float32 sum."""

_OUTCOMES = ("accepted", "interpolated", "rejected")
_GUARANTEES = ("hard", "soft", "none")
_MOST_SHOWN = 20


class AuditError(UserError):
    """An audit log is missing, empty, cut off or unreadable; says which file and line."""


@dataclass(frozen=True)
class Finding:
    """Something that should not be in an audit log.

    Attributes:
        where: ``file:line``.
        what: The problem, with its numbers.
    """

    where: str
    what: str


@dataclass
class LearnerAudit:
    """The updates of one learner in one run.

    Attributes:
        run: The run's folder.
        learner: Its name.
        kind: ``"policy"``, ``"critic"``, ``"own"`` (a region's own hard limit), or the position term whose bound it is
            (``"anchor"``, ``"anchor_2"``).
        guarantee: ``"hard"``, ``"soft"`` or ``"none"``.
        outcomes: How many updates ended how.
        largest_ratio: Largest divergence / limit of the committed updates; None where none had a bound.
        backtracks: Over all updates, together.
        violations: Updates committed beyond a hard bound.
        began_beyond: Committed updates of a policy that was beyond the bound on their batch already, which may not
            take it farther away.
    """

    run: Path
    learner: str
    kind: str
    guarantee: str
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OUTCOMES, 0))
    largest_ratio: float | None = None
    backtracks: int = 0
    violations: int = 0
    began_beyond: int = 0

    @property
    def updates(self) -> int:
        """All updates, whatever became of them."""
        return sum(self.outcomes.values())

    @property
    def mean_backtracks(self) -> float:
        """Backtracks an update."""
        return self.backtracks / self.updates


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Attributes:
        rows: One entry a run, learner, kind and guarantee, in the order of their first lines.
        findings: Every problem; empty where all is well.
    """

    rows: tuple[LearnerAudit, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No finding: every hard bound was kept and no line was touched."""
        return not self.findings

    def render(self) -> str:
        """A table of the rows, the findings, and the verdict, as plain text."""
        header = ("run", "learner", "kind", "guarantee", "updates", *_OUTCOMES, "largest ratio", "backtracks")
        cells: list[tuple[str, ...]] = [header]
        for row in self.rows:
            ratio = "-" if row.largest_ratio is None else f"{row.largest_ratio:.6f}"
            counts = (str(row.outcomes[outcome]) for outcome in _OUTCOMES)
            names = ("/".join(row.run.parts[-2:]), row.learner, row.kind, row.guarantee)
            cells.append((*names, str(row.updates), *counts, ratio, f"{row.mean_backtracks:.2f}"))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                # Names to the left, numbers to the right.
                cell.ljust(width) if index < 4 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += ["", "Ratio: divergence / bound of committed updates. Backtracks: mean an update.", ""]
        lines += [f"{finding.where}: {finding.what}" for finding in self.findings[:_MOST_SHOWN]]
        if len(self.findings) > _MOST_SHOWN:
            lines.append(f"... and {len(self.findings) - _MOST_SHOWN} more")
        lines.append(self._verdict())
        return "\n".join(lines)

    def _verdict(self) -> str:
        hard = [row for row in self.rows if row.guarantee == "hard"]
        committed = sum(row.updates - row.outcomes["rejected"] for row in hard)
        violations = sum(row.violations for row in hard)
        if violations:
            return f"NOT KEPT: {violations} of {committed} updates committed under a hard bound exceed it."
        if self.findings:
            count = len(self.findings)
            return f"NOT TRUSTWORTHY: {count} finding{'s' if count > 1 else ''} in the logs."
        if not hard:
            return "OK: no update claims a hard bound; all digests are right."
        beyond = sum(row.began_beyond for row in hard)
        apart = f" ({beyond} began beyond it on their batch, and went no farther)" if beyond else ""
        return f"OK: all {committed} updates committed under a hard bound kept it{apart}; all digests are right."


def audit(run_dirs: Sequence[Path]) -> AuditReport:
    """Read the audit logs of runs and check every line.

    Checked: the chain of digests; that iterations and steps never go back; that each update committed (accepted or
    interpolated) under a hard bound has a finite divergence of at most ``bound * (1 + TOLERANCE)``; where a line says
    how far the policy was from an anchor `before` the update, the larger of the two counts, and the line's own
    `limit` must be that. Where lines of an iteration name a joint bound, their shares and their committed divergences
    must not add up to more. What cannot be seen: lines cut off cleanly at the end (a resume sees that).

    Raises:
        AuditError: No runs, a log that is missing, empty or cut off, or a line that is no audit line.
    """
    if not run_dirs:
        raise AuditError("no runs to audit")
    rows: dict[tuple[Path, str, str, str], LearnerAudit] = {}
    findings: list[Finding] = []
    for run in run_dirs:
        before: Mapping[str, Any] = {"iteration": 0, "step": 0}
        joint = _Joint()
        for where, line in _lines(run, findings):
            key = (run, line["learner"], line["kind"], line["guarantee"])
            row = rows.setdefault(key, LearnerAudit(*key))
            findings += [Finding(where, what) for what in (*_went_back(before, line), *_enter(row, line))]
            findings += [Finding(where, what) for what in joint.enter(line)]
            before = line
    return AuditReport(tuple(rows.values()), tuple(findings))


def _enter(row: LearnerAudit, line: Mapping[str, Any]) -> Iterator[str]:
    """Count one line; yields what is wrong with it."""
    outcome, bound, divergence = line["outcome"], line["bound"], line["accepted"]
    row.outcomes[outcome] += 1
    row.backtracks += line["backtracks"]
    if outcome == "rejected":
        return
    # Only a distance from an anchor can be there before an update; that of an update begins at zero.
    before = line["before"] if line["direction"] == "kl_anchor_new" else None
    limit = bound if bound is None or before is None else max(bound, before)
    if limit is not None and limit > 0:
        ratio = divergence / limit
        if row.largest_ratio is None or not ratio <= row.largest_ratio:
            row.largest_ratio = ratio
    if line["guarantee"] != "hard":
        return
    who = f"iteration {line['iteration']}, {line['kind']} of {line['learner']!r}, {outcome}"
    if bound is None:
        row.violations += 1
        yield f"{who}: a hard guarantee without a bound"
        return
    if before is not None and before > bound:
        row.began_beyond += 1
    if line["limit"] is not None and line["limit"] != limit:
        yield f"{who}: limit {line['limit']:.9g} is neither the bound {bound:.9g} nor where the policy was before"
    # Written so that a nan, of which no comparison is true, is a violation.
    slack = own_slack(limit) if line["kind"] == OWN else 0.0
    if not divergence <= limit * (1 + TOLERANCE) + slack or not math.isfinite(divergence):
        row.violations += 1
        beyond = "" if limit == bound else f", beyond which it began at {limit:.9g}"
        yield f"{who}: divergence {divergence:.9g} exceeds its bound {bound:.9g}{beyond} ({line['direction']})"


@dataclass
class _Joint:
    """The lines of one iteration whose bounds are shares of one that their learners have together."""

    iteration: int = -1
    bound: float | None = None
    shares: float = 0.0
    accepted: float = 0.0

    def enter(self, line: Mapping[str, Any]) -> Iterator[str]:
        """Count one line; yields what is wrong with the sums that it completes."""
        if line["joint_bound"] is None:
            return
        if self.bound is None or line["iteration"] != self.iteration:
            self.iteration, self.bound, self.shares, self.accepted = line["iteration"], line["joint_bound"], 0.0, 0.0
        bound: float = line["joint_bound"] if self.bound is None else self.bound
        who = f"iteration {self.iteration}, {line['kind']} of {line['learner']!r}"
        if line["joint_bound"] != bound:
            yield f"{who}: joint bound {line['joint_bound']:.9g}, and {bound:.9g} for others of the iteration"
            return
        if line["bound"] is None:
            yield f"{who}: a joint bound without a share of it"
            return
        limit = bound * (1 + TOLERANCE)
        kept = self.shares <= limit, self.accepted <= limit
        self.shares += line["bound"]
        self.accepted += 0.0 if line["outcome"] == "rejected" else line["accepted"]
        # Once an iteration, by the line that goes beyond; a nan of a hard guarantee is a violation of its own.
        if kept[0] and not self.shares <= limit:
            yield f"{who}: shares come to {self.shares:.9g}, more than the joint bound {bound:.9g}"
        if line["guarantee"] == "hard" and kept[1] and self.accepted > limit:
            yield f"{who}: divergences come to {self.accepted:.9g}, more than the joint bound {bound:.9g}"


def _went_back(before: Mapping[str, Any], line: Mapping[str, Any]) -> Iterator[str]:
    for name in ("iteration", "step"):
        if line[name] < before[name]:
            yield f"{name} goes back from {before[name]} to {line[name]}"


def _lines(run: Path, findings: list[Finding]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a run's log with their places; breaks in the chain go to `findings`."""
    path = run / AUDIT_FILE
    data = _read(path)
    previous = GENESIS
    for row, raw in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{path}:{row}"
        try:
            written = json.loads(raw)
            digest = written.pop("digest")
            expected, _ = chained_line(written, previous)
            line = _typed(written)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AuditError(f"{where}: not an audit line ({type(error).__name__}: {error})") from error
        if raw != expected.encode():
            findings.append(Finding(where, "wrong digest: the line was edited, or the one before it removed"))
        # Go on from what is written: one edited line is one finding, not one for every later line.
        previous = str(digest)
        yield where, line


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if path.parent.is_dir():
            raise AuditError(f"{path.parent} has no {AUDIT_FILE}: is it the folder of a run?") from error
        raise AuditError(f"no such run: {path.parent}") from error
    except OSError as error:
        raise AuditError(f"cannot read {path}: {error.strerror or error}") from error
    if not data:
        raise AuditError(f"{path} is empty: the run ended before its first update")
    if not data.endswith(b"\n"):
        row = data.count(b"\n") + 1
        raise AuditError(f"{path}:{row}: the last line is cut off; 'marl-tr resume' goes on before it")
    return data


def _typed(line: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the audit needs, checked; numbers from their JSON spelling."""
    typed: dict[str, Any] = {
        "bound": None if line["bound"] is None else number(line["bound"]),
        "accepted": number(line["accepted"]),
        # Of bounds to anchors alone.
        "before": None if line.get("before") is None else number(line["before"]),
        "limit": None if line.get("limit") is None else number(line["limit"]),
        # Of learners that have a bound together.
        "joint_bound": None if line.get("joint_bound") is None else number(line["joint_bound"]),
    }
    for name in ("iteration", "step", "backtracks"):
        if type(line[name]) is not int or line[name] < 0:
            raise ValueError(f"{name} is {line[name]!r}, not a count")
        typed[name] = line[name]
    for name in ("learner", "kind", "direction"):
        if not isinstance(line[name], str):
            raise ValueError(f"{name} is {line[name]!r}, not a name")
        typed[name] = line[name]
    for name, allowed in (("guarantee", _GUARANTEES), ("outcome", _OUTCOMES)):
        if line[name] not in allowed:
            raise ValueError(f"{name} is {line[name]!r}, not one of {', '.join(allowed)}")
        typed[name] = line[name]
    return typed
