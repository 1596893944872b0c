"""Agents that learn by objectives, regions and optimizers of their own, in one run; resumed exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from running import checkpoints, same_run, the_run

from marl_tr.cli import main
from marl_tr.errors import UserError
from marl_tr.objective.ratio import ClippedRatio, Surrogate
from marl_tr.region.measured import Measured
from marl_tr.region.trpo import Trpo
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players
from marl_tr.trainer.checkpoint import load_checkpoint

torch.set_num_threads(1)

SCENARIO = """
name: mixed
env: {id: uav/downlink-v0, num_envs: 3, config: {num_uavs: 3, num_users: 4, horizon: 12, rho: 1.0}}
agents:
  - {kind: matr, hidden: [8], select: [uav_0]}
  - kind: gaussian
    hidden: [8, 8]
    select: [uav_1]
    objective: {kind: clip}
    region: {kind: measured}
    optimizer: {kind: muon, epochs: 2, minibatches: 2}
  - {kind: gaussian, hidden: [8], objective: {kind: clip, clip: 0.1}, region: {kind: measured, bound: 0.005}}
objective: {kind: surrogate}
region: {kind: trpo, bound: 0.02}
schedule: {kind: simultaneous}
critic: {kind: mlp, hidden: [8]}
optimizer: {learning_rate: 0.01, epochs: 3}
trainer: {total_steps: 48, rollout_steps: 8, checkpoint_every: 1}
evaluation: {every: 0, episodes: 2, final_episodes: 2, media: false, references: false}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations; nobody may change it."""
    folder = tmp_path_factory.mktemp("mixed")
    data = yaml.safe_load(SCENARIO)
    data["trainer"]["runs_dir"] = str(folder / "runs")
    (folder / "scenario.yaml").write_text(yaml.safe_dump(data))
    assert main(["run", str(folder / "scenario.yaml")]) == 0
    return the_run(folder)


def test_each_entry_learns_by_its_own_sections_and_the_scenarios_for_the_rest() -> None:
    scenario = load_scenario(yaml.safe_load(SCENARIO))
    env = build_env(scenario, num_envs=3)
    players = build_players(scenario, env.spec)
    env.close()
    kinds = [(type(player.objective), type(player.region), player.region.bound) for player in players]
    assert kinds == [(Surrogate, Trpo, 0.02), (ClippedRatio, Measured, None), (ClippedRatio, Measured, 0.005)]
    assert [player.objective.clip for player in players[1:]] == [0.2, 0.1]  # type: ignore[attr-defined]
    optimizers = [scenario.optimizer_of(entry) for entry in scenario.agents]
    assert [steps and (steps.kind, steps.epochs) for steps in optimizers] == [None, ("muon", 2), ("adam", 3)]


def test_every_update_is_audited_with_the_guarantee_of_its_own_region(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (whole / "audit.jsonl").read_text().splitlines()]
    policies = [line for line in lines if line["kind"] == "policy"]
    told = {(line["iteration"], line["learner"]): (line["guarantee"], line["bound"]) for line in policies}
    own = {"uav_0": ("hard", 0.02), "uav_1": ("none", None), "uav_2": ("hard", 0.005)}
    iterations = {line["iteration"] for line in policies}
    assert len(iterations) == 2
    assert told == {(i, learner): kept for i in iterations for learner, kept in own.items()}
    for line in policies:
        assert line["bound"] is None or line["accepted"] <= line["bound"]
    # Steps of 0.01 leave a bound of 0.005 nats behind, unless the Guard holds them.
    assert any(line["outcome"] == "interpolated" for line in policies if line["learner"] == "uav_2")
    assert main(["audit", str(whole)]) == 0
    assert "all digests are right" in capsys.readouterr().out


def test_the_optimizers_moments_are_those_of_each_entrys_own(whole: Path) -> None:
    state = load_checkpoint(checkpoints(whole)[-1])
    players = state["trainer"]["players"]
    slots = [{slot for leaf in p["learners"]["moments"][0].values() for slot in leaf} for p in players.values()]
    # trpo has none; muon has a momentum for the hidden matrix and AdamW's moments for the rest.
    assert slots[0] == set()
    assert {"momentum_buffer", "exp_avg", "exp_avg_sq"} <= slots[1]
    assert "momentum_buffer" not in slots[2]


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert len(checkpoints(run)) == 3, "at the start and after each iteration"
    checkpoints(run)[-1].unlink()
    (run / "report.md").unlink()
    assert main(["resume", str(run)]) == 0
    same_run(run, whole)


def test_the_run_keeps_every_entrys_sections_and_refuses_others(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = yaml.safe_load((whole / "scenario.yaml").read_text())
    assert kept["agents"][0]["region"] is None
    assert kept["agents"][2]["region"] == {"kind": "measured", "bound": 0.005, "stop_at": None}
    assert main(["eval", str(whole), "--episodes", "2"]) == 0
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    kept["agents"][2]["region"]["bound"] = 0.5
    kept["trainer"]["total_steps"] *= 2
    (run / "scenario.yaml").write_text(yaml.safe_dump(kept))
    assert main(["resume", str(run)]) == 2
    assert "agents.2.region.bound was 0.005 and is 0.5" in capsys.readouterr().err


def test_muon_without_a_hidden_matrix_is_refused_at_the_entry_that_asks_for_it() -> None:
    scenario = load_scenario(yaml.safe_load(SCENARIO), ["agents.1.hidden=[8]"])
    env = build_env(scenario, num_envs=3)
    with pytest.raises(UserError, match=r"^agents\.1\.optimizer\.kind: 'muon' moves hidden matrices"):
        build_players(scenario, env.spec)
    env.close()
