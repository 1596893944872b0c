"""The comparisons with peers, as far as they go without the peers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from marl_tr.scenario import load_scenario

FOLDER = Path(__file__).parents[2] / "benchmarks"

WORKER = """
import json, sys
from peers_turns import Turns
job = json.loads(sys.stdin.readline())
turns = Turns(sys.stdin, sys.stdout)
turns.ready(seen=job["number"])
for k in range(5):
    turns.done(steps=k)
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.usefixtures("benchmark")
def test_workers_take_turns_and_end_with_whoever_drives_them() -> None:
    turns = imported("peers_turns")
    command = [sys.executable, "-c", WORKER]
    with turns.Worker(command, {"number": 1}) as a, turns.Worker(command, {"number": 2}) as b:
        assert (a.facts, b.facts) == ({"seen": 1}, {"seen": 2})
        rows = [worker.turn() for worker in (a, b, a, b)]
    assert [row["steps"] for row in rows] == [0, 0, 1, 1]
    assert all(row["cpu_s"] >= 0 and row["wall_s"] > 0 for row in rows)


@pytest.mark.usefixtures("benchmark")
def test_a_worker_that_breaks_ends_the_comparison() -> None:
    turns = imported("peers_turns")
    with pytest.raises(SystemExit, match="ended with 3"):
        turns.Worker([sys.executable, "-c", "input(); raise SystemExit(3)"], {})


@pytest.mark.usefixtures("benchmark")
def test_our_mappo_has_the_sizes_of_every_setting() -> None:
    peers = imported("peers_benchmarl")
    for setting in peers.SETTINGS.values():
        scenario = load_scenario(peers.scenario({**peers.COMMON, **setting, "iterations": 2}))
        fit = scenario.critic.config.fit
        assert scenario.env.num_envs * scenario.trainer.rollout_steps == setting["frames"]
        assert scenario.optimizer is not None
        assert scenario.optimizer.minibatches * setting["minibatch"] == setting["frames"]
        # Our critic's minibatches are whole copies: there must be as many.
        assert scenario.env.num_envs % fit.minibatches == 0
        assert (scenario.optimizer.epochs, fit.epochs) == (setting["epochs"], setting["epochs"])


@pytest.mark.usefixtures("benchmark")
def test_both_sides_have_the_same_steps_seeds_and_held_out_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = imported("peers_sb3")
    monkeypatch.setattr("sys.argv", ["peers_sb3.py", "--seeds", "1", "2", "--steps", "4096"])
    jobs = peers.planned(peers.parsed())
    assert {job["run"]["steps"] for job in jobs} == {4096}
    assert {job["run"]["task"] for job in jobs} == set(peers.ZOO)
    theirs = [job for job in jobs if "python" in job]
    assert {(job["run"]["task"], job["run"]["method"]) for job in theirs} == {
        (task, method) for task, methods in peers.ZOO.items() for method in methods
    }
    for job in jobs:
        env = job["env"] if job in theirs else job["scenario"]["env"]["id"].removeprefix("gymnasium/")
        assert env == peers.TASKS[job["run"]["task"]]
        assert (job["seed"] if job in theirs else job["scenario"]["seed"]) == job["run"]["seed"]
    assert {tuple(job["episode_seeds"]) for job in theirs} == {tuple(theirs[0]["episode_seeds"])}
    assert len(set(theirs[0]["episode_seeds"])) == peers.EPISODES


@pytest.mark.usefixtures("benchmark")
def test_returns_are_summed_over_agents_and_read_at_the_recorded_steps(tmp_path: Path) -> None:
    pytest.importorskip("mpe2")
    peers = imported("peers_harl")
    lines = [
        {"phase": "train", "step": step, "scalars": {"charts/episodic_return": float(-step) / 10_000}}
        for step in range(4_000, 200_001, 4_000)
    ]
    ends = {"eval/mode/mean": -20.0, "eval/sampled/mean": -21.0}
    lines.append({"phase": "final", "step": 200_000, "scalars": ends})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert peers.returns(tmp_path) is None
    (tmp_path / "report.md").write_text("")
    found = peers.returns(tmp_path)
    # The mean over 64, 68, ..., 80 thousand.
    assert found["training at 80000"] == pytest.approx(3 * -7.2)
    assert found["training at 200000"] == pytest.approx(3 * -19.2)
    assert (found["mode at the end"], found["sampled at the end"]) == (-60.0, -63.0)
