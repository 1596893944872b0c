"""``marl-tr nash-gap``: the audit of a run, with its cost, its files and a way to go on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from marl_tr.analysis.plots import save_figure
from marl_tr.equilibrium.auditor import Auditor
from marl_tr.equilibrium.cross_play import cross_play
from marl_tr.equilibrium.episodes import check_repeatable
from marl_tr.equilibrium.figure import gap_figure
from marl_tr.equilibrium.game import FrozenRun, frozen_run
from marl_tr.equilibrium.plays import Subject
from marl_tr.equilibrium.report import audit_summary, cross_summary, markdown, write_section, write_tags
from marl_tr.equilibrium.settings import AuditSettings
from marl_tr.errors import Interrupted, UserError
from marl_tr.trainer.lock import locked
from marl_tr.trainer.run import SCENARIO_FILE
from marl_tr.trainer.stopping import stop_request

__all__ = ["FOLDER", "REPORT_FILE", "Cost", "nash_gap"]

FOLDER = "nash_gap"
REPORT_FILE = "nash_gap.json"
FIGURE = "nash_gap.png"
_REQUEST_FILE = "request.json"
_VERSION = 1


@dataclass(frozen=True)
class Cost:
    """What an audit takes, said before it begins.

    Attributes:
        responders: Trainings, all together.
        least: Environment steps of them where no gap grows at the first doubling.
        most: Where all grow at every doubling.
        seconds_a_step: Measured by one iteration, which is thrown away.
    """

    responders: int
    least: int
    most: int
    seconds_a_step: float

    def render(self) -> str:
        """One line."""
        ends = sorted({self.least, self.most})
        steps = " to ".join(f"{end:,}" for end in ends)
        seconds = " to ".join(_duration(end * self.seconds_a_step) for end in ends)
        return (
            f"cost: {self.responders} responders, {steps} environment steps of training; about {seconds} at "
            f"{1 / self.seconds_a_step:,.0f} steps a second (measured), evaluations beside them"
        )


def nash_gap(
    folder: Path,
    settings: AuditSettings | None = None,
    *,
    cross: Sequence[Path] = (),
    restart: bool = False,
    dry_run: bool = False,
    confirm: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Audit a run: what could each agent gain by deviating alone from the policies of its newest checkpoint?

    Leaves ``nash_gap.json``, ``media/nash_gap.png``, scalars and a section of ``report.md`` in the run's folder, and
    the responders in ``nash_gap/``. The same call goes on with an audit that was stopped; on a CPU the outcome equals
    the uninterrupted one's byte for byte.

    Args:
        folder: Of the run.
        settings: How hard, and how it is measured.
        cross: Folders of other runs of the same environment, for the cross-play table.
        restart: Throw away what an earlier audit left.
        dry_run: Only say what it would cost.
        confirm: Asked once the cost has been said, before anything is trained.
        say: Takes a line for the reader.

    Returns:
        What ``nash_gap.json`` holds; None of a dry run, and where `confirm` says no.

    Raises:
        UserError: No run, no checkpoint, agents that do not exist, a game that cannot be audited, or an audit with
            other settings in the folder.
        RunInUse: Another process trains or audits the run.
        Interrupted: After saving.
    """
    settings = settings or AuditSettings()
    settings.check()
    with ExitStack() as stack:
        run = stack.enter_context(frozen_run(folder, payoff=settings.payoff))
        torch.set_num_threads(run.game.scenario.trainer.threads)
        stack.enter_context(locked(folder, SCENARIO_FILE))
        others = _others(stack, run, cross, settings)
        audit = _Audit(run, others, settings, say)
        audit.open(restart=restart, dry_run=dry_run)
        if not dry_run and (known := audit.finished()) is not None:
            say(f"{folder / REPORT_FILE} is finished; nothing was changed")
            return known
        check_repeatable(run.game.make, run.subject, payoff=run.game.payoff)
        say(audit.cost().render())
        if dry_run or not confirm():
            return None
        with stop_request(_how_to_go_on(folder)) as stop:
            try:
                return audit.carry_out(stop.is_set)
            except Interrupted as error:
                raise Interrupted(f"saved in {folder / FOLDER}; {_how_to_go_on(folder)}") from error


class _Audit:
    """One audit of one run with its files.

    Args:
        run: What is audited.
        others: Subjects beside it in the cross-play.
        settings: Of the audit.
        say: Takes a line for the reader.
    """

    def __init__(
        self, run: FrozenRun, others: Sequence[Subject], settings: AuditSettings, say: Callable[[str], None]
    ) -> None:
        self._run, self._others, self._settings, self._say = run, tuple(others), settings, say
        self._agents = run.game.check_agents(settings.agents)
        self._controls = run.game.named(settings.controls, "controls")
        run.game.named(settings.deviations, "deviations")
        self._budget = settings.budget or max(1, -(-run.step // 4))
        self._folder = run.folder / FOLDER
        self._done = 0
        self._began = time.monotonic()

    def open(self, *, restart: bool, dry_run: bool) -> None:
        """Make or check the audit's folder.

        Raises:
            UserError: It holds an audit with other settings, or of another checkpoint.
        """
        request, path = self._request(), self._folder / _REQUEST_FILE
        if restart and not dry_run:
            shutil.rmtree(self._folder, ignore_errors=True)
            (self._run.folder / REPORT_FILE).unlink(missing_ok=True)
        if path.is_file() and not restart:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in {*before, *request} if before.get(key) != request.get(key))
            if changed and not dry_run:
                told = ", ".join(f"{key} was {before.get(key)!r} and is {request.get(key)!r}" for key in changed)
                raise UserError(
                    f"{self._folder} holds an audit that was asked for otherwise ({told}); --restart deletes it"
                )
        if not dry_run:
            self._folder.mkdir(exist_ok=True)
            _write(path, request)

    def finished(self) -> dict[str, Any] | None:
        """The report, where there is one."""
        path = self._run.folder / REPORT_FILE
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def cost(self) -> Cost:
        """Of all trainings; the speed is that of one iteration against the policies themselves."""
        auditor = self._auditor()
        count = sum(len(auditor.names(self._run.subject, agent)) for agent in self._agents)
        count += sum(len(auditor.names(control, self._agents[0])) for control in self._controls)
        if self._settings.omniscient:
            count += sum(len(auditor.names(self._run.subject, agent, omniscient=True)) for agent in self._agents)
        probe = auditor.responder(self._run.subject, self._agents[0], "fresh_0")
        return Cost(count, count * self._budget * 2, self._most(count), probe.seconds_a_step())

    def carry_out(self, stop: Callable[[], bool]) -> dict[str, Any]:
        """All of it."""
        run, settings = self._run, self._settings
        auditor = self._auditor(stop)
        policy = auditor.audit(run.subject, self._agents)
        controls = [auditor.audit(control, self._agents[:1]) for control in self._controls]
        omniscient = auditor.audit(run.subject, self._agents, omniscient=True) if settings.omniscient else None
        crossed = None
        if self._others:
            pool = [run.subject, *self._others, *run.game.named(settings.deviations, "deviations")]
            crossed = cross_play(run.game, pool, self._agents, settings, stop=stop)
        report = {
            "version": _VERSION,
            "scenario": run.game.scenario.name,
            "environment": run.game.spec.id,
            "step": run.step,
            "payoff": run.game.payoff,
            "budget": self._budget,
            "settings": settings.plain(),
            "policy": audit_summary(policy),
            "controls": [audit_summary(control) for control in controls],
            "omniscient": None if omniscient is None else audit_summary(omniscient),
            "cross_play": None if crossed is None else cross_summary(crossed),
            "bound": "lower",
        }
        self._write(report)
        return report

    def _write(self, report: Mapping[str, Any]) -> None:
        folder = self._run.folder
        audits = [report["policy"], *report["controls"], *([report["omniscient"]] if report["omniscient"] else [])]
        title = f"{report['scenario']}: what an agent gains by deviating alone, step {report['step']:,}"
        picture = folder / "media" / FIGURE
        save_figure(gap_figure(audits, title=title), picture)
        write_tags(folder, report)
        section = write_section(folder, report)
        # Last: the file says that the audit is finished.
        _write(folder / REPORT_FILE, report)
        for line in ("", *markdown(report).splitlines(), ""):
            self._say(line)
        self._say(f"numbers      {folder / REPORT_FILE}")
        self._say(f"picture      {picture}")
        if not section:
            self._say("the run has no report.md yet, so it got no section there")

    def _auditor(self, stop: Callable[[], bool] = lambda: False) -> Auditor:
        return Auditor(
            self._run.game,
            self._settings,
            self._folder,
            budget=self._budget,
            stop=stop,
            tick=self._tick,
            say=self._progress,
        )

    def _tick(self, steps: int) -> None:
        self._done += steps

    def _progress(self, line: str) -> None:
        spent = time.monotonic() - self._began
        self._say(f"{line}  [{self._done:,} steps in {_duration(spent)}]")

    def _most(self, count: int) -> int:
        return int(count * self._budget * 2**self._settings.doublings)

    def _request(self) -> dict[str, Any]:
        """What must be the same when an audit is gone on with."""
        return {
            **self._settings.plain(),
            "step": self._run.step,
            "budget": self._budget,
            "agents": list(self._agents),
            "controls": [control.name for control in self._controls],
            "cross": [other.name for other in self._others],
        }


def _others(stack: ExitStack, run: FrozenRun, folders: Sequence[Path], settings: AuditSettings) -> tuple[Subject, ...]:
    """The policies of other runs, by names that tell them apart."""
    found: list[Subject] = []
    for folder in folders:
        other = stack.enter_context(frozen_run(folder, payoff=settings.payoff))
        if other.game.scenario.env.id != run.game.scenario.env.id or other.game.spec.groups != run.game.spec.groups:
            raise UserError(f"--cross {folder}: its game is not that of {run.folder}")
        scenario = other.game.scenario
        name, taken = f"{scenario.name}-seed{scenario.seed}", {subject.name for subject in found}
        while name in taken:
            name += "'"
        found.append(replace(other.subject, name=name))
    return tuple(found)


def _how_to_go_on(folder: Path) -> str:
    return f"the same command goes on: marl-tr nash-gap {folder}"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
