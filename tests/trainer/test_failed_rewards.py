"""A reward model that fails on a sample: the run ends and says why, or goes on without that episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from running import SCENARIOS, the_run, write_scenario

from marl_tr.cli import main
from marl_tr.errors import Diverged
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players
from marl_tr.trainer.evaluation import Episodes, evaluate_act
from marl_tr.trainer.held_out import HeldOut
from marl_tr.vector.in_process import InProcessVectorEnv

# A copy's every third episode ends with a reward of NaN; episodes last 4 steps.
FAILING = """
import gymnasium
import numpy as np


class Failing(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.fails = 0, self.np_random.integers(3) == 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        failed = self.fails and self.t == 4
        return self._observation(), float("nan") if failed else float(action), self.t == 4, False, {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)
"""


def scenario(folder: Path, failed: str) -> Path:
    (folder / "failing.py").write_text(FAILING)
    text = SCENARIOS["cartpole"].replace(
        "{id: gymnasium/CartPole-v1, num_envs: 3}", "{id: 'failing:Failing', num_envs: 3}"
    )
    return write_scenario(folder, "", f"{text}advantage: {{failed: {failed}}}\n")


def test_excluded_episodes_are_counted_and_the_run_and_its_evaluations_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario(tmp_path, "exclude")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 0, capsys.readouterr().err
    lines = [json.loads(line)["scalars"] for line in (the_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    failed = [line["charts/failed_episodes"] for line in lines if "charts/failed_episodes" in line]
    assert failed
    assert sum(failed) > 0
    evaluated = [line for line in lines if "eval/iqm" in line]
    assert all(np.isfinite(line["eval/iqm"]) for line in evaluated)
    assert any(line.get("eval/sampled/failed_episodes", 0) > 0 for line in evaluated)


def test_without_it_the_run_ends_as_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario(tmp_path, "error")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "scenario.yaml"]) == 3
    assert "reward is not finite" in capsys.readouterr().err


def test_an_evaluation_with_failed_rewards_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scenario(tmp_path, "error")
    monkeypatch.chdir(tmp_path)
    loaded = load_scenario(path)
    env = build_env(loaded, num_envs=2)
    held_out = HeldOut(loaded, build_players(loaded, env.spec), env)
    returns = np.array([1.0, np.nan, 3.0])
    played = Episodes(returns, np.full(3, 4), None, {"m": returns}, ())
    with pytest.raises(Diverged, match=r"1 of 3 held-out episodes are not finite.*failed: exclude"):
        held_out._usable("mode", played)
    usable = played.without_failed()
    assert usable.returns.tolist() == usable.metrics["m"].tolist() == [1.0, 3.0]
    assert (usable.failed, usable.played) == (1, 3)
    assert usable.without_failed() is usable


class Short(gymnasium.Env[np.ndarray, int]):
    """Episodes of `length` steps; its first `length` steps pay 1, all others NaN."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length, self.taken = length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t, self.taken = self.t + 1, self.taken + 1
        reward = 1.0 if self.taken <= self.length else float("nan")
        return np.zeros(1, np.float32), reward, self.t == self.length, False, {}


def test_a_reward_that_fails_after_the_held_out_episode_is_not_its_own() -> None:
    lengths = iter([2, 5])
    env = InProcessVectorEnv("short", lambda: Short(next(lengths)), 2)
    env.rewards_may_fail = True
    played = evaluate_act(env, env.references()[0].act, seed=1, window=2)
    assert played.returns.tolist() == [2.0, 5.0]
    assert played.window is not None
    assert played.window.tolist() == [1.0, 1.0]
