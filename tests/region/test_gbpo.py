"""The bounded target of a cohort, against loops over plain numbers."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cohort_examples import column, decisions_of
from family_examples import policy_of, region_of, turn_for
from learning_examples import generator
from scipy.special import expit
from test_family import begun
from torch import Tensor

from marl_tr.region.family.cohort_scores import cohort_scores
from marl_tr.region.turn import Turn

torch.set_num_threads(1)


def turn_with(scores: list[float], *, cohort: int, **settings: Any) -> Turn:
    """One learner, an episode of two steps a score; neighbours share a cohort of `cohort`."""
    turn = turn_for(policy_of("gaussian"), steps=2, environments=len(scores)).only(0)
    shape = turn.batch.mask.shape
    mask = settings.get("mask", torch.ones(shape, dtype=torch.bool))
    score = torch.tensor(scores).expand(shape).clone()
    labels = turn.labels | {"score": score, "cohort": (torch.arange(shape[2]) // cohort).expand(shape).clone()}
    return replace(turn, labels=labels, batch=replace(turn.batch, mask=mask))


def targets(scores: list[float], *, cohort: int, **settings: Any) -> Tensor:
    """``rho*`` of each episode, ``[n]`` float64, the same at all its steps."""
    update = begun(region_of("gbpo", **settings), turn_with(scores, cohort=cohort))
    found = update.samples.labels["target"].reshape(2, len(scores))
    torch.testing.assert_close(found[0], found[1])
    return found[0].double()


def by_hand(scores: list[float], cohort: int, tau: float, low: float, high: float, median: str) -> list[float]:
    found = []
    for start in range(0, len(scores), cohort):
        group = scores[start : start + cohort]
        middle = statistics.median_low(group) if median == "lower" else statistics.median(group)
        deviation = statistics.stdev(group)
        found += [1 - low + (low + high) * float(expit((s - middle) / (deviation + 1e-6) / tau)) for s in group]
    return found


@pytest.mark.parametrize("median", ["lower", "midpoint"])
@pytest.mark.parametrize("cohort", [3, 4])
@pytest.mark.parametrize(("tau", "low", "high"), [(1.0, 0.3, 0.3), (0.5, 0.2, 0.4)])
def test_the_target_is_the_published_function_of_the_cohorts_scores(
    tau: float, low: float, high: float, cohort: int, median: str
) -> None:
    scores = torch.randn(12, generator=generator(3)).tolist()
    found = targets(scores, cohort=cohort, temperature=tau, low=low, high=high, median=median)
    expected = by_hand(scores, cohort, tau, low, high, median)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_targets_stay_within_their_bounds_and_come_to_them_as_the_temperature_falls() -> None:
    scores = torch.randn(15, generator=generator(4)).tolist()
    for tau in (10.0, 1.0, 0.5):
        found = targets(scores, cohort=5, temperature=tau, low=0.2, high=0.5)
        assert float(found.min()) > 0.8
        assert float(found.max()) < 1.5
    found = targets(scores, cohort=5, low=0.2, high=0.5).reshape(3, 5)
    order = torch.tensor(scores).reshape(3, 5).argsort(1)
    expected = torch.tensor([0.8, 0.8, 1.15, 1.5, 1.5]).double().expand(3, 5)
    torch.testing.assert_close(found.gather(1, order), expected)


def test_of_equal_bounds_the_mean_target_of_an_odd_cohort_is_one() -> None:
    assert float(targets(torch.randn(7, generator=generator(5)).tolist(), cohort=7).mean()) == pytest.approx(1)
    unequal = targets(torch.randn(7, generator=generator(5)).tolist(), cohort=7, low=0.2, high=0.4)
    assert float(unequal.mean()) == pytest.approx(1 + (0.4 - 0.2) / 2)


def test_of_two_outcomes_the_frequent_one_is_held_and_the_rare_one_moves() -> None:
    found = targets([1, 0, 0, 0, 0, 1, 1, 1], cohort=4)
    torch.testing.assert_close(found, torch.tensor([1.3, 1, 1, 1, 0.7, 1, 1, 1]).double())


def test_medians_of_even_cohorts_are_torchs_or_numpys() -> None:
    scores = [4.0, 1.0, 3.0, 2.0, 9.0, 5.0]
    turn = turn_with(scores, cohort=6)
    found = cohort_scores(turn)
    assert found.lower.item() == torch.tensor(scores).median().item() == 3.0
    assert found.midpoint.item() == np.median(scores) == 3.5
    assert found.variance.item() == pytest.approx(np.var(scores))
    assert found.span.item() == 8.0
    lower = targets(scores, cohort=6)
    midpoint = targets(scores, cohort=6, median="midpoint")
    torch.testing.assert_close(lower, torch.tensor([1.3, 0.7, 1.0, 0.7, 1.3, 1.3]).double())
    torch.testing.assert_close(midpoint, torch.tensor([1.3, 0.7, 0.7, 0.7, 1.3, 1.3]).double())


def test_episodes_count_once_whatever_their_lengths_and_not_at_all_without_a_decision() -> None:
    """A long bad episode does not draw the median; rows and cohorts are kept apart."""
    mask = torch.tensor([[[True, True, False, True], [True, False, False, False]]])
    turn = turn_with([0.0, 1.0, 100.0, 2.0], cohort=4, mask=mask)
    found = cohort_scores(turn)
    assert found.count.item() == 3
    assert found.lower.item() == 1.0
    assert found.span.item() == 2.0
    two = turn_for(policy_of("gaussian"))
    for row in range(2):
        apart, together = cohort_scores(two.only(row)), cohort_scores(two)
        torch.testing.assert_close(apart.midpoint[0], together.midpoint[row])
        torch.testing.assert_close(apart.variance[0], together.variance[row])


def test_an_episode_alone_has_median_zero_and_deviation_one() -> None:
    found = targets([0.5, -2.0], cohort=1, temperature=1.0)
    expected = [0.7 + 0.6 / (1 + math.exp(-x / (1 + 1e-6))) for x in (0.5, -2.0)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_equal_scores_hold_everything_in_place() -> None:
    torch.testing.assert_close(targets([0.3] * 6, cohort=3), torch.ones(6).double())


@pytest.mark.parametrize("log_ratio", [-0.6, -0.1, 0.1, 0.6])
@pytest.mark.parametrize("target", [0.7, 1.3])
def test_the_gradient_leads_to_the_target_from_both_sides(target: float, log_ratio: float) -> None:
    """Inside the band PPO's, where the sign is A's; outside, where PPO has none, back with |A|."""
    leaf = column(log_ratio).requires_grad_()
    label = torch.full((1, 1, 1), target, dtype=torch.float64)
    advantage = 2.0 if target > 1 else -2.0
    gain = region_of("gbpo").gain(decisions_of(leaf, advantage, labels={"target": label}), None)
    (gradient,) = torch.autograd.grad(gain.sum(), leaf)
    w = math.exp(log_ratio)
    assert gain.item() == pytest.approx(-abs(w - target) * 2)
    assert gradient.item() == pytest.approx(math.copysign(2 * w, target - w))
