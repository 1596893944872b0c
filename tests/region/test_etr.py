"""Intervals that grow with the advantage."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cohort_examples import column, decisions_of, gain_and_gradient
from family_examples import policy_of, region_of, turn_for
from pydantic import ValidationError
from test_family import begun, gradient_of, moved
from test_gbpo import turn_with

torch.set_num_threads(1)


@pytest.mark.parametrize("log_ratio", [-0.5, -0.23, -0.2, 0.1, 0.2, 0.26, 0.5])
@pytest.mark.parametrize("advantage", [-2.5, -0.5, 0.5, 2.5])
def test_without_growth_it_is_ppo(advantage: float, log_ratio: float) -> None:
    mine = gain_and_gradient("etr", column(log_ratio), advantage, micro=0.0)
    ppo = gain_and_gradient("ppo_clip", column(log_ratio), advantage, clip=0.2, clip_high=0.28)
    torch.testing.assert_close(mine, ppo)


def reached(advantage: float, **settings: float) -> float:
    """How far the interval reaches on the side where the advantage pushes to, found by bisection on the gradient."""
    inside, outside = 0.0, 0.999
    for _ in range(24):  # to 6e-8
        middle = (inside + outside) / 2
        log_ratio = math.log1p(math.copysign(middle, advantage))
        gradient = gain_and_gradient("etr", column(log_ratio), advantage, **settings)[1]
        inside, outside = (middle, outside) if gradient.item() != 0 else (inside, middle)
    return inside


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_interval_grows_with_the_advantage_between_its_limits(sign: float) -> None:
    base = 0.28 if sign > 0 else 0.2
    sizes = [0.2, 0.5, 1.0, 1.5, 3.0, 5.0]
    widths = [reached(sign * a) for a in sizes]
    assert widths == pytest.approx([min(max(base * (1 + 0.5 * (a - 1)), 0.05), 0.6) for a in sizes], abs=1e-6)
    assert widths == sorted(widths)
    assert reached(sign * 0.01, micro=1.0) == pytest.approx(0.05, abs=1e-6)
    assert reached(sign * 50) == pytest.approx(0.6, abs=1e-6)


def test_the_macro_factor_is_the_relative_variance_of_the_cohorts_scores() -> None:
    """Of 0 and 1 it is 4 p (1 - p): whole at one half, and least where all are equal."""
    turn = turn_with([0, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1], cohort=4)
    region = region_of("etr", macro=0.4)
    labels = begun(region, turn).samples.labels
    found = labels["variance"].reshape(2, 12)[0, ::4]
    torch.testing.assert_close(found, torch.tensor([1.0, 4 * 0.25 * 0.75, 0.0]).double())
    for variance, factor in ((1.0, 1.0), (0.75, 0.9), (0.0, 0.6)):
        label = {"variance": torch.full((1, 1, 1), variance, dtype=torch.float64)}
        edge = math.log1p(0.28 * factor)
        for off, shut in ((-1e-6, False), (1e-6, True)):
            leaf = column(edge + off).requires_grad_()
            gain = region.gain(decisions_of(leaf, 1.0, labels=label), None)
            assert (torch.autograd.grad(gain.sum(), leaf)[0].item() == 0) is shut


@pytest.mark.parametrize("macro", [0.0, 0.5])
def test_a_cohort_whose_scores_are_equal_changes_nothing(macro: float) -> None:
    """Its advantages are zero, whatever its interval."""
    turn = turn_for(policy_of("gaussian"))
    labels = turn.labels | {"score": torch.ones_like(turn.labels["score"])}
    turn = replace(turn, labels=labels, advantage=torch.zeros_like(turn.advantage))
    found = gradient_of(region_of("etr", macro=macro), turn, moved(turn, 0.1))
    assert bool((found == 0).all())


def test_it_says_how_far_decisions_go_in_their_own_intervals() -> None:
    region, turn = region_of("etr", macro=0.3), turn_for(policy_of("gaussian"))
    measured = turn.measure(moved(turn, 0.05))
    reach = region.reach(turn, measured)
    gaps, mask = (measured.log_prob - turn.old.log_prob).squeeze(-1).exp() - 1, turn.batch.mask
    assert reach.limit == 1.0
    for row in range(2):
        scores = turn.labels["score"][row].double()
        there = [n for n in range(mask.shape[2]) if bool(mask[row, :, n].any())]
        values = [float(scores[0, n]) for n in there]
        worst = 0.0
        for n in there:
            mates = [float(scores[0, m]) for m in there if m // 2 == n // 2]
            mean = sum(mates) / len(mates)
            variance = sum((x - mean) ** 2 for x in mates) / len(mates)
            v = 4 * variance / (max(values) - min(values)) ** 2
            for t in range(mask.shape[1]):
                if bool(mask[row, t, n]):
                    off, size = float(gaps[row, t, n]), abs(float(turn.advantage[row, t, n]))
                    base = 0.28 if off > 0 else 0.2
                    width = min(max(base * (1 + 0.5 * (size - 1)), 0.05), 0.6) * (1 + 0.3 * (v - 1))
                    worst = max(worst, abs(off) / width)
        assert float(reach.value[row]) == pytest.approx(worst, rel=1e-4)


def test_limits_that_would_cut_off_the_interval_itself_are_refused() -> None:
    with pytest.raises(ValidationError, match="least <= clip"):
        region_of("etr", least=0.3)
    with pytest.raises(ValidationError, match="least <= clip"):
        region_of("etr", clip_high=0.7)
