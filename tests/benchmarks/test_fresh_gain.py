"""Gains on fresh data: what a case changes, and that an update gains on its own data what the region says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from marl_tr.scenario import load_scenario
from marl_tr.trainer.api import run

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = [
    "env.num_envs=4",
    "env.config.num_users=4",
    "env.config.horizon=20",
    "trainer.rollout_steps=20",
    "trainer.total_steps=160",
    "evaluation={every: 100, episodes: 1, final_episodes: 1, window: 5, media: false, references: false}",
    "agents.hidden=[16]",
    "region.subsample=1.0",
]


@pytest.fixture(name="fresh_gain")
def _fresh_gain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("fresh_gain")


def test_updates_are_judged_by_fresh_rollouts(
    fresh_gain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run(load_scenario("uav_team", [*SMALL, "region.bound=0.02"]))
    monkeypatch.setattr(fresh_gain, "RESULTS", tmp_path / "fresh_gain.json")
    arguments = ["--lam", "0.3", "--set", "bound=0.001", "iterations=3", "--updates", "2", "--judges", "2"]
    monkeypatch.setattr("sys.argv", ["fresh_gain.py", str(folder), *arguments])
    fresh_gain.main()
    printed = capsys.readouterr().out
    (kept,) = json.loads((tmp_path / "fresh_gain.json").read_text()).values()
    lam, shorter = kept["rows"]
    assert (lam["setting"], lam["lam"], shorter["setting"], shorter["lam"]) == (
        "lam 0.3",
        0.3,
        "bound=0.001 iterations=3",
        0.8,
    )
    assert "bound=0.001 iterations=3" in printed
    for row, bound in ((lam, 0.02), (shorter, 0.001)):
        assert len(row["own"]) == len(row["fresh"]) == 2
        assert all(gain > 0 for gain in row["own"])
        assert all(0 < divergence <= bound for divergence in row["divergence"])
        assert np.mean(row["fresh"]) < np.mean(row["own"])
    assert np.mean(shorter["own"]) < np.mean(lam["own"])


def test_a_step_that_was_not_kept_is_said(fresh_gain: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(SystemExit, match="no such checkpoint"):
        fresh_gain._checkpoint(tmp_path, 5)
