"""The toy example of drifting: its measures against closed forms, one short run of every line, and what it shows."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("drifting_toys")
    module.distance_of_target.cache_clear()
    return module


def test_energy_distance_on_a_line_is_that_of_scipy(toys: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), rng.normal(0.7, 2.0, size=300)
    plane = [torch.from_numpy(np.stack([v, np.zeros_like(v)], -1)) for v in (x, y)]
    assert math.isclose(toys.energy_distance(*plane), stats.energy_distance(x, y) ** 2, rel_tol=1e-9)


def test_sets_lie_within_the_figure_and_repeat_with_their_generator(toys: Any) -> None:
    drawn = {name: points(2000, torch.Generator().manual_seed(1)) for name, points in toys.SETS.items()}
    for name, points in drawn.items():
        assert points.shape == (2000, 2)
        assert float(points.abs().max()) < 1.35, name
        assert float(points.mean(0).norm()) < 0.2, name
        assert torch.equal(points, toys.SETS[name](2000, torch.Generator().manual_seed(1)))
    squares = ((drawn["checkerboard"] + 1) * 2).floor().long()
    assert bool((squares.sum(-1) % 2 == 0).all())
    assert len(squares.unique(dim=0)) == 8


def test_perfect_samples_have_every_mode_and_almost_all_within_three_deviations(toys: Any) -> None:
    run = toys.Run("eight_gaussians", "joint", (0.1,), 1, 8, 1)
    outcome = toys.measured(run, toys.eight_gaussians(4000, torch.Generator().manual_seed(3)), 0.0)
    assert outcome.modes == 8
    # In the plane, 1 - exp(-9 / 2) of a Gaussian lies within three deviations.
    assert outcome.within_3_std == pytest.approx(1 - math.exp(-4.5), abs=0.006)
    assert outcome.energy_distance < 4 * outcome.energy_distance_of_target


def test_short_run_learns_draws_and_keeps_its_numbers(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure, results = tmp_path / "toys.png", tmp_path / "toys.json"
    monkeypatch.setattr(toys, "HELD_OUT", 500)
    arguments = ["--sets", "eight_gaussians", "spiral", "--steps", "40", "--batch", "64"]
    outputs = ["--figure", str(figure), "--results", str(results)]
    threads = torch.get_num_threads()
    try:
        for fields in (["joint"], ["joint", "separate"]):
            monkeypatch.setattr(sys, "argv", ["drifting_toys.py", *arguments, "--fields", *fields, *outputs])
            toys.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(results.read_text())["runs"]
    assert [(r["set"], r["field"]) for r in rows] == [
        (s, f) for f in ("joint", "separate") for s in ("eight_gaussians", "spiral")
    ]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "modes" in capsys.readouterr().out
    # A point at the origin, where the network starts, is about 1.2 away from the ring.
    assert rows[0]["energy_distance"] < 0.5


@pytest.mark.slow
def test_joint_field_covers_eight_gaussians_and_one_sided_softmaxes_fall_behind_at_a_narrow_temperature(
    toys: Any,
) -> None:
    """The order that the results file records, at one seed."""
    default, _ = toys.train(toys.Run("eight_gaussians", "joint", (0.02, 0.05, 0.2), 1500, 256, 1))
    assert default.energy_distance <= 0.02
    assert default.modes == 8
    joint, row, separate = (
        toys.train(toys.Run("eight_gaussians", field, (0.05,), 1500, 256, 1))[0]
        for field in ("joint", "row", "separate")
    )
    assert joint.modes == 8
    assert row.modes < 8
    assert 2 * joint.energy_distance < min(row.energy_distance, separate.energy_distance)
