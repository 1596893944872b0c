"""``marl-tr compare`` from end to end: processes that train, are interrupted, go on, and fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import SCENARIO, write_run, write_sweep

from marl_tr.cli import main
from marl_tr.comparison import runs
from marl_tr.comparison.pool import Ended, Job, carry_out
from marl_tr.comparison.runs import find_run
from marl_tr.comparison.sweep import load_sweep

SWEEP = """
name: pair
tasks: {pole: scenario.yaml}
seeds: [1, 2]
variants:
  wide: [region.bound=0.02]
  narrow: [region.bound=0.001]
baseline: wide
threshold: {pole: 10}
"""


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_interrupted_sweep_goes_on_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three runs, two at a time: one of them has not begun when the signal comes.
    text = SWEEP.replace("seeds: [1, 2]", "seeds: [1]").replace("baseline", "  middle: [region.bound=0.005]\nbaseline")
    write_sweep(tmp_path, text, SCENARIO.replace("total_steps: 300", "total_steps: 900"))
    monkeypatch.chdir(tmp_path)
    command = ["compare", "sweep.yaml", "evaluation.every=10", "--jobs", "2"]
    out = tmp_path / "runs" / "compare" / "pair"
    first = subprocess.Popen([sys.executable, "-P", "-m", "marl_tr", *command], stderr=subprocess.PIPE, text=True)
    # One update is saved: a checkpoint after the first, which is of step 0.
    wait_until(lambda: len(list(out.glob("runs/pole/*/*/checkpoints/*.safetensors"))) >= 3)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "the same command goes on" in said
    attempts = [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]
    assert {attempt["command"] for attempt in attempts} == {"run"}
    assert 130 in {attempt["exit"] for attempt in attempts}

    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "unfinished" in told
    assert "3 runs" in told

    assert main(command) == 0
    told = capsys.readouterr().out
    assert "[3/3] pole/" in told
    assert "a look: no ranking" in told
    attempts = [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]
    assert "resume" in {attempt["command"] for attempt in attempts}
    report = json.loads((out / "compare.json").read_text())
    assert [run["state"] for run in report["runs"]] == ["finished"] * 3
    pole = report["tasks"]["pole"]
    assert {variant: own["runs"] for variant, own in pole["variants"].items()} == dict.fromkeys(
        ("wide", "narrow", "middle"), 1
    )
    assert pole["variants"]["wide"]["curve"]["steps"] == [0, 300, 600, 900]
    assert set(report["improvement"]["narrow"]) == {"wide", "middle"}
    for name in ("compare.md", "marl_eval.json", "compare.png", "compare_time.png", "profiles.png"):
        assert (out / name).stat().st_size > 500

    # Finished runs stay as they are.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/pole/*/*/metrics.jsonl")}
    assert main(command) == 0
    assert "3 of 3 runs are done already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("runs/pole/*/*/metrics.jsonl")}
    # A variant that has changed is refused before anything starts.
    assert main([*command, "region.bound=0.5"]) == 2
    assert "region.bound was 0.02 and is 0.5" in capsys.readouterr().err


def test_a_variant_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_env.py").write_text("def make():\n    raise RuntimeError('no such simulator')\n")
    text = SWEEP.replace("narrow: [region.bound=0.001]", "broken: ['env.id=broken_env:make']")
    write_sweep(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_run(load_sweep("sweep.yaml").cells[0], 3, Path("here"), [0, 1])
    assert main(["compare", "sweep.yaml", "--seeds", "3", "--out", "here"]) == 1
    told = capsys.readouterr().out
    assert "warning: pole: variants differ in env.id" in told
    assert "pole/broken seed 3: failed (exit 1): " in told
    assert "log: here/logs/pole/broken-seed3.log" in told
    assert "\n1 run is not finished: pole/broken seed 3\n" in told
    assert "no such simulator" in Path("here/logs/pole/broken-seed3.log").read_text()
    report = json.loads(Path("here/compare.json").read_text())
    assert list(report["tasks"]["pole"]["variants"]) == ["wide"]
    assert report["attempts"][-1]["exit"] == 1


def test_a_bad_sweep_exits_with_2_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_sweep(tmp_path, SWEEP.replace("region.bound=0.001", "region.bond=0.001"))
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "sweep.yaml:7:12: region.bond: unknown key 'bond'; did you mean 'bound'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", ["a", "1,,2", "3-1", "1-9999"])
def test_bad_seeds_are_refused(seeds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write_sweep(tmp_path, SWEEP)), "--seeds", seeds, "--dry-run"]) == 2
    assert f"--seeds {seeds}: " in capsys.readouterr().err


def test_seeds_may_be_a_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        main(["compare", str(write_sweep(tmp_path, SWEEP)), "--seeds", "1-3, 7", "--dry-run", "--out", str(out)]) == 0
    )
    assert "8 runs, 0 of them done; 2,400 steps to go" in capsys.readouterr().out
    assert not out.exists()


def test_files_of_runs_are_the_trainers() -> None:
    from marl_tr.trainer import run

    assert (runs.SCENARIO_FILE, runs.CHECKPOINTS, runs.DUMP, runs.REPORT) == (
        run.SCENARIO_FILE,
        run.CHECKPOINTS,
        run.DUMP,
        run.REPORT,
    )


def test_a_folder_without_a_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    cell = load_sweep(write_sweep(tmp_path, SWEEP)).cells[0]
    folder = tmp_path / "out" / "runs" / "pole" / "wide" / "20260101T000000Z-seed1"
    folder.mkdir(parents=True)
    (folder / "scenario.yaml").write_text("name: nothing\n")
    assert find_run(cell, 1, tmp_path / "out").state == "absent"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_000000000120.safetensors").touch()
    found = find_run(cell, 1, tmp_path / "out")
    assert (found.state, found.step, found.steps_left) == ("unfinished", 120, 180)
    # Seed 11 is not seed 1.
    assert find_run(cell, 11, tmp_path / "out").state == "absent"


def test_processes_run_side_by_side_and_say_how_they_ended(tmp_path: Path) -> None:
    jobs = [Job(f"job {n}", ("--version",) if n else ("nonsense",), tmp_path / f"{n}.log", 1) for n in range(3)]
    ended: list[Ended] = []
    assert carry_out(jobs, at_once=3, ended=ended.append)
    assert sorted((end.job.label, end.code) for end in ended) == [("job 0", 2), ("job 1", 0), ("job 2", 0)]
    (good,) = [end for end in ended if end.job.label == "job 1"]
    assert good.last_line.startswith("marl-tr ")


def test_no_further_process_is_started_after_a_signal(tmp_path: Path) -> None:
    jobs = [Job(f"job {n}", ("--version",), tmp_path / f"{n}.log", 1) for n in range(3)]
    ended: list[str] = []

    def stop(end: Ended) -> None:
        ended.append(end.job.label)
        os.kill(os.getpid(), signal.SIGTERM)

    assert not carry_out(jobs, at_once=1, ended=stop)
    assert ended == ["job 0"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_variant_that_cannot_be_built_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projection layers take Gaussian laws, and that CartPole's actions are choices its environment says."""
    write_sweep(tmp_path, SWEEP.replace("[region.bound=0.001]", '[region.kind=trpl, "optimizer={}"]'), SCENARIO)
    monkeypatch.chdir(tmp_path)
    for flags in (["--dry-run"], []):
        assert main(["compare", "sweep.yaml", *flags]) == 2
        said = capsys.readouterr().err
        assert "pole/narrow: " in said
        assert "Gaussian laws" in said
        assert "pole/wide" not in said
    assert not list(tmp_path.glob("runs/compare/pair/runs/*"))
