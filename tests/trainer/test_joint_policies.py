"""Policies over joint actions in the loop: what they learn from is what everybody did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from marl_tr.region.guard import Guard
from marl_tr.rollout import executed_by_all
from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import save_checkpoint
from marl_tr.trainer.loop import Trainer

torch.set_num_threads(1)


def trainer(*agents: dict[str, Any], **schedule: Any) -> Trainer:
    made = Trainer(
        load_scenario(
            {
                "name": "joint",
                "preset": "matrpo",
                "env": {
                    "id": "uav/downlink-v0",
                    "num_envs": 4,
                    "config": {"num_uavs": 3, "num_users": 6, "horizon": 10},
                },
                "agents": list(agents) or {"kind": "gaussian", "hidden": [8]},
                "region": {"subsample": 1.0, "bound": 0.01},
                "schedule": {"rounds": 2, **schedule},
                "critic": {"hidden": [8]},
                "trainer": {"total_steps": 160, "rollout_steps": 10},
            }
        )
    )
    made.audit = lambda line: None
    made.start()
    return made


@pytest.mark.parametrize(
    "agents",
    [
        [{"kind": "gaussian", "hidden": [8]}],
        [{"kind": "gaussian", "hidden": [8], "select": ["uav_1"]}, {"kind": "matr", "law": "gaussian", "hidden": [8]}],
    ],
)
def test_everybodys_record_is_what_each_executed(agents: list[dict[str, Any]]) -> None:
    run = trainer(*agents)
    rollout = run.collector.collect(10)
    teams = [player.team for player in run.players]
    for team in teams:
        everybody = executed_by_all(teams, rollout, team)
        rows = team.policy.rows.learners
        assert set(everybody) == {"uav_0/action", "uav_1/action", "uav_2/action", "acting"}
        assert everybody["acting"].shape == (rows, 10, 4, 3)
        for k in range(3):
            # The environment got them, clipped; the critic's features are in the same units.
            executed = rollout.groups["uav"].action[:, :, k]
            for row in range(rows):
                torch.testing.assert_close(everybody[f"uav_{k}/action"][row].clamp(-1, 1), executed)


def test_the_bound_is_of_the_joint_action_and_kept() -> None:
    run = trainer()
    lines: list[Any] = []
    run._guard = Guard(lines.append)
    scalars = run.iterate().scalars
    assert [line["learner"] for line in lines] == ["uav_0", "uav_1", "uav_2"]
    assert all(line["outcome"] == "accepted" and 0.001 < line["accepted"] <= 0.01 for line in lines)
    assert scalars["consensus/disagreement"] < scalars["consensus/first_disagreement"]


def test_a_run_goes_on_from_a_checkpoint_to_the_byte(tmp_path: Path) -> None:
    whole, first, second = (trainer(edges=[["uav_0", "uav_1"], ["uav_1", "uav_2"]]) for _ in range(3))
    for _ in range(3):
        whole.iterate()
    first.iterate()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.iterate()
    for name, run in (("whole", whole), ("resumed", second)):
        save_checkpoint(tmp_path / name, run.state_dict())
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()
