"""Ctrl-C and SIGTERM: the iteration is finished and saved, the exit code is 130, and the run can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import SCENARIOS, Command, checkpoints, contents, metrics, same_run, scalar_steps, the_run, write_scenario

from marl_tr.trainer.checkpoint import load_checkpoint

WholeRun = Callable[[str], Path]

# An environment that sends its own process a signal at given steps of its first copy, once for each line of 'armed'.
SIGNALLING = """
import os
import pathlib
import signal

import gymnasium
import numpy as np

made = []
ARMED = pathlib.Path(__file__).with_name("armed")


class Signalling(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.steps = 0
        self.first = not made
        made.append(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        self.steps += 1
        lines = ARMED.read_text().split() if self.first and ARMED.exists() else []
        if lines and self.steps == int(lines[0]):
            ARMED.write_text(" ".join(lines[1:]))
            os.kill(os.getpid(), signal.SIGINT)
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return observation, 1 - abs(float(action[0])), self.t == 7, False, {}
"""


def signalling(folder: Path) -> None:
    (folder / "signalling.py").write_text(SIGNALLING)
    write_scenario(folder, "", SCENARIOS["cartpole"].replace("gymnasium/CartPole-v1", "'signalling:Signalling'"))


def newest_step(run: Path) -> int:
    return int(checkpoints(run)[-1].stem.removeprefix("step_"))


@pytest.mark.parametrize(
    ("name", "number"), [("uav_gru", signal.SIGINT), ("spread", signal.SIGTERM), ("workers", signal.SIGINT)]
)
def test_an_interrupted_run_is_saved_and_resumed_it_is_the_uninterrupted_one(
    name: str, number: signal.Signals, tmp_path: Path, whole_run: WholeRun
) -> None:
    write_scenario(tmp_path, name)
    # In a session of its own, as from a terminal: the signal goes to all processes of the group.
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "marl_tr", "run", "scenario.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and "evaluation" not in line:
            break
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    run = the_run(tmp_path)
    step = newest_step(run)
    assert said == f"interrupted: saved at step {step:,}; go on with: marl-tr resume {_relative(run)}\n"
    assert metrics(run)[-1]["step"] == step
    again = Command(tmp_path, "resume", str(run))
    assert again.wait() == 0, again.output()
    same_run(run, whole_run(name))
    assert scalar_steps(run) == scalar_steps(whole_run(name))


def test_a_run_whose_reader_goes_away_is_saved_and_ends(tmp_path: Path, whole_run: WholeRun) -> None:
    write_scenario(tmp_path, "cartpole")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "marl_tr", "run", "scenario.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("run ")
    process.stdout.close()
    assert process.wait(timeout=60) == 130
    run = the_run(tmp_path)
    step = newest_step(run)
    assert process.stderr is not None
    with process.stderr as said:
        assert said.read() == f"interrupted: saved at step {step:,}; go on with: marl-tr resume {_relative(run)}\n"
    again = Command(tmp_path, "resume", str(run))
    assert again.wait() == 0, again.output()
    assert f"s since it was resumed at step {step:,}: " in again.output()
    same_run(run, whole_run("cartpole"))


def _relative(run: Path) -> Path:
    return run.relative_to(run.parents[2])


def test_the_iteration_in_which_the_signal_came_is_finished_and_saved(tmp_path: Path) -> None:
    signalling(tmp_path)
    whole = Command(tmp_path, "run", "scenario.yaml", "trainer.runs_dir=whole")
    assert whole.wait() == 0, whole.output()
    # Steps 37 and 71 lie in the third and fifth iteration of 16 steps.
    (tmp_path / "armed").write_text("37")
    command = Command(tmp_path, "run", "scenario.yaml")
    assert command.wait() == 130, command.output()
    run = the_run(tmp_path)
    assert newest_step(run) == 3 * 16 * 3
    # Counted from the first step of the new process, which first plays the 48 mod 7 steps of the open episode again.
    (tmp_path / "armed").write_text(str(48 % 7 + 20))
    command = Command(tmp_path, "resume", str(run))
    assert command.wait() == 130, command.output()
    assert newest_step(run) == 5 * 16 * 3
    command = Command(tmp_path, "resume", str(run))
    assert command.wait() == 0, command.output()
    (expected,) = (tmp_path / "whole").glob("*/*")
    same_run(run, expected)


def test_a_second_signal_stops_at_once_and_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    signalling(tmp_path)
    (tmp_path / "armed").write_text("37 39")
    command = Command(tmp_path, "run", "scenario.yaml")
    assert command.wait() == 130, command.output()
    assert "stopped at once" in command.output()
    run = the_run(tmp_path)
    assert newest_step(run) == 2 * 16 * 3
    assert load_checkpoint(checkpoints(run)[-1])["trainer"]["iteration"] == 2
    command = Command(tmp_path, "resume", str(run))
    assert command.wait() == 0, command.output()


def test_a_signal_in_the_last_iteration_lets_the_run_end(tmp_path: Path) -> None:
    signalling(tmp_path)
    (tmp_path / "armed").write_text("155")
    command = Command(tmp_path, "run", "scenario.yaml")
    assert command.wait() == 0, command.output()
    assert "report.md" in contents(the_run(tmp_path))
