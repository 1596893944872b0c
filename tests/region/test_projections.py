"""Projections as mathematics: against solvers that know nothing of them, and their gradients by differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import generator
from scipy.optimize import minimize
from torch import Tensor

from marl_tr.region.family.projections import (
    Geometry,
    anchored_mean_distance,
    anchored_spread_distance,
    choices_kl,
    project_choices,
    project_mean,
    project_spread,
)

torch.set_num_threads(1)

GEOMETRIES: tuple[Geometry, ...] = ("kl", "w2", "frobenius")


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def bound_of(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def slsqp(objective: Callable[[Any], float], constraint: Callable[[Any], float], start: Any, **more: Any) -> Any:
    """The least `objective` where `constraint` is at least 0."""
    conditions = [{"type": "ineq", "fun": constraint}, *more.pop("conditions", [])]
    options = {"ftol": 1e-14, "maxiter": 1000}
    found = minimize(objective, start, method="SLSQP", constraints=conditions, options=options, **more)
    # 8: no direction leads further down, at the precision asked for.
    assert found.status in (0, 8), found.message
    return found.x


def kl_of_gaussians(m: Any, v: Any, m_old: Any, v_old: Any) -> float:
    return float(0.5 * np.sum(v / v_old + (m - m_old) ** 2 / v_old - 1 - np.log(v / v_old)))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_is_projected_is_within_its_bound_and_on_it_where_it_was_beyond(geometry: Geometry) -> None:
    mean, anchor = normal(500, 3, seed=1, scale=2), normal(500, 3, seed=2)
    log_std, old = normal(500, 3, seed=3, scale=1.5), normal(500, 3, seed=4, scale=0.5)
    for bound in (1e-4, 0.03, 5.0):
        moved = project_mean(mean, anchor, old, bound=bound_of(bound), geometry=geometry)
        before = anchored_mean_distance(mean, anchor, old, geometry=geometry)
        after = anchored_mean_distance(moved, anchor, old, geometry=geometry)
        torch.testing.assert_close(after, before.clamp_max(bound), rtol=1e-9, atol=1e-12)
        spread = project_spread(log_std, old, bound=bound_of(bound), geometry=geometry)
        before = anchored_spread_distance(log_std, old, geometry=geometry)
        after = anchored_spread_distance(spread, old, geometry=geometry)
        torch.testing.assert_close(after, before.clamp_max(bound), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_is_inside_passes_to_the_bit_and_twice_is_once(geometry: Geometry) -> None:
    anchor, old = normal(50, 3, seed=2).float(), normal(50, 3, seed=4, scale=0.5).float()
    mean, log_std = anchor + normal(50, 3, seed=5, scale=0.01).float(), old + 0.001
    for bound in (bound_of(0.5), bound_of(1e-7)):
        once = project_mean(mean, anchor, old, bound=bound, geometry=geometry)
        spread = project_spread(log_std, old, bound=bound, geometry=geometry)
        if bound > 0.1:
            assert torch.equal(once, mean)
            assert torch.equal(spread, log_std)
        again = project_mean(once, anchor, old, bound=bound, geometry=geometry)
        torch.testing.assert_close(again, once, rtol=0, atol=1e-6)
        torch.testing.assert_close(project_spread(spread, old, bound=bound, geometry=geometry), spread)


def test_extreme_laws_stay_finite() -> None:
    mean, log_std = torch.tensor([[1e8, -1e8]]), torch.tensor([[60.0, -60.0]])
    zero = torch.zeros(1, 2)
    for geometry in GEOMETRIES:
        leaves = [x.clone().requires_grad_() for x in (mean, log_std)]
        moved = project_mean(leaves[0], zero, zero, bound=bound_of(0.03), geometry=geometry)
        spread = project_spread(leaves[1], zero, bound=bound_of(1e-3), geometry=geometry)
        with torch.no_grad():
            assert float(anchored_mean_distance(moved, zero, zero, geometry=geometry)) < 0.0301
            assert float(anchored_spread_distance(spread, zero, geometry=geometry)) < 1.001e-3
        for x in torch.autograd.grad((moved.sum() + spread.sum()), leaves):
            assert bool(torch.isfinite(x).all())


def test_the_mean_is_the_nearest_one() -> None:
    """Independent: SLSQP over means, in the distance of the anchor's covariance."""
    mean, anchor, old = normal(3, seed=1, scale=2), normal(3, seed=2), normal(3, seed=3, scale=0.5)
    found = project_mean(mean, anchor, old, bound=bound_of(0.3), geometry="w2")
    m, a, precision = mean.numpy(), anchor.numpy(), np.exp(-2 * old.numpy())
    best = slsqp(
        lambda x: float(np.sum(precision * (x - m) ** 2)), lambda x: float(0.3 - np.sum(precision * (x - a) ** 2)), a
    )
    np.testing.assert_allclose(found.numpy(), best, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_kl_covariance_is_the_nearest_one_in_kl(seed: int) -> None:
    log_std, old = normal(3, seed=seed, scale=0.8), normal(3, seed=seed + 10, scale=0.3)
    found = project_spread(log_std, old, bound=bound_of(0.05), geometry="kl")
    v, v_old, zero = np.exp(2 * log_std.numpy()), np.exp(2 * old.numpy()), np.zeros(3)
    best = slsqp(
        lambda x: kl_of_gaussians(zero, np.exp(2 * x), zero, v),
        lambda x: 0.05 - kl_of_gaussians(zero, np.exp(2 * x), zero, v_old),
        old.numpy(),
    )
    np.testing.assert_allclose(found.numpy(), best, atol=1e-6)


@pytest.mark.parametrize(("geometry", "power"), [("w2", 1), ("frobenius", 2)])
def test_the_other_covariances_are_the_nearest_ones(geometry: Geometry, power: int) -> None:
    log_std, old = normal(3, seed=1, scale=0.8), normal(3, seed=11, scale=0.3)
    found = project_spread(log_std, old, bound=bound_of(0.02), geometry=geometry)
    scale = np.exp(old.numpy()) if geometry == "w2" else np.ones(3)
    s, s_old = np.exp(power * log_std.numpy()) / scale, np.exp(power * old.numpy()) / scale
    best = slsqp(lambda x: float(np.sum((x - s) ** 2)), lambda x: float(0.02 - np.sum((x - s_old) ** 2)), s_old)
    np.testing.assert_allclose(np.exp(power * found.numpy()) / scale, best, atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_those_of_differences(geometry: Geometry) -> None:
    anchor, old = normal(4, 3, seed=2), normal(4, 3, seed=4, scale=0.5)
    mean = (anchor + normal(4, 3, seed=5)).requires_grad_()
    log_std = (old + normal(4, 3, seed=6, scale=0.7)).requires_grad_()
    arguments: dict[str, Any] = {"bound": bound_of(0.03), "geometry": geometry}
    assert torch.autograd.gradcheck(lambda x: project_mean(x, anchor, old, **arguments), [mean])
    assert torch.autograd.gradcheck(lambda x: project_spread(x, old, **arguments), [log_std])


def laws(*sizes: int, seed: int = 0, scale: float = 1.5, lead: tuple[int, ...] = ()) -> list[Tensor]:
    return [torch.log_softmax(normal(*lead, n, seed=seed + n, scale=scale), -1) for n in sizes]


NONE: list[Tensor | None] = [None, None]


@pytest.mark.parametrize("bound", [1e-4, 0.05, 0.7])
def test_choices_are_within_their_kl_and_on_it_where_they_were_beyond(bound: float) -> None:
    p, q = laws(5, 3, seed=1, lead=(400,)), laws(5, 3, seed=2, lead=(400,))
    found = project_choices(p, q, NONE, bound=bound)
    before, after = choices_kl(p, q, NONE), choices_kl(found.log_p, q, NONE)
    assert torch.equal(found.active, before > bound)
    torch.testing.assert_close(after, before.clamp_max(bound), rtol=1e-9, atol=1e-13)
    for log_p, given in zip(found.log_p, p, strict=True):
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(400, dtype=torch.float64))
        assert torch.equal(log_p[~found.active], given[~found.active])
    again = project_choices(found.log_p, q, NONE, bound=bound)
    for log_p, once in zip(again.log_p, found.log_p, strict=True):
        torch.testing.assert_close(log_p, once, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_joint_choices_are_the_nearest_ones(seed: int) -> None:
    """Independent: SLSQP over the probabilities of two branches."""
    p, q = laws(4, 3, seed=seed), laws(4, 3, seed=seed + 20)
    found = project_choices(p, q, NONE, bound=0.05)
    assert bool(found.active)
    flat_p, flat_q = (torch.cat(x).exp().numpy() for x in (p, q))

    def kl(x: Any, y: Any) -> float:
        return float(np.sum(x * np.log(x / y)))

    best = slsqp(
        lambda x: kl(x, flat_p),
        lambda x: 0.05 - kl(x, flat_q),
        flat_q,
        bounds=[(1e-9, 1)] * 7,
        conditions=[
            {"type": "eq", "fun": lambda x: float(np.sum(x[:4]) - 1)},
            {"type": "eq", "fun": lambda x: float(np.sum(x[4:]) - 1)},
        ],
    )
    np.testing.assert_allclose(torch.cat(found.log_p).exp().numpy(), best, atol=2e-6)


def test_gradients_of_choices_go_through_the_multiplier() -> None:
    q = laws(4, 3, seed=20)
    logits = [normal(n, seed=n, scale=1.5).requires_grad_() for n in (4, 3)]

    def moved(*x: Tensor) -> Tensor:
        return torch.cat(project_choices([torch.log_softmax(y, -1) for y in x], q, NONE, bound=0.05).log_p)

    assert torch.autograd.gradcheck(moved, logits)


def test_forbidden_choices_stay_at_zero_and_send_no_gradient() -> None:
    allowed = torch.tensor([True, False, True, True])
    low = torch.finfo(torch.float64).min
    p, q = (
        torch.log_softmax(normal(4, seed=s, scale=2).masked_fill(~allowed, -torch.inf), -1).masked_fill(~allowed, low)
        for s in (1, 2)
    )
    p = p.requires_grad_()
    found = project_choices([p], [q], [allowed], bound=0.01)
    assert float(found.log_p[0][1].detach().exp()) == 0
    inner = project_choices([p[allowed]], [q[allowed]], [None], bound=0.01)
    torch.testing.assert_close(found.log_p[0][allowed], inner.log_p[0], rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.log_p[0][allowed][0], p)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[1]) == 0


def test_certain_and_impossible_choices_stay_finite() -> None:
    for first, second in ((1e3, -1e3), (-1e3, 1e3), (80.0, 0.0)):
        logits = torch.tensor([first, 0.0, 1.0]).requires_grad_()
        log_p = torch.log_softmax(logits, -1)
        log_q = torch.log_softmax(torch.tensor([second, 0.0, 1.0]), -1)
        found = project_choices([log_p], [log_q], [None], bound=0.05)
        assert float(choices_kl([p.detach() for p in found.log_p], [log_q], [None])) < 0.0501
        (gradient,) = torch.autograd.grad(found.log_p[0][1], logits)
        assert bool(torch.isfinite(gradient).all())
