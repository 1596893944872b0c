"""A mechanism from outside the package: short, found by name, and what it says it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from marl_tr.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def sapo() -> Any:
    spec = importlib.util.spec_from_file_location("sapo", EXAMPLES / "sapo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_takes_fewer_than_sixty_lines() -> None:
    assert len((EXAMPLES / "sapo.py").read_text("utf-8").splitlines()) < 60


@pytest.mark.parametrize("advantage", [2.0, -0.5])
def test_the_slope_is_the_advantage_at_ratio_one_and_fades_out_on_both_sides(advantage: float) -> None:
    module = sapo()
    from marl_tr.scenario.schema import OptimizerSection

    region = module.SAPO.load()(module.SapoConfig(), OptimizerSection())
    slopes = []
    for at in (0.2, 0.6, 1.0, 1.4, 3.0):
        step = 1e-5
        values = [
            float(
                region.gain(
                    SimpleNamespace(
                        ratio=torch.tensor(at + shift, dtype=torch.float64),
                        advantage=torch.tensor(advantage, dtype=torch.float64),
                    ),
                    None,
                )
            )
            for shift in (-step, step)
        ]
        slopes.append((values[1] - values[0]) / (2 * step))
    assert slopes[2] == pytest.approx(advantage, rel=1e-6)
    sizes = [abs(slope) for slope in slopes]
    assert sizes[0] < sizes[1] < sizes[2] > sizes[3] > sizes[4]


RUN = ["run", "cartpole", "preset=mappo", "region.kind=sapo:SAPO"]


def test_a_scenario_names_it_and_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    few = ["trainer.total_steps=2048", "trainer.rollout_steps=64", f"trainer.runs_dir={tmp_path}"]
    quick = ["evaluation.final_episodes=2", "evaluation.every=0", "evaluation.media=false"]
    assert main([*RUN, "region.temperature_down=2.0", *few, *quick]) == 0
    (run,) = (tmp_path / "cartpole").iterdir()
    updates = [json.loads(line) for line in (run / "audit.jsonl").read_text("utf-8").splitlines()]
    of_policies = [line for line in updates if line["learner"] != "critic"]
    assert len(of_policies) == 4
    assert all(line["guarantee"] == "none" and 0 < line["accepted"] < 0.1 for line in of_policies)
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-2])["scalars"]
    assert any(tag.startswith("region/reach/") for tag in last)


def test_a_setting_that_it_does_not_have_is_refused_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "region.temperature=2"]) == 2
    assert "region.temperature" in capsys.readouterr().err
