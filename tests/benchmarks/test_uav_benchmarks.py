"""The reference ladder's benchmark, at the smallest size at which every line of it runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.search import Problem
from marl_tr.envs.uav.simulator import Simulator
from marl_tr.scenario import load_scenario, scenario_yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_ladder_is_measured_beside_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    ladder = importlib.import_module("uav_ladder")
    out = tmp_path / "ladder.json"
    sizes = ["--scenes", "8", "--episodes", "2", "--steps", "30", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["uav_ladder.py", *sizes])
    ladder.main()
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    for uavs in ("2", "3", "4"):
        rungs = record["ladder"][uavs]
        assert list(rungs) == list(ladder.PUBLISHED)
        searched = rungs[ladder.POSITION]["reward"]["mean"]
        assert searched > rungs[ladder.K_MEANS]["reward"]["mean"]
        assert f"| {ladder.POSITION} | {uavs} | {searched:.3f} (" in printed
        assert record["policies"][uavs]["position and power search"]["planning_s"] > 0


def test_growth_is_fitted_and_points_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    scale = importlib.import_module("uav_scale")
    found = scale.fit([1, 10, 100], [3.0, 3.0 * 10**1.5, 3.0 * 100**1.5])
    assert found == pytest.approx({"exponent": 1.5, "us_at_size_1": 3.0, "r_squared": 1.0})
    assert scale.fit([1, 10, 100], [1.0, 10.0, 1.0])["r_squared"] == pytest.approx(0.0)
    points = [point for _, sweep in scale.sweeps().values() for point in sweep]
    assert {"uavs": 32, "users": 5000, "envs": 16, "settings": {}} in scale.NAMED.values()
    assert all(point.keys() == {"uavs", "users", "envs", "settings"} for point in points)
    row = scale.measure({"uavs": 2, "users": 60, "envs": 3, "settings": scale.NEAREST}, seconds=0.02, repeats=1)
    assert row["environment_steps_per_s"] == pytest.approx(1e6 / row["us_per_environment_step"])
    assert row["ns_per_link"] == pytest.approx(1e3 * row["us_per_environment_step"] / 120)
    assert 20 < row["peak_rss_mib"] < 20_000


def test_a_climb_up_the_slope_ends_at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paraboloid over places, and a best power, whose top is known."""
    monkeypatch.syspath_prepend(str(FOLDER))
    greedy = importlib.import_module("uav_greedy")

    def utility(gain: Any, power_w: Any, position: Any, users: Any) -> Any:
        return -1e-6 * np.square(position - [300.0, 650.0]).sum((1, 2)) - np.square(np.log(power_w / 0.04)).sum(1)

    problem = Problem(
        gain=lambda position, users: np.zeros((len(position), position.shape[1], users.shape[1])),
        utility=utility,
        low=np.zeros(2),
        high=np.full(2, 1000.0),
        least_w=1e-4,
        most_w=0.1,
    )
    rng = np.random.default_rng(0)
    users, position, power = rng.uniform(0, 1000, (5, 3, 2)), rng.uniform(0, 1000, (5, 2, 2)), np.full((5, 2), 0.1)
    slope = greedy._slope(problem, users, position, power)
    assert slope == pytest.approx(-2e-6 * (position - [300.0, 650.0]))
    flown = {"slots": 100, "step": 20.0}
    alone = greedy.climb_slope(problem, users, position, power, powers=False, **flown)
    both = greedy.climb_slope(problem, users, position, power, powers=True, **flown)
    assert alone == pytest.approx(np.full(5, -2 * np.log(0.1 / 0.04) ** 2), abs=1e-3)
    # Powers go by factors of 1.25: the best of them is at most half of one away.
    assert (both >= -2 * np.log(1.25**0.5) ** 2 - 1e-3).all()


def test_slopes_are_climbed_from_both_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    greedy = importlib.import_module("uav_greedy")
    out = tmp_path / "greedy.json"
    monkeypatch.setattr(
        "sys.argv", ["uav_greedy.py", "--scenes", "16", "--slots", "30", "--uavs", "2", "--out", str(out)]
    )
    greedy.main()
    found = {label: row["mean"] for label, row in json.loads(out.read_text())["reward"]["2"].items()}
    assert (
        found["where episodes begin, full power"]
        < found["up the slope, full power"]
        < found["up the slope, powers too"]
    )
    assert found["k-means, full power"] < found["up the slope from k-means, full power"]
    assert "| k-means, full power |" in capsys.readouterr().out


def test_of_uavs_that_hover_the_endings_say_what_they_earned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables of two episodes in which everybody stays where it began, at full power."""
    monkeypatch.syspath_prepend(str(FOLDER))
    endings = importlib.import_module("uav_endings")
    settings = {"num_uavs": 2, "num_users": 6, "rho": 1.0, "actions": {"kind": "velocity"}}
    simulator = Simulator(DownlinkConfig.model_validate(settings), 2)
    simulator.reset(3)
    rewards = [simulator.step(np.tile([0.0, 0.0, 1.0], (2, 2, 1))).reward.copy() for _ in range(25)]
    run = tmp_path / "hovering"
    (run / "tables").mkdir(parents=True)
    scenario = load_scenario("uav_quick", [f"env.config={json.dumps(settings)}"])
    (run / "scenario.yaml").write_text(scenario_yaml(scenario))
    for episode in range(2):
        earned = np.concatenate((np.full((1, 2), np.nan), np.array(rewards)[:, episode]))
        place = np.broadcast_to(simulator.position[episode, :, :2], (26, 2, 2))
        rows = np.column_stack((place.reshape(-1, 2), np.full(52, 0.1), earned.reshape(-1)))
        name = f"episode{episode}_step0.csv"
        header = {"delimiter": ",", "comments": ""}
        np.savetxt(run / "tables" / f"uavs_{name}", rows, header="x,y,power_w,reward", **header)
        np.savetxt(run / "tables" / f"users_{name}", np.tile(simulator.users[episode], (26, 1)), header="x,y", **header)
    out = tmp_path / "endings.json"
    monkeypatch.setattr("sys.argv", ["uav_endings.py", str(run), "--slots", "40", "--out", str(out)])
    endings.main()
    found = json.loads(out.read_text())["hovering"]
    last = np.array(rewards)[-20:].mean((0, 2))
    assert found["reward, last 20 slots"]["mean"] == pytest.approx(last.mean(), abs=1e-4)
    assert found["hovering there"] == found["reward, last 20 slots"]
    assert found["hovering there"]["standard_error"] == pytest.approx(np.ptp(last) / 2, abs=1e-4)
    assert found["up the slope, places"]["mean"] > found["hovering there"]["mean"]
    assert found["up the slope, both"]["mean"] > found["up the slope, powers"]["mean"] > found["hovering there"]["mean"]
    assert found["metres flown a slot"] == 0
    assert found["powers over the highest, sorted"] == [1, 1]
    assert "up the slope, both" in capsys.readouterr().out
    (run / "tables" / "uavs_episode0_step0.csv").unlink()
    (run / "tables" / "uavs_episode1_step0.csv").unlink()
    with pytest.raises(SystemExit, match="no tables; write them with 'marl-tr eval"):
        endings.main()
