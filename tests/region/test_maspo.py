"""MASPO (arXiv 2602.17550): the gate fades what overshoots, more for probable actions."""

from __future__ import annotations

import math

import pytest
import torch
from learning_examples import make_region
from scipy import optimize
from shaping_examples import grid, slope, value

from marl_tr.region.family.maspo import gate

torch.set_num_threads(1)

PLAIN = {"mass_power": 0.0, "good": 0.0, "bad": 0.0}


def test_an_open_gate_is_the_unclipped_surrogate() -> None:
    ratio, advantage = grid()
    found = slope(make_region("maspo", width=1e6, **PLAIN), ratio, advantage)
    torch.testing.assert_close(found, ratio * advantage)


def test_the_gradient_has_the_advantages_sign_everywhere_and_is_the_gates_share_of_it() -> None:
    ratio, advantage = grid()
    found = slope(make_region("maspo"), ratio, advantage, 0.1)
    assert bool((found * advantage >= 0).all())
    width = 0.1**-0.3 * torch.where(advantage > 0, 1 + 0.03 * advantage, 1 / (1 - 0.03 * advantage))
    over = ((advantage > 0) & (ratio > 1)) | ((advantage < 0) & (ratio < 1))
    faded = torch.where(over, torch.exp(-((ratio - 1) ** 2) / (2 * width**2)), 1)
    torch.testing.assert_close(found, faded * ratio * advantage)


def test_improbable_actions_pass_more_up_to_a_width_of_ten_and_never_less_than_the_width() -> None:
    ratio, advantage = torch.full((60,), 3.0).double(), torch.ones(60).double()
    p = torch.logspace(-9, 0, 60).double()
    found = slope(make_region("maspo"), ratio, advantage, p)
    assert bool((found.diff() <= 1e-12).all())
    for probability, width in ((1.0, 1.0), (1e-9, 10.0)):
        w = gate(*(torch.tensor([x]).double() for x in (3.0, 1.0, probability)), width=1, power=0.3, good=0, bad=0)
        assert float(w) == pytest.approx(math.exp(-2 / width**2), rel=1e-6)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_an_attached_gate_turns_over_where_the_formula_says_and_a_detached_one_nowhere(width: float) -> None:
    turn = 0.5 * (1 + math.sqrt(1 + 4 * width**2))
    if width == 1:
        assert turn == pytest.approx(1.618, abs=1e-3)
    region = make_region("maspo", width=width, attached=True, **PLAIN)

    def at(ratio: float) -> float:
        return float(slope(region, torch.tensor([ratio]), torch.ones(1), 1.0))

    assert optimize.brentq(at, 1.001, 6) == pytest.approx(turn, rel=1e-6)
    ratio = torch.linspace(1, 6, 200).double()
    assert bool((slope(make_region("maspo", width=width, **PLAIN), ratio, torch.ones(200), 1.0) > 0).all())
    # Bad actions: no turning point, as the gain only falls toward ratio 0.
    below = torch.linspace(0.01, 1, 200).double()
    assert bool((slope(region, below, -torch.ones(200), 1.0) < 0).all())


def test_the_attached_gradient_is_that_of_the_value() -> None:
    region, step = make_region("maspo", attached=True), 1e-6
    ratio, advantage = grid(points=17)
    keep = (ratio - 1).abs() > 1e-3
    ratio, advantage = ratio[keep], advantage[keep]
    up, down = (value(region, ratio * math.exp(s), advantage, 0.2) for s in (step, -step))
    torch.testing.assert_close(slope(region, ratio, advantage, 0.2), (up - down) / (2 * step), rtol=1e-5, atol=1e-7)
