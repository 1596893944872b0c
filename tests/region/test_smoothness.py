"""SMART's two terms: the symmetric pull to an average, and alike decisions at alike observations."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from learning_examples import (
    FEATURES,
    SPACES,
    frozen,
    generator,
    make_flow,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_law,
)
from torch import Tensor
from torch.distributions import kl_divergence

from marl_tr.errors import UserError
from marl_tr.policy import Policy, PolicyBatch, Rows, masked_mean
from marl_tr.region.guard import Guard
from marl_tr.region.smoothness import farthest_law, farthest_observation, symmetric_divergence
from marl_tr.registry import find
from marl_tr.scenario import load_scenario, resolved
from marl_tr.scenario.regularisers import PositionConfig, SmoothConfig
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

POLICIES = ["gaussian", "beta", "categorical", "gru", "flow"]
RADIUS = 0.1


def smooth(weight: Any = 1.0, radius: float = RADIUS, **settings: Any) -> SmoothConfig:
    return SmoothConfig.model_validate({"weight": weight, "radius": radius, **settings})


def policy_of(name: str) -> Policy:
    if name == "flow":
        return make_flow(shared=False)
    return make_policy("gaussian", "gru") if name == "gru" else make_policy(name)


def seen(policy: Policy, batch: PolicyBatch, *, seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    parameters = frozen(policy)
    law = policy.evaluate(parameters, batch).law
    return farthest_observation(policy, parameters, batch, law, ball=smooth(**settings), generator=generator(seed))


def distance(policy: Policy, batch: PolicyBatch, observation: dict[str, Tensor]) -> Tensor:
    """Mean symmetric divergence a row, ``[R]`` float64."""
    laws = [
        policy.evaluate(frozen(policy), b).law.map(lambda x: x.double() if x.is_floating_point() else x)
        for b in (batch, replace(batch, observation=observation))
    ]
    return masked_mean(symmetric_divergence(policy, *laws).sum(-1), batch.mask).detach()


# The observations nearby


@pytest.mark.parametrize("settings", [{}, {"noise": 10.0}, {"noise": 1e-4, "step": 5.0}, {"ascents": 4}])
@pytest.mark.parametrize("name", POLICIES)
def test_the_search_stays_within_the_box(name: str, settings: dict[str, Any]) -> None:
    policy = policy_of(name)
    batch = play(policy)
    moved = seen(policy, batch, **settings)["observation"] - batch.observation["observation"]
    assert float(moved.abs().max()) <= RADIUS * (1 + 1e-5)
    assert float(moved.abs().max()) > 0.5 * RADIUS


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_found_is_farther_than_a_random_point_of_the_box(name: str) -> None:
    policy = policy_of(name)
    batch = play(policy)
    found = distance(policy, batch, seen(policy, batch))
    x, noise = batch.observation["observation"], generator(8)
    draws = [RADIUS * (2 * torch.rand(x.shape, generator=noise) - 1) for _ in range(30)]
    random = torch.stack([distance(policy, batch, {"observation": x + draw}) for draw in draws])
    assert bool((found > 1.5 * random.mean(0)).all())
    assert bool((found > random.max(0).values).all())


@pytest.mark.parametrize("name", POLICIES)
def test_a_short_ascent_goes_up_from_where_it_starts(name: str) -> None:
    """Of a parabola a long step down is as good as one up."""
    policy = policy_of(name)
    batch = play(policy)
    start, short = (
        distance(policy, batch, seen(policy, batch, noise=0.3 * RADIUS, step=step * RADIUS)) for step in (1e-6, 0.1)
    )
    assert bool((short > 1.1 * start).all())


def test_more_ascents_find_nearly_the_farthest_corner() -> None:
    """Nearby the distance is a convex parabola, whose largest value in a box is at a corner; there are sixteen."""
    policy = make_policy("gaussian", agents=1)
    batch = play(policy)
    x = batch.observation["observation"]
    best = torch.zeros(batch.mask.shape, dtype=torch.float64)
    here = policy.evaluate(frozen(policy), batch).law
    for corner in itertools.product((-1.0, 1.0), repeat=FEATURES):
        there = replace(batch, observation={"observation": x + RADIUS * torch.tensor(corner)})
        found = symmetric_divergence(policy, here, policy.evaluate(frozen(policy), there).law).sum(-1)
        best = torch.maximum(best, found.detach().double())
    largest = float(masked_mean(best, batch.mask))
    once = float(distance(policy, batch, seen(policy, batch)))
    often = float(distance(policy, batch, seen(policy, batch, ascents=20)))
    assert 0.8 * largest < once <= often * (1 + 1e-6)
    assert 0.85 * largest < often <= largest * (1 + 1e-2)


def test_whole_numbers_and_masks_stay_as_they_are() -> None:
    entry = find("agents", "gaussian")
    observation = {
        "view": spaces.Box(-np.inf, np.inf, (3,)),
        "pixels": spaces.Box(0, 255, (2,), dtype=np.uint8),
        "allowed": spaces.Box(0, 1, (5,)),
    }
    group = GroupSpec(
        name="group",
        agents=("one",),
        observation=observation,
        action={"action": SPACES["categorical"]},
        masks={"action": "allowed"},
    )
    policy = entry.load()(
        entry.load_config()(hidden=[8], head_gain=0.5),
        group,
        rows=Rows(agents=1, shared=True),
        generator=generator(),
        device=torch.device("cpu"),
    )
    noise = generator(3)
    allowed = (torch.rand(1, 4, 6, 5, generator=noise) < 0.7).float()
    allowed[..., 0] = 1
    batch = PolicyBatch(
        observation={
            "view": torch.randn(1, 4, 6, 3, generator=noise),
            "pixels": torch.randint(0, 256, (1, 4, 6, 2), generator=noise, dtype=torch.uint8),
            "allowed": allowed,
        },
        record={"action": torch.zeros(1, 4, 6, dtype=torch.int64)},
        memory=None,
        starts=torch.zeros(1, 4, 6, dtype=torch.bool),
        mask=torch.ones(1, 4, 6, dtype=torch.bool),
    )
    found = seen(policy, batch)
    assert torch.equal(found["allowed"], batch.observation["allowed"])
    assert torch.equal(found["pixels"], batch.observation["pixels"])
    assert not torch.equal(found["view"], batch.observation["view"])
    assert bool(torch.isfinite(distance(policy, batch, found)).all())


# The terms


@pytest.mark.parametrize("law", ["gaussian", "beta", "categorical"])
def test_the_term_is_the_mean_of_both_kls_of_torch(law: str) -> None:
    policy = make_policy(law)
    batch = play(policy)
    learners = make_learners(policy, smooth())
    turn = make_turn(policy, batch, learners=learners)
    measured = turn.measure(frozen(policy))
    moved = replace(batch, observation=seen(policy, batch))
    with torch.no_grad():
        one, other = (torch_law(law, policy.law_parameters(frozen(policy), b)) for b in (batch, moved))
    expected = mean_over(kl_divergence(one, other) + kl_divergence(other, one), batch.mask)
    # The search of a measurement starts from a seed of its own, which is that of `seen`.
    assert measured.terms["smooth"].tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-5


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_penalty_has_the_gradient_of_both_laws(reduction: str) -> None:
    """By finite differences in float64, with the observations nearby as they are."""
    policy = make_policy("gaussian", agents=2)
    batch = play(policy).to(torch.float64)
    turn = make_turn(policy, play(policy), learners=make_learners(policy, smooth(0.7, reduction=reduction)))
    parameters = {name: p.double() for name, p in frozen(policy).items()}
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    evaluation = policy.evaluate(leaves, batch)
    laws = turn.nearby([None], leaves, batch, evaluation, generator(4))
    turn.penalty(evaluation, laws, evaluation.log_prob.detach(), batch.mask).sum().backward()
    moved = replace(
        batch,
        observation=farthest_observation(
            policy, parameters, batch, evaluation.law, ball=smooth(), generator=generator(4)
        ),
    )

    def value(at: dict[str, Tensor]) -> float:
        one, other = (torch_law("gaussian", policy.law_parameters(at, b)) for b in (batch, moved))
        both = kl_divergence(one, other) + kl_divergence(other, one)
        return 0.7 * sum(mean_over(both.detach(), batch.mask))

    noise = generator(5)
    for _ in range(5):
        way = {name: torch.randn(p.shape, generator=noise, dtype=torch.float64) for name, p in parameters.items()}
        ends = [value({name: p + h * way[name] for name, p in parameters.items()}) for h in (1e-5, -1e-5)]
        slope = sum(float((p.grad * way[name]).sum()) for name, p in leaves.items() if p.grad is not None)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


# Of a flow far from smooth the farthest point jumps as parameters move, and TRPO's line search may find no step.
@pytest.mark.parametrize(
    ("region", "name"),
    [
        (region, name)
        for region in ("measured", "ppo_clip", "trpo")
        for name in POLICIES
        if (region, name) != ("trpo", "flow")
    ],
)
def test_without_advantages_updates_make_the_policy_smoother(region: str, name: str) -> None:
    policy = policy_of(name)
    batch = play(policy)
    learners = make_learners(policy, smooth(10.0))
    settings = OptimizerSection(epochs=10, learning_rate=3e-3)
    taken = make_region(region, **({"bound": 0.01} if region == "trpo" else {"optimizer": settings}))
    turn = make_turn(policy, batch, learners=learners, advantage=torch.zeros(batch.mask.shape))
    before = turn.measure(learners.parameters(turn.rows)).terms["smooth"].tolist()
    reports = Guard(lambda line: None).accept(taken, turn, taken.propose(turn))
    for report, start in zip(reports, before, strict=True):
        assert report.outcome == "accepted"
        assert report.regularisers["kl_smooth"] < start
        assert report.regularisers["kl_smooth_weight"] == 10
        # What is reported as gained is what the term fell by, times its weight.
        if report.surrogate_gain is not None:
            fell = 10 * (start - report.regularisers["kl_smooth"])
            assert report.surrogate_gain == pytest.approx(fell, rel=1e-3, abs=1e-5)


def test_masked_decisions_count_nothing() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    wild = torch.where(batch.mask.unsqueeze(-1), batch.observation["observation"], 30.0)
    learners = make_learners(policy, smooth())
    values = [
        make_turn(policy, b, learners=learners).measure(frozen(policy)).terms["smooth"]
        for b in (batch, replace(batch, observation={"observation": wild}))
    ]
    torch.testing.assert_close(*values)


def test_rows_are_independent() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    region = make_region("measured", optimizer=OptimizerSection(epochs=1))
    learners = make_learners(policy, smooth(5.0))
    turn = make_turn(policy, batch, learners=learners)
    other = torch.where(torch.arange(3)[:, None, None] == 1, turn.advantage, -turn.advantage)
    one, two = (
        region.propose(turn),
        region.propose(replace(make_turn(policy, batch, learners=learners), advantage=other)),
    )
    for name, p in one.parameters.items():
        assert torch.equal(p[1], two.parameters[name][1])


@pytest.mark.parametrize("law", ["gaussian", "categorical"])
def test_a_symmetric_pull_is_both_kls_to_the_anchor(law: str) -> None:
    policy = make_policy(law)
    position = PositionConfig.model_validate(
        {"weight": 0.5, "anchor": {"kind": "soft", "rate": 0.01}, "direction": "symmetric"}
    )
    batch, noise = play(policy), generator(6)
    turn = make_turn(policy, batch, learners=make_learners(policy, position))
    new = {name: p + 0.05 * torch.randn(p.shape, generator=noise) for name, p in frozen(policy).items()}
    with torch.no_grad():
        one, other = (torch_law(law, policy.law_parameters(p, batch)) for p in (new, frozen(policy)))
    both = mean_over(kl_divergence(one, other) + kl_divergence(other, one), batch.mask)
    measured = turn.measure(new)
    assert measured.terms["anchor"].tolist() == pytest.approx(both, rel=1e-4)
    # What a bound is kept on stays the one direction.
    assert measured.anchors["anchor"].tolist() == pytest.approx(
        mean_over(kl_divergence(other, one), batch.mask), rel=1e-4
    )
    leaves = {name: p.clone().requires_grad_() for name, p in new.items()}
    evaluation = policy.evaluate(leaves, batch)
    laws = turn.laws_of([turn.terms[0].reference], batch)
    penalty = turn.penalty(evaluation, laws, evaluation.log_prob.detach(), batch.mask)
    assert penalty.tolist() == pytest.approx([0.5 * x for x in both], rel=1e-4)


def test_scenarios_say_both_and_are_written_out() -> None:
    base = {
        "name": "x",
        "preset": "mappo",
        "env": {"id": "uav/downlink-v0"},
        "agents": {"kind": "gaussian"},
        "trainer": {"total_steps": 10},
    }
    terms = [
        {"kind": "smooth", "radius": 0.01, "weight": 1.0},
        {"kind": "position", "anchor": {"kind": "soft", "rate": 0.01}, "weight": 1.0, "direction": "symmetric"},
        {"kind": "smooth", "radius": 0.1, "weight": 1.0, "ascents": 2},
    ]
    read = load_scenario({**base, "regularisers": terms})
    assert load_scenario(resolved(read)) == read
    learners = make_learners(make_policy("gaussian"), *read.regularisers)
    assert learners.regularisers.names == ("smooth", "anchor", "smooth_2")


def test_observations_nearby_without_a_law_are_told_and_no_law_at_all_is_somebody_elses_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy("gaussian")
    batch, parameters = play(policy), frozen(policy)
    law, evaluate = policy.evaluate(parameters, batch).law, policy.evaluate
    edge = {leaf: float(x.min()) for leaf, x in batch.observation.items()}

    def edged(parameters: Any, batch: PolicyBatch) -> Any:
        found = evaluate(parameters, batch)
        outside = any(bool((x < edge[leaf]).any()) for leaf, x in batch.observation.items())
        return replace(found, law=found.law.map(lambda x: x * torch.nan)) if outside else found

    monkeypatch.setattr(policy, "evaluate", edged)
    with pytest.raises(UserError, match=r"no finite law at observations up to 0\.1 away"):
        farthest_law(policy, parameters, batch, law, ball=smooth(), generator=generator())
    broken = law.map(lambda x: x * torch.nan)
    assert farthest_law(policy, parameters, batch, broken, ball=smooth(), generator=generator()) is not None
