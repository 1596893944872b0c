"""Growth of costs: the fit, what a point builds, and the whole benchmark at the smallest size."""

from __future__ import annotations

import functools
import importlib
import json
import math
import operator
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from marl_tr.scenario import load_scenario

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY: dict[str, Any] = {"uavs": 2, "users": 2, "envs": 2, "steps": 3, "width": 8, "teams": None, "sharing": None}


@pytest.fixture(name="growth")
def _growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("growth")


@pytest.fixture(name="costs")
def _costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("cost_growth")


def test_a_power_law_is_found_with_its_range(growth: ModuleType) -> None:
    law = growth.power_law([1, 10, 100], [3.0, 3.0 * 10**1.5, 3.0 * 100**1.5])
    assert (law.exponent, law.coefficient, law.r_squared) == pytest.approx((1.5, 3.0, 1.0))
    assert (law.first, law.last) == (1, 100)
    assert law.standard_error == pytest.approx(0, abs=1e-12)


def test_the_exponents_error_is_that_of_a_regression(growth: ModuleType) -> None:
    """By scipy, on points beside their line."""
    stats = pytest.importorskip("scipy.stats")
    x, y = [2, 3, 4, 6, 8], [5.0, 6.5, 11.0, 14.0, 23.0]
    law, found = growth.power_law(x, y), stats.linregress(np.log(x), np.log(y))
    assert law.exponent == pytest.approx(found.slope)
    assert law.standard_error == pytest.approx(found.stderr)
    reach = stats.t.ppf(0.975, 3) * found.stderr
    assert (law.low, law.high) == pytest.approx((found.slope - reach, found.slope + reach), rel=1e-3)


def test_two_points_leave_nothing_to_judge_the_fit_by(growth: ModuleType) -> None:
    law = growth.power_law([1, 2], [1.0, 4.0])
    assert law.exponent == pytest.approx(2)
    assert math.isnan(law.standard_error)
    assert math.isnan(law.high)


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1.0, 2.0]), ([1, 2], [0.0, 1.0]), ([1], [1.0])])
def test_what_has_no_power_is_refused(growth: ModuleType, x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        growth.power_law(x, y)


def test_every_point_of_every_axis_is_a_scenario_of_its_size(costs: ModuleType) -> None:
    for configuration in costs.SCENARIOS:
        for axis, (field, _, sizes) in costs.AXES.items():
            for point, size in zip(costs.points(configuration, axis), sizes, strict=True):
                assert point[field] == size
                scenario = load_scenario(costs.scenario_of(point))
                assert scenario.env.num_envs == point["envs"]
                assert scenario.trainer.rollout_steps == point["steps"]
                assert (scenario.env.settings.num_uavs, scenario.env.settings.num_users) == (
                    point["uavs"],
                    point["users"],
                )
                assert len(scenario.agents) == (point["teams"] or 1)
                flat = configuration == "MLP MAPPO"
                assert scenario.agents[0].config.encoder == ("flat" if flat else "entities")
                if point["width"]:
                    assert scenario.agents[0].config.hidden == [point["width"]]


def test_own_parameters_change_the_number_of_learners(costs: ModuleType) -> None:
    kinds = {}
    for configuration in costs.SCENARIOS:
        (own, *_), (other, *_) = (costs.points(configuration, axis) for axis in ("UAVs", costs.OWN))
        kinds[configuration] = [load_scenario(costs.scenario_of(point)).agents[0].sharing for point in (own, other)]
    assert kinds == {"GA-MATR": ["all", "none"], "MLP MAPPO": ["all", "none"]}


def test_a_point_is_measured_in_a_fork_with_its_parts_and_memory(costs: ModuleType, growth: ModuleType) -> None:
    point = {"configuration": "MLP MAPPO", **TINY, "sharing": "none"}
    row = growth.in_fork(functools.partial(costs.measure, iterations=2), point)
    us = row["us_per_step"]
    assert us["total"] == pytest.approx(sum(us[part] for part in costs.PARTS))
    assert min(us.values()) > 0
    assert us["total"] * TINY["envs"] * TINY["steps"] == pytest.approx(1e6 * min(row["seconds"]))
    assert len(row["seconds"]) == row["learners"] == 2
    assert row["peak_rss_mib"] >= row["rss_before_mib"] > 20


def test_what_fails_in_a_fork_fails_here(growth: ModuleType) -> None:
    with pytest.raises(KeyError, match="uavs"):
        growth.in_fork(operator.itemgetter("uavs"), {})


def die(point: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return point


def test_a_fork_that_is_killed_is_an_error_and_no_endless_wait(growth: ModuleType) -> None:
    with pytest.raises(BrokenProcessPool):
        growth.in_fork(die, {})


def test_points_are_kept_and_not_measured_again(
    costs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With costs of known growth in place of measured ones: 3 uavs^2 envs^-0.5 us, and 5 MiB an UAV."""

    def known(measure: object, point: dict[str, Any]) -> dict[str, Any]:
        total = 3.0 * point["uavs"] ** 2 * point["envs"] ** -0.5
        parts = dict.fromkeys(costs.PARTS, total / 4)
        return {"us_per_step": {**parts, "total": total}, "memory_mib": 5.0 * point["uavs"]}

    monkeypatch.setattr(costs, "in_fork", known)
    monkeypatch.setattr(costs, "rehearse", lambda configuration: None)
    out, figure = tmp_path / "costs.json", tmp_path / "costs.png"
    monkeypatch.setattr("sys.argv", ["cost_growth.py", "--out", str(out), "--figure", str(figure)])
    costs.main()
    told = capsys.readouterr().out
    found = json.loads(out.read_text())
    laws = {axis: found["fits"]["GA-MATR"][axis]["laws"] for axis in costs.AXES}
    assert laws["UAVs"]["learn"]["exponent"] == pytest.approx(2)
    assert (laws["UAVs"]["learn"]["first"], laws["UAVs"]["learn"]["last"]) == (2, 8)
    assert laws["UAVs"]["memory"]["exponent"] == pytest.approx(1)
    assert laws["environments"]["total"]["exponent"] == pytest.approx(-0.5)
    assert laws["width"]["total"]["exponent"] == pytest.approx(0)
    assert "| GA-MATR | UAVs, 2 to 8 | 2.00 ± 0.00 |" in told
    assert figure.stat().st_size > 10_000
    kept, lost = (costs.key(costs.points(name, "users")[0]) for name in costs.SCENARIOS)
    found["points"][kept]["us_per_step"]["total"] = 12345.0
    del found["points"][lost]
    out.write_text(json.dumps(found))
    monkeypatch.setattr(costs, "draw", lambda found, path: None)  # once is enough
    costs.main()
    measured = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if " us; " in line]
    assert measured == ["MLP MAPPO, users 10"]
    again = json.loads(out.read_text())["points"]
    assert again[kept]["us_per_step"]["total"] == 12345.0
    assert again[lost]["us_per_step"]["total"] < 12345.0
