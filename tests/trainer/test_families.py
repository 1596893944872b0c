"""Policies of unlike kinds learn together: one trainer, one critic, one audit; those without a likelihood go last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import the_run

from marl_tr.cli import main

SMALL = {
    "uav_three_families": [
        *("env.num_envs=6", "trainer.total_steps=240", "trainer.rollout_steps=20", "critic.width=16"),
        *("evaluation.episodes=2", "evaluation.final_episodes=2", "evaluation.media=false"),
        "agents.2.objective.minimum_positives=4",
    ],
    "two_families": [
        *("env.num_envs=4", "trainer.total_steps=400", "trainer.rollout_steps=25"),
        *("evaluation.episodes=2", "evaluation.final_episodes=2", "agents.0.objective.minimum_positives=4"),
    ],
}


def audit_of(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (the_run(folder) / "audit.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "policy"]


@pytest.mark.parametrize("name", SMALL)
def test_families_learn_side_by_side_and_every_bound_is_audited(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, *SMALL[name]]) == 0
    assert main(["audit", str(the_run(tmp_path))]) == 0
    assert "all digests are right" in capsys.readouterr().out
    lines = audit_of(tmp_path)
    directions = {str(line["learner"]): line["direction"] for line in lines}
    if name == "two_families":
        assert directions == {"adversary_0": "squared_step", "agent_0": "kl_old_new", "agent_1": "kl_old_new"}
        assert {line["guarantee"] for line in lines if line["learner"] == "adversary_0"} == {"none"}
        return
    assert directions == {"uav_0": "kl_old_new", "uav_1": "kl_old_new", "uav_2": "squared_step"}
    assert {str(line["learner"]): line["bound"] for line in lines} == {"uav_0": 0.03, "uav_1": 0.1, "uav_2": 0.04}
    assert all(line["guarantee"] == "hard" for line in lines)
    # The drifting learner is last in every iteration; the two with a likelihood take turns in random order.
    turns = [[str(line["learner"]) for line in lines[k : k + 3]] for k in range(0, len(lines), 3)]
    assert len(turns) == 2
    assert all(sorted(turn[:2]) == ["uav_0", "uav_1"] and turn[2] == "uav_2" for turn in turns)
    assert all(line["outcome"] != "rejected" for line in lines if line["learner"] == "uav_2")
