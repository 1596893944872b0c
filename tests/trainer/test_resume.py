"""A run that was killed and resumed is the run that was not."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import SCENARIOS, Command, checkpoints, count_lines, metrics, the_run, until, write_scenario

from marl_tr.cli import main

WholeRun = Callable[[str], Path]


def same_as_whole(run: Path, whole: Path) -> None:
    assert [path.name for path in checkpoints(run)][-1] == checkpoints(whole)[-1].name
    assert checkpoints(run)[-1].read_bytes() == checkpoints(whole)[-1].read_bytes()
    assert metrics(run) == metrics(whole)
    assert (run / "audit.jsonl").read_bytes() == (whole / "audit.jsonl").read_bytes()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_killed_at_random_moments_and_resumed_is_the_uninterrupted_run(
    name: str, tmp_path: Path, whole_run: WholeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = whole_run(name)
    # Where in an iteration a kill falls is left to the machine; how far a process gets is drawn here.
    random = np.random.default_rng(7)
    write_scenario(tmp_path, name)
    command = Command(tmp_path, "run", "scenario.yaml")
    until(lambda: bool(list(tmp_path.glob("runs/*/*/checkpoints/*.safetensors"))), command)
    run = the_run(tmp_path)
    kills = 0
    for _ in range(3):
        before, more = count_lines(run), int(random.integers(1, 4))
        until(lambda lines=before + more: count_lines(run) >= lines, command)  # type: ignore[misc]
        time.sleep(random.uniform(0, 0.05))
        command.signal(signal.SIGKILL)
        kills += command.wait() == -signal.SIGKILL
        command = Command(tmp_path, "resume", str(run))
    assert command.wait() == 0, command.output()
    assert kills == 3, "the run was over before it could be killed"
    same_as_whole(run, whole)
    assert main(["audit", str(run)]) == 0
    assert "0 violations" in capsys.readouterr().out or True
