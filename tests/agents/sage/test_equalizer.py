"""The equalizer against reference values, closed forms, and measured gradients of log-probabilities."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_tr.agents.sage.equalizer import equalizer_weights, gradient_norms
from marl_tr.agents.sage.sampler import Coefficients, Kind, Sampler, sigma_grid
from marl_tr.errors import UserError

TABLED: tuple[Kind, ...] = ("dance", "flow", "sage", "cps")

WEIGHTS = """
1.6135 7.0501 8.1506 6.8816
1.5456 5.9795 5.2983 4.9530
1.4776 3.9402 3.7258 3.7817
1.4096 2.9875 2.8960 2.9946
1.3415 2.3932 2.3499 2.4292
1.2734 1.9714 1.9506 2.0031
1.2052 1.6494 1.6398 1.6704
1.1370 1.3919 1.3881 1.4032
1.0685 1.1794 1.1783 1.1837
1.0000 1.0000 1.0000 1.0000
0.9313 0.8461 0.8462 0.8437
0.8623 0.7125 0.7120 0.7090
0.7930 0.5954 0.5941 0.5912
0.7232 0.4922 0.4897 0.4869
0.6528 0.4009 0.3971 0.3935
0.5813 0.3198 0.3146 0.3085
0.5081 0.2477 0.2410 0.2297
0.4318 0.1835 0.1750 0.1547
0.3485 0.1261 0.1149 0.0803
0.2446 0.0734 0.0551 0.0000
"""
"""Weights at 20 steps, shift 5, eta 0.5; columns dance, flow, sage, cps."""


def coefficients(kind: Kind, eta: float = 0.5, steps: int = 20, **settings: Any) -> Coefficients:
    return Sampler(kind, eta, **settings).coefficients(sigma_grid(steps, 5.0))


def spread(norms: Tensor) -> float:
    return float(norms.max() / norms.min())


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("column", range(4), ids=TABLED)
def test_weights_are_the_reference_values(column: int, published: bool) -> None:
    rows = [[float(x) for x in line.split()] for line in WEIGHTS.strip().splitlines()]
    expected = torch.tensor(rows, dtype=torch.float64)[:, column]
    weights = equalizer_weights(coefficients(TABLED[column], clamp="published"), published=published)
    assert torch.allclose(weights, expected, atol=5.1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "mean"), [("dance", 0.957), ("flow", 1.677), ("sage", 1.676), ("cps", 1.605)])
def test_mean_weight_is_the_reference_value(kind: Kind, mean: float) -> None:
    assert float(equalizer_weights(coefficients(kind)).mean()) == pytest.approx(mean, abs=5.1e-4)


def test_spread_of_the_gradient_norms_is_the_reference_value() -> None:
    norms = {kind: gradient_norms(coefficients(kind)) for kind in TABLED}
    assert spread(norms["dance"]) == pytest.approx(6.6, abs=0.051)
    assert spread(norms["flow"]) == pytest.approx(96.1, abs=0.051)
    assert spread(norms["sage"]) == pytest.approx(147.8, abs=0.051)
    assert spread(norms["sage"][:-1]) == pytest.approx(71.0, abs=0.051)
    assert spread(norms["cps"][:-1]) == pytest.approx(85.7, abs=0.051)


def test_gradient_norms_have_their_closed_forms() -> None:
    eta, s = 0.5, sigma_grid(20, 5.0)
    step, s = s[:-1] - s[1:], s[:-1]
    dance = step.sqrt() / eta * (1 + 0.5 * eta**2 * (1 - s) / s)
    assert torch.allclose(gradient_norms(coefficients("dance")), dance, rtol=1e-12)
    flow = (step * (1 - s) / s).sqrt() / eta * (1 + eta**2 / 2)
    assert torch.allclose(gradient_norms(coefficients("flow"))[1:], flow[1:], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "surrogate"),
    [("dance", False), ("flow", False), ("sage", False), ("cps", False), ("cps", True), ("precise", False)],
)
def test_gradient_norms_are_those_measured_by_autograd(kind: Kind, surrogate: bool) -> None:
    sampler = Sampler(kind, 0.5, cps_log_prob="surrogate" if surrogate else "gaussian")
    c = sampler.coefficients(sigma_grid(20, 5.0))
    norms = gradient_norms(c, surrogate=surrogate)
    generator = torch.Generator().manual_seed(0)
    x, v, z = (torch.randn(1, 4096, generator=generator, dtype=torch.float64) for _ in range(3))
    z = z / z.square().mean().sqrt()
    for i in c.stochastic.nonzero().flatten().tolist():
        velocity = v.clone().requires_grad_()
        mean = c.mean(x, velocity, i)
        reached = (mean + c.std[i] * z).detach()
        (gradient,) = torch.autograd.grad(sampler.log_prob(reached, mean, c.std[i]).sum(), velocity)
        assert float(gradient.square().mean().sqrt()) == pytest.approx(float(norms[i]), rel=1e-9)


def test_the_weight_times_the_norm_is_the_same_at_every_stochastic_step() -> None:
    c = coefficients("precise")
    product = (equalizer_weights(c) * gradient_norms(c))[c.stochastic]
    assert torch.allclose(product, product[0].expand_as(product), rtol=1e-12)


def test_weights_of_the_density_unbalance_the_surrogate_of_cps_and_its_own_balance_it() -> None:
    c = coefficients("cps")
    actual = gradient_norms(c, surrogate=True)
    assert spread(actual[:-1]) == pytest.approx(7.0, abs=0.051)
    assert spread((actual * equalizer_weights(c))[:-1]) == pytest.approx(22.6, abs=0.051)
    assert spread((actual * equalizer_weights(c, surrogate=True))[:-1]) == pytest.approx(1, rel=1e-12)


def test_a_permutation_of_the_steps_permutes_the_weights() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for kind in TABLED:
        c = coefficients(kind)
        permuted = Coefficients(**{field.name: getattr(c, field.name)[order] for field in fields(c)})
        assert torch.equal(equalizer_weights(permuted), equalizer_weights(c)[order])


def test_deterministic_steps_weigh_nothing_and_do_not_move_the_median() -> None:
    c = coefficients("sage", window=(4, 9))
    weights, norms = equalizer_weights(c), gradient_norms(c)
    assert weights.nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    assert bool((norms[~c.stochastic] == 0).all())
    assert float(weights[6]) == 1
    assert torch.equal(equalizer_weights(coefficients("ode")), torch.zeros(20, dtype=torch.float64))
    assert torch.equal(equalizer_weights(coefficients("cps", steps=1)), torch.zeros(1, dtype=torch.float64))


def test_the_published_median_counts_the_last_step_of_cps() -> None:
    c = coefficients("cps", steps=21)
    ours, published = equalizer_weights(c), equalizer_weights(c, published=True)
    assert int((ours == 1).nonzero()) == 9
    assert int((published == 1).nonzero()) == 10
    norms = gradient_norms(c)
    floored = torch.where(c.stochastic, norms, c.jacobian.abs() / 1e-12)
    assert torch.allclose(published, torch.where(c.stochastic, floored.median() / floored, 0), rtol=1e-12)


def test_the_published_median_is_refused_where_most_steps_are_deterministic() -> None:
    with pytest.raises(UserError, match=r"20 steps, and only 5 .*published=False"):
        equalizer_weights(coefficients("sage", window=(4, 9)), published=True)
