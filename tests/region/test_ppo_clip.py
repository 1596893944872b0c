"""PPO's clip: where the gradient is zero, and that nothing pulls back."""

from __future__ import annotations

import pytest
import torch
from core_examples import choice_policy, every_choice, gain_of, slope_of
from learning_examples import make_region

from marl_tr.objective.config import ClippedRatioConfig
from marl_tr.objective.ratio import ClippedRatio

torch.set_num_threads(1)

RATIO = torch.tensor(
    [0.1, 0.5, 0.79, 0.81, 0.95, 1.0, 1.1, 1.19, 1.21, 1.27, 1.29, 2.0, 2.9, 3.1, 8.0], dtype=torch.float64
)


@pytest.mark.parametrize("advantage", [2.0, -0.5])
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, None, None), (0.2, 0.28, None), (0.2, 0.28, 3.0)])
def test_the_gradient_is_the_advantage_inside_and_zero_just_where_it_is_said_to_be(
    advantage: float, low: float, high: float | None, dual: float | None
) -> None:
    region = make_region("ppo_clip", clip=low, clip_high=high, dual_clip=dual)
    for ratio, slope in zip(RATIO, slope_of(region, RATIO, torch.full_like(RATIO, advantage)), strict=True):
        above = advantage > 0 and ratio > 1 + (high or low)
        below = advantage < 0 and (ratio < 1 - low or (dual is not None and ratio > dual))
        assert float(slope) == pytest.approx(0.0 if above or below else advantage, rel=1e-12, abs=0)


def test_the_dual_clip_is_a_floor_of_what_bad_actions_may_cost() -> None:
    region = make_region("ppo_clip", dual_clip=3.0)
    bad = gain_of(region, torch.tensor([2.0, 3.0, 50.0]), torch.full((3,), -0.5))
    torch.testing.assert_close(bad, torch.tensor([-1.0, -1.5, -1.5]))
    good = gain_of(region, torch.tensor([50.0]), torch.tensor([0.5]))
    torch.testing.assert_close(good, torch.tensor([0.6]))


def test_without_options_it_is_the_clipped_objective() -> None:
    region, objective = make_region("ppo_clip", clip=0.15), ClippedRatio(ClippedRatioConfig(clip=0.15))
    advantage = torch.linspace(-1, 1, len(RATIO), dtype=torch.float64)
    expected = objective.gain(RATIO.reshape(1, 1, -1, 1), advantage.reshape(1, 1, -1, 1)).flatten()
    torch.testing.assert_close(gain_of(region, RATIO, advantage), expected)


def test_the_reach_is_the_largest_deviation_of_a_ratio() -> None:
    policy = choice_policy()
    turn = every_choice(policy, torch.tensor([1.0, -1.0, 0.5, 0.2, -0.3]))
    region = make_region("ppo_clip", clip=0.2, clip_high=0.3)
    parameters = region.propose(turn).parameters
    reach = region.reach(turn, turn.measure(parameters))
    before, after = (
        policy.law_parameters(p, turn.batch)[0][0, 0, 0].softmax(-1)
        for p in (turn.learners.parameters(turn.rows), parameters)
    )
    torch.testing.assert_close(reach.value, (after / before - 1).abs().max().reshape(1), rtol=1e-4, atol=1e-6)
    assert reach.limit == 0.3
