"""R2VPO (arXiv 2601.03320): a multiplier of each learner's own holds the variance of the ratio."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_examples import policy_of, region_of, turn_for
from learning_examples import make_region
from shaping_examples import grid, slope, steps_taken, value
from torch.distributions import Categorical

from marl_tr.region.family.r2vpo import next_multiplier
from marl_tr.region.guard import Guard
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

KEY = "r2vpo/multiplier"


def test_the_gradient_is_the_advantage_less_twice_the_multiplied_overshoot() -> None:
    ratio, advantage = grid()
    found = slope(make_region("r2vpo", multiplier=0.3), ratio, advantage, update=steps_taken(0))
    torch.testing.assert_close(found, ratio * (advantage - 2 * 0.3 * (ratio - 1)))


def test_without_a_multiplier_nothing_is_held() -> None:
    ratio, advantage = grid()
    found = slope(make_region("r2vpo", multiplier=0.0), ratio, advantage, update=steps_taken(0))
    torch.testing.assert_close(found, ratio * advantage)


@pytest.mark.parametrize(("advantage", "best"), [(1.2, 3.0), (-0.3, 0.5), (-0.6, 0.0), (-2.0, 0.0)])
def test_the_gain_is_largest_where_the_formula_says_and_at_nothing_for_very_bad_actions(
    advantage: float, best: float
) -> None:
    ratio = torch.linspace(1e-4, 6, 60_000).double()
    region = make_region("r2vpo", multiplier=0.3)
    gains = value(region, ratio, torch.full_like(ratio, advantage), update=steps_taken(0))
    assert float(ratio[gains.argmax()]) == pytest.approx(best, abs=2e-4)


def test_the_variance_of_the_ratio_is_the_chi_squared_divergence_and_twice_the_kl_nearby() -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
    old, new = logits.softmax(-1), (logits + 1e-3 * torch.arange(6).double()).softmax(-1)
    variance = (old * (new / old - 1) ** 2).sum()
    chi2 = (new**2 / old).sum() - 1
    torch.testing.assert_close(variance, chi2)
    kl = torch.distributions.kl_divergence(Categorical(probs=old), Categorical(probs=new))
    assert float(variance) == pytest.approx(2 * float(kl), rel=1e-2)


def test_the_multiplier_rises_above_the_limit_and_falls_below_it() -> None:
    assert next_multiplier(0.04, 0.14, limit=0.04, rate=0.1, most=100) == pytest.approx(0.05)
    assert next_multiplier(0.04, 0.0, limit=0.04, rate=0.1, most=100) == pytest.approx(0.036)
    assert next_multiplier(0.0, 0.0, limit=0.04, rate=0.1, most=100) == 0
    assert next_multiplier(0.04, 1e17, limit=0.04, rate=0.1, most=100) == 100


@pytest.mark.parametrize("every", ["step", "update"])
def test_each_learner_remembers_its_own_multiplier_once_the_step_is_committed(every: str) -> None:
    policy = policy_of("categorical")
    turn = turn_for(policy)
    # The second learner has nothing to gain, and does not move.
    advantage = turn.advantage.clone()
    advantage[1] = 0
    turn = replace(turn, advantage=advantage)
    optimizer = OptimizerSection(learning_rate=0.1, epochs=3, minibatches=1, max_grad_norm=None)
    region = make_region("r2vpo", optimizer=optimizer, every=every)
    candidate = region.propose(turn)
    assert not any(turn.learners.memory)
    Guard(lambda line: None).accept(region, turn, candidate)
    moved, still = (memory[KEY] for memory in turn.learners.memory)
    steps = 3 if every == "step" else 1
    assert moved > 0.04
    assert still == pytest.approx(0.04 - steps * 0.1 * 0.04, rel=1e-3)


def test_the_committed_multiplier_is_the_rules_on_the_whole_batch() -> None:
    turn = turn_for(policy_of("gaussian"))
    region = region_of("r2vpo", learning_rate=0.05, every="update", limit=0.01)
    candidate = region.propose(turn)
    measured = turn.measure(candidate.parameters)
    ratio = (measured.log_prob - turn.old.log_prob).exp()
    for row, memory in enumerate(candidate.memory):
        variance = float((ratio[row, ..., 0][turn.batch.mask[row]] - 1).square().mean())
        assert memory[KEY] == pytest.approx(0.04 + 0.1 * (variance - 0.01), rel=1e-4)
        assert float(region.reach(turn, measured).value[row]) == pytest.approx(variance, rel=1e-4)
