"""Exact gaps of policies over joint actions: of each agent, the law of what it executes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from marl_tr.equilibrium.exact import probabilities
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players

torch.set_num_threads(1)


def test_an_agent_is_asked_for_its_own_action_and_acts_as_often() -> None:
    data = {
        "name": "joint",
        "preset": "matrpo",
        "env": {"id": "games/uav_placement-v0", "num_envs": 2},
        "agents": {"kind": "gaussian", "hidden": [8]},
        "trainer": {"total_steps": 2, "rollout_steps": 1},
    }
    scenario = load_scenario(data)
    env = build_env(scenario, num_envs=2)
    players = build_players(scenario, env.spec)
    team = players[0].team
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in team.policy.module.parameters():
            p += torch.randn(p.shape, generator=noise)
    subject: Any = SimpleNamespace(teams=[player.team for player in players])
    policy = probabilities(subject, env.spec)
    assert policy is not None
    drawn = 20_000
    seen = {leaf: np.zeros((1, *space.shape), space.dtype) for leaf, space in team.group.observation.items()}
    many = {leaf: torch.zeros(2, drawn, *space.shape) for leaf, space in team.group.observation.items()}
    with torch.no_grad():
        (actions,) = team.policy.act(many, None, noise).record.values()
    for row, agent in enumerate(team.agents):
        law = policy(agent, seen)[0]
        often = np.bincount(actions[row].flatten().numpy(), minlength=len(law)) / drawn
        assert abs(law.sum() - 1) < 1e-9
        assert law.max() > 2 / len(law)
        np.testing.assert_allclose(law, often, atol=0.015)
    assert all(gap >= 0 for gap in env.exact_gaps(policy).values())
