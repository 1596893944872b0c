"""The shipped scenarios of other people's environments: they run, learn within their bounds, and resume to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import load_checkpoint, save_checkpoint
from marl_tr.trainer.held_out import HeldOut
from marl_tr.trainer.loop import Trainer

torch.set_num_threads(1)

# What each needs beside gymnasium and pettingzoo, and its entries of `agents`.
SCENARIOS = {
    "cartpole": ((), 1),
    "pendulum": ((), 1),
    "hopper": (("mujoco",), 1),
    "simple_spread": (("mpe2",), 1),
    "reference": (("mpe2",), 1),
    "world_comm": (("mpe2",), 1),
    "zombies": (("pygame",), 2),
    "connect_four": (("pygame",), 1),
}

STEPPING = {"reference", "world_comm", "zombies", "connect_four"}


def trainer(name: str, *overrides: str) -> tuple[Trainer, list[Any]]:
    lines: list[Any] = []
    small = ["env.num_envs=2", "trainer.rollout_steps=12", "critic.hidden=[8]"]
    small += ["optimizer.epochs=1"] if name in STEPPING else []
    small += [f"agents.{entry}.hidden=[8]" for entry in range(SCENARIOS[name][1])]
    made = Trainer(load_scenario(name, [*small, *overrides]))
    made.audit = lines.append
    made.start()
    return made, lines


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_learns_within_its_bounds_with_memory_too_and_resumes_to_the_byte(name: str, tmp_path: Path) -> None:
    packages, entries = SCENARIOS[name]
    for package in packages:
        pytest.importorskip(package)
    recurrent = [f"agents.{entry}.network=gru" for entry in range(entries)]
    whole, lines = trainer(name, *recurrent)
    whole.iterate()
    save_checkpoint(tmp_path / "middle", whole.state_dict())
    whole.iterate()
    resumed, _ = trainer(name, *recurrent)
    resumed.load_state_dict(load_checkpoint(tmp_path / "middle"))
    resumed.iterate()
    for which, made in (("whole", whole), ("resumed", resumed)):
        save_checkpoint(tmp_path / which, made.state_dict())
        made.env.close()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()
    policies = [line for line in lines if line["kind"] == "policy"]
    assert any(line["accepted"] > 0 for line in policies)
    assert all(line["accepted"] <= line["bound"] for line in policies)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_as_it_is_runs_and_is_evaluated(name: str) -> None:
    for package in SCENARIOS[name][0]:
        pytest.importorskip(package)
    limit = ["env.config.max_cycles=20"] if name == "zombies" else []
    made, lines = trainer(name, *limit)
    made.iterate()
    assert lines
    assert made.env.spec.turns == (name == "connect_four")
    held_out = HeldOut(made.scenario, made.players, made.env)
    scalars = held_out.scalars(held_out.evaluate(2), None)
    made.env.close()
    assert all(value == value for value in scalars.values())
    assert len(held_out.matches(2)) == {"world_comm": 2, "connect_four": 2}.get(name, 0)
