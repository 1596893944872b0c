"""TRPO against divergences from torch.distributions and an explicit Fisher matrix in float64."""

from __future__ import annotations

import math

import pytest
import torch
from learning_examples import (
    LAWS,
    frozen,
    generator,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_kl,
)
from torch import Tensor
from torch.autograd.functional import hessian

from marl_tr.policy import masked_mean
from marl_tr.region.guard import Guard
from marl_tr.region.natural_step import flatten, unflatten
from marl_tr.region.turn import Turn

torch.set_num_threads(1)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("law", LAWS)
def test_mean_divergence_keeps_the_bound_and_the_surrogate_rises(law: str, network: str, shared: bool) -> None:
    policy = make_policy(law, network, shared=shared)
    learners = make_learners(policy)
    region = make_region("trpo", bound=0.02, subsample=0.5)
    taken = []
    for update in range(3):
        batch = play(policy, seed=update)
        turn = make_turn(policy, batch, learners=learners, seed=update)
        before = frozen(policy)
        reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
        divergence = mean_over(torch_kl(law, policy, before, frozen(policy), batch), batch.mask)
        for report, measured in zip(reports, divergence, strict=True):
            assert measured <= 0.02 * (1 + 1e-6)
            assert report.accepted == pytest.approx(measured, rel=1e-4, abs=1e-9)
            taken.append(report.outcome == "accepted")
            assert report.surrogate_gain > 0 or report.outcome == "rejected"
        new = policy.evaluate(frozen(policy), batch)
        ratio = (new.log_prob - turn.old.log_prob).squeeze(-1).exp()
        gain = masked_mean((ratio - 1) * turn.advantage, batch.mask)
        assert [float(g) for g in gain] == pytest.approx([r.surrogate_gain for r in reports], abs=1e-5)
    assert all(taken)


@pytest.mark.parametrize(("progress", "bound"), [(0.0, 0.08), (0.5, 0.02), (1.0, 0.005)])
def test_a_bound_that_falls_is_kept_and_reported_as_it_is_then(progress: float, bound: float) -> None:
    policy = make_policy("gaussian", shared=True)
    batch = play(policy, environments=32)
    turn = make_turn(policy, batch, progress=progress)
    before = frozen(policy)
    region = make_region("trpo", bound=0.08, bound_end=0.005, subsample=1.0)
    (report,) = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    (divergence,) = mean_over(torch_kl("gaussian", policy, before, frozen(policy), batch), batch.mask)
    assert report.bound == pytest.approx(bound)
    assert 0.5 * bound < divergence <= bound * (1 + 1e-6)


def test_an_accepted_step_is_about_as_long_as_the_bound_allows() -> None:
    policy = make_policy("gaussian", shared=True)
    turn = make_turn(policy, play(policy, environments=32))
    region = make_region("trpo", bound=1e-4, subsample=1.0)
    report = Guard(lambda line: None).accept(region, turn, region.propose(turn))[0]
    # At so small a bound the divergence is its quadratic model but for a hundredth.
    assert report.accepted == pytest.approx(1e-4, rel=0.02) or report.accepted == pytest.approx(0.64e-4, rel=0.02)


@pytest.mark.parametrize("law", LAWS)
def test_step_is_that_of_an_explicit_fisher_matrix(law: str) -> None:
    policy = make_policy(law, "gru" if law == "beta" else "mlp", agents=1, hidden=[4])
    batch = play(policy, steps=4, environments=6)
    turn = make_turn(policy, batch)
    damping, bound = 1e-2, 1e-3
    region = make_region("trpo", bound=bound, damping=damping, subsample=1.0, iterations=1000, tolerance=1e-26)
    proposed = region.propose(turn)
    old = turn.learners.parameters([0])
    step = (flatten(proposed.parameters) - flatten(old)).double()
    fisher = _fisher_by_double_differentiation(turn)
    gradient = _gradient(turn)
    direction = torch.linalg.solve(fisher + damping * torch.eye(len(fisher), dtype=torch.float64), gradient)
    cosine = float(step @ direction / (step.norm() * direction.norm()))
    assert cosine > 1 - 1e-7
    length = math.sqrt(2 * bound / float(direction @ fisher @ direction))
    assert proposed.backtracks[0] <= 1
    if proposed.backtracks[0]:
        # The KL is no parabola: the first trial was a little beyond the bound.
        first = {name: old[name] + x.float() for name, x in unflatten(length * direction, old).items()}
        length *= 0.99 * math.sqrt(bound / float(turn.measure(first).divergence))
    # The gradient comes from float32, as do the parameters that the step is read from.
    torch.testing.assert_close(step, length * direction, rtol=1e-3, atol=1e-5 * float(step.abs().max()))
    assert proposed.expected_gain[0] == pytest.approx(float(gradient @ (length * direction)), rel=1e-4)
    assert proposed.cg_residual[0] is not None
    assert proposed.cg_residual[0] < 1e-9


def test_absent_decisions_and_other_rows_change_nothing() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    region = make_region("trpo", subsample=1.0)
    advantage = torch.randn(batch.mask.shape, generator=generator(9))
    together = region.propose(make_turn(policy, batch, advantage=advantage))
    wild = torch.where(batch.mask, advantage, 1e20)
    for row in range(3):
        alone = region.propose(make_turn(policy, batch, advantage=wild, rows=[row]))
        for name, p in alone.parameters.items():
            torch.testing.assert_close(p[0], together.parameters[name][row], rtol=1e-5, atol=1e-6)


def test_a_learners_step_touches_its_row_only() -> None:
    policy = make_policy("beta", "gru")
    turn = make_turn(policy, play(policy), rows=[1])
    region = make_region("trpo")
    before = frozen(policy)
    report = Guard(lambda line: None).accept(region, turn, region.propose(turn))[0]
    assert report.outcome == "accepted"
    assert report.learner == "learner_1"
    for name, p in policy.module.named_parameters():
        assert torch.equal(p[[0, 2]], before[name][[0, 2]])
    assert any(not torch.equal(p[1], before[name][1]) for name, p in policy.module.named_parameters())


@pytest.mark.parametrize("advantage", [0.0, math.nan, math.inf])
def test_an_advantage_that_says_nothing_leaves_parameters_bit_identical(advantage: float) -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    turn = make_turn(policy, batch, advantage=torch.full(batch.mask.shape, advantage))
    region = make_region("trpo")
    before = frozen(policy)
    reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    for report in reports:
        assert report.outcome == "rejected"
        assert "gradient" in report.reason
        assert report.accepted == 0
        assert report.surrogate_gain == 0
        assert not report.log_ratio.any()
    assert all(torch.equal(p, before[name]) for name, p in policy.module.named_parameters())


def test_a_failed_line_search_leaves_parameters_bit_identical_and_says_so() -> None:
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))
    # No step can gain more than its own linear prediction twice over on a concave stretch, so none is accepted.
    region = make_region("trpo", accept_ratio=1.0, max_backtracks=0, bound=5.0)
    before = frozen(policy)
    candidate = region.propose(turn)
    assert all("no trial" in reason for reason in candidate.reasons)
    reports = Guard(lambda line: None).accept(region, turn, candidate)
    assert {r.outcome for r in reports} == {"rejected"}
    assert all(torch.equal(p, before[name]) for name, p in policy.module.named_parameters())


def test_a_learner_that_never_acted_is_left_alone() -> None:
    policy = make_policy("categorical")
    batch = play(policy)
    batch.mask[1] = False
    turn = make_turn(policy, batch)
    region = make_region("trpo")
    before = frozen(policy)
    reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    assert [r.outcome for r in reports] == ["accepted", "rejected", "accepted"]
    assert all(torch.equal(p[1], before[name][1]) for name, p in policy.module.named_parameters())


def test_proposing_commits_nothing_and_repeats_itself() -> None:
    policy = make_policy("beta", "gru")
    batch = play(policy)
    region = make_region("trpo", subsample=0.3)
    before = frozen(policy)
    first, second = (region.propose(make_turn(policy, batch, seed=4)) for _ in range(2))
    assert all(torch.equal(p, before[name]) for name, p in policy.module.named_parameters())
    assert all(torch.equal(first.parameters[name], p) for name, p in second.parameters.items())


def _law_in_double(turn: Turn, point: Tensor) -> object:
    policy = turn.learners.policy
    like = turn.learners.parameters(turn.rows)
    return policy.evaluate(unflatten(point, {k: p.double() for k, p in like.items()}), turn.batch.to(torch.float64)).law


def _fisher_by_double_differentiation(turn: Turn) -> Tensor:
    """Hessian of the mean KL at the old parameters, ``[P, P]``."""
    start = flatten(turn.learners.parameters(turn.rows)).double()
    with torch.no_grad():
        anchor = _law_in_double(turn, start)

    def mean_divergence(point: Tensor) -> Tensor:
        divergence = turn.learners.policy.divergence(anchor, _law_in_double(turn, point)).sum(-1)
        return divergence[turn.batch.mask].mean()

    matrix: Tensor = hessian(mean_divergence, start)
    return matrix


def _gradient(turn: Turn) -> Tensor:
    policy, batch = turn.learners.policy, turn.batch.to(torch.float64)
    leaves = {k: p.double().requires_grad_() for k, p in turn.learners.parameters(turn.rows).items()}
    log_prob = policy.evaluate(leaves, batch).log_prob.squeeze(-1)
    gain = (log_prob * turn.advantage.double())[batch.mask].mean()
    gradients = torch.autograd.grad(gain, list(leaves.values()))
    return torch.cat([g.reshape(-1) for g in gradients])


def test_what_the_line_search_accepted_is_not_computed_again_by_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("gaussian", shared=True)
    turn = make_turn(policy, play(policy, environments=32))
    region = make_region("trpo", bound=0.02)
    candidate = region.propose(turn)
    calls = 0
    evaluate = policy.evaluate

    def counted(*arguments):
        nonlocal calls
        calls += 1
        return evaluate(*arguments)

    monkeypatch.setattr(policy, "evaluate", counted)
    (report,) = Guard(lambda line: None).accept(region, turn, candidate)
    assert report.outcome == "accepted"
    assert calls == 0
    # Other parameters are measured, and so are the same tensors once their values have moved.
    parameters = {name: p.clone() for name, p in candidate.parameters.items()}
    first = turn.measure(parameters).divergence
    for p in parameters.values():
        p.add_(0.01)
    assert not torch.equal(turn.measure(parameters).divergence, first)
    assert calls == 1
