"""The samplers against reference values, quadrature, autograd, moment equations and torch.distributions.

Reference values are those of a float64 derivation that shares no code with the package; "20/5" is a grid of 20 steps
and shift 5.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor, distributions

from marl_tr.agents.sage.sampler import (
    KINDS,
    Coefficients,
    EtaOutOfRange,
    InvalidClamp,
    InvalidGrid,
    Kind,
    Sampler,
    gaussian_kl,
    log_prob,
    sigma_grid,
    surrogate_log_prob,
)
from marl_tr.errors import UserError

NOISY: tuple[Kind, ...] = ("dance", "flow", "sage", "cps", "precise")

STD = """
0.05103 0.50000 0.55551 0.69974 0.98958
0.05320 0.51856 0.42555 0.69173 0.40381
0.05557 0.37277 0.33074 0.68300 0.31922
0.05816 0.30956 0.28314 0.67344 0.27503
0.06099 0.27277 0.25350 0.66291 0.24697
0.06412 0.24835 0.23301 0.65128 0.22729
0.06759 0.23087 0.21791 0.63836 0.21262
0.07146 0.21775 0.20632 0.62392 0.20119
0.07579 0.20757 0.19712 0.60767 0.19199
0.08069 0.19946 0.18964 0.58926 0.18433
0.08626 0.19288 0.18340 0.56821 0.17775
0.09266 0.18741 0.17803 0.54393 0.17185
0.10008 0.18272 0.17322 0.51560 0.16626
0.10880 0.17852 0.16865 0.48212 0.16058
0.11918 0.17447 0.16392 0.44194 0.15423
0.13176 0.17010 0.15847 0.39284 0.14635
0.14731 0.16470 0.15133 0.33146 0.13537
0.16704 0.15691 0.14061 0.25254 0.11803
0.19288 0.14376 0.12187 0.14731 0.08600
0.22822 0.11707 0.07950 0.00000 0.00000
"""
"""Std of every step at 20/5, eta 0.5; columns dance, flow, sage, cps, precise."""

SIGMAS = (
    "1.000000 0.989583 0.978261 0.965909 0.952381 0.937500 0.921053 0.902778 0.882353 0.859375 0.833333 "
    "0.803571 0.769231 0.729167 0.681818 0.625000 0.555556 0.468750 0.357143 0.208333 0.000000"
)


def numbers(text: str) -> Tensor:
    return torch.tensor([[float(x) for x in line.split()] for line in text.strip().splitlines()], dtype=torch.float64)


def coefficients(kind: Kind, eta: float = 0.5, steps: int = 20, shift: float = 5.0, **settings: Any) -> Coefficients:
    return Sampler(kind, eta, **settings).coefficients(sigma_grid(steps, shift))


def published_mean(kind: Kind, eta: float, s: float, s_next: float, s_second: float, x: Tensor, v: Tensor) -> Tensor:
    """The mean as each publication's code has it, by its own route: score, drift, posterior."""
    dt = s_next - s
    x0, e = x - s * v, x + (1 - s) * v
    score = -(x - (1 - s) * x0) / s**2
    if kind == "dance":
        return x + dt * v + 0.5 * eta**2 * (s - s_next) * score
    if kind == "flow":
        g2 = eta**2 * s / (1 - (s_second if s == 1 else s))
        return x * (1 + g2 / (2 * s) * dt) + v * (1 + g2 * (1 - s) / (2 * s)) * dt
    if kind == "sage":
        variance = eta**2 * (dt + math.log((1 - s_next) / (1 - min(s, 0.997))))
        return x + dt * v + 0.5 * variance * score
    if kind == "cps":
        std = s_next * math.sin(eta * math.pi / 2)
        return (1 - s_next) * x0 + math.sqrt(s_next**2 - std**2) * e
    if kind == "precise":
        rho = (s_next * (1 - s) / (s * (1 - s_next))) ** (eta**2 / 2)
        return (1 - s_next) * x0 + (s_next / s) * rho * (x - (1 - s) * x0)
    return x + dt * v


def test_grid_is_the_reference_grid_with_exact_ends() -> None:
    assert torch.allclose(sigma_grid(20, 5.0), numbers(SIGMAS)[0], atol=5e-7, rtol=0)
    for steps in (1, 2, 3, 7, 2000):
        for shift in (0.3, 1.0, 1.1, 3.0, 7.3, 12.0):
            grid = sigma_grid(steps, shift)
            assert grid.dtype == torch.float64
            assert grid.shape == (steps + 1,)
            assert grid[0] == 1
            assert grid[-1] == 0
            assert bool((grid.diff() < 0).all())


@pytest.mark.parametrize("column", range(5), ids=NOISY)
def test_std_of_every_step_is_the_reference_value(column: int) -> None:
    std = coefficients(NOISY[column], clamp="published").std
    assert torch.allclose(std, numbers(STD)[:, column], atol=5.1e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_its_jacobian_are_those_of_the_published_form(kind: Kind, eta: float) -> None:
    grid, c = sigma_grid(20, 5.0), coefficients(kind, eta, clamp="published")
    generator = torch.Generator().manual_seed(0)
    for i, (s, s_next) in enumerate(pairwise(grid.tolist())):
        x, v = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
        jacobian = torch.autograd.functional.jacobian(
            lambda v, s=s, s_next=s_next, x=x: published_mean(kind, eta, s, s_next, float(grid[1]), x, v), v
        )
        mean = published_mean(kind, eta, s, s_next, float(grid[1]), x, v)
        assert torch.allclose(jacobian, float(c.jacobian[i]) * torch.eye(6, dtype=torch.float64), atol=1e-13)
        assert torch.allclose(c.mean(x, v, i), mean, atol=1e-13)
        assert torch.allclose((1 - s_next) * (x - s * v) + c.c[i] * (x + (1 - s) * v), mean, atol=1e-13)


def test_mean_with_an_index_for_each_sample_is_that_of_each_step_to_the_bit() -> None:
    c = coefficients("sage")
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    step = torch.tensor([[0, 19], [7, 7], [3, 12]])
    mean = c.mean(x, v, step)
    assert mean.dtype == torch.float32
    for i in range(3):
        for j in range(2):
            assert torch.equal(mean[i, j], c.mean(x[i, j], v[i, j], int(step[i, j])))


@pytest.mark.parametrize(("steps", "shift"), [(20, 5.0), (10, 1.0), (333, 12.0)])
def test_sage_variance_is_the_integral_of_the_diffusion(steps: int, shift: float) -> None:
    c = coefficients("sage", 0.7, steps, shift)
    for i in [1, 2, steps // 2, steps - 2, steps - 1]:
        integral = quad(lambda u: 0.7**2 * u / (1 - u), float(c.s_next[i]), float(c.s[i]), epsabs=1e-15, epsrel=1e-13)[
            0
        ]
        assert float(c.variance[i]) == pytest.approx(integral, rel=1e-11)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
def test_precise_solves_the_moment_equations_of_the_sde_with_frozen_data(eta: float) -> None:
    c = coefficients("precise", eta)

    def moments(s: float, y: Any) -> list[float]:
        # With x0hat frozen, y = x - (1 - s) x0hat obeys dy = y (1/s + g^2 / (2 s^2)) ds + g dW, s falling.
        g2 = eta**2 * s / (1 - s)
        rate = 1 / s + g2 / (2 * s**2)
        return [rate * y[0], 2 * rate * y[1] - g2]

    for i in (1, 5, 12, 18):
        span = (float(c.s[i]), float(c.s_next[i]))
        factor, variance = solve_ivp(moments, span, [1.0, 0.0], rtol=1e-11, atol=1e-13).y[:, -1]
        assert float(c.c[i] / c.s[i]) == pytest.approx(factor, rel=1e-8)
        assert float(c.variance[i]) == pytest.approx(variance, rel=1e-8)


def test_precise_redraws_all_noise_first_and_ends_without() -> None:
    c = coefficients("precise")
    assert c.c[0] == 0
    assert c.std[0] == c.s_next[0]
    assert c.std[-1] == 0
    assert c.c[-1] == 0


def residual(c: Coefficients) -> Tensor:
    """Variance after each step in a direction where the data has none, from 1: ``V' = (c/s)^2 V + std^2``."""
    variances = [torch.tensor(1.0, dtype=torch.float64)]
    for i in range(len(c.s)):
        variances.append((c.c[i] / c.s[i]) ** 2 * variances[-1] + c.variance[i])
    return torch.stack(variances)


def final_variance(c: Coefficients) -> float:
    """Variance at the end in a direction where the data has variance 1, with the exact velocity of Gaussian data."""
    variance = 1.0
    for i in range(len(c.s)):
        s = float(c.s[i])
        velocity = (2 * s - 1) / ((1 - s) ** 2 + s**2)
        variance = (float(c.a[i]) + float(c.b[i]) * velocity) ** 2 * variance + float(c.variance[i])
    return variance


def test_m1_flow_injects_more_than_the_integral_but_for_the_first_step() -> None:
    ratio = coefficients("flow").variance / coefficients("sage", clamp="published").variance
    for step, expected in {0: 0.8101, 1: 1.4849, 2: 1.2703, 3: 1.1953, 10: 1.1061, 19: 2.1686}.items():
        assert float(ratio[step]) == pytest.approx(expected, abs=5.1e-5)
    assert int(ratio[1:].argmin()) + 1 == 10


@pytest.mark.parametrize(("steps", "shift"), [(20, 5.0), (40, 5.0), (10, 3.0), (20, 1.0), (3, 12.0), (50, 3.0)])
def test_m2_variance_telescopes_to_one_number(steps: int, shift: float) -> None:
    total = coefficients("sage", 1.0, steps, shift, clamp="published").variance.sum()
    assert float(total) == pytest.approx(4.80914, abs=5e-6)
    assert float(total) == pytest.approx(math.log(1 / 3e-3) - 1, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "shift", "eta", "expected"),
    [
        (20, 5.0, 0.5, [0.2739, 0.1229, 0.0813, 0, 0]),
        (20, 5.0, 1.0, [1.0322, 0.3042, 0.1791, 0, 0]),
        (10, 3.0, 0.5, [0.2901, 0.1523, 0.0994, 0, 0]),
    ],
)
def test_m3_residual_off_the_manifold(steps: int, shift: float, eta: float, expected: list[float]) -> None:
    measured = [float(residual(coefficients(kind, eta, steps, shift, clamp="published"))[-1].sqrt()) for kind in NOISY]
    assert measured == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize(
    # The reference's 1.85 for sage at eta 1 is 1.8446, rounded twice.
    ("eta", "expected", "digit"),
    [(0.5, [1.467, 1.303, 1.233], 1e-3), (1.0, [3.43, 2.18, 1.845], 1e-2)],
)
def test_m4_noise_level_against_that_of_flow_matching(eta: float, expected: list[float], digit: float) -> None:
    grid = sigma_grid(20, 5.0)
    measured = []
    for kind in NOISY:
        variances = residual(coefficients(kind, eta, clamp="published"))
        measured.append(float((variances[:-1] / grid[:-1] ** 2).max()))
    assert measured[:3] == pytest.approx(expected, abs=0.51 * digit)
    assert measured[3:] == pytest.approx([1, 1], abs=1e-12)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [(0.5, [0.7744, 0.7895, 0.8127, 0.8096, 0.6577, 0.7538]), (1.0, [0.7744, 0.8384, 0.8594, 0.8552, 0.3874, 0.6965])],
)
def test_m5_variance_along_the_manifold(eta: float, expected: list[float]) -> None:
    measured = [final_variance(coefficients(kind, eta, clamp="published")) for kind in KINDS]
    assert measured == pytest.approx(expected, abs=5.1e-5)


def test_m10_the_clamp_sets_the_total_variance_and_hardly_the_residual() -> None:
    reference = residual(coefficients("sage", clamp="published"))[-1].sqrt()
    totals = []
    for clamp_eps in (1e-2, 3e-3, 1e-3, 1e-4):
        c = coefficients("sage", clamp="published", clamp_eps=clamp_eps)
        totals.append(float(c.variance.sum()))
        assert float(residual(c)[-1].sqrt() / reference) == pytest.approx(1, abs=2e-3)
    assert totals[0] == pytest.approx(0.90, abs=5e-3)
    assert totals[-1] == pytest.approx(2.05, abs=5e-3)
    with pytest.raises(InvalidClamp, match=r"20 steps and shift 5.*clamp='safe'"):
        coefficients("sage", clamp="published", clamp_eps=3e-2)


@pytest.mark.parametrize(
    ("kind", "high", "high_but_first", "middle", "low", "total"),
    [
        ("dance", 0.118, None, 0.525, 0.357, 1.000),
        ("flow", 3.962, 2.962, 1.326, 0.138, 5.426),
        ("sage", 3.551, 2.317, 1.173, 0.085, 4.809),
        ("precise", 2.820, 1.840, 0.963, 0.023, 3.805),
        ("cps", 7.097, 6.118, 4.714, 0.043, 11.854),
    ],
)
def test_noise_energy_by_region(
    kind: Kind, high: float, high_but_first: float | None, middle: float, low: float, total: float
) -> None:
    c = coefficients(kind, 1.0, clamp="published")
    above, below = c.s > 0.9, c.s <= 0.4
    assert int(above.sum()) == 8
    assert float(c.variance[above].sum()) == pytest.approx(high, abs=5.1e-4)
    assert float(c.variance[~above & ~below].sum()) == pytest.approx(middle, abs=5.1e-4)
    assert float(c.variance[below].sum()) == pytest.approx(low, abs=5.1e-4)
    assert float(c.variance.sum()) == pytest.approx(total, abs=5.1e-4)
    if high_but_first is not None:
        assert float(c.variance[above][1:].sum()) == pytest.approx(high_but_first, abs=5.1e-4)


@pytest.mark.parametrize(("steps", "shift", "total"), [(20, 1.0, 3.598), (10, 3.0, 4.242)])
def test_flow_injects_less_than_sage_on_coarse_grids(steps: int, shift: float, total: float) -> None:
    assert float(coefficients("flow", 1.0, steps, shift).variance.sum()) == pytest.approx(total, abs=5.1e-4)


def excess(c: Coefficients) -> Tensor:
    return c.c**2 + c.variance - c.s_next**2


def test_excess_energy_is_the_reference_value() -> None:
    low, high = sigma_grid(20, 5.0)[:-1] <= 0.4, sigma_grid(20, 5.0)[:-1] > 0.9
    half = {kind: excess(coefficients(kind, 0.5, clamp="published")) for kind in NOISY}
    totals = [float(half[kind].sum()) for kind in NOISY]
    assert totals == pytest.approx([0.1036, 0.1133, 0.0906, 0, 0], abs=5.1e-5)
    parts = [half["dance"][low], half["flow"][high], half["sage"][high]]
    assert [float(part.sum()) for part in parts] == pytest.approx([0.0859, 0.0589, 0.0519], abs=5.1e-5)
    full = [float(excess(coefficients(kind, 1.0, clamp="published")).sum()) for kind in NOISY]
    assert full == pytest.approx([0.656, 1.089, 0.903, 0, 0], abs=5.1e-4)


@pytest.mark.parametrize("kind", ["dance", "flow", "sage"])
def test_excess_of_euler_steps_has_its_closed_form_and_is_positive(kind: Kind) -> None:
    c = coefficients(kind, 0.8)
    closed = c.variance * (1 - c.s_next / c.s) + c.variance**2 / (4 * c.s**2)
    assert torch.allclose(excess(c), closed, atol=1e-14)
    assert bool((closed > 0).all())


@pytest.mark.parametrize(
    ("steps", "shift", "bracket"),
    [(20, 5, 1.2344), (40, 5, 0.526), (50, 5, 0.300), (50, 3, 0.805), (30, 7, 0.486), (40, 7, 0.192)],
)
def test_published_first_variance_is_the_reference_value(steps: int, shift: float, bracket: float) -> None:
    assert float(coefficients("sage", 1.0, steps, shift, clamp="published").variance[0]) == pytest.approx(
        bracket, abs=6e-4
    )


@pytest.mark.parametrize(("steps", "shift"), [(50, 7), (100, 5), (1000, 1)])
def test_published_clamp_is_refused_where_its_variance_is_negative(steps: int, shift: float) -> None:
    with pytest.raises(InvalidClamp, match=rf"1 - 0\.003.*{steps} steps and shift {shift},.*clamp='safe'"):
        coefficients("sage", 0.5, steps, shift, clamp="published")
    assert bool((coefficients("sage", 0.5, steps, shift).variance > 0).all())


def test_published_clamp_is_accepted_where_the_window_leaves_its_bad_steps_out() -> None:
    c = coefficients("sage", 0.5, 50, 7, clamp="published", window=(10, 20))
    assert torch.equal(c.stochastic.nonzero().flatten(), torch.arange(10, 20))


def test_safe_clamp_is_the_published_one_on_coarse_grids() -> None:
    for steps, shift in ((20, 5.0), (10, 3.0), (2, 1.0), (1, 5.0)):
        safe, published = (coefficients("sage", 0.5, steps, shift, clamp=clamp) for clamp in ("safe", "published"))
        assert torch.equal(safe.variance, published.variance)


def test_safe_variance_is_positive_and_finite_for_every_step_count_and_shift() -> None:
    shifts = torch.linspace(1, 12, 23, dtype=torch.float64)[:, None]
    sampler = Sampler("sage", 1.0)
    least = math.inf
    for steps in range(2, 2001):
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        c = sampler.coefficients(u / (u + (1 - u) / shifts))
        assert bool(c.variance.isfinite().all())
        least = min(least, float(c.variance.min()))
        assert float(c.variance[:, 0].max()) < 5
    assert least > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999, 2000])
def test_every_coefficient_is_finite_and_every_jacobian_negative(kind: Kind, steps: int) -> None:
    for shift in (1.0, 5.0, 12.0):
        for eta in (0.01, 1.0):
            c = coefficients(kind, eta, steps, shift)
            for values in (c.variance, c.c, c.std, c.a, c.b):
                assert bool(values.isfinite().all())
            assert bool((c.jacobian < 0).all())
            deterministic_end = kind in ("cps", "precise")
            expected = [kind != "ode"] * (steps - deterministic_end) + [False] * deterministic_end
            assert c.stochastic.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_eta_zero_is_exactly_the_ode(kind: Kind) -> None:
    c = coefficients(kind, 0.0)
    assert torch.equal(c.a, torch.ones_like(c.a))
    assert torch.equal(c.b, c.s_next - c.s)
    assert torch.equal(c.c, c.s_next)
    assert not bool(c.stochastic.any())


@pytest.mark.parametrize("kind", NOISY)
def test_outside_the_window_steps_are_those_of_the_ode(kind: Kind) -> None:
    c, everywhere, ode = coefficients(kind, window=(3, 7)), coefficients(kind), coefficients("ode")
    inside = torch.zeros(20, dtype=torch.bool)
    inside[3:7] = True
    assert torch.equal(c.stochastic, inside)
    for name in ("variance", "c", "a", "b"):
        assert torch.equal(getattr(c, name)[inside], getattr(everywhere, name)[inside])
        assert torch.equal(getattr(c, name)[~inside], getattr(ode, name)[~inside])


@pytest.mark.parametrize(
    ("kind", "eta", "words"),
    [
        ("cps", 1.01, "between 0 and 1, not 1.01"),
        ("cps", -0.1, "between 0 and 1"),
        ("sage", -0.5, "at least 0, not -0.5"),
        ("precise", math.inf, "finite"),
        ("flow", math.nan, "finite"),
    ],
)
def test_an_eta_outside_its_range_is_refused(kind: Kind, eta: float, words: str) -> None:
    with pytest.raises(EtaOutOfRange, match=f"{kind} sampler.*{words}"):
        Sampler(kind, eta)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "euler"}, "one of ode, dance, flow, sage, cps, precise"),
        ({"clamp": "none"}, "safe, published"),
        ({"cps_log_prob": "exact"}, "gaussian, surrogate"),
        ({"clamp_eps": 0.0}, "between 0 and 1"),
        ({"window": (4, 4)}, "start < stop"),
        ({"window": (-1, 4)}, "start < stop"),
    ],
)
def test_other_settings_are_refused_with_their_choices(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Sampler(**settings)


def test_bad_grids_are_refused() -> None:
    sampler = Sampler("dance")
    for levels in ([0.5, 0.5, 0.0], [0.0, 1.0], [1.2, 0.5], [0.5, -0.1], [math.nan, 0.0]):
        with pytest.raises(InvalidGrid, match="fall strictly"):
            sampler.coefficients(torch.tensor(levels))
    with pytest.raises(InvalidGrid, match="at least two levels"):
        sampler.coefficients(torch.tensor([1.0]))
    with pytest.raises(InvalidGrid, match="behind the last of 4 steps"):
        Sampler("dance", window=(2, 5)).coefficients(sigma_grid(4))
    with pytest.raises(InvalidGrid, match="at least 1 step"):
        sigma_grid(0)
    for shift in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidGrid, match="shift must be"):
            sigma_grid(4, shift)


def test_log_prob_and_kl_are_those_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(2)
    x, mean, other = (torch.randn(5, 3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    std = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    law = distributions.Independent(distributions.Normal(mean, std.reshape(5, 1, 1, 1)), 3)
    moved = distributions.Independent(distributions.Normal(other, std.reshape(5, 1, 1, 1)), 3)
    assert torch.allclose(log_prob(x, mean, std), law.log_prob(x), rtol=1e-13)
    assert torch.allclose(gaussian_kl(mean, other, std), distributions.kl_divergence(law, moved), rtol=1e-13)
    assert torch.allclose(log_prob(x, mean, std[0])[0], law.log_prob(x)[0], rtol=1e-13)
    grid = std[:, None].expand(5, 3)
    assert log_prob(x, mean, grid, batch_dims=2).shape == (5, 3)
    assert torch.allclose(log_prob(x, mean, grid, batch_dims=2).sum(-1), law.log_prob(x), rtol=1e-13)
    assert torch.allclose(gaussian_kl(mean, other, grid, batch_dims=2).sum(-1), gaussian_kl(mean, other, std))


def test_kl_of_two_velocities_is_half_the_squared_gradient_norm_times_their_distance() -> None:
    c = coefficients("sage")
    generator = torch.Generator().manual_seed(3)
    x, v, w = (torch.randn(4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    for i in range(20):
        kl = gaussian_kl(c.mean(x, v, i), c.mean(x, w, i), c.std[i])
        expected = 0.5 * (c.jacobian[i] / c.std[i]) ** 2 * (v - w).square().sum(-1)
        assert torch.allclose(kl, expected, rtol=1e-10)


def test_only_cps_with_its_surrogate_drops_the_variance_from_the_log_prob() -> None:
    generator = torch.Generator().manual_seed(4)
    x, mean = (torch.randn(5, 7, generator=generator) for _ in range(2))
    std = torch.tensor(0.3)
    distance = -((x - mean) ** 2).sum(-1)
    assert torch.allclose(surrogate_log_prob(x, mean), distance)
    assert torch.equal(Sampler("cps", cps_log_prob="surrogate").log_prob(x, mean, std), surrogate_log_prob(x, mean))
    assert torch.equal(Sampler("cps").log_prob(x, mean, std), log_prob(x, mean, std))
    assert torch.equal(Sampler("sage", cps_log_prob="surrogate").log_prob(x, mean, std), log_prob(x, mean, std))
