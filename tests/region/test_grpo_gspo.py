"""Clipped ratios of decisions and of whole trajectories."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cohort_examples import column, gain_and_gradient
from family_examples import policy_of, region_of, turn_for
from learning_examples import frozen, generator, make_learners, make_policy, make_turn, play
from test_family import gradient_of, policy_gradient

from marl_tr.rollout.advantage import cohort_advantage
from marl_tr.scenario.regularisers import PositionConfig

torch.set_num_threads(1)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("log_ratio", [-0.5, -0.1, 0.0, 0.1, 0.5])
def test_grpo_is_the_pessimistic_clip_of_each_decision(log_ratio: float, advantage: float) -> None:
    gain, gradient = gain_and_gradient("grpo", column(log_ratio), advantage)
    w = math.exp(log_ratio)
    clipped = min(max(w, 0.8), 1.2)
    assert gain.item() == pytest.approx(min(w * advantage, clipped * advantage))
    shut = (advantage > 0 and w > 1.2) or (advantage < 0 and w < 0.8)
    assert gradient.item() == pytest.approx(0 if shut else w * advantage)


def test_grpo_counts_trajectories_alike_whatever_their_lengths() -> None:
    """At the old policy a minibatch's gain is the mean over trajectories of each one's mean advantage."""
    turn = turn_for(policy_of("gaussian"))
    region = region_of("grpo")
    candidate = region.propose(turn)
    mask, advantage = turn.batch.mask, turn.advantage
    means = [
        [advantage[row, :, n][mask[row, :, n]].mean() for n in range(mask.shape[2]) if bool(mask[row, :, n].any())]
        for row in range(2)
    ]
    first = torch.stack([torch.stack(row).mean() for row in means]).mean()
    still = region_of("grpo", learning_rate=1e-12).propose(turn)
    assert still.losses["losses/policy_loss"] == pytest.approx(-float(first), abs=1e-5)
    assert candidate.losses["losses/policy_loss"] < still.losses["losses/policy_loss"]


def test_mean_advantage_of_binary_rewards_is_the_bernoulli_deviation_doubled() -> None:
    """mean |A| = 2 sqrt(p (1 - p)) with the population's deviation; with the sample's it would be less."""
    for good in range(1, 8):
        reward = torch.zeros(1, 8, 1)
        reward[0, :good] = 1
        alive = torch.ones(1, 8, 1, dtype=torch.bool)
        ends = torch.ones(1, 8, dtype=torch.bool)
        relative = cohort_advantage(
            reward=reward, alive=alive, starts=ends, done=ends, cohort=torch.zeros(1, 8, dtype=torch.int64), clip=9
        )
        p = good / 8
        assert float(relative.abs().mean()) == pytest.approx(2 * math.sqrt(p * (1 - p)), rel=1e-5)


def test_the_position_regulariser_is_what_k3_is_an_estimate_of() -> None:
    """The mean of k3 over a policy's own choices, taken by hand, is the term; so is the gradient's."""
    policy = make_policy("categorical", agents=1)
    learners = make_learners(policy, PositionConfig(weight=0.04))
    noise = generator(8)
    with torch.no_grad():
        for p in policy.module.parameters():
            p += 0.3 * torch.randn(p.shape, generator=noise)
    batch = play(policy)
    turn = make_turn(policy, batch, learners=learners)
    (term,) = turn.terms
    assert term.reference is not None
    new = {name: p.clone().requires_grad_() for name, p in frozen(policy).items()}
    anchor = policy.evaluate(term.reference, batch).law
    value = term.value(policy, policy.evaluate(new, batch), anchor, turn.old.log_prob, batch.mask, chain_length=1)
    log_new = policy.law_parameters(new, batch)[0].log_softmax(-1)
    log_ref = policy.law_parameters(term.reference, batch)[0].log_softmax(-1)
    gap = log_ref - log_new
    k3 = gap.exp() - gap - 1
    by_hand = (log_new.exp() * k3).sum(-1)[batch.mask].mean()
    assert value.item() > 1e-3
    torch.testing.assert_close(value.sum(), by_hand, rtol=1e-4, atol=1e-6)
    found = torch.autograd.grad(value.sum(), list(new.values()), allow_unused=True)
    wanted = torch.autograd.grad(by_hand, list(new.values()), allow_unused=True)
    for mine, theirs in zip(found, wanted, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", ["sequence", "token"])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_gspo_learns_from_wild_decisions_whose_geometric_mean_is_one(variant: str, advantage: float) -> None:
    """Each ratio far outside PPO's interval, on the side where PPO's gradient is zero or not: GSPO's is full."""
    wild = column(1.0, -1.0, 0.7, -0.7)
    gain, gradient = gain_and_gradient("gspo", wild, advantage, variant=variant)
    torch.testing.assert_close(gain, torch.full_like(gain, advantage))
    # Each of the 4 gains of s A (or its own part) has the derivative s A / 4 (or s A) in a decision's log-ratio.
    torch.testing.assert_close(gradient, torch.full_like(gradient, advantage))
    ppo = gain_and_gradient("ppo_clip", wild, advantage)[1].flatten()
    shut = wild.flatten() > 0 if advantage > 0 else wild.flatten() < 0
    assert bool((ppo[shut] == 0).all())


@pytest.mark.parametrize(
    ("drift", "advantage", "shut"),
    [(3.9e-4, 1, False), (4.1e-4, 1, True), (-2.9e-4, -1, False), (-3.1e-4, -1, True), (4.1e-4, -1, False)],
)
def test_gspo_is_shut_where_a_trajectory_leaves_the_published_interval(
    drift: float, advantage: float, shut: bool
) -> None:
    gain, gradient = gain_and_gradient("gspo", column(drift, drift, drift), float(advantage))
    s = math.exp(drift)
    expected = min(max(s, 1 - 3e-4), 1 + 4e-4) if shut else s
    torch.testing.assert_close(gain, torch.full_like(gain, expected * advantage), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.0 if shut else s * advantage))


def test_gspo_of_one_decision_is_ppo() -> None:
    for log_ratio in (-0.4, -0.1, 0.05, 0.3):
        for advantage in (1.0, -1.0):
            mine = gain_and_gradient("gspo", column(log_ratio), advantage, clip=0.2, clip_high=0.2)
            ppo = gain_and_gradient("ppo_clip", column(log_ratio), advantage, clip=0.2)
            torch.testing.assert_close(mine, ppo)


def test_gspo_token_weighs_decisions_by_their_own_advantages() -> None:
    log_ratio = column(0.1, -0.1)
    advantage = torch.tensor([3.0, -1.0]).reshape(1, 2, 1)
    token = gain_and_gradient("gspo", log_ratio, advantage, variant="token")
    torch.testing.assert_close(token[1].flatten(), torch.tensor([3.0, -1.0], dtype=torch.float64))
    sequence = gain_and_gradient("gspo", log_ratio, advantage)
    torch.testing.assert_close(sequence[0], token[0])
    torch.testing.assert_close(sequence[1].flatten(), torch.tensor([1.0, 1.0], dtype=torch.float64))


def test_gspo_leaves_out_what_is_masked_and_counts_chain_steps() -> None:
    """Two trajectories of two decisions with two chain steps; one decision is not there."""
    log_ratio = torch.tensor([[[[0.2, 0.4], [0.1, 0.3]], [[9.0, 9.0], [-0.1, 0.1]]]], dtype=torch.float64)
    mask = torch.tensor([[[True, True], [False, True]]])
    gain, gradient = gain_and_gradient("gspo", log_ratio, 1.0, mask=mask, clip=0.9, clip_high=9)
    torch.testing.assert_close(gain[0, 0, 0], torch.full((2,), math.exp(0.3), dtype=torch.float64))
    torch.testing.assert_close(gain[0, :, 1], torch.full((2, 2), math.exp(0.1), dtype=torch.float64))
    assert bool((gradient[0, 1, 0] == 0).all())


@pytest.mark.parametrize(("kind", "variant"), [("gaussian", "sequence"), ("gaussian", "token"), ("flow", "token")])
def test_gspo_starts_as_the_policy_gradient_of_trajectories(kind: str, variant: str) -> None:
    """With one advantage a trajectory, as cohorts give it; a flow's weights of its steps the token form alone has."""
    turn = turn_for(policy_of(kind))
    turn = replace(turn, advantage=turn.advantage[:, :1].expand_as(turn.advantage).clone())
    found = gradient_of(region_of("gspo", variant=variant), turn, turn.learners.parameters(turn.rows))
    torch.testing.assert_close(found, policy_gradient(turn, "trajectory_mean"), rtol=1e-3, atol=1e-5)


def test_gspo_says_how_far_its_trajectories_go() -> None:
    region, turn = region_of("gspo"), turn_for(policy_of("gaussian"))
    moved = {name: p + 0.05 for name, p in turn.learners.parameters(turn.rows).items()}
    measured = turn.measure(moved)
    gap, mask = (measured.log_prob - turn.old.log_prob).squeeze(-1), turn.batch.mask
    expected = [
        max(
            abs(float(gap[row, :, n][mask[row, :, n]].mean().exp()) - 1)
            for n in range(mask.shape[2])
            if bool(mask[row, :, n].any())
        )
        for row in range(2)
    ]
    reach = region.reach(turn, measured)
    assert reach.limit == 4e-4
    assert reach.value.tolist() == pytest.approx(expected, rel=1e-4)
