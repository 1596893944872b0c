"""Actors whose law is a mixture: how they start, what they say of their decisions, and whole turns under bounds."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from learning_examples import FEATURES, frozen, generator, play
from torch import distributions as td

from marl_tr.analysis.audit import audit
from marl_tr.errors import UserError
from marl_tr.events.audit_log import AuditLog
from marl_tr.nn import GaussianMixture
from marl_tr.policy import Policy, Rows
from marl_tr.registry import find
from marl_tr.scenario import load_scenario
from marl_tr.trainer.loop import Trainer
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

SPACE = spaces.Box(np.float32([-1, -2]), np.float32([1, 3]))
COMPONENTS, DIMENSIONS = 3, 2
EVERY = pytest.mark.parametrize(
    ("kind", "network", "shared"),
    [("gaussian", "mlp", True), ("gaussian", "mlp", False), ("gaussian", "gru", True), ("matr", "gru", False)],
)


def build(kind: str = "gaussian", network: str = "mlp", shared: bool = False, seed: int = 0, **settings: Any) -> Policy:
    entry = find("agents", kind)
    config = entry.load_config()
    assert config is not None
    group = GroupSpec(
        name="group",
        agents=("agent_0", "agent_1", "agent_2"),
        observation={"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        action={"action": SPACE},
    )
    chosen = {"hidden": [8], "head_gain": 0.5, "components": COMPONENTS, **settings}
    policy: Policy = entry.load()(
        config(network=network, law="mixture", **chosen),
        group,
        rows=Rows(agents=3, shared=shared),
        generator=generator(seed),
        device=torch.device("cpu"),
    )
    return policy


@EVERY
def test_acts_within_the_space_and_scores_what_it_did_as_torch_does(kind: str, network: str, shared: bool) -> None:
    policy = build(kind, network, shared)
    batch, parameters = play(policy), frozen(policy)
    evaluation = policy.evaluate(parameters, batch)
    logits, means, log_std = (p.detach().double() for p in policy.law_parameters(parameters, batch))
    assert logits.shape == (*batch.mask.shape, COMPONENTS)
    assert means.shape == log_std.shape == (*batch.mask.shape, COMPONENTS * DIMENSIONS)
    parts = td.Normal(means.unflatten(-1, (COMPONENTS, -1)), log_std.exp().unflatten(-1, (COMPONENTS, -1)))
    expected = td.MixtureSameFamily(td.Categorical(logits=logits), td.Independent(parts, 1)).log_prob(
        batch.record["action"].double()
    )
    torch.testing.assert_close(evaluation.log_prob.squeeze(-1).double(), expected, rtol=1e-4, atol=1e-5)
    count = 24 if shared else 8
    observation = {"observation": 3 * torch.randn(policy.rows.learners, count, FEATURES, generator=generator(1))}
    for mode in (False, True):
        with torch.no_grad():
            action = policy.act(observation, policy.initial_memory(count), generator(2), mode=mode)
        assert all(SPACE.contains(row) for row in action.env["action"].flatten(0, 1).numpy())


@EVERY
def test_a_row_evaluated_alone_says_what_it_says_in_the_stack(kind: str, network: str, shared: bool) -> None:
    policy = build(kind, network, shared)
    batch, parameters = play(policy), frozen(policy)
    whole = policy.evaluate(parameters, batch)
    for row in range(policy.rows.learners):
        alone = policy.evaluate({name: p[[row]] for name, p in parameters.items()}, batch.rows([row]))
        torch.testing.assert_close(alone.log_prob[0], whole.log_prob[row], rtol=1e-5, atol=1e-5)
        divergence = policy.divergence(alone.law, whole.rows([row]).law)
        assert divergence.shape == (1, *batch.mask.shape[1:], 1)
        assert float(divergence.detach().abs().max()) < 1e-6


def test_components_of_new_agents_start_apart_with_equal_weights_and_cover_the_box() -> None:
    policy = build(components=4, head_gain=1e-6, initial_spread=0.8, initial_log_std=-1.0)
    batch = play(policy)
    logits, means, log_std = (p.detach() for p in policy.law_parameters(frozen(policy), batch))
    torch.testing.assert_close(logits.softmax(-1), torch.full_like(logits, 0.25), rtol=0, atol=1e-5)
    assert torch.equal(log_std, torch.full_like(log_std, -1.0))
    places = means.unflatten(-1, (4, DIMENSIONS))
    expected = torch.tensor([-0.6, -0.2, 0.2, 0.6])
    torch.testing.assert_close(places.sort(-2).values, expected[:, None].expand_as(places), rtol=0, atol=1e-5)
    orders = {tuple(row[0, 0].flatten().tolist()) for row in (10 * places).round()}
    assert len(orders) == policy.rows.learners


def test_two_ways_to_act_are_learned_as_two() -> None:
    """By likelihood, from decisions of which half lie at (-0.5, -0.5) and half at (0.5, 0.5)."""
    policy = build(shared=True, head_gain=0.01)
    batch = play(policy, steps=4, environments=32)
    noise = generator(5)
    side = torch.where(torch.rand(batch.mask.shape, generator=noise) < 0.5, -0.5, 0.5).unsqueeze(-1)
    raw = side + 0.1 * torch.randn(*batch.mask.shape, DIMENSIONS, generator=noise)
    batch = dataclasses.replace(batch, record={"action": raw})
    parameters = {name: p.requires_grad_() for name, p in frozen(policy).items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        (-policy.evaluate(parameters, batch).log_prob.mean()).backward()
        optimizer.step()
    evaluation = policy.evaluate(parameters, batch)
    # The best Gaussian of independent dimensions has the decisions' own deviation in each.
    single = -float((raw.flatten(0, -2).std(0).log() + 0.5 * math.log(2 * math.pi * math.e)).sum())
    assert float(evaluation.log_prob.detach().mean()) > single + 1.5
    drawn = evaluation.law.sample(noise)["action"]
    assert 0.35 < float((drawn[..., 0] > 0).float().mean()) < 0.65
    assert float((drawn.abs() - 0.5).abs().median()) < 0.15


def test_components_repeat_with_the_generator_and_differ_with_another() -> None:
    first, again, other = (build(seed=seed).module.head.bias for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_other_laws_draw_nothing_for_components() -> None:
    states = []
    for settings in ({}, {"components": 7, "initial_spread": 0.3}):
        noise = generator(4)
        entry = find("agents", "gaussian")
        config = entry.load_config()
        assert config is not None
        group = GroupSpec("group", ("a",), {"observation": spaces.Box(-1, 1, (2,))}, {"action": SPACE})
        policy = entry.load()(
            config(**settings), group, rows=Rows(1, False), generator=noise, device=torch.device("cpu")
        )
        assert bool((policy.module.head.bias == 0).all())
        states.append(noise.get_state())
    assert torch.equal(*states)


def test_a_mixture_stands_beside_a_choice() -> None:
    group = GroupSpec(
        "group",
        ("a", "b"),
        {"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        {"pick": spaces.Discrete(3), "move": SPACE},
    )
    entry = find("agents", "gaussian")
    config = entry.load_config()
    assert config is not None
    policy = entry.load()(
        config(law="mixture", hidden=[8], head_gain=1e-6),
        group,
        rows=Rows(2, False),
        generator=generator(),
        device=torch.device("cpu"),
    )
    evaluation = policy.evaluate(frozen(policy), play(policy))
    law = evaluation.law
    assert isinstance(law.laws["move"], GaussianMixture)
    pick = law.laws["pick"].logits.softmax(-1)
    torch.testing.assert_close(pick, torch.full_like(pick, 1 / 3), rtol=0, atol=1e-5)
    assert bool(torch.isfinite(evaluation.log_prob).all())


# Whole turns


def scenario(region: str, env: str, **agents: Any) -> Any:
    environments: dict[str, Any] = {
        "uav": {"id": "uav/downlink-v0", "num_envs": 3, "config": {"num_uavs": 2, "num_users": 4, "horizon": 12}},
        "pendulum": {"id": "gymnasium/Pendulum-v1", "num_envs": 3},
    }
    learning: dict[str, dict[str, Any]] = {
        "clip": {
            "region": {"kind": "measured", "bound": None},
            "objective": {"kind": "clip", "entropy": 0.01},
            "optimizer": {"learning_rate": 3e-3, "epochs": 2, "minibatches": 2},
        },
        "measured": {
            "region": {"kind": "measured", "bound": 0.005},
            "objective": {"kind": "clip", "entropy": 0.01},
            "optimizer": {"learning_rate": 1e-2, "epochs": 2, "minibatches": 2},
        },
        "trpo": {"region": {"kind": "trpo", "bound": 0.005}, "objective": {"kind": "surrogate"}},
    }
    return load_scenario(
        {
            "name": "mixture",
            "env": environments[env],
            "schedule": {"kind": "simultaneous"},
            "critic": {"kind": "mlp", "hidden": [8]},
            "agents": {"kind": "gaussian", "hidden": [8], "law": "mixture", **agents},
            "trainer": {"total_steps": 3 * 16 * 6, "rollout_steps": 16},
            "evaluation": {"episodes": 2, "media": False, "references": False},
            **learning[region],
        }
    )


@pytest.mark.parametrize("env", ["uav", "pendulum"])
@pytest.mark.parametrize("region", ["clip", "measured", "trpo"])
def test_learns_under_a_region_and_keeps_its_bound(region: str, env: str, tmp_path: Path) -> None:
    trainer = Trainer(scenario(region, env))
    log = AuditLog(tmp_path)
    trainer.audit = log.append
    trainer.start()
    before = [frozen(player.learners.policy) for player in trainer.players]
    told = [trainer.iterate().scalars for _ in range(5)]
    log.close()
    report = audit([tmp_path])
    assert report.ok, report.render()
    rows = [row for row in report.rows if row.kind == "policy"]
    assert [row.updates for row in rows] == [5] * len(trainer.learners)
    assert all(math.isfinite(value) for scalars in told for value in scalars.values())
    if region == "clip":
        assert {row.guarantee for row in rows} == {"none"}
    else:
        assert {row.guarantee for row in rows} == {"hard"}
        assert all(row.outcomes["accepted"] + row.outcomes["interpolated"] >= 3 for row in rows)
        assert all(row.largest_ratio is not None and 0.05 < row.largest_ratio <= 1 + 1e-6 for row in rows)
    for player, old in zip(trainer.players, before, strict=True):
        assert any(not torch.equal(p, old[name]) for name, p in frozen(player.learners.policy).items())


@pytest.mark.parametrize("setting", [{"components": 1}, {"components": 65}, {"initial_spread": 0}])
def test_settings_out_of_range_are_refused_by_their_name(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        scenario("clip", "uav", **setting)
