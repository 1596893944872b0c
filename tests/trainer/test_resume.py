"""A run that was killed and resumed is the run that was not; what cannot be resumed is said, and left as it is."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import (
    SCENARIOS,
    Command,
    checkpoints,
    contents,
    count_lines,
    metrics,
    same_run,
    scalar_steps,
    the_run,
    until,
    write_scenario,
)

from marl_tr.cli import main
from marl_tr.trainer.checkpoint import load_checkpoint, save_checkpoint

WholeRun = Callable[[str], Path]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_at_random_moments_and_resumed_is_the_uninterrupted_run(
    name: str, tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_run(name)
    # How far a process gets is drawn here; where in an iteration or a save the kill falls is the machine's affair.
    random = np.random.default_rng(7)
    write_scenario(tmp_path, name)
    command = Command(tmp_path, "run", "scenario.yaml")
    assert until(lambda: bool(list(tmp_path.glob("runs/*/*/checkpoints/*.safetensors"))), command)
    run = the_run(tmp_path)
    for _ in range(3 if name == "uav_gru" else 2):
        goal = count_lines(run) + int(random.integers(1, 3))
        assert until(lambda goal=goal: count_lines(run) >= goal, command)  # type: ignore[misc]
        command.wait_for(random.uniform(0, 0.02))
        command.signal(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL, command.output()
        command = Command(tmp_path, "resume", str(run))
    assert command.wait() == 0, command.output()
    same_run(run, whole)
    assert main(["audit", str(run)]) == 0
    assert "all digests are right" in capsys.readouterr().out
    # TensorBoard reads the event files of all processes as one run: every point once, none missing.
    assert scalar_steps(run) == scalar_steps(whole)


def test_a_run_killed_between_its_last_checkpoint_and_its_report_gets_both(tmp_path: Path, whole_run: WholeRun) -> None:
    whole = whole_run("cartpole")
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "report.md").unlink()
    shutil.rmtree(run / "media")
    command = Command(tmp_path, "resume", "run")
    assert command.wait() == 0, command.output()
    same_run(run, whole)
    assert (run / "report.md").is_file()


def test_a_finished_run_is_shown_and_left_as_it_is(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole_run("cartpole"), tmp_path / "run"))
    before = contents(run)
    assert main(["resume", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"{run} is finished" in printed
    assert "| learned, sampled |" in printed
    assert contents(run) == before


def test_a_finished_run_with_more_steps_goes_on_as_if_they_had_been_asked_for_at_once(
    tmp_path: Path, whole_run: WholeRun
) -> None:
    write_scenario(tmp_path, "cartpole")
    short = Command(tmp_path, "run", "scenario.yaml", "trainer.total_steps=192")
    assert short.wait() == 0, short.output()
    run = the_run(tmp_path)
    assert metrics(run)[-1]["phase"] == "final"
    settings = run / "scenario.yaml"
    settings.write_text(settings.read_text().replace("total_steps: 192", "total_steps: 480"))
    more = Command(tmp_path, "resume", str(run))
    assert more.wait() == 0, more.output()
    same_run(run, whole_run("cartpole"))


def half_done(whole: Path, run: Path) -> Path:
    """A copy of a finished run as a kill in the middle would have left it."""
    shutil.copytree(whole, run)
    (run / "report.md").unlink()
    checkpoints(run)[-1].unlink()
    return run


def cut_newest_checkpoint(run: Path) -> None:
    newest = checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])


def forget_a_layer(run: Path) -> None:
    newest = checkpoints(run)[-1]
    state = load_checkpoint(newest)
    (player,) = state["trainer"]["players"].values()
    player["learners"]["policy"]["module"].popitem()
    save_checkpoint(newest, state)


def forget_the_trainer(run: Path) -> None:
    newest = checkpoints(run)[-1]
    state = load_checkpoint(newest)
    del state["trainer"]
    save_checkpoint(newest, state)


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new, 1))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no scenario": (lambda run: (run / "scenario.yaml").unlink(), "it holds no scenario.yaml"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints holds no checkpoint"),
    "cut checkpoint": (cut_newest_checkpoint, "000384.safetensors is cut off"),
    "checkpoint of other networks": (forget_a_layer, "000384.safetensors: the checkpoint's networks are not those"),
    "checkpoint of nothing": (
        forget_the_trainer,
        "000384.safetensors: checkpoint entry 'trainer.iteration' is missing",
    ),
    "other width": (
        edit("scenario.yaml", "hidden:\n  - 16", "hidden:\n  - 24"),
        "agents.0.hidden was '[16]' and is '[24]'",
    ),
    "other environment": (
        edit("scenario.yaml", "CartPole-v1", "Acrobot-v1"),
        "env.id was 'gymnasium/CartPole-v1' and is 'gymnasium/Acrobot-v1'",
    ),
    "other number of copies": (edit("scenario.yaml", "num_envs: 3", "num_envs: 4"), "env.num_envs was 3.0 and is 4.0"),
    "other device": (edit("scenario.yaml", "device: cpu", "device: cuda"), "trainer.device was 'cpu' and is 'cuda'"),
    "scenario that is no scenario": (edit("scenario.yaml", "name: tiny", "nam: tiny"), "did you mean 'name'?"),
    "cut metrics": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl has 0 whole lines"),
    "cut audit": (lambda run: (run / "audit.jsonl").write_text(""), "audit.jsonl has 0 whole lines"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_resumed_is_named_and_nothing_is_changed(
    damage: str, tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = half_done(whole_run("cartpole"), tmp_path / "run")
    change, said = DAMAGE[damage]
    change(run)
    before = contents(run)
    assert main(["resume", str(run)]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert str(run) in printed
    assert contents(run) == before


def test_an_edited_end_of_the_audit_is_found_before_anything_is_cut(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = half_done(whole_run("cartpole"), tmp_path / "run")
    lines = load_checkpoint(checkpoints(run)[-1])["logs"]["audit.jsonl"]
    audit = (run / "audit.jsonl").read_text().splitlines(keepends=True)
    assert lines < len(audit)
    del audit[lines - 1]
    (run / "audit.jsonl").write_text("".join(audit))
    before = contents(run)
    assert main(["resume", str(run)]) == 2
    assert f"audit.jsonl: line {lines} has digest" in capsys.readouterr().err
    assert contents(run) == before


def test_without_its_cut_checkpoint_a_run_goes_on_from_the_one_before(tmp_path: Path, whole_run: WholeRun) -> None:
    run = half_done(whole_run("cartpole"), tmp_path / "run")
    cut_newest_checkpoint(run)
    checkpoints(run)[-1].unlink()
    command = Command(tmp_path, "resume", "run")
    assert command.wait() == 0, command.output()
    same_run(run, whole_run("cartpole"))


RESTLESS = """
import random

import gymnasium
import numpy as np


class Restless(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        return self._look(), 1.0, self.t == 9, False, {}

    def _look(self):
        return np.array([random.random(), 0], np.float32)
"""


def test_an_environment_that_does_not_repeat_itself_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "restless.py").write_text(RESTLESS)
    text = SCENARIOS["cartpole"].replace("gymnasium/CartPole-v1", "'restless:Restless'")
    write_scenario(tmp_path, "", text.replace("total_steps: 480", "total_steps: 48000"))
    command = Command(tmp_path, "run", "scenario.yaml")
    assert until(lambda: len(list(tmp_path.glob("runs/*/*/checkpoints/*.safetensors"))) > 1, command)
    # Killed after lines that no checkpoint holds, which a resume would cut.
    run = the_run(tmp_path)
    command.signal(signal.SIGKILL)
    command.wait()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    before = contents(run)
    again = Command(tmp_path, "resume", str(run))
    assert again.wait() == 2, again.output()
    assert "environment 'restless:Restless', copy 0, step 0 of episode" in again.output()
    assert "cannot be resumed exactly" in again.output()
    assert contents(run) == before


def test_a_run_killed_before_its_first_checkpoint_says_so(
    tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole_run("cartpole") / "scenario.yaml", run)
    (run / "metrics.jsonl").write_text("")
    assert main(["resume", str(run)]) == 2
    assert "holds no checkpoint; start anew with 'marl-tr run'" in capsys.readouterr().err
    assert sorted(contents(run)) == ["metrics.jsonl", "scenario.yaml"]


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SCENARIOS["cartpole"].replace("total_steps: 480", "total_steps: 480000")
    write_scenario(tmp_path, "", text)
    command = Command(tmp_path, "run", "scenario.yaml")
    assert until(lambda: bool(list(tmp_path.glob("runs/*/*/checkpoints/*.safetensors"))), command)
    run = the_run(tmp_path)
    assert main(["resume", str(run)]) == 2
    assert f"{run} is being trained by another process" in capsys.readouterr().err
    # The other goes on, and the lock of a killed process is nobody's.
    lines = count_lines(run)
    assert until(lambda: count_lines(run) > lines, command)
    command.signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    command = Command(tmp_path, "resume", str(run))
    lines = count_lines(run)
    assert until(lambda: count_lines(run) > lines, command)
    command.signal(signal.SIGTERM)
    assert command.wait() == 130, command.output()


def test_worker_processes_change_nothing(whole_run: WholeRun) -> None:
    here, there = whole_run("cartpole"), whole_run("workers")
    assert metrics(here) == metrics(there)
    assert (here / "audit.jsonl").read_bytes() == (there / "audit.jsonl").read_bytes()
