"""PSPO (arXiv 2509.21282) and DISPO (arXiv 2602.00983): two that shape weights and bound nothing."""

from __future__ import annotations

import pytest
import torch
from learning_examples import make_region
from shaping_examples import grid, slope, value

from marl_tr.region.family.pspo import smoothed

torch.set_num_threads(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothing_scales_the_unclipped_gradient_and_nothing_else(smoothing: float) -> None:
    ratio, advantage = grid()
    region = make_region("pspo", smoothing=smoothing)
    torch.testing.assert_close(slope(region, ratio, advantage), (1 - smoothing) * ratio * advantage)
    torch.testing.assert_close(value(region, ratio, advantage), smoothed(ratio, smoothing) * advantage)
    assert make_region("pspo").unit_gradient == pytest.approx(1 - make_region("pspo").config.smoothing)


def test_the_smoothed_ratio_is_the_mixtures_which_is_nearer_by_that_factor() -> None:
    noise = torch.Generator().manual_seed(0)
    old, new = (torch.randn(7, generator=noise).double().softmax(-1) for _ in range(2))
    mixture = 0.9 * new + 0.1 * old
    torch.testing.assert_close(smoothed(new / old, 0.1), mixture / old)
    torch.testing.assert_close((mixture - old).abs().sum(), 0.9 * (new - old).abs().sum())
    assert float((old * (old / mixture).log()).sum()) <= 0.9 * float((old * (old / new).log()).sum())
    assert float(smoothed(torch.zeros(1), 0.1)) == pytest.approx(0.1)


def test_dispos_weights_are_clipped_by_the_sign_of_the_advantage() -> None:
    ratio = torch.tensor([0.1, 0.9, 5.0, 40.0, 0.1, 0.9, 5.0, 200.0]).double()
    advantage = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]).double()
    weight = torch.tensor([0.8, 0.9, 5.0, 11.0, 0.1, 0.9, 5.0, 101.0]).double()
    torch.testing.assert_close(slope(make_region("dispo"), ratio, advantage), weight * advantage)


def test_without_room_dispo_is_reinforce() -> None:
    ratio, advantage = grid()
    region = make_region("dispo", good_low=0, good_high=0, bad_low=0, bad_high=0)
    torch.testing.assert_close(slope(region, ratio, advantage), advantage)


def test_with_one_upper_end_for_all_dispo_is_cispo() -> None:
    ratio, advantage = grid()
    region = make_region("dispo", good_low=1, good_high=0.28, bad_low=1, bad_high=0.28)
    torch.testing.assert_close(slope(region, ratio, advantage), ratio.clamp(0, 1.28) * advantage)


def test_dispos_gradient_is_never_zero_unless_the_weight_is() -> None:
    ratio, advantage = grid()
    assert bool((slope(make_region("dispo"), ratio, advantage) != 0).all())
