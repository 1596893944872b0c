"""Anchors, terms and weights against Gaussians written out, torch's own optimizer, and closed forms."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from learning_examples import (
    FEATURES,
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
    torch_log_prob,
)
from torch import Tensor
from torch.distributions import kl_divergence

from marl_tr.policy import Parameters, Policy
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.learners import Learners
from marl_tr.region.regulariser import controlled_weight, two_stage_weight
from marl_tr.region.turn import Turn
from marl_tr.scenario.regularisers import PositionConfig, VelocityConfig
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

ONE = OptimizerSection(epochs=1, learning_rate=3e-3, max_grad_norm=100.0)
FROZEN: dict[str, Any] = {"kind": "frozen"}


def position(weight: Any = 0.5, anchor: dict[str, Any] | None = None, **settings: Any) -> PositionConfig:
    return PositionConfig.model_validate({"anchor": anchor or FROZEN, "weight": weight, **settings})


def velocity(weight: Any = 0.5, **settings: Any) -> VelocityConfig:
    return VelocityConfig.model_validate({"weight": weight, **settings})


def update(learners: Learners, *, seed: int = 0, region: Any = None, **settings: Any) -> list[UpdateReport]:
    """One update on fresh data."""
    region = region or make_region("measured", optimizer=ONE)
    turn = make_turn(learners.policy, play(learners.policy, seed=seed), learners=learners, seed=seed, **settings)
    return Guard(lambda line: None).accept(region, turn, region.propose(turn))


def shifted(policy: Policy, by: float = 0.05) -> Parameters:
    """Other parameters."""
    noise = generator(11)
    return {name: p + by * torch.randn(p.shape, generator=noise) for name, p in frozen(policy).items()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# Weights


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 1e-7), (0.39, 1e-7), (0.4, 1e-7), (0.5, 0.5 * (1e-7 + 1e-5)), (0.6, 1e-5), (1.0, 1e-5)],
)
def test_a_two_stage_weight_is_early_then_a_line_then_late(progress: float, weight: float) -> None:
    assert two_stage_weight(progress, early=1e-7, late=1e-5, switch=0.4, ramp=0.2) == pytest.approx(weight)


def test_a_two_stage_weight_without_a_ramp_jumps() -> None:
    stages = {"early": 0.0, "late": 2.0, "switch": 0.5, "ramp": 0.0}
    assert [two_stage_weight(p, **stages) for p in (0.49, 0.5, 1.0)] == [0.0, 2.0, 2.0]


def test_the_controller_raises_the_weight_above_its_target_and_lowers_it_below() -> None:
    limits = {"target": 0.1, "least": 0.01, "most": 10.0, "rate": 0.2}
    assert controlled_weight(1.0, 0.15, **limits) == pytest.approx(math.exp(0.2 * 0.5))
    assert controlled_weight(1.0, 0.05, **limits) == pytest.approx(math.exp(-0.2 * 0.5))
    assert controlled_weight(1.0, 100.0, **limits) == pytest.approx(math.exp(0.2))
    assert controlled_weight(1.0, -100.0, **limits) == pytest.approx(math.exp(-0.2))
    assert controlled_weight(9.9, 100.0, **limits) == 10.0
    assert controlled_weight(0.0101, 0.0, **limits) == 0.01


def test_a_controller_closes_its_loop_on_the_measured_divergence() -> None:
    """A system whose KL falls as one over the weight settles on the target."""
    weight = 100.0
    for _ in range(300):
        weight = controlled_weight(weight, 2.0 / weight, target=0.1, least=1e-3, most=1e3, rate=0.3)
    assert 2.0 / weight == pytest.approx(0.1, rel=1e-3)


def test_controlled_weights_belong_to_a_learner_each() -> None:
    control = {"kind": "controller", "target": 1e9, "initial": 1.0, "least": 0.1, "most": 2.0, "rate": 0.5}
    learners = make_learners(make_policy("gaussian"), position(control))
    update(learners, rows=[1])
    turn = make_turn(learners.policy, play(learners.policy), learners=learners)
    (term,) = turn.terms
    assert term.weight.tolist() == pytest.approx([1.0, math.exp(-0.5), 1.0])


# Terms


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_position_term_is_the_kl_of_gaussians_written_out(reduction: str) -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, position(reduction=reduction))
    batch = play(policy)
    new = shifted(policy)
    m, s = (p.double() for p in policy.law_parameters(new, batch))
    a, r = (p.double() for p in policy.law_parameters(frozen(policy), batch))
    kl = (r - s + (s.exp() ** 2 + (m - a) ** 2) / (2 * r.exp() ** 2) - 0.5).sum(-1)
    turn = make_turn(policy, batch, learners=learners)
    measured = turn.measure(new)
    # The Gaussian policy says one dimension, whatever the action's: its ratios are those of the whole action.
    assert turn.old.dimensions == 1
    assert measured.terms["anchor"].tolist() == pytest.approx(mean_over(kl, batch.mask), rel=1e-5)
    backward = kl_divergence(torch_law("gaussian", (a, r)), torch_law("gaussian", (m, s)))
    assert measured.anchors["anchor"].tolist() == pytest.approx(mean_over(backward, batch.mask), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_position_term_of_a_flow_sums_or_averages_dimensions_and_chain(reduction: str) -> None:
    policy = make_flow()
    learners = make_learners(policy, position(reduction=reduction))
    batch = play(policy)
    turn, new = make_turn(policy, batch, learners=learners), shifted(policy)
    law, anchor = policy.evaluate(new, batch).law, turn.old.law
    per_dimension = (law.mean - anchor.mean).double() ** 2 / (2 * law.std.double() ** 2).unsqueeze(-1)
    value = per_dimension.sum((-1, -2)) if reduction == "sum" else per_dimension.mean((-1, -2))
    assert turn.measure(new).terms["anchor"].tolist() == pytest.approx(mean_over(value, batch.mask), rel=1e-4)


def steps_by_hand(
    turn: Turn, row: int, weight: float, epochs: int, anchor: Parameters | None, before: Parameters | None
) -> Parameters:
    """Adam on the surrogate minus a weighted KL, by torch alone; `before` asks for the velocity term."""
    policy, single = turn.learners.policy, turn.only(row)
    batch, mask = single.batch, single.batch.mask
    parameters = {k: p.clone().requires_grad_() for k, p in single.learners.parameters(single.rows).items()}
    adam = torch.optim.Adam(list(parameters.values()), lr=3e-3, eps=1e-5)

    def log_prob(at: Parameters) -> Tensor:
        return torch_log_prob("gaussian", policy.law_parameters(at, batch), batch.record["action"])

    old = log_prob(parameters).detach()
    for _ in range(epochs):
        reference = anchor or before
        assert reference is not None
        target = torch_law("gaussian", tuple(p.detach() for p in policy.law_parameters(reference, batch)))
        kl = kl_divergence(torch_law("gaussian", policy.law_parameters(parameters, batch)), target)
        gain = (log_prob(parameters) - old).exp() * single.advantage - weight * kl
        adam.zero_grad()
        (-gain[mask].mean()).backward()
        if before is not None:
            before = {k: p.detach().clone() for k, p in parameters.items()}
        adam.step()
    return {k: p.detach() for k, p in parameters.items()}


def test_a_pull_to_an_anchor_is_torchs_adam_on_the_loss_with_the_kl() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, position(3.0))
    anchor = frozen(policy)
    update(learners, region=make_region("measured", optimizer=ONE.model_copy(update={"learning_rate": 0.05})))
    learners.moments = [{}, {}, {}]
    turn = make_turn(policy, play(policy, seed=4), learners=learners)
    proposed = make_region("measured", optimizer=ONE.model_copy(update={"epochs": 3})).propose(turn)
    for row in range(3):
        mine = {name: p[[row]] for name, p in anchor.items()}
        for name, p in steps_by_hand(turn, row, 3.0, 3, mine, None).items():
            torch.testing.assert_close(proposed.parameters[name][row], p[0], rtol=1e-4, atol=2e-6)


def test_a_velocity_term_pulls_to_the_parameters_before_the_last_step_across_rollouts() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, velocity(20.0))
    start = frozen(policy)
    update(learners)
    learners.moments = [{}, {}, {}]
    # One step was taken, from the start: that is the first reference of the next rollout.
    turn = make_turn(policy, play(policy, seed=4), learners=learners)
    proposed = make_region("measured", optimizer=ONE.model_copy(update={"epochs": 3})).propose(turn)
    for row in range(3):
        mine = {name: p[[row]] for name, p in start.items()}
        for name, p in steps_by_hand(turn, row, 20.0, 3, None, mine).items():
            torch.testing.assert_close(proposed.parameters[name][row], p[0], rtol=1e-4, atol=2e-6)


def test_the_first_step_of_a_run_feels_no_velocity() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    region = make_region("measured", optimizer=ONE)
    free = region.propose(make_turn(policy, batch))
    held = region.propose(make_turn(policy, batch, learners=make_learners(policy, velocity(100.0))))
    for name, p in free.parameters.items():
        torch.testing.assert_close(held.parameters[name], p, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_the_published_velocity_term_is_inert_at_the_first_step_of_a_rollout_only(kind: str) -> None:
    """M9 of the specification: there its gradient is that of its weight added to every advantage, no brake at all."""
    policy = make_flow(equalizer=False) if kind == "flow" else make_policy("gaussian")
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(3))

    def moved(epochs: int, weight: float, constant: float = 0.0) -> Tensor:
        """All parameters after so many steps of size 0.02 and less."""
        learners = make_learners(policy, velocity(weight, form="monte_carlo"))
        settings = OptimizerSection(epochs=epochs, learning_rate=0.02, max_grad_norm=1e6)
        turn = make_turn(policy, batch, learners=learners, advantage=advantage + constant)
        proposed = make_region("measured", optimizer=settings).propose(turn).parameters
        return torch.cat([p.flatten() for p in proposed.values()])

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max())

    assert apart(moved(1, 1e-7), moved(1, 0.0)) < 1e-6
    assert apart(moved(1, 0.5), moved(1, 0.0)) > 1e-3
    assert apart(moved(1, 0.5), moved(1, 0.0, constant=0.5)) < 1e-5
    assert apart(moved(2, 0.5), moved(2, 0.0, constant=0.5)) > 1e-3


def test_the_monte_carlo_term_is_signed_and_estimates_the_divergence() -> None:
    policy = make_policy("gaussian", agents=1)
    learners = make_learners(policy, velocity(1.0, form="monte_carlo"))
    batch = play(policy, steps=40, environments=200)
    turn = make_turn(policy, batch, learners=learners)
    new = shifted(policy, 0.2)
    measured = turn.measure(new)
    by_hand = mean_over((turn.old.log_prob - measured.log_prob).sum(-1), batch.mask)
    assert measured.terms["step"].tolist() == pytest.approx(by_hand, rel=1e-5)
    assert float(measured.terms["step"]) == pytest.approx(float(measured.divergence), rel=0.2)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_a_natural_step_gains_on_the_surrogate_less_the_pull(kind: str) -> None:
    policy = make_flow(shared=False) if kind == "flow" else make_policy("gaussian", agents=2)
    learners = make_learners(policy, position(2.0, {"kind": "soft", "rate": 0.5}))
    region = make_region("trpo", bound=0.01, subsample=1.0)
    update(learners, region=region)
    batch = play(policy, seed=5)
    # Nothing to gain but the anchor: the step goes home, and is too short to fly past it.
    region = make_region("trpo", bound=1e-3, subsample=1.0)
    turn = make_turn(policy, batch, learners=learners, advantage=torch.zeros(batch.mask.shape))
    before = turn.measure(turn.learners.parameters(turn.rows)).anchors["anchor"]
    reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    for report, start in zip(reports, before.tolist(), strict=True):
        assert report.outcome == "accepted"
        assert report.surrogate_gain > 0
        assert report.regularisers["kl_anchor"] < 0.9 * start


# Anchors


def test_an_anchor_is_a_copy_of_its_own() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, position(), position())
    start = frozen(policy)
    first, second = learners.regularisers.copies()
    with torch.no_grad():
        for p in policy.module.parameters():
            p += 1
        for p in first.values():
            p += 2
    assert all(torch.equal(second[name], p) for name, p in start.items())
    turn = make_turn(policy, play(policy), learners=learners)
    assert float(turn.measure(learners.parameters(turn.rows)).terms["anchor_2"].min()) > 0.01


def test_a_frozen_anchor_never_moves_and_a_period_one_every_n_updates() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, position(), position(anchor={"kind": "period", "every": 3}))
    still, moving = learners.regularisers.copies()
    history = [frozen(policy)]
    for k in range(7):
        update(learners, seed=k)
        history.append(frozen(policy))
        expected = history[(k + 1) // 3 * 3]
        assert all(torch.equal(still[name], p) for name, p in history[0].items())
        assert all(torch.equal(moving[name], p) for name, p in expected.items())


def test_a_soft_anchor_is_the_running_average_of_the_policies() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, position(anchor={"kind": "soft", "rate": 0.25}))
    (anchor,) = learners.regularisers.copies()
    expected = {name: p.double() for name, p in frozen(policy).items()}
    for k in range(4):
        update(learners, seed=k)
        expected = {name: 0.75 * expected[name] + 0.25 * p.double() for name, p in frozen(policy).items()}
    for name, p in expected.items():
        torch.testing.assert_close(anchor[name].double(), p, rtol=1e-6, atol=1e-7)


def test_anchors_count_the_updates_of_their_own_learner() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, position(anchor={"kind": "period", "every": 2}))
    (anchor,) = learners.regularisers.copies()
    start = frozen(policy)
    for k, row in enumerate([0, 1, 0]):
        update(learners, seed=k, rows=[row])
    now = frozen(policy)
    for name, p in anchor.items():
        assert torch.equal(p[0], now[name][0])
        assert torch.equal(p[1:], start[name][1:])
        assert not torch.equal(p[1], now[name][1])


def test_a_rejected_update_leaves_all_that_is_remembered_bit_identical() -> None:
    control = {"kind": "controller", "target": 1e-3, "initial": 1.0, "least": 0.1, "most": 9.0}
    policy = make_policy("gaussian")
    terms = (position(control, {"kind": "period", "every": 1}), velocity(control), position(0.0, bound=1e-9))
    learners = make_learners(policy, *terms, average=0.9)
    region = make_region("measured", optimizer=OptimizerSection(epochs=1))
    update(learners, region=make_region("measured", optimizer=OptimizerSection(epochs=1), bound=1e-12))
    saved = copy.deepcopy(learners.state_dict())
    turn = make_turn(policy, play(policy, seed=3), learners=learners)
    reports = Guard(lambda line: None, max_interpolations=0).accept(region, turn, region.propose(turn))
    assert {report.outcome for report in reports} == {"rejected"}
    assert same(learners.state_dict(), saved)


def test_what_is_remembered_survives_a_checkpoint_and_goes_on_exactly() -> None:
    control = {"kind": "controller", "target": 1e-3, "initial": 1.0, "least": 0.1, "most": 9.0}
    terms = (
        position(control, {"kind": "period", "every": 3}),
        velocity(0.3),
        position(0.1, {"kind": "soft", "rate": 0.2}),
    )

    def made(seed: int) -> Learners:
        return make_learners(make_policy("gaussian", seed=seed), *terms, average=0.9)

    whole, first = made(0), made(0)
    for k in range(6):
        update(whole, seed=k)
        if k < 4:
            update(first, seed=k)
    second = made(9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for k in (4, 5):
        update(second, seed=k)
    assert same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("shared", [True, False])
def test_anchors_keep_their_law_when_the_statistics_of_inputs_move(shared: bool) -> None:
    policy = make_policy("gaussian", shared=shared, normalise_observation=True)
    learners = make_learners(policy, position(), velocity(), average=0.5)
    learners.observe(*_seen(0), first=True)
    for k in range(3):
        update(learners, seed=k)
    batch = play(policy, seed=7)
    live = frozen(policy)
    sets = [*learners.regularisers.copies(), live]
    before = [policy.evaluate(p, batch).log_prob for p in sets]
    copies = [{name: p.clone() for name, p in stored.items()} for stored in sets]
    learners.observe(*_seen(1))
    sets = [*learners.regularisers.copies(), frozen(policy)]
    for stored, old, expected in zip(sets, copies, before, strict=True):
        assert any(not torch.equal(stored[name], p) for name, p in old.items())
        torch.testing.assert_close(policy.evaluate(stored, batch).log_prob, expected, rtol=1e-4, atol=1e-4)


def _seen(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    shape = (5, 6, 3)
    values = 4.0 * torch.randn(*shape, FEATURES, generator=generator(seed)) + 3.0 * seed + 1.0
    return {"observation": values}, torch.ones(shape, dtype=torch.bool)
