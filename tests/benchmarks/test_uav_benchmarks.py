"""The reference ladder's benchmark, at the smallest size at which every line of it runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

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
