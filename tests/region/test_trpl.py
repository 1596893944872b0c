"""Projection layers: what acts is projected, at every observation, and after every update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from family_examples import policy_of, region_of, turn_for
from gymnasium import spaces
from learning_examples import (
    FEATURES,
    generator,
    make_flow,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    play,
)
from torch import Tensor

from marl_tr.agents.gaussian.agent import make
from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.errors import UserError
from marl_tr.nn.distributions import Gaussian, ProductLaw
from marl_tr.policy import Policy, PolicyBatch, Rows, masked_mean
from marl_tr.region.family.anchored import Anchored
from marl_tr.region.family.gaussian_projection import GaussianProjection
from marl_tr.region.family.trpl import Trpl
from marl_tr.region.gradient import Update
from marl_tr.region.guard import Guard
from marl_tr.region.samples import Pass
from marl_tr.region.turn import Learners, Turn
from marl_tr.scenario.loader import load_scenario
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.trainer.loop import Trainer
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)


def deployed(region: Trpl, **settings: Any) -> Anchored:
    policy = region.deployed(policy_of("gaussian", **settings))
    assert isinstance(policy, Anchored)
    return policy


def distances(projection: str, new: ProductLaw, old: ProductLaw) -> tuple[Tensor, Tensor]:
    """Of mean and covariance, decision by decision, written out."""
    a, b = new.laws["action"], old.laws["action"]
    m, v, m_old, v_old = (
        a.mean.double(),
        (2 * a.log_std.double()).exp(),
        b.mean.double(),
        (2 * b.log_std.double()).exp(),
    )
    of_mean = ((m - m_old).square() / v_old).sum(-1)
    if projection == "kl":
        return of_mean / 2, 0.5 * (v / v_old - 1 - (v / v_old).log()).sum(-1)
    if projection == "w2":
        return of_mean, (1 - (v / v_old).sqrt()).square().sum(-1)
    return of_mean, (v - v_old).square().sum(-1)


def fresh(policy: Policy, *, seed: int, count: int = 64, scale: float = 3.0) -> PolicyBatch:
    """Observations that nobody learned from."""
    lead = (policy.rows.learners, 1, count)
    observation = scale * torch.randn(*lead, FEATURES, generator=generator(seed))
    true = torch.ones(lead, dtype=torch.bool)
    return PolicyBatch({"observation": observation}, {}, None, ~true, true)


def parameters_of(policy: Anchored) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in policy.module.named_parameters()}


def test_a_new_policy_acts_as_without_anchors() -> None:
    region = region_of("trpl")
    plain, wrapped = policy_of("gaussian"), deployed(region)
    observation = {"observation": torch.randn(2, 5, FEATURES, generator=generator(1))}
    one = plain.act(observation, None, generator(2))
    other = wrapped.act(observation, None, generator(2))
    assert torch.equal(one.record["action"], other.record["action"])
    assert torch.equal(one.env["action"], other.env["action"])


@pytest.mark.parametrize(
    ("projection", "learning_rate", "updates"), [("kl", 0.1, 12), ("w2", 0.03, 8), ("frobenius", 0.1, 8)]
)
def test_adversarial_updates_stay_within_the_bounds_of_each_decision(
    projection: str, learning_rate: float, updates: int
) -> None:
    bounds = {"mean_bound": 0.03, "cov_bound": 1e-3}
    region = region_of("trpl", projection=projection, learning_rate=learning_rate, fit_steps=10, **bounds)
    policy = deployed(region)
    learners = make_learners(policy)
    guard = Guard(lambda line: None)
    outcomes: list[str] = []
    farthest = 0.0
    for update in range(updates):
        batch = play(policy, steps=3, environments=8, seed=update)
        advantage = 10 * torch.randn(batch.mask.shape, generator=generator(1000 + update))
        turn = make_turn(policy, batch, advantage=advantage, learners=learners, seed=update)
        acted = turn.old.law
        reports = guard.accept(region, turn, region.propose(turn))
        outcomes += [report.outcome for report in reports]
        with torch.no_grad():
            now = policy.law(parameters_of(policy), batch)
            unseen = fresh(policy, seed=update)
            parameters = parameters_of(policy)
            pairs = [
                (distances(projection, now, acted), batch.mask),
                (
                    distances(projection, policy.law(parameters, unseen), policy.anchor_law(parameters, unseen)),
                    unseen.mask,
                ),
            ]
        for (of_mean, of_spread), mask in pairs:
            assert float(of_mean[mask].max()) <= 0.03 + 1e-5
            assert float(of_spread[mask].max()) <= 1e-3 + 1e-5
            farthest = max(farthest, float(of_mean[mask].max()))
    assert set(outcomes) == {"accepted"}
    assert farthest > 0.02


def test_laws_go_far_in_many_steps_and_meet_what_they_want() -> None:
    """Towards a target, at a rate where networks overshoot: anchors move on, and every step is within its bounds."""
    optimizer = OptimizerSection(learning_rate=0.003, epochs=4, minibatches=2)
    region = make_region("trpl", optimizer=optimizer)
    policy = deployed(region)
    learners = make_learners(policy)
    gaps, held = [], 0.0
    for update in range(15):
        batch = play(policy, steps=4, environments=24, seed=update)
        gap = (batch.record["action"] - batch.observation["observation"][..., :2].sin()).square().sum(-1)
        turn = make_turn(policy, batch, advantage=(gap.mean() - gap) / gap.std(), learners=learners, seed=update)
        candidate = region.propose(turn)
        held += sum(memory["held"] for memory in candidate.memory)
        reports = Guard(lambda line: None).accept(region, turn, candidate)
        for report in reports:
            assert report.outcome == "accepted"
            assert report.measures[f"region/reach/{report.learner}"] <= 1 + 1e-3
        gaps.append(float(gap.mean()))
    assert held < 10
    assert sum(gaps[-3:]) < 0.65 * sum(gaps[:3])


def test_what_acts_is_what_was_measured() -> None:
    """Samples of `act` have the law of `evaluate`, for a policy far outside of its region."""
    region = region_of("trpl")
    policy = deployed(region)
    with torch.no_grad():
        for name, p in policy.module.named_parameters():
            if name in policy.networks:
                p += torch.randn(p.shape, generator=generator(len(name)))
    observation = torch.randn(2, 1, FEATURES, generator=generator(3)).expand(2, 20000, FEATURES)
    action = policy.act({"observation": observation}, None, generator(4)).record["action"]
    true = torch.ones(2, 1, 20000, dtype=torch.bool)
    batch = PolicyBatch({"observation": observation.unsqueeze(1)}, {"action": action.unsqueeze(1)}, None, ~true, true)
    with torch.no_grad():
        law = policy.evaluate(parameters_of(policy), batch).law.laws["action"]
        own = policy.own_law(parameters_of(policy), batch).laws["action"]
    torch.testing.assert_close(action.mean(1), law.mean[:, 0, 0], rtol=0, atol=0.03)
    torch.testing.assert_close(action.std(1), law.log_std[:, 0, 0].exp(), rtol=0.03, atol=0)
    assert float((own.mean - law.mean).abs().max()) > 0.3
    mode = policy.act({"observation": observation}, None, generator(4), mode=True).record["action"]
    torch.testing.assert_close(mode, law.mean[:, 0])


def test_rows_are_evaluated_by_their_own_anchors() -> None:
    region = region_of("trpl", learning_rate=0.03)
    policy = deployed(region)
    learners = make_learners(policy)
    for update in range(3):
        turn = make_turn(policy, play(policy, seed=update), learners=learners, seed=update)
        Guard(lambda line: None).accept(region, turn, region.propose(turn))
    batch = play(policy, seed=9)
    with torch.no_grad():
        both = policy.evaluate(learners.parameters([0, 1]), batch).log_prob
        second = policy.evaluate(learners.parameters([1]), batch.rows([1])).log_prob
    torch.testing.assert_close(second, both[1:])


def test_a_learners_turn_leaves_the_others_and_their_anchors_alone() -> None:
    region = region_of("trpl", learning_rate=0.03)
    policy = deployed(region)
    learners = make_learners(policy)
    before = parameters_of(policy)
    before = {name: p.clone() for name, p in before.items()}
    turn = make_turn(policy, play(policy), learners=learners, rows=[0])
    Guard(lambda line: None).accept(region, turn, region.propose(turn))
    after = parameters_of(policy)
    assert all(torch.equal(before[name][1], after[name][1]) for name in before)
    assert not torch.equal(before["head.weight"][0], after["head.weight"][0])


def updated(region: Trpl, policy: Policy, learners: Learners, updates: int) -> Turn:
    for update in range(updates):
        turn = make_turn(policy, play(policy, seed=update), learners=learners, seed=update)
        Guard(lambda line: None).accept(region, turn, region.propose(turn))
    return turn


def test_anchors_move_on_by_one_where_little_is_forgotten() -> None:
    region = region_of("trpl", learning_rate=1e-4, depth=2)
    policy = deployed(region)
    learners = make_learners(policy)
    history = [parameters_of(policy)["head.weight"].clone()]
    for update in range(3):
        turn = make_turn(policy, play(policy, seed=update), learners=learners, seed=update)
        Guard(lambda line: None).accept(region, turn, region.propose(turn))
        history.append(parameters_of(policy)["head.weight"].clone())
    stored = parameters_of(policy)
    assert torch.equal(stored["anchors.1.head.weight"], history[2])
    assert torch.equal(stored["anchors.0.head.weight"], history[1])


def test_the_deviations_are_stored_projected() -> None:
    region = region_of("trpl", learning_rate=0.05)
    policy = deployed(region)
    updated(region, policy, make_learners(policy), 4)
    parameters, batch = parameters_of(policy), fresh(policy, seed=1)
    with torch.no_grad():
        law, own = policy.law(parameters, batch), policy.own_law(parameters, batch)
    torch.testing.assert_close(own.laws["action"].log_std, law.laws["action"].log_std, rtol=0, atol=1e-6)


def test_a_checkpoint_holds_the_anchors() -> None:
    region = region_of("trpl", learning_rate=0.03)
    policy = deployed(region)
    learners = make_learners(policy)
    updated(region, policy, learners, 3)
    state = learners.state_dict()
    other = deployed(region_of("trpl"), seed=5)
    restored = make_learners(other)
    restored.load_state_dict(state)
    batch = fresh(policy, seed=2)
    with torch.no_grad():
        one = policy.law(parameters_of(policy), batch).laws["action"]
        two = other.law(parameters_of(other), batch).laws["action"]
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.log_std, two.log_std)


def test_the_loss_is_that_of_the_paper() -> None:
    """``mean w~ A - alpha mean d(law, law~)`` by hand, with the projection of one decision at a time."""
    region = region_of("trpl", alpha=0.7, mean_bound=0.01)
    turn = turn_for(policy_of("gaussian"))
    update = Update(turn, region._rows(turn, 1.0), region._samples(turn), [{}, {}])
    samples = update.samples.part(Pass(torch.arange(update.samples.advantage.shape[2]), None))
    noise = generator(3)
    old = turn.learners.parameters(turn.rows)
    moved = {name: p + 0.2 * torch.randn(p.shape, generator=noise) for name, p in old.items()}
    found = region.estimate(update, moved, samples).gain
    policy = turn.learners.policy
    with torch.no_grad():
        now = policy.evaluate(moved, turn.batch)
        old_law, law = turn.old.law.laws["action"], now.law.laws["action"]
    v, v_old = (2 * law.log_std.double()).exp(), (2 * old_law.log_std.double()).exp()
    m, m_old = law.mean.double(), old_law.mean.double()
    distance = 0.5 * ((m - m_old).square() / v_old).sum(-1, keepdim=True)
    share = (0.01 / distance).sqrt().clamp_max(1)
    mean = m_old + share * (m - m_old)
    low, high = torch.zeros_like(distance), torch.full_like(distance, 1e6)
    for _ in range(200):
        eta = (low + high) / 2
        r = (1 + eta) / (eta + v_old / v)
        far = 0.5 * (r - 1 - r.log()).sum(-1, keepdim=True) > 1e-3
        low, high = torch.where(far, eta, low), torch.where(far, high, eta)
    variance = v_old * (1 + high) / (high + v_old / v)
    projected = ProductLaw({"action": Gaussian(mean, 0.5 * variance.log())})
    ratio = (projected.log_prob(turn.batch.record) - turn.old.log_prob[..., 0]).exp()
    r = v / variance
    pull = 0.5 * ((m - mean).square() / variance).sum(-1) + 0.5 * (r - 1 - r.log()).sum(-1)
    expected = masked_mean(ratio * turn.advantage - 0.7 * pull, turn.batch.mask)
    assert float((share < 1).double().mean()) > 0.3
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_wide_bounds_make_it_the_unclipped_surrogate() -> None:
    wide = region_of("trpl", mean_bound=1e9, cov_bound=1e9)
    turn = turn_for(policy_of("gaussian"))
    plain = region_of("measured").propose(replace(turn, generator=generator(4)))
    found = wide.propose(replace(turn, generator=generator(4)))
    for name, p in plain.parameters.items():
        torch.testing.assert_close(found.parameters[name], p)


def test_leaves_are_one_gaussian() -> None:
    group = GroupSpec(
        name="group",
        agents=("a",),
        observation={"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        action={"x": spaces.Box(-1, 1, (2,)), "y": spaces.Box(-1, 1, (1,))},
    )
    policy = make(
        GaussianConfig(hidden=[6], head_gain=2.0),
        group,
        rows=Rows(agents=1, shared=True),
        generator=generator(1),
        device=torch.device("cpu"),
    )
    projection = GaussianProjection("kl", mean_bound=0.02, cov_bound=1e-3)
    batch = fresh(policy, seed=3)
    parameters = {name: p.detach() for name, p in policy.module.named_parameters()}
    far = {name: p + 0.5 for name, p in parameters.items()}
    with torch.no_grad():
        old, new = policy.law(parameters, batch), policy.law(far, batch)
        found = projection(new, old)
    m, m_old = (torch.cat([law.laws[k].mean for k in ("x", "y")], -1) for law in (found, old))
    std = torch.cat([old.laws[k].log_std for k in ("x", "y")], -1).exp()
    distance = 0.5 * ((m - m_old) / std).square().sum(-1)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.02), rtol=1e-4, atol=0)


def test_a_flows_steps_are_projected_in_the_loss_and_its_own_law_acts() -> None:
    region = region_of("trpl", mean_bound=1e-4)
    policy = make_flow()
    assert region.deployed(policy) is policy
    turn = turn_for(policy)
    update = Update(turn, region._rows(turn, 1.0), region._samples(turn), [{}])
    samples = update.samples.part(Pass(torch.arange(update.samples.advantage.shape[2]), None))
    noise = generator(3)
    moved = {n: p + 0.1 * torch.randn(p.shape, generator=noise) for n, p in turn.learners.parameters([0]).items()}
    with torch.no_grad():
        law = region.project(update, moved, samples).evaluation.law
    old = samples.law
    noisy = old.std > 0
    distance = 0.5 * ((law.mean - old.mean) / old.std.clamp_min(1e-9).unsqueeze(-1)).square().sum(-1)
    assert float(distance[noisy].max()) <= 1e-4 * (1 + 1e-3)
    assert float(distance[noisy].max()) > 0.99e-4


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (lambda: make_policy("gaussian", "gru"), "gru"),
        (lambda: make_policy("gaussian", normalise_observation=True), "normalise_observation"),
    ],
)
def test_policies_that_cannot_be_anchored_are_refused(policy: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        region_of("trpl").deployed(policy())


def test_a_run_resumes_with_its_anchors() -> None:
    """Through the trainer: two iterations, the state put into a new trainer, and a third one in both."""
    scenario = load_scenario(
        {
            "name": "anchored",
            "preset": "ippo",
            "env": {"id": "gymnasium/Pendulum-v1", "num_envs": 2},
            "objective": {"kind": "surrogate"},
            "region": {"kind": "trpl"},
            "optimizer": {"epochs": 2, "minibatches": 1, "learning_rate": 0.03},
            "agents": {"kind": "gaussian", "hidden": [6]},
            "trainer": {"total_steps": 120, "rollout_steps": 20},
        }
    )
    first, second = Trainer(scenario), Trainer(scenario)
    try:
        assert isinstance(first.players[0].team.policy, Anchored)
        assert first.players[0].team.policy is first.players[0].learners.policy
        first.audit = second.audit = lambda line: None
        first.start()
        first.iterate()
        first.iterate()
        second.load_state_dict(first.state_dict())
        first.iterate()
        second.iterate()
        ours, theirs = (trainer.players[0].team.policy.module.state_dict() for trainer in (first, second))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert any(name.startswith("anchors.") for name in ours)
    finally:
        first.env.close()
        second.env.close()
