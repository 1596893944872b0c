"""The environment keeps what training relies on, and can be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from marl_tr.scenario import load_scenario
from marl_tr.trainer.api import run
from marl_tr.vector.check import check_env

SCENARIO = Path(__file__).parents[1] / "new_environment.yaml"
FEW = ["env.num_envs=2", "trainer.total_steps=60", "trainer.rollout_steps=30"]
FEW += ["evaluation.episodes=4", "evaluation.final_episodes=4"]


def test_check_env_finds_nothing_to_mend() -> None:
    """Every question that ``marl-tr check-env`` asks."""
    report = check_env("new_environment/new_environment-v0")
    assert report.passed, report.render()


def test_it_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One iteration, evaluation and report included."""
    monkeypatch.chdir(tmp_path)  # runs/ is made in the current folder
    folder = run(load_scenario(SCENARIO, FEW))
    assert (folder / "report.md").is_file()
