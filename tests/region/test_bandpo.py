"""BandPO (arXiv 2603.04918): how far an action's ratio can go within a divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_examples import make_region
from scipy import optimize
from shaping_examples import grid, slope

from marl_tr.region.family.bandpo import band, bisected_band, two_outcomes

torch.set_num_threads(1)

P = torch.tensor([0.01, 0.08, 0.5, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("divergence", ["tv", "chi2"])
@pytest.mark.parametrize("radius", [0.005, 0.05, 0.4])
def test_closed_forms_agree_with_the_bisection(divergence: str, radius: float) -> None:
    for closed, found in zip(band(P, radius, divergence), bisected_band(P, radius, divergence), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(closed, found, rtol=1e-8, atol=1e-8)


def test_the_intervals_of_kl_are_those_of_the_paper() -> None:
    low, high = band(P, 0.05, "kl")
    torch.testing.assert_close(low, torch.tensor([0.0025, 0.26, 0.69, 0.87]).double(), rtol=0.02, atol=5e-5)
    torch.testing.assert_close(high, torch.tensor([7.81, 2.41, 1.31, 1.08]).double(), rtol=5e-3, atol=0)
    for end in (low, high):
        torch.testing.assert_close(two_outcomes(P, end, "kl"), torch.full_like(P, 0.05), rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [0.01, 0.08, 0.5, 0.9])
def test_the_ends_are_roots_of_the_divergence_by_an_independent_solver(p: float) -> None:
    def excess(ratio: float) -> float:
        return float(-p * np.log(ratio) - (1 - p) * np.log((1 - ratio * p) / (1 - p)) - 0.05)

    low, high = band(torch.tensor([p], dtype=torch.float64), 0.05, "kl")
    assert float(low) == pytest.approx(optimize.brentq(excess, 1e-9, 1), rel=1e-8)
    assert float(high) == pytest.approx(optimize.brentq(excess, 1, 1 / p - 1e-12), rel=1e-8)


def test_no_law_on_the_whole_simplex_reaches_a_larger_ratio() -> None:
    """Largest new probability of the first choice within KL(old || new) <= d, the others free."""
    old = np.array([0.1, 0.2, 0.3, 0.4])

    def kl(new: np.ndarray) -> float:
        return float((old * np.log(old / new)).sum())

    best = optimize.minimize(
        lambda new: -new[0],
        old,
        method="SLSQP",
        bounds=[(1e-6, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda new: new.sum() - 1},
            {"type": "ineq", "fun": lambda new: RADIUS - kl(new)},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    _, high = band(torch.tensor([0.1], dtype=torch.float64), RADIUS, "kl")
    assert float(high) == pytest.approx(best.x[0] / old[0], rel=1e-6)


RADIUS = 0.05


@pytest.mark.parametrize("divergence", ["kl", "tv", "chi2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_are_finite_hold_one_and_narrow_as_probability_grows(divergence: str, dtype: torch.dtype) -> None:
    p = torch.cat([torch.tensor([0.0, 1e-12]), torch.logspace(-6, -1e-4, 60), torch.tensor([1.0])]).to(dtype)
    low, high = band(p, 0.05, divergence)  # type: ignore[arg-type]
    assert bool((torch.isfinite(low) & torch.isfinite(high) & (low >= 0) & (low <= 1) & (high >= 1)).all())
    assert bool((low.diff() >= -1e-6).all())
    assert bool((high.diff() <= 1e-6 * high[1:]).all())
    if divergence == "kl":
        assert float(low[-1]) == pytest.approx(np.exp(-0.05), rel=1e-4)


@pytest.mark.parametrize("divergence", ["tv", "chi2"])
def test_where_the_whole_range_is_within_the_radius_nothing_is_clipped(divergence: str) -> None:
    low, high = band(torch.tensor([0.1, 0.9]).double(), 12.0, divergence)  # type: ignore[arg-type]
    torch.testing.assert_close(low, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(high, torch.tensor([10.0, 1 / 0.9], dtype=torch.float64))


def test_relaxed_intervals_are_never_tighter_than_clip_higher() -> None:
    p = torch.logspace(-8, -1e-3, 50).double()
    low, high = band(p, 0.05, "kl", relaxed=True)
    assert bool((low <= 0.8).all())
    assert bool(((high >= 1.28) & (high <= 100)).all())
    strict_low, strict_high = band(p, 0.05, "kl")
    assert bool((low <= strict_low).all())
    assert bool(((high >= strict_high) | (high == 100)).all())


def test_the_gain_is_ppos_with_these_ends() -> None:
    ratio, advantage = grid()
    ratio, advantage = ratio[ratio < 9], advantage[ratio < 9]
    low, high = band(torch.tensor([0.1]).double(), 0.05, "kl")
    stopped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    expected = torch.where(stopped, 0, ratio * advantage)
    torch.testing.assert_close(slope(make_region("bandpo"), ratio, advantage, 0.1, prepared=True), expected)
    assert 0 < int(stopped.sum()) < len(stopped)
