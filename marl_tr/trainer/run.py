"""One run in its folder: the loop with its events, evaluations, checkpoints and end."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from marl_tr.errors import Diverged, Interrupted, UserError
from marl_tr.events import Event, EventStream, Phase
from marl_tr.events.audit_log import AUDIT_FILE, AuditLog, check_chain
from marl_tr.events.chain_log import ChainSink
from marl_tr.events.console import ConsoleSink
from marl_tr.events.jsonl import JsonlSink
from marl_tr.events.line_file import truncate_logs
from marl_tr.events.tensorboard import TensorBoardSink, flatten
from marl_tr.scenario import resolved, scenario_yaml
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.checkpoint import (
    CheckpointError,
    checkpoint_path,
    expect,
    latest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from marl_tr.trainer.evaluation import Episodes
from marl_tr.trainer.first_evaluation import FirstEvaluation
from marl_tr.trainer.held_out import HeldOut
from marl_tr.trainer.loop import Iteration, Trainer, iterations_of
from marl_tr.trainer.seats import Match, against
from marl_tr.trainer.showing import (
    REPORT,
    attention_pictures,
    chain_pictures,
    show_end,
    show_start,
    write_figures,
)
from marl_tr.vector.errors import NotFiniteData

__all__ = ["CHECKPOINTS", "DUMP", "SCENARIO_FILE", "Run", "check_same_scenario", "is_finished", "new_run_folder"]

SCENARIO_FILE = "scenario.yaml"
CHECKPOINTS = "checkpoints"
DUMP = "diverged.json"
# What may be changed in the scenario.yaml of a run between two resumes; all else would make it another run.
_FREE_SECTIONS = {"name", "description", "preset", "evaluation"}
# The device stays: the generator that draws actions lives on it, and its state fits no other kind.
_FREE_TRAINER = {"total_steps", "threads", "checkpoint_every", "keep_checkpoints", "runs_dir"}
_PACKAGES = ("torch", "numpy", "pettingzoo", "gymnasium", "torch-geometric")


def new_run_folder(scenario: Scenario) -> Path:
    """Make ``runs/<scenario>/<UTC time>-seed<seed>/`` with the resolved scenario in it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = Path(scenario.trainer.runs_dir) / scenario.name
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    header = f"# marl-tr {version('marl-tr')}, Python {platform.python_version()}, {versions}\n"
    for attempt in range(100):
        folder = base / f"{stamp}-seed{scenario.seed}{f'-{attempt}' if attempt else ''}"
        try:
            folder.mkdir(parents=True)
            (folder / SCENARIO_FILE).write_text(header + scenario_yaml(scenario), encoding="utf-8")
        except FileExistsError:
            if folder.is_dir():
                continue
            raise UserError(f"trainer.runs_dir: {base} is a file, so no run can be written there") from None
        except OSError as error:
            raise UserError(f"trainer.runs_dir: cannot write {folder}: {error.strerror}") from error
        return folder
    raise UserError(f"{base} already holds a hundred runs of this second")


def is_finished(scenario: Scenario, folder: Path, state: Mapping[str, Any]) -> bool:
    """Whether the run of a loaded checkpoint has all its steps and its report."""
    return int(expect(state, "trainer.iteration", int)) >= iterations_of(scenario) and (folder / REPORT).is_file()


class Run:
    """A run from its beginning, or from a checkpoint.

    Args:
        scenario: What to train.
        folder: Where everything goes.
        trainer: Of this scenario, as it was built.
        console: For progress and results.
        stop: Set from outside to save and stop after the iteration.
        state: A loaded checkpoint, to go on from.

    Raises:
        UserError: `state` is of other logs or networks, or the environment does not repeat itself; nothing on disk
            is changed.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        *,
        trainer: Trainer,
        console: Console,
        stop: threading.Event,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._scenario, self._folder, self._console, self._stop = scenario, folder, console, stop
        self.trainer, self._started = trainer, trainer.began
        self._seconds = dict.fromkeys(("start", "evaluate", "log", "checkpoint", "figures"), 0.0)
        self._reported = dict(self._seconds)
        self._pictures: Mapping[str, NDArray[Any]] = {}
        self._compared: Mapping[str, NDArray[Any]] = {}
        self._matches: list[Match] = []
        self._fresh = state is None
        self._first: FirstEvaluation | None = None
        self._seconds["start"] = time.perf_counter() - self._started
        with self._timed("start"):
            try:
                if state is not None:
                    self._first = FirstEvaluation.load(folder)
                    self._restore(state)
                self._audit = AuditLog(folder)
                trainer.audit = self._audit.append
                self._events = self._open_events()
            except BaseException:
                trainer.env.close()
                raise
        self._resumed_at = None if self._fresh else trainer.step
        self._held_out = HeldOut(scenario, self.trainer.players, self.trainer.env)

    def start(self) -> None:
        """Train until the scenario's steps are done.

        Raises:
            Diverged: Networks, or what the environment pays or shows, became non-finite; ``diverged.json`` is
                written.
            Interrupted: After saving.
        """
        trainer, settings = self.trainer, self._scenario.evaluation
        show_start(self._folder, agents=len(trainer.env.spec.agents), console=self._console)
        try:
            if self._fresh:
                with self._timed("start"):
                    trainer.start()
                self._evaluate(Phase.EVAL, settings.episodes)
                self._save()
            while trainer.iteration < trainer.iterations:
                self._iterate()
            final = self._evaluate(Phase.FINAL, settings.final_episodes)
            with self._timed("evaluate"):
                references = self._held_out.references(settings.final_episodes)
        except (Diverged, NotFiniteData) as error:
            raise self._diverged(error) from error
        finally:
            self._events.close()
            self._audit.close()
            trainer.env.close()
        self._end(final, references)

    def _open_events(self) -> EventStream:
        scenario, folder, step = self._scenario, self._folder, self.trainer.step
        return EventStream(
            [
                JsonlSink(folder),
                ChainSink(folder),
                TensorBoardSink(
                    folder,
                    learners=self.trainer.learners,
                    terms=tuple(self.trainer.players[0].learners.regularisers.names),
                    hyperparameters=resolved(scenario),
                    purge_step=None if self._fresh else step + 1,
                ),
                ConsoleSink(
                    scenario.trainer.total_steps,
                    ("charts/episodic_return", "eval/iqm"),
                    start_step=step,
                    console=self._console,
                ),
            ]
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Load `state`; the logs are cut last, when nothing can be refused any more."""
        lines = expect(state, "logs", dict)
        check_chain(self._folder, lines[AUDIT_FILE], expect(state, "audit.digest", str))
        self.trainer.load_state_dict(state["trainer"])
        truncate_logs(self._folder, lines)
        # An extended run will have a report of its own.
        (self._folder / REPORT).unlink(missing_ok=True)

    def _iterate(self) -> None:
        trainer, settings = self.trainer, self._scenario
        every = settings.evaluation.every
        due = bool(every) and (trainer.iteration + 1) % every == 0
        self._emit(trainer.iterate(diagnose=due), diagnosed=due)
        last = trainer.iteration == trainer.iterations
        if due and not last:
            self._evaluate(Phase.EVAL, settings.evaluation.episodes)
        if last or self._stop.is_set() or trainer.iteration % settings.trainer.checkpoint_every == 0:
            self._save()
        if self._stop.is_set() and not last:
            raise Interrupted(f"saved at step {trainer.step:,}; go on with: marl-tr resume {self._folder}")

    def _emit(self, done: Iteration, *, diagnosed: bool) -> None:
        # What was spent since the last iteration's event; this event itself is counted in the next one.
        spent = {name: value - self._reported[name] for name, value in self._seconds.items()}
        self._reported = dict(self._seconds)
        between = {
            "perf/wall_clock": time.perf_counter() - self._started,
            "perf/from_step": float(self._resumed_at or 0),
            "perf/evaluate_s": spent["evaluate"],
            "perf/log_s": spent["log"] + spent["checkpoint"] + spent["figures"],
        }
        with self._timed("figures"):
            images = {}
            if diagnosed and self._scenario.evaluation.media:
                images = attention_pictures(done.maps, self.trainer.env.spec.agents)
                images |= chain_pictures(done.chains, step=self.trainer.step)
        with self._timed("log"):
            self._events.emit(
                Event(
                    step=self.trainer.step,
                    phase=Phase.TRAIN,
                    scalars=done.scalars | between,
                    images=images,
                    chains=done.chains,
                )
            )

    def _evaluate(self, phase: Phase, episodes: int) -> dict[str, Episodes]:
        final, wanted = phase is Phase.FINAL, self._scenario.evaluation.media
        held_out = self._held_out
        with self._timed("evaluate"):
            results = held_out.evaluate(episodes)
            if self._fresh and self._first is None and held_out.compares:
                self._first = FirstEvaluation.of(results, seed=self._scenario.evaluation.seed)
                self._first.save(self._folder)
            self._matches = held_out.matches(episodes)
            scalars = held_out.scalars(results, self._first) | against(
                self._matches, seed=self._scenario.evaluation.seed
            )
        with self._timed("figures"):
            # The end of a run shows its pictures in any case.
            images, videos = held_out.pictures(results, slow=final and wanted) if final or wanted else ({}, {})
            if final:
                compared = held_out.before_after(self._first, results, slow=wanted)
                self._compared = compared[1]
                images, videos = images | compared[0], videos | compared[1]
            self._pictures = images
        with self._timed("log"):
            self._events.emit(Event(step=self.trainer.step, phase=phase, scalars=scalars, images=images, videos=videos))
        return results

    def _end(self, final: Mapping[str, Episodes], references: Mapping[str, Episodes]) -> None:
        agents = len(self.trainer.env.spec.agents)
        with self._timed("figures"):
            files = write_figures(
                self._scenario,
                self._folder,
                final,
                references,
                agents=agents,
                pictures=self._pictures,
                videos=self._compared,
            )
        show_end(
            self._scenario,
            self._folder,
            final,
            references,
            matches=self._matches,
            seconds={**self.trainer.seconds, **self._seconds, "wall": time.perf_counter() - self._started},
            agents=agents,
            resumed_at=self._resumed_at,
            figures=files,
            console=self._console,
        )

    def _save(self) -> None:
        with self._timed("checkpoint"):
            path = checkpoint_path(self._folder / CHECKPOINTS, self.trainer.step)
            path.parent.mkdir(exist_ok=True)
            state = {
                "version": version("marl-tr"),
                "scenario": _fixed(self._scenario),
                "trainer": self.trainer.state_dict(),
                "audit": self._audit.state_dict(),
                "logs": {**self._events.position(), **self._audit.position()},
            }
            save_checkpoint(path, state)
            prune_checkpoints(path.parent, self._scenario.trainer.keep_checkpoints)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began

    def _diverged(self, error: Exception) -> Diverged:
        trainer = self.trainer
        good = latest_checkpoint(self._folder / CHECKPOINTS)
        dump = self._folder / DUMP
        content = {
            "cause": str(error),
            "iteration": trainer.iteration,
            "step": trainer.step,
            "non_finite_parameters": trainer.non_finite(),
            "last_good_checkpoint": None if good is None else good.name,
        }
        dump.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return Diverged(f"step {trainer.step:,}: {error}\ndump: {dump}\nlast good checkpoint: {good or 'none yet'}")


def _fixed(scenario: Scenario) -> dict[str, Any]:
    """The settings that a run keeps to its end, flat."""
    data = {key: value for key, value in resolved(scenario).items() if key not in _FREE_SECTIONS}
    data["trainer"] = {key: value for key, value in data["trainer"].items() if key not in _FREE_TRAINER}
    return flatten(data)


def check_same_scenario(scenario: Scenario, folder: Path, state: Mapping[str, Any]) -> None:
    """Refuse a loaded checkpoint of another scenario; some settings may be changed before a run is resumed.

    Raises:
        CheckpointError: It is of another one; names what differs.
    """
    saved, now, file = expect(state, "scenario", dict), _fixed(scenario), folder / SCENARIO_FILE
    names = sorted(name for name in {*saved, *now} if saved.get(name) != now.get(name))
    if names:
        changes = ", ".join(f"{name} was {saved.get(name)!r} and is {now.get(name)!r}" for name in names[:5])
        more = f", and {len(names) - 5} more" if len(names) > 5 else ""
        raise CheckpointError(
            f"{file} is not the scenario of the run's checkpoint: {changes}{more}. Put it back, or begin a new run "
            f"with 'marl-tr run {file}'"
        )
