"""Running, resuming, describing and evaluating: what the command line calls."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from marl_tr.errors import UserError
from marl_tr.scenario import load_scenario
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import build_critic, build_env, build_players
from marl_tr.trainer.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, refusing_misfits
from marl_tr.trainer.held_out import HeldOut, averaged
from marl_tr.trainer.lock import locked
from marl_tr.trainer.loop import Trainer, iterations_of
from marl_tr.trainer.memory import keep_freed_memory
from marl_tr.trainer.run import CHECKPOINTS, SCENARIO_FILE, Run, check_same_scenario, is_finished, new_run_folder
from marl_tr.trainer.showing import film, show_evaluation, show_finished, write_media, write_tables
from marl_tr.trainer.stopping import stop_request

__all__ = ["describe", "evaluate", "resume", "run"]

_KINDS = {".mp4": "video", ".gif": "video", ".png": "picture", ".csv": "table"}


def run(scenario: Scenario, *, console: Console | None = None) -> Path:
    """Train `scenario` from its beginning and return the run's folder.

    Raises:
        UserError: The device or the environment cannot be used, the scenario does not fit the environment, or no
            folder can be made; nothing is on disk.
        Diverged: Something became non-finite; a dump and the last good checkpoint are in the folder.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    torch.set_num_threads(scenario.trainer.threads)
    keep_freed_memory()
    with stop_request("'marl-tr resume' goes on from it") as stop:
        # First of all: what a scenario gets wrong about its environment or device is found here, and leaves no folder.
        trainer = Trainer(scenario)
        try:
            folder = new_run_folder(scenario)
        except BaseException:
            trainer.env.close()
            raise
        with locked(folder, SCENARIO_FILE):
            Run(scenario, folder, trainer=trainer, console=console or _Output(stop), stop=stop).start()
    return folder


def resume(folder: Path, *, console: Console | None = None) -> Path:
    """Go on with a run from its newest checkpoint; on CPU the outcome equals the uninterrupted run's bit for bit.

    A run that is finished is only shown.

    Raises:
        UserError: No run, no checkpoint, one of another scenario, or an environment that does not repeat itself;
            nothing on disk is changed.
        RunInUse: Another process trains it.
        Diverged: See `run`.
        Interrupted: See `run`.
    """
    scenario = _scenario_of(folder)
    torch.set_num_threads(scenario.trainer.threads)
    keep_freed_memory()
    with locked(folder, SCENARIO_FILE), stop_request("'marl-tr resume' goes on from it") as stop:
        console = console or _Output(stop)
        path, state = _newest(folder, "start anew with 'marl-tr run'")
        with _naming(path):
            if is_finished(scenario, folder, state):
                show_finished(folder, console)
                return folder
            check_same_scenario(scenario, folder, state)
            run = Run(scenario, folder, trainer=Trainer(scenario), console=console, stop=stop, state=state)
        run.start()
    return folder


def evaluate(
    folder: Path,
    *,
    episodes: int | None = None,
    video: bool = False,
    video_format: str = "mp4",
    tables: int = 0,
    console: Console | None = None,
) -> None:
    """Evaluate a run's newest checkpoint on its held-out episodes beside the environment's reference policies.

    Args:
        folder: Of the run.
        episodes: How many; by default the scenario's ``final_episodes``.
        video: Also show episodes: in the environment's gallery where it has one, else one in its pictures and a film.
        video_format: ``"mp4"`` or ``"gif"``.
        tables: Episodes to write as CSV tables too.
        console: Where to print.

    Raises:
        UserError: No run, no checkpoint, an environment that cannot be filmed or writes no tables, or more tables than
            episodes.
    """
    console = console or _Output()
    scenario = _scenario_of(folder)
    torch.set_num_threads(scenario.trainer.threads)
    path, state = _newest(folder, "there is nothing to evaluate")
    # As many copies as in training: cohorts do not fit into every number.
    env = build_env(scenario, num_envs=scenario.env.num_envs)
    try:
        players = build_players(scenario, env.spec)
        with _naming(path), refusing_misfits():
            step = int(state["trainer"]["step"])
            for player in players:
                player.learners.load_state_dict(state["trainer"]["players"][player.team.name]["learners"])
        held_out = HeldOut(scenario, players, env)
        count = episodes or scenario.evaluation.final_episodes
        if tables and not hasattr(env, "tables"):
            raise UserError(f"environment {env.spec.id!r} writes no tables: it has no tables()")
        if tables > count:
            raise UserError(f"tables of {tables} episodes, but only {count} are played ('--episodes {tables}')")
        results = held_out.evaluate(count, recorded=tables)
        references, matches = held_out.references(count), held_out.matches(count)
        show_evaluation(
            scenario,
            folder,
            results,
            references,
            matches=matches,
            step=step,
            agents=len(env.spec.agents),
            console=console,
        )
        images, videos = held_out.gallery(results, slow=True) if video else ({}, {})
        filmed = video and not images and not videos
        if filmed:
            images, _ = held_out.media(results, slow=False)
        written = held_out.tables(results) if tables else {}
    finally:
        env.close()
    files: list[Path] = []
    if filmed:
        with averaged(players):
            shot = film(scenario, [player.team for player in players], folder, step, video_format=video_format)
        if shot is None and not images:
            raise UserError(f"environment {scenario.env.id!r} cannot be filmed: it has no render()")
        files = [shot] if shot else []
    files += write_media(folder, images, videos, suffix=f"_step{step}", video_format=video_format)
    files += write_tables(folder, written, suffix=f"_step{step}")
    for file in files:
        console.print(f"{_KINDS[file.suffix]:<12} {file}", markup=False, soft_wrap=True)


def describe(scenario: Scenario) -> str:
    """Agents, spaces and numbers of parameters, for ``--dry-run``."""
    env = build_env(scenario, num_envs=scenario.env.num_envs)
    lines = [f"environment {env.spec.id}: {env.spec.num_envs} copies, {len(env.spec.agents)} agents"]
    try:
        for player in build_players(scenario, env.spec):
            module, team = player.team.policy.module, player.team
            count = sum(p.numel() for p in module.parameters() if p.requires_grad)
            lines.append(
                f"policy {team.name}: {count:,} parameters in {team.policy.rows.learners} learner(s) "
                f"for {', '.join(team.agents)}"
            )
        critic = build_critic(scenario, env.spec)
        count = sum(p.numel() for p in critic.encoder.module.parameters())
        lines.append(f"critic {scenario.critic.kind}: {count:,} parameters")
    finally:
        env.close()
    steps = scenario.env.num_envs * scenario.trainer.rollout_steps
    lines.append(f"{iterations_of(scenario):,} iterations of {steps:,} environment steps")
    return "\n".join(lines)


class _Output(Console):
    """Standard output. Where its reader goes away ('| head'), what is on disk is still brought to a good end.

    Args:
        stop: Set then: a run saves and ends after its iteration.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        super().__init__()
        self._reader_gone = stop

    def on_broken_pipe(self) -> None:
        """In place of ending the process at once."""
        self.quiet = True
        # Not even what is buffered when the interpreter exits can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if self._reader_gone is not None:
            self._reader_gone.set()


def _newest(folder: Path, otherwise: str) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run, loaded."""
    path = latest_checkpoint(folder / CHECKPOINTS)
    if path is None:
        raise CheckpointError(f"{folder / CHECKPOINTS} holds no checkpoint; {otherwise}")
    try:
        return path, load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete the file to go back to the checkpoint before it") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the checkpoint's name before what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _scenario_of(folder: Path) -> Scenario:
    file = folder / SCENARIO_FILE
    if not file.is_file():
        raise UserError(f"{folder} is not the folder of a run: it holds no {SCENARIO_FILE}")
    return load_scenario(file)
