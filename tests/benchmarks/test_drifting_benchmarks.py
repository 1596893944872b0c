"""The benchmarks of drifting policies, at the smallest size at which every line of theirs runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark by name; its runs happen in this process, so that nothing is imported again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    runs = importlib.import_module("drifting_runs")

    def run_all(jobs: Any, rows: Path, *, parallel: int) -> None:
        rows.write_text("".join(json.dumps({"run": j["run"], **runs.measure_run(j)}) + "\n" for j in jobs))

    def loaded(name: str) -> Any:
        module = importlib.import_module(name)
        if name != "drifting_runs" and hasattr(module, "run_all"):
            monkeypatch.setattr(module, "run_all", run_all)
        return module

    return loaded


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    module.main()


def test_methods_and_ablations_are_compared_on_the_bandit(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, results = load("drifting_bandit"), tmp_path / "b.json"
    monkeypatch.setattr(module, "CONTEXTS", 256)
    where = ["--rows", str(tmp_path / "b.jsonl"), "--results", str(results), "--figures", str(tmp_path)]
    small = ["--seeds", "1", "--iterations", "1", "--contexts", "4"]
    call(module, monkeypatch, *small, "--methods", "balanced", "trpo", "mixture", *where)
    cells = {c["method"]: c for c in json.loads(results.read_text())["cells"]}
    assert set(cells) == {"balanced", "trpo", "mixture"}
    assert (cells["balanced"]["interactions"], cells["trpo"]["interactions"]) == (256, 768)
    assert cells["trpo"]["largest_divergence"]["value"] <= 0.02
    assert set(cells["balanced"]) >= {"sample", "medoid", "zero", "explored"}
    assert np.shape(cells["mixture"]["samples"]["action"]) == (3, 64, 2)
    # Before and after learning.
    assert cells["balanced"]["curve"]["step"] == [0, 256]
    for name in ("drifting_bandit.png", "drifting_bandit_samples.png"):
        assert (tmp_path / name).stat().st_size > 0
    call(module, monkeypatch, *small, "--ablations", "separate", *where)
    (cell,) = json.loads(results.read_text())["cells"]
    assert (cell["method"], cell["ablation"]) == ("balanced", "separate")


def test_control_is_measured_over_steps_and_time(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, results = load("drifting_control"), tmp_path / "c.json"
    monkeypatch.setattr(module, "ROLLOUT", 100)
    monkeypatch.setattr(module, "EPISODES", 2)
    where = ["--rows", str(tmp_path / "c.jsonl"), "--results", str(results), "--figure", str(tmp_path / "c.png")]
    small = ["--seeds", "1", "--steps", "1600", "--only", "pendulum"]
    call(module, monkeypatch, *small, "--methods", "podpo", "clip", "trpo", *where)
    cells = {c["method"]: c for c in json.loads(results.read_text())["cells"]}
    for c in cells.values():
        # Episodes have 200 steps: none has ended after the first rollout.
        assert c["curve"]["step"] == [1600]
        assert all(len(found["values"]) == 1 for found in c["evaluation"].values())
        assert c["training_return"]["values"][0] == pytest.approx(c["curve"]["mean"][-1], abs=1e-3)
        assert c["curve"]["wall_s"][-1] == pytest.approx(c["wall_s"][0], abs=0.01)
    assert set(cells["podpo"]["evaluation"]) == {"sample", "medoid", "zero", "explored"}
    assert cells["clip"]["cpu_ratio_to_clip"]["median"] == 1
    assert cells["trpo"]["divergence"]["largest"] <= 0.01
    assert (tmp_path / "c.png").stat().st_size > 0


def test_variants_need_a_label(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("drifting_control")
    monkeypatch.setattr("sys.argv", ["benchmark", "--methods", "podpo", "--set", "objective.samples=4"])
    with pytest.raises(SystemExit):
        module.parsed()
    monkeypatch.setattr(
        "sys.argv", ["benchmark", "--methods", "podpo", "--label", "few", "--set", "objective.samples=4"]
    )
    jobs = module.planned(module.parsed())
    assert {job["run"]["label"] for job in jobs} == {"few"}
    assert len(jobs) == sum(task["seeds"] for task in module.TASKS.values())


def test_a_run_that_is_there_is_not_run_again(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "r.jsonl"
    rows.write_text(json.dumps({"run": {"method": "podpo", "seed": 1}}) + "\n")
    load("drifting_runs").run_all([{"run": {"seed": 1, "method": "podpo"}}], rows, parallel=1)
    assert "1 of 1 runs" in capsys.readouterr().out
    assert len(rows.read_text().splitlines()) == 1


def test_acting_is_timed_against_a_gaussian(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "l.json"
    small = ["--env", "gymnasium/Pendulum-v1", "--repetitions", "3", "--calls", "2", "--chains", "1", "10"]
    call(load("drifting_latency"), monkeypatch, *small, "--results", str(results))
    batches = json.loads(results.read_text())["batches"]
    assert set(batches) == {"1", "256"}
    for ways in batches.values():
        assert ways["gaussian"]["ratio_to_gaussian"]["median"] == 1
        assert ways["flow, K = 10"]["call_s"]["median"] > ways["flow, K = 1"]["call_s"]["median"] > 0
