"""Simple policy optimization: where it wants each ratio, and what that says of the total variation."""

from __future__ import annotations

import pytest
import torch
from core_examples import choice_policy, every_choice, gain_of, slope_of
from learning_examples import make_region
from scipy.optimize import minimize_scalar

from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)


@pytest.mark.parametrize("epsilon", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("advantage", [3.0, 0.01, -0.01, -2.0])
def test_each_ratio_is_wanted_at_one_plus_epsilon_times_the_advantages_sign(epsilon: float, advantage: float) -> None:
    region = make_region("spo", epsilon=epsilon)

    def loss(ratio: float) -> float:
        one = torch.tensor([ratio], dtype=torch.float64)
        return -float(gain_of(region, one, torch.full_like(one, advantage)))

    found = minimize_scalar(loss, bounds=(0.3, 1.9), method="bounded", options={"xatol": 1e-9}).x
    assert found == pytest.approx(1 + epsilon * (1 if advantage > 0 else -1), abs=1e-6)


def test_at_the_old_policy_the_slope_is_the_advantage_and_beyond_the_interval_it_points_back() -> None:
    region = make_region("spo", epsilon=0.2)
    advantage = torch.tensor([1.5, -0.7], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(slope_of(region, one, advantage), advantage)
    beyond = slope_of(region, 1 + torch.tensor([0.3, -0.3], dtype=torch.float64), advantage)
    assert beyond[0] < 0 < beyond[1]
    # On the side that the advantage does not want it pulls harder than the plain surrogate.
    wrong = slope_of(region, 1 - 0.5 * advantage.sign(), advantage)
    assert bool((wrong.abs() > advantage.abs()).all())
    assert bool((wrong.sign() == advantage.sign()).all())


def test_total_variation_is_at_most_half_the_reach() -> None:
    policy = choice_policy()
    turn = every_choice(policy, torch.tensor([1.0, -1.0, 0.5, -0.2, -0.3]))
    settings = OptimizerSection(learning_rate=3e-3, epochs=300, max_grad_norm=None)
    region = make_region("spo", optimizer=settings, epsilon=0.2)
    parameters = region.propose(turn).parameters
    before, after = (
        policy.law_parameters(p, turn.batch)[0][0, 0, 0].softmax(-1)
        for p in (turn.learners.parameters(turn.rows), parameters)
    )
    reach = float(region.reach(turn, turn.measure(parameters)).value)
    variation = 0.5 * float((before - after).abs().sum())
    assert 0.02 < variation <= reach / 2 + 1e-6
    # Soft: what the probabilities' sum forbids is shared out around the interval's ends.
    assert reach < 0.25
