"""One run in its folder: the loop with its events, evaluations, checkpoints and end."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from marl_tr.errors import Diverged, Interrupted, UserError
from marl_tr.events import Event, EventStream, Phase
from marl_tr.events.audit_log import AuditLog
from marl_tr.events.console import ConsoleSink
from marl_tr.events.jsonl import JsonlSink
from marl_tr.events.line_file import truncate_logs
from marl_tr.events.tensorboard import TensorBoardSink
from marl_tr.scenario import resolved, scenario_yaml
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.checkpoint import checkpoint_path, prune_checkpoints, save_checkpoint
from marl_tr.trainer.evaluation import Episodes
from marl_tr.trainer.held_out import HeldOut, headline
from marl_tr.trainer.loop import Iteration, Trainer
from marl_tr.trainer.showing import attention_pictures, show_end

__all__ = ["CHECKPOINTS", "SCENARIO_FILE", "Run", "new_run_folder"]

SCENARIO_FILE = "scenario.yaml"
CHECKPOINTS = "checkpoints"
_PACKAGES = ("torch", "numpy", "pettingzoo", "gymnasium", "torch-geometric")


def new_run_folder(scenario: Scenario) -> Path:
    """Make ``runs/<scenario>/<UTC time>-seed<seed>/`` with the resolved scenario in it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = Path(scenario.trainer.runs_dir) / scenario.name
    for attempt in range(100):
        folder = base / f"{stamp}-seed{scenario.seed}{f'-{attempt}' if attempt else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"trainer.runs_dir: cannot make {folder}: {error.strerror}") from error
        versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        header = f"# marl-tr {version('marl-tr')}, Python {platform.python_version()}, {versions}\n"
        (folder / SCENARIO_FILE).write_text(header + scenario_yaml(scenario), encoding="utf-8")
        return folder
    raise UserError(f"{base} already holds a hundred runs of this second")


class Run:
    """A run from its beginning, or from a checkpoint.

    Args:
        scenario: What to train.
        folder: Where everything goes.
        console: For progress and results.
        stop: Set from outside to save and stop after the iteration.
        state: A loaded checkpoint, to go on from.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        *,
        console: Console,
        stop: threading.Event,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._scenario, self._folder, self._console, self._stop = scenario, folder, console, stop
        if state is not None:
            truncate_logs(folder, state["logs"])
        self._audit = AuditLog(folder)
        self.trainer = Trainer(scenario, self._audit.append)
        if state is not None:
            self._audit.load_state_dict(state["audit"])
            self.trainer.load_state_dict(state["trainer"])
        self._fresh = state is None
        self._log_seconds = 0.0
        self._held_out = HeldOut(scenario, self.trainer)
        step = self.trainer.step
        self._events = EventStream(
            [
                JsonlSink(folder),
                TensorBoardSink(
                    folder,
                    learners=self.trainer.learners,
                    hyperparameters=resolved(scenario),
                    purge_step=None if self._fresh else step + 1,
                ),
                ConsoleSink(
                    scenario.trainer.total_steps,
                    ("charts/episodic_return", "eval/iqm"),
                    start_step=step,
                    console=console,
                ),
            ]
        )

    def start(self) -> None:
        """Train until the scenario's steps are done.

        Raises:
            Diverged: After writing ``diverged.json``.
            Interrupted: After saving.
        """
        trainer = self.trainer
        started = time.perf_counter()
        try:
            if self._fresh:
                trainer.start()
                self._evaluate(Phase.EVAL, self._scenario.evaluation.episodes)
                self._save()
            while trainer.iteration < trainer.iterations:
                self._iterate()
            final = self._evaluate(Phase.FINAL, self._scenario.evaluation.final_episodes)
        except Diverged as error:
            raise self._diverged(error) from error
        finally:
            self._events.close()
            self._audit.close()
            trainer.env.close()
        show_end(
            self._scenario,
            self._folder,
            final,
            self._held_out.references(self._scenario.evaluation.final_episodes),
            seconds={**trainer.seconds, "log": self._log_seconds, "wall": time.perf_counter() - started},
            agents=len(trainer.env.spec.agents),
            pictures=self._held_out.media(final)[0],
            console=self._console,
        )

    def _iterate(self) -> None:
        trainer, settings = self.trainer, self._scenario
        every = settings.evaluation.every
        due = bool(every) and (trainer.iteration + 1) % every == 0
        done = trainer.iterate(diagnose=due)
        began = time.perf_counter()
        self._emit(done)
        last = trainer.iteration == trainer.iterations
        if due and not last:
            self._evaluate(Phase.EVAL, settings.evaluation.episodes)
        if last or self._stop.is_set() or trainer.iteration % settings.trainer.checkpoint_every == 0:
            self._save()
        self._log_seconds += time.perf_counter() - began
        if self._stop.is_set() and not last:
            raise Interrupted(
                f"interrupted and saved at step {trainer.step:,}; go on with: marl-tr resume {self._folder}"
            )

    def _emit(self, done: Iteration) -> None:
        images = attention_pictures(done.maps, self.trainer.env.spec.agents)
        self._events.emit(Event(step=self.trainer.step, phase=Phase.TRAIN, scalars=done.scalars, images=images))

    def _evaluate(self, phase: Phase, episodes: int) -> dict[str, Episodes]:
        results = self._held_out.evaluate(episodes)
        scalars = headline(results, self._scenario)
        images, videos = self._held_out.media(results) if self._scenario.evaluation.media else ({}, {})
        self._events.emit(Event(step=self.trainer.step, phase=phase, scalars=scalars, images=images, videos=videos))
        return results

    def _save(self) -> None:
        path = checkpoint_path(self._folder / CHECKPOINTS, self.trainer.step)
        path.parent.mkdir(exist_ok=True)
        state = {
            "version": version("marl-tr"),
            "trainer": self.trainer.state_dict(),
            "audit": self._audit.state_dict(),
            "logs": {**self._events.position(), **self._audit.position()},
        }
        save_checkpoint(path, state)
        prune_checkpoints(path.parent, self._scenario.trainer.keep_checkpoints)

    def _diverged(self, error: Diverged) -> Diverged:
        trainer = self.trainer
        broken = {
            player.team.name: [
                name for name, p in player.team.policy.module.named_parameters() if not bool(torch.isfinite(p).all())
            ]
            for player in trainer.players
        }
        dump = self._folder / "diverged.json"
        dump.write_text(
            json.dumps(
                {
                    "cause": str(error),
                    "iteration": trainer.iteration,
                    "step": trainer.step,
                    "non_finite_policy_parameters": broken,
                    "non_finite_critic_parameters": [
                        name
                        for name, p in trainer.critic.encoder.module.named_parameters()
                        if not bool(torch.isfinite(p).all())
                    ],
                },
                indent=2,
            )
            + "\n",
            encoding="utf-8",
        )
        return Diverged(
            f"step {trainer.step:,}: {error}\ndump: {dump}\nlast good checkpoint: {self._folder / CHECKPOINTS}"
        )
