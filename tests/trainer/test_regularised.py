"""Runs with everything on: regularisers, bounds to anchors, accumulation, chain chunks, averages; resumed exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from marl_tr.analysis.audit import audit
from marl_tr.cli import main
from marl_tr.errors import UserError
from marl_tr.events.audit_log import AuditLog
from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import load_checkpoint, save_checkpoint
from marl_tr.trainer.held_out import HeldOut
from marl_tr.trainer.loop import Trainer

torch.set_num_threads(1)

CONTROLLER = {"kind": "controller", "target": 0.01, "initial": 0.1, "least": 0.01, "most": 10.0}
TERMS = [
    {"kind": "position", "anchor": {"kind": "period", "every": 2}, "weight": CONTROLLER, "bound": 0.01},
    {"kind": "position", "anchor": {"kind": "soft", "rate": 0.3}, "weight": 0.1, "reduction": "mean"},
    {"kind": "velocity", "weight": {"kind": "two_stage", "early": 0.0, "late": 0.2, "switch": 0.3, "ramp": 0.4}},
    {"kind": "velocity", "form": "monte_carlo", "weight": 0.01, "reduction": "mean"},
]
MEASURED: dict[str, Any] = {
    "region": {"kind": "measured", "bound": 0.01},
    "objective": {"kind": "clip"},
    "optimizer": {"learning_rate": 3e-3, "epochs": 2, "minibatches": 2},
}
GAUSSIAN = {"kind": "gaussian", "hidden": [8, 8]}
FLOW = {"kind": "flow", "steps": 4, "network": {"kind": "mlp", "hidden": [8, 8, 8]}}
CASES: dict[str, dict[str, Any]] = {
    "adam": {**MEASURED, "agents": {**GAUSSIAN, "normalise_observation": True}},
    "adamw": {**MEASURED, "agents": GAUSSIAN, "optimizer": {"kind": "adamw", "weight_decay": 0.1, "epochs": 2}},
    "muon on a flow": {
        **MEASURED,
        "agents": FLOW,
        "optimizer": {
            "kind": "muon",
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "epochs": 2,
            "chain_batch": 1,
            "chain_fraction": 0.75,
            "accumulate": 2,
        },
    },
    "trpo": {"agents": GAUSSIAN, "region": {"kind": "trpo"}, "objective": {"kind": "surrogate"}},
}


def scenario(case: str, **settings: Any) -> Any:
    return load_scenario(
        {
            "name": "regularised",
            "env": {"id": "uav/downlink-v0", "num_envs": 3, "config": {"num_uavs": 2, "num_users": 4, "horizon": 12}},
            "schedule": {"kind": "simultaneous"},
            "critic": {"kind": "mlp", "hidden": [8]},
            "regularisers": TERMS,
            "trainer": {"total_steps": 3 * 8 * 6, "rollout_steps": 8},
            "evaluation": {"ema": 0.7, "episodes": 2, "media": False, "references": False},
            **CASES[case],
            **settings,
        }
    )


def trained(
    case: str, iterations: int, *, audit_to: Any = None, state: Any = None
) -> tuple[Trainer, list[dict[str, float]]]:
    """A trainer after so many iterations, and their scalars without what measures time."""
    trainer = Trainer(scenario(case))
    trainer.audit = audit_to or (lambda line: None)
    trainer.start() if state is None else trainer.load_state_dict(state)
    scalars = []
    for _ in range(iterations):
        told = trainer.iterate().scalars
        scalars.append({k: v for k, v in told.items() if not k.startswith("perf/") and k != "charts/SPS"})
    return trainer, scalars


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(case: str, tmp_path: Path) -> None:
    whole, expected = trained(case, 5)
    first, _ = trained(case, 3)
    path = tmp_path / "step_000000000001.safetensors"
    save_checkpoint(path, first.state_dict())
    second, scalars = trained(case, 2, state=load_checkpoint(path))
    assert scalars == expected[3:]
    for name, trainer in (("whole", whole), ("second", second)):
        save_checkpoint(tmp_path / name / path.name, trainer.state_dict())
    written = [(tmp_path / name / path.name).read_bytes() for name in ("whole", "second")]
    assert written[0] == written[1]


@pytest.mark.parametrize("case", CASES)
def test_bounds_to_anchors_are_kept_and_audited_in_a_run(case: str, tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    trainer, scalars = trained(case, 5, audit_to=log.append)
    log.close()
    report = audit([tmp_path])
    assert report.ok, report.render()
    assert {row.kind for row in report.rows} == {"policy", "anchor", "critic"}
    anchors = [row for row in report.rows if row.kind == "anchor"]
    assert [row.learner for row in anchors] == list(trainer.learners)
    assert all(row.updates == 5 for row in anchors)
    for told in scalars:
        for learner in trainer.learners:
            assert told[f"region/kl_anchor_bound/{learner}"] == 0.01
            for name in ("kl_anchor", "kl_anchor_2", "kl_step", "kl_step_2"):
                assert math.isfinite(told[f"region/{name}/{learner}"])
            assert 0.01 <= told[f"region/kl_anchor_weight/{learner}"] <= 10.0
    weights = [told[f"region/kl_step_weight/{trainer.learners[0]}"] for told in scalars]
    assert weights == pytest.approx([0.0, 0.0, 0.2 * (2 / 6 - 0.3) / 0.4, 0.1, 0.2 * (4 / 6 - 0.3) / 0.4])


def test_evaluations_act_by_the_averages_and_leave_the_policies_as_they_are() -> None:
    trainer, _ = trained("adam", 4)
    before = [p.detach().clone() for player in trainer.players for p in player.learners.policy.module.parameters()]
    averaged = HeldOut(trainer.scenario, trainer.players, trainer.env).evaluate(2)["mode"].returns
    after = [p.detach() for player in trainer.players for p in player.learners.policy.module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # By hand: the averages put in for good.
    for player in trainer.players:
        average = player.learners.state_dict()["average"]
        with torch.no_grad():
            for name, p in player.learners.policy.module.named_parameters():
                p.copy_(average[name])
        player.learners._average = None
    by_hand = HeldOut(trainer.scenario, trainer.players, trainer.env).evaluate(2)["mode"].returns
    assert np.array_equal(averaged, by_hand)


def test_eval_acts_by_the_averages_of_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run said at its end is what ``marl-tr eval`` says of its checkpoint."""
    plain = scenario("adam").model_dump(mode="json")
    plain["trainer"]["runs_dir"] = str(tmp_path / "runs")
    plain["evaluation"]["final_episodes"] = 4
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(plain))
    assert main(["run", str(file)]) == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    end = [line for line in (run / "report.md").read_text().splitlines() if line.startswith("| learned")]
    capsys.readouterr()
    assert main(["eval", str(run), "--episodes", "4"]) == 0
    told = capsys.readouterr().out
    for line in end:
        assert line.split("|")[2].strip() in told
    assert main(["audit", str(run)]) == 0


def test_muon_without_a_hidden_matrix_is_refused_with_a_way_out() -> None:
    shallow = {"agents": {**GAUSSIAN, "hidden": [8]}, "optimizer": {"kind": "muon"}}
    with pytest.raises(UserError, match=r"optimizer\.kind: 'muon' moves hidden matrices.*'adamw'"):
        Trainer(scenario("adam", **shallow))
