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
