"""``marl-tr compare``: carry a sweep out, go on with it, report it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marl_tr.comparison.attempts import read_attempts, seconds_spent, write_attempt
from marl_tr.comparison.pool import Ended, Job, carry_out
from marl_tr.comparison.rehearsal import rehearse
from marl_tr.comparison.report import duration, task_table, write_all
from marl_tr.comparison.runs import (
    Found,
    diverged_because,
    find_run,
    find_runs,
    refuse_changed,
    runs_dir,
    scenario_file,
    write_scenarios,
)
from marl_tr.comparison.scores import read_scores
from marl_tr.comparison.summary import summarise
from marl_tr.comparison.sweep import Sweep
from marl_tr.errors import Interrupted, UserError
from marl_tr.trainer.lock import locked

__all__ = ["NoComparison", "Outcome", "compare"]

_LOCK = "compare.lock"


class NoComparison(UserError):
    """Where a comparison was to be reported there is none; says where it looked."""


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended.

    Attributes:
        failed: Runs that are not finished, though it was tried; None of them: all is well.
        summary: What ``compare.json`` holds; None where no run is finished, and of a dry run.
    """

    failed: tuple[str, ...]
    summary: Mapping[str, Any] | None


def compare(
    sweep: Sweep,
    out: Path,
    *,
    jobs: int = 1,
    dry_run: bool = False,
    report_only: bool = False,
    say: Callable[[str], None] = print,
    show: Callable[[Sequence[str], Sequence[Sequence[str]]], None] = lambda columns, rows: None,
) -> Outcome:
    """Run what is missing of a sweep, and report all of it.

    Finished runs are kept, unfinished ones go on from their newest checkpoint, diverged ones stay as they are.

    Args:
        sweep: What to compare.
        out: Folder of the comparison.
        jobs: Runs side by side.
        dry_run: Only say what there is and what it would cost.
        report_only: Only report the runs that are finished.
        say: Takes a line for the reader.
        show: Takes a table for the reader.

    Raises:
        BadVariants: Some cannot be built; nothing was started.
        NoComparison: There are no runs in `out` to report.
        ChangedSettings: `out` holds runs of other settings.
        RunInUse: Another process carries this comparison out.
        Interrupted: After all runs have saved; the same call goes on.
    """
    if report_only:
        _refuse_missing(out)
    refuse_changed(sweep, out)
    found = find_runs(sweep, out)
    for warning in sweep.warnings:
        say(f"warning: {warning}")
    if not report_only:
        rehearse([run.cell for run in found if run.seed == sweep.seeds[0] and run.state in ("unfinished", "absent")])
    if dry_run:
        _describe(found, out, jobs, say, show)
        return Outcome((), None)
    out.mkdir(parents=True, exist_ok=True)
    (out / _LOCK).touch()
    with locked(out, _LOCK):
        if not report_only:
            found = _carry_out(sweep, found, out, jobs, say)
        failed = tuple(run.label for run in found if run.state != "finished") if not report_only else ()
        return Outcome(failed, _report(sweep, found, out, say, show))


def _refuse_missing(out: Path) -> None:
    if runs_dir(out).is_dir():
        return
    beside = sorted(path.name for path in out.parent.glob("*") if runs_dir(path).is_dir())
    near = difflib.get_close_matches(out.name, beside, n=1)
    hint = f"; did you mean {out.parent / near[0]}?" if near else ""
    raise NoComparison(f"no comparison to report in {out}: there is no folder {runs_dir(out)}{hint}")


def _describe(
    found: Sequence[Found],
    out: Path,
    jobs: int,
    say: Callable[[str], None],
    show: Callable[[Sequence[str], Sequence[Sequence[str]]], None],
) -> None:
    rows = [
        [run.cell.task, run.cell.variant, str(run.seed), run.state, f"{run.steps_left:,}" if run.steps_left else ""]
        for run in found
    ]
    show(("task", "variant", "seed", "state", "steps left"), rows)
    left = [run for run in found if run.state in ("unfinished", "absent")]
    say(f"{len(found)} runs, {len(found) - len(left)} of them done; {sum(r.steps_left for r in left):,} steps to go")
    if left:
        say(_Cost(found, out, jobs).render(left))


def _carry_out(sweep: Sweep, found: Sequence[Found], out: Path, jobs: int, say: Callable[[str], None]) -> list[Found]:
    """Start or resume what is not done; returns what there is afterwards."""
    write_scenarios(sweep, out)
    now = {run.label: run for run in found}
    todo = {run.label: run for run in found if run.state in ("unfinished", "absent")}
    done = len(found) - len(todo)
    if done:
        say(f"{done} of {len(found)} runs are done already")
    for run in found:
        if run.state == "diverged" and run.folder is not None:
            say(f"{run.label} diverged ({diverged_because(run.folder)}); delete {run.folder} to try it again")

    def ended(process: Ended) -> None:
        nonlocal done
        run = now[process.job.label]
        write_attempt(
            out, process, task=run.cell.task, variant=run.cell.variant, seed=run.seed, at_once=min(jobs, len(todo))
        )
        now[run.label] = again = find_run(run.cell, run.seed, out)
        stopped = process.code == 130
        if not stopped:
            done += 1
            waiting.pop(run.label, None)
        head = f"[{done}/{len(found)}] {run.label}"
        if process.code == 0 and again.state == "finished":
            score = read_scores(again, sweep.file.score).final
            cost = _Cost(list(now.values()), out, jobs).left(list(waiting.values()))
            later = f"; about {duration(cost)} left" if cost is not None and waiting else ""
            say(f"{head}: {score:.4g} after {duration(process.seconds)}{later}")
        elif stopped:
            say(f"{head}: stopped" + (f", saved at step {again.step:,}" if again.state == "unfinished" else ""))
        else:
            cause = process.last_line
            if again.state == "diverged" and again.folder is not None:
                cause = f"diverged: {diverged_because(again.folder)}"
            say(f"{head}: failed (exit {process.code}): {cause}\n    log: {process.job.log}")

    waiting = dict(todo)
    complete = carry_out([_job(run, out) for run in todo.values()], at_once=jobs, ended=ended)
    if not complete:
        raise Interrupted(f"the runs are saved in {out}; the same command goes on, --report-only tells of what is done")
    return list(now.values())


def _job(run: Found, out: Path) -> Job:
    file = scenario_file(out, run.cell)
    resumed = run.state == "unfinished" and run.folder is not None
    arguments = ("resume", str(run.folder)) if resumed else ("run", str(file), "--seed", str(run.seed))
    log = out / "logs" / run.cell.task / f"{run.cell.variant}-seed{run.seed}.log"
    return Job(run.label, arguments, log, run.cell.scenario.trainer.threads)


def _report(
    sweep: Sweep,
    found: Sequence[Found],
    out: Path,
    say: Callable[[str], None],
    show: Callable[[Sequence[str], Sequence[Sequence[str]]], None],
) -> Mapping[str, Any] | None:
    if not any(run.state == "finished" for run in found):
        say("no run is finished: there is nothing to report")
        return None
    summary = summarise(sweep, found, out, read_attempts(out))
    files = write_all(sweep, summary, found, out)
    for task, own in summary["tasks"].items():
        say(f"\n{task} ({own['score']})")
        show(*task_table(own, summary, sweep.file.baseline))
    say("")
    for warning in summary["warnings"][len(sweep.warnings) :]:
        say(f"warning: {warning}")
    if summary["note"]:
        say(f"warning: {summary['note']}")
    for path in files:
        say(f"{_KINDS[path.suffix]:<8} {path}")
    return summary


_KINDS = {".md": "tables", ".json": "numbers", ".png": "figure"}


class _Cost:
    """What runs take, from those that are finished: of the same cell, else of the same task.

    Args:
        found: All runs of the sweep.
        out: Folder of the comparison, for the record of what processes took.
        jobs: Runs side by side.
    """

    def __init__(self, found: Sequence[Found], out: Path, jobs: int) -> None:
        self._jobs = jobs
        self._rates: dict[str, list[float]] = {}
        attempts = read_attempts(out)
        for run in found:
            if run.state != "finished":
                continue
            spent = seconds_spent(attempts, task=run.cell.task, variant=run.cell.variant, seed=run.seed)
            if spent is not None:
                rate = spent / run.cell.scenario.trainer.total_steps
                for name in (run.cell.label, run.cell.task):
                    self._rates.setdefault(name, []).append(rate)

    def left(self, runs: Sequence[Found]) -> float | None:
        """Seconds until `runs` are done; None where nothing is known of one of them."""
        total = 0.0
        for run in runs:
            rates = self._rates.get(run.cell.label) or self._rates.get(run.cell.task)
            if not rates:
                return None
            total += sum(rates) / len(rates) * run.steps_left
        return total / max(1, min(self._jobs, len(runs)))

    def render(self, runs: Sequence[Found]) -> str:
        """One line."""
        seconds = self.left(runs)
        if seconds is None:
            return "cost: not known yet; it is once a run of each task is finished"
        side = f", {self._jobs} at once" if self._jobs > 1 else ""
        return f"cost: about {duration(seconds)}{side}, going by the runs that are finished"
