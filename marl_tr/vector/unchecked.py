"""What `check-env` does not ask of an environment, so that nobody takes a report for more than it is."""

from __future__ import annotations

from collections.abc import Iterator

from marl_tr.vector.check_spaces import MOST_TRIES
from marl_tr.vector.report import CheckReport
from marl_tr.vector.subject import Subject

__all__ = ["unchecked"]


def unchecked(subject: Subject | None, report: CheckReport, cycles: int) -> tuple[str, ...]:
    """One phrase a thing, true for the environment at hand.

    Args:
        subject: The environment; None where it is a native batch, or cannot be built.
        report: What was found.
        cycles: Steps after which an episode was left.
    """
    return tuple(_phrases(subject, report, cycles))


def _phrases(subject: Subject | None, report: CheckReport, cycles: int) -> Iterator[str]:
    findings = {finding.check: finding for finding in report.findings}
    yield "states that random actions do not reach"
    if subject is None:
        yield "the questions to a single environment (this is a native batch)"
        yield "its hooks (references, media, render)"
    else:
        ends = findings.get("episode ends")
        if ends is not None and ends.warning:
            yield f"what follows step {cycles} of an episode"
        if subject.masked:
            yield "what an action does that a mask forbids"
        allowed = findings.get("allowed actions")
        if allowed is not None and allowed.message.startswith(f"{MOST_TRIES} "):
            yield f"allowed actions after the first {MOST_TRIES}"
        yield "rendering"
    yield "close()"
    if (second := findings.get("two processes")) is not None and second.warning:
        yield "a second process"
