"""The example package: installed as a user installs it, found, checked, trained on, resumed; and its known answers."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl_tr.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "harbour"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed; built from a copy, for building writes beside the source."""
    work = tmp_path_factory.mktemp("harbour")
    source = shutil.copytree(EXAMPLE, work / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    target = work / "site"
    command = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def marl_tr(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``marl_tr("envs")`` in an empty folder, in this process: that another one finds the package as well, the run that
    is interrupted shows."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main([*arguments])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return call


@pytest.fixture
def harbour(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``harbour("tugs")`` is a module of the package."""
    monkeypatch.syspath_prepend(str(site))
    return lambda name: importlib.import_module(f"harbour.{name}")


def test_it_registers_without_an_edit_of_ours(marl_tr: Run) -> None:
    listed = marl_tr("envs")
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert {"harbour/tugs-v0", "harbour/cranes-v0", "harbour/berths-v0"} < names
    settings = marl_tr("envs", "harbour/berths-v0")
    assert "whole number in [1, 16]" in settings.stdout


@pytest.mark.parametrize("name", ["tugs", "cranes", "berths"])
def test_check_env_finds_nothing_to_mend(name: str, marl_tr: Run) -> None:
    checked = marl_tr("check-env", f"harbour/{name}-v0")
    assert checked.returncode == 0, checked.stdout
    warned = [line.split(maxsplit=1)[1] for line in checked.stdout.splitlines() if line.startswith("  warning")]
    # PettingZoo's test knows no Dict observations, and says so of its own board games too.
    assert all(line.startswith("pettingzoo api test") and name == "cranes" for line in warned)


def test_a_run_of_its_scenario_is_interrupted_and_resumed(site: Path, marl_tr: Run, tmp_path: Path) -> None:
    scenario = str(EXAMPLE / "scenarios" / "tugs.yaml")
    few = ["env.num_envs=4", "trainer.rollout_steps=20", "trainer.total_steps=2400", "evaluation.every=0"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "marl_tr", "run", scenario, *few, "evaluation.final_episodes=4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    (folder,) = tmp_path.glob("runs/tugs/*")
    resumed = marl_tr("resume", str(folder))
    assert resumed.returncode == 0, resumed.stderr
    trained = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in trained if line["phase"] == "train"]
    assert steps == list(range(80, 2401, 80))
    assert (folder / "report.md").is_file()


@pytest.mark.parametrize("name", ["cranes", "berths"])
def test_a_few_iterations_of_the_other_scenarios_end_with_a_report(name: str, marl_tr: Run, tmp_path: Path) -> None:
    few = ["env.num_envs=4", "trainer.rollout_steps=10", "trainer.total_steps=80", "evaluation.final_episodes=4"]
    trained = marl_tr("run", str(EXAMPLE / "scenarios" / f"{name}.yaml"), *few)
    assert trained.returncode == 0, trained.stderr
    (report,) = tmp_path.glob(f"runs/{name}/*/report.md")
    if name == "berths":
        assert "longest lanes" in report.read_text()
        assert list(report.parent.glob("media/*lanes*"))
        shown = marl_tr("eval", str(report.parent), "--video")  # its media(); it has no render()
        assert shown.returncode == 0, shown.stderr
        assert list(report.parent.glob("media/*lanes*_step80.png"))


def test_the_best_policy_of_the_cranes_wins_whatever_can_be_won(harbour: Any) -> None:
    """Against an exhaustive search of the game's tree: who moves first wins exactly where the search says so."""
    cranes = harbour("cranes")
    grab = 2

    def moves(stacks: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [
            (*stacks[:i], stacks[i] - taken, *stacks[i + 1 :])
            for i in range(len(stacks))
            for taken in range(1, min(grab, stacks[i]) + 1)
        ]

    @functools.cache
    def wins(stacks: tuple[int, ...]) -> bool:
        return any(not wins(after) for after in moves(stacks))

    won = 0
    for stacks in itertools.product(range(6), repeat=3):
        if not any(stacks):
            continue
        stack, taken = divmod(cranes.best_action(np.array(stacks), grab), grab)
        after = (*stacks[:stack], stacks[stack] - taken - 1, *stacks[stack + 1 :])
        assert after in moves(stacks)
        assert wins(stacks) == (not wins(after))
        won += wins(stacks)
    assert 0 < won < 6**3 - 1


def test_a_tug_without_fuel_leaves_and_the_others_go_on(harbour: Any) -> None:
    env = harbour("tugs").Tugs(tugs=3, fuel=2.0)
    env.reset(seed=0)
    full, idle = np.array([1.0, 0.0], np.float32), np.zeros(2, np.float32)
    for _ in range(2):
        _, _, terminated, truncated, _ = env.step({"tug_0": full, "tug_1": idle, "tug_2": 0.5 * full})
    assert terminated == {"tug_0": True, "tug_1": False, "tug_2": False}
    assert not any(truncated.values())
    assert env.agents == ["tug_1", "tug_2"]
    assert env.state().shape == (2 + 2 + 2 + 3 + 1,)
    np.testing.assert_allclose(env.state()[6:9], [0, 1, 0.75], atol=1e-6)


def test_a_barge_without_thrust_comes_to_drift_with_the_current(harbour: Any) -> None:
    """``v <- v - DRAG (v - c)`` from rest: ``v_t = c (1 - (1 - DRAG)^t)``."""
    module = harbour("tugs")
    env = module.Tugs(horizon=100)
    env.reset(seed=3)
    for _ in range(20):
        env.step({agent: np.zeros(2, np.float32) for agent in env.agents})
    np.testing.assert_allclose(env.velocity, env.current * (1 - (1 - module.DRAG) ** 20), rtol=1e-9)


def test_ships_are_neither_lost_nor_made(harbour: Any) -> None:
    """Over an episode: ships at the end = at the start + arrived - served - turned away."""
    berths = harbour("berths")
    env = berths.make(num_envs=5, load=1.5, places=4, horizon=60)
    env.reset(7)
    arrived = served = turned_away = 0
    start = env._ships.copy()
    generator = np.random.default_rng(0)
    for _ in range(59):
        lanes = generator.integers(0, 4, (5, 2))
        wanted = (lanes[:, :, None] == np.arange(4)).sum(axis=1)
        served = served + np.minimum(env._ships, wanted).sum(axis=1)
        arrived = arrived + env._arrivals().sum(axis=1)
        turned_away = turned_away + env.step({"berth": {"action": lanes}}).metrics["turned_away"]
    np.testing.assert_array_equal(env._ships.sum(axis=1), start.sum(axis=1) + arrived - served - turned_away)
    assert turned_away.sum() > 0
