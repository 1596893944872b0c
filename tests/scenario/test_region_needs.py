"""What regions ask to know of decisions: refused where it cannot be had, with the place, and learned from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marl_tr.cli import main
from marl_tr.errors import UserError
from marl_tr.registry import names
from marl_tr.scenario import Problem, load_scenario, scenario_warnings
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.loop import Trainer

torch.set_num_threads(1)

Load = Callable[..., list[Problem]]


def asks_for(*needs: str) -> list[str]:
    """Registered regions that by default ask for one of `needs`."""
    models = {name: entry.load_config() for name, entry in names("regions").items()}
    return [name for name, model in models.items() if model is not None and {*needs} & getattr(model(), "needs", set())]


COMPARING = asks_for("cohort", "whole_cohorts")
WHOLE = asks_for("whole_trajectories", "whole_cohorts")

CARTPOLE = """\
name: x
env: {{id: gymnasium/CartPole-v1, num_envs: 8}}
agents: {{kind: gaussian, hidden: [8]}}
objective: {{kind: surrogate}}
region:
  kind: {region}
optimizer: {{}}
schedule: {{kind: simultaneous}}
critic: {{kind: mlp, hidden: [8]}}
trainer: {{total_steps: 100}}
"""

BANDIT = """\
name: x
env:
  id: games/bandit-v0
  num_envs: 16
  config: {{cohort: {cohort}}}
agents: {{kind: gaussian, sharing: all, hidden: [8]}}
advantage: {{estimator: cohort}}
objective: {{kind: surrogate}}
region: {region}
optimizer: {{learning_rate: 1e-2, epochs: 3, minibatches: 2}}
schedule: {{kind: simultaneous}}
critic: {{kind: mlp, hidden: [8]}}
trainer: {{total_steps: 64, rollout_steps: 1}}
evaluation: {{episodes: 4, final_episodes: 4, media: false, references: false}}
"""

MIXTURE = """\
name: x
env: {{id: flow/mixture-v0, num_envs: 16, config: {{cohort: 4, view: {view}, steps: 3}}}}
agents: {{kind: {agents}}}
advantage: {{estimator: cohort}}
objective: {{kind: surrogate}}
region: {region}
optimizer: {{learning_rate: 1e-2, epochs: 3, minibatches: 2}}
schedule: {{kind: simultaneous}}
critic: {{kind: mlp, hidden: [8]}}
trainer: {{total_steps: {steps}, rollout_steps: {length}}}
evaluation: {{episodes: 4, final_episodes: 4, media: false, references: false}}
"""
CLIPS = {"view": "clip", "steps": 32, "length": 1, "agents": "flow, steps: 3, network: {kind: mlp, hidden: [8]}"}
STEPS = {"view": "steps", "steps": 192, "length": 6, "agents": "gaussian, hidden: [8]"}


def scenario(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    return load_scenario(path)


def test_the_group_relative_mechanisms_ask_for_cohorts() -> None:
    assert {"grpo", "gbpo", "etr"} <= set(COMPARING)
    assert {"gspo", "fiberpo"} <= set(WHOLE)


@pytest.mark.parametrize("region", COMPARING)
def test_without_cohorts_it_is_refused_where_the_region_is_named(region: str, problems: Load) -> None:
    (found,) = problems(CARTPOLE.format(region=region))
    assert (found.path, found.line) == ("region.kind", 6)
    assert "compares episodes with each other, and this environment forms no cohorts" in found.message
    assert "games/bandit-v0" in found.message


@pytest.mark.parametrize("region", COMPARING)
def test_the_command_says_so_and_ends_with_2(region: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(CARTPOLE.format(region=region))
    assert main(["run", str(path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "scenario.yaml:6:" in said
    assert f"region {region!r} compares episodes" in said


@pytest.mark.parametrize(
    ("agents", "optimizer", "path", "line"),
    [
        ("{kind: gaussian, network: gru}", "{}", "agents.network", 3),
        ("{kind: matr}", "{}", "agents.network", 3),  # 'gru' is what it has by default
        ("{kind: gaussian, normalise_observation: true}", "{}", "agents.normalise_observation", 3),
        ("{kind: gaussian, hidden: [8, 8]}", "{kind: muon}", "optimizer.kind", 7),
    ],
)
def test_settings_that_a_region_cannot_work_with_are_refused_in_their_line(
    agents: str, optimizer: str, path: str, line: int, problems: Load
) -> None:
    text = CARTPOLE.format(region="trpl").replace("optimizer: {}", f"optimizer: {optimizer}")
    text = text.replace("{kind: gaussian, hidden: [8]}", agents).replace("CartPole-v1", "Pendulum-v1")
    text = text.replace("kind: matr", "kind: matr, law: gaussian")
    (found,) = problems(text)
    assert (found.path, found.line) == (path, line)
    assert f"region 'trpl' cannot work with '{path.split('.')[1]}: " in found.message
    assert problems(text.replace("kind: trpl", "kind: ppo_clip")) == []


@pytest.mark.parametrize("region", sorted(set(WHOLE) - set(COMPARING)))
def test_whole_trajectories_need_no_cohorts(region: str, problems: Load) -> None:
    assert problems(CARTPOLE.format(region=region)) == []


def test_four_levels_need_cohorts_where_two_do_not(problems: Load) -> None:
    assert problems(CARTPOLE.format(region="fiberpo\n  levels: trajectory")) == []
    (found,) = problems(CARTPOLE.format(region="fiberpo\n  levels: domain"))
    assert (found.path, found.line) == ("region.kind", 6)


def test_cohorts_of_one_copy_are_refused_with_the_setting_that_makes_them_larger(problems: Load) -> None:
    (found,) = problems(BANDIT.format(region="{kind: grpo}", cohort=1))
    assert (found.path, found.line) == ("region.kind", 9)
    assert "its cohorts are of one copy: set env.config.cohort" in found.message
    assert problems(BANDIT.format(region="{kind: grpo}", cohort=4)) == []


@pytest.mark.parametrize("region", WHOLE)
def test_chains_in_chunks_are_refused_for_whole_trajectories(region: str, problems: Load) -> None:
    text = MIXTURE.format(region=f"{{kind: {region}}}", **CLIPS).replace("minibatches: 2", "chain_batch: 2")
    (found,) = problems(text)
    assert found.path == "region.kind"
    assert "needs all steps of a chain at once" in found.message


def test_advantages_that_compare_nothing_deserve_a_word(tmp_path: Path) -> None:
    good = BANDIT.format(region="{kind: grpo}", cohort=4)
    assert not any("estimator" in told for told in scenario_warnings(scenario(tmp_path, good)))
    odd = scenario(tmp_path, good.replace("advantage: {estimator: cohort}\n", ""))
    (told,) = [told for told in scenario_warnings(odd) if "estimator" in told]
    assert "region 'grpo'" in told


def learned(read: Scenario) -> dict[str, float]:
    """Two updates; finite, and something has moved."""
    trainer = Trainer(read)
    trainer.audit = lambda line: None
    trainer.start()
    before = [p.clone() for player in trainer.players for p in player.learners.policy.module.parameters()]
    told = [trainer.iterate().scalars for _ in range(2)]
    after = [p for player in trainer.players for p in player.learners.policy.module.parameters()]
    assert all(math.isfinite(value) for scalars in told for value in scalars.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return told[-1]


REGIONS = [
    *(f"{{kind: {name}}}" for name in dict.fromkeys(["grpo", "gspo", "gbpo", "etr", "fiberpo", *COMPARING])),
    "{kind: gspo, variant: token}",
    "{kind: etr, macro: 0.3}",
    "{kind: fiberpo, base_gate: apc, pessimistic: true}",
    "{kind: fiberpo, levels: domain}",
]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("env", ["bandit", "clips", "steps"])
def test_where_there_are_cohorts_it_learns(env: str, region: str, tmp_path: Path) -> None:
    text = (
        BANDIT.format(region=region, cohort=4)
        if env == "bandit"
        else MIXTURE.format(region=region, **(CLIPS if env == "clips" else STEPS))
    )
    told = learned(scenario(tmp_path, text))
    reach = [value for tag, value in told.items() if tag.startswith("region/reach/")]
    assert all(value > 0 for value in reach)


def test_a_bound_of_ones_own_makes_it_hard(tmp_path: Path) -> None:
    text = BANDIT.format(region="{kind: fiberpo, bound: 1e-4}", cohort=4).replace("1e-2", "0.1")
    trainer = Trainer(scenario(tmp_path, text))
    lines: list[Any] = []
    trainer.audit = lines.append
    trainer.start()
    trainer.iterate()
    policy = [line for line in lines if line.get("bound") == 1e-4]
    assert policy
    assert all(line["accepted"] <= 1e-4 and line["proposed"] > 1e-4 for line in policy)


def test_process_scores_come_from_an_environments_metric(tmp_path: Path) -> None:
    """They change what cohorts are compared by, and are refused where nothing is compared or measured."""
    text = MIXTURE.format(region="{kind: grpo}", **CLIPS)
    wanted = "{estimator: cohort, transform: {kind: trust_grpo, process: manifold_distance, alpha: 5.0}}"
    with_process = scenario(tmp_path, text.replace("{estimator: cohort}", wanted))
    plain = learned(scenario(tmp_path, text))
    changed = learned(with_process)
    assert plain["losses/policy_loss"] != changed["losses/policy_loss"]
    with pytest.raises(UserError, match="measures no 'distance'; its metrics: reward, manifold_distance"):
        learned(
            scenario(tmp_path, text.replace("{estimator: cohort}", wanted.replace("manifold_distance", "distance")))
        )
    with pytest.raises(UserError, match="set estimator: cohort"):
        scenario(tmp_path, text.replace("{estimator: cohort}", wanted.replace("estimator: cohort, ", "")))
