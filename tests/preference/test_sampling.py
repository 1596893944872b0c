"""Preference data from environments and from finished runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from marl_tr.envs.games.config import BanditConfig
from marl_tr.errors import UserError
from marl_tr.preference.config import PreferenceSettings
from marl_tr.preference.data import BadPreferences
from marl_tr.preference.sampling import opened
from marl_tr.preference.trainer import PreferenceTrainer
from marl_tr.rollout.advantage import BadCohorts
from marl_tr.scenario import load_scenario
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.api import run

torch.set_num_threads(1)

BANDIT = """
name: bandit
env: {id: games/bandit-v0, num_envs: 32, config: {modes: 2, cohort: COHORT, noise: 0}}
agents: {kind: gaussian, sharing: all, hidden: [8]}
objective: {kind: surrogate}
region: {kind: measured}
optimizer: {epochs: 1}
schedule: {kind: simultaneous}
critic: {kind: mlp, hidden: [8]}
trainer: {total_steps: 64, rollout_steps: STEPS, runs_dir: RUNS}
evaluation: {every: 2, episodes: 32, final_episodes: 32}
"""


def bandit(folder: Path, *, cohort: int = 4, steps: int = 1) -> Scenario:
    file = folder / "bandit.yaml"
    text = BANDIT.replace("COHORT", str(cohort)).replace("STEPS", str(steps)).replace("RUNS", str(folder / "runs"))
    file.write_text(text, encoding="utf-8")
    return load_scenario(file)


def test_groups_are_cohorts_in_one_situation_scored_by_the_environment(tmp_path: Path) -> None:
    with opened(bandit(tmp_path)) as sampler:
        data = sampler.sample(rounds=3, seed=5)
        again = sampler.sample(rounds=3, seed=5)
        other = sampler.sample(rounds=3, seed=6)
    assert data.batch.mask.shape == (1, 1, 96)
    sizes = data.group[0].unique(return_counts=True)[1]
    assert sizes.tolist() == [4] * 24
    seen = data.batch.observation["observation"][0, 0]
    for group in data.group[0].unique():
        members = seen[data.group[0] == group]
        assert torch.equal(members, members[:1].expand_as(members))
    assert len(seen.unique(dim=0)) == 24
    # The bandit pays a bump around the nearest of two modes at 0.7 (cos, sin), here without its noise.
    action = data.batch.record["action"][0, 0].clamp(-1, 1).double()
    angle = (math.pi / 2 * seen[:, 0] + math.pi / 4 * seen[:, 1]).double() / 2
    mode = 0.7 * torch.stack([angle.cos(), angle.sin()], -1)
    distance = torch.minimum((action - mode).square().sum(-1), (action + mode).square().sum(-1))
    width = BanditConfig(modes=2).width
    torch.testing.assert_close(data.score[0].double(), (-distance / (2 * width**2)).exp(), rtol=1e-4, atol=1e-5)
    assert torch.equal(data.score, again.score)
    assert not torch.equal(data.score, other.score)


def test_a_finished_runs_policy_is_the_one_that_is_sampled_and_learns_on(tmp_path: Path) -> None:
    scenario = bandit(tmp_path)
    folder = run(scenario)
    with opened(scenario) as start, opened(folder) as sampler:
        policy = sampler.player().learners.policy
        trained = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
        untrained = dict(start.player().learners.policy.module.named_parameters())
        assert any(not torch.equal(p, untrained[name]) for name, p in trained.items())
        data = sampler.sample()
        settings = PreferenceSettings.model_validate({"loss": {"kind": "adpo"}, "bound": 0.01})
        (report,) = PreferenceTrainer(policy, settings, names=sampler.player().team.learners).update(data)
    assert report.learner == "player"
    assert 0 < report.accepted <= 0.01


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with opened(bandit(tmp_path, cohort=1)) as sampler, pytest.raises(BadCohorts, match="one sample"):
        sampler.sample()
    with opened(bandit(tmp_path, steps=2)) as sampler, pytest.raises(BadPreferences, match="one episode"):
        sampler.sample()
    with pytest.raises(UserError, match="not the folder of a run"), opened(tmp_path):
        pass
    with opened(bandit(tmp_path)) as sampler, pytest.raises(UserError, match="one of player"):
        sampler.sample(team="nobody")
