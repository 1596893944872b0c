"""What `check-env` found, one line a check, and the loop that runs checks."""

from __future__ import annotations

import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marl_tr.vector.errors import BadEnvironmentConfig

__all__ = ["Check", "CheckReport", "Finding", "Outcome", "run_checks", "told"]


@dataclass(frozen=True)
class Outcome:
    """One check's verdict; `ok` with `warning` is something to know rather than to mend."""

    ok: bool
    message: str
    cure: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Check:
    """One question to an environment.

    Attributes:
        name: Short, for the table.
        run: Answers it; an exception is a failed check.
        cure: What to change where `run` raises.
        after: Checks that must have passed; where one did not, this one is not run.
    """

    name: str
    run: Callable[[], Outcome]
    cure: str
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: Its name.
        ok: Passed, perhaps with a warning.
        message: What was seen.
        cure: What to change; empty where nothing is to be changed.
        seconds: Wall time of the check.
        warning: Passed, and yet worth knowing.
    """

    check: str
    ok: bool
    message: str
    cure: str
    seconds: float
    warning: bool = False


@dataclass(frozen=True)
class CheckReport:
    """All findings about one environment.

    Attributes:
        id: The environment.
        findings: In the order in which the checks ran.
        not_run: Checks left out because one that they build on failed.
        unchecked: What no check asks of this environment, in words.
    """

    id: str
    findings: tuple[Finding, ...]
    not_run: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(finding.ok for finding in self.findings)

    def render(self, width: int = 110) -> str:
        """A table of text at most `width` columns wide: verdict, check, what was seen, and the cure."""
        failed = sum(not finding.ok for finding in self.findings)
        warned = sum(finding.warning for finding in self.findings)
        seconds = sum(finding.seconds for finding in self.findings)
        verdict = "passed" if self.passed else f"{failed} of {len(self.findings)} checks FAILED"
        lines = [f"{self.id}: {verdict} ({len(self.findings)} checks, {warned} warnings, {seconds:.1f} s)"]
        column = max((len(finding.check) for finding in self.findings), default=0)
        for finding in self.findings:
            mark = "warning" if finding.warning else "ok" if finding.ok else "FAILED"
            text = finding.message + (f" Cure: {finding.cure}" if finding.cure else "")
            lead = f"  {mark:<7}  {finding.check:<{column}}  "
            lines += textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=" " * len(lead)) or [
                lead.rstrip()
            ]
        if self.not_run:
            text = f"  not run until the above is mended: {', '.join(self.not_run)}"
            lines += textwrap.wrap(text, width, subsequent_indent="    ")
        if self.unchecked:
            lines += textwrap.wrap(f"  not checked: {'; '.join(self.unchecked)}", width, subsequent_indent="    ")
        return "\n".join(lines)


def run_checks(id: str, checks: Sequence[Check], before: CheckReport | None = None) -> CheckReport:
    """Run `checks` in order; whatever one raises becomes its finding.

    Args:
        id: The environment.
        checks: The questions.
        before: Findings so far; they come first in the result and count for `Check.after`.

    Raises:
        BadEnvironmentConfig: A factory does not take its settings, which says nothing about the environment.
    """
    findings = list(before.findings) if before else []
    not_run = list(before.not_run) if before else []
    passed = {finding.check for finding in findings if finding.ok}
    for check in checks:
        if not passed.issuperset(check.after):
            not_run.append(check.name)
            continue
        start = time.perf_counter()
        try:
            outcome = check.run()
        except BadEnvironmentConfig:
            raise  # the caller's mistake, not the environment's
        except Exception as error:  # the environment's own code runs here; any failure of it is a finding
            outcome = Outcome(False, f"{told(error)}.", check.cure)
        seconds = time.perf_counter() - start
        findings.append(
            Finding(check.name, outcome.ok, outcome.message, outcome.cure, seconds, outcome.ok and outcome.warning)
        )
        if outcome.ok:
            passed.add(check.name)
    return CheckReport(id, tuple(findings), tuple(not_run))


def told(error: Exception) -> str:
    """What was raised, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}{where}"
