"""Laws against torch.distributions, scipy, numerical sums and double backward."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch import distributions as td

from marl_tr.nn import Beta, Categorical, Gaussian, MultiCategorical, ProductLaw

torch.set_num_threads(1)
SHAPE = (2, 3, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def gaussian(seed: int = 0) -> Gaussian:
    return Gaussian(normal(*SHAPE, seed=seed), 0.5 * normal(*SHAPE, seed=seed + 100))


def beta(seed: int = 0) -> Beta:
    return Beta(normal(*SHAPE, seed=seed).exp() + 0.5, normal(*SHAPE, seed=seed + 100).exp() + 0.5)


def categorical(seed: int = 0) -> Categorical:
    return Categorical(2 * normal(*SHAPE, seed=seed))


def multi(seed: int = 0) -> MultiCategorical:
    return MultiCategorical(normal(2, 3, 5, seed=seed), [2, 3])


def masked(seed: int = 0) -> Categorical:
    mask = torch.tensor([True, False, True, True])
    return Categorical(normal(*SHAPE, seed=seed), mask)


def product(seed: int = 0) -> ProductLaw:
    return ProductLaw({"move": gaussian(seed), "power": beta(seed + 1), "channel": multi(seed + 2)})


REFERENCES: dict[str, tuple[Callable[[int], object], Callable[[object], td.Distribution]]] = {
    "gaussian": (gaussian, lambda law: td.Independent(td.Normal(law.mean, law.log_std.exp()), 1)),
    "beta": (beta, lambda law: td.Independent(td.Beta(law.alpha, law.beta), 1)),
    "categorical": (categorical, lambda law: td.Categorical(logits=law.logits)),
}
LAWS = [gaussian, beta, categorical, multi, masked, product]


@pytest.mark.parametrize("name", REFERENCES)
def test_log_prob_entropy_and_kl_equal_torch_distributions(name: str) -> None:
    make, reference = REFERENCES[name]
    old, new = make(0), make(7)
    raw = old.sample(generator(3))
    torch.testing.assert_close(old.log_prob(raw), reference(old).log_prob(raw), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(old.entropy(), reference(old).entropy(), rtol=1e-10, atol=1e-10)
    expected = td.kl_divergence(reference(old), reference(new))
    torch.testing.assert_close(old.kl(new), expected, rtol=1e-10, atol=1e-10)


def test_log_prob_and_entropy_equal_scipy() -> None:
    law, raw = beta(), beta().sample(generator(3))
    a, b = law.alpha.numpy(), law.beta.numpy()
    np.testing.assert_allclose(law.log_prob(raw), scipy.stats.beta.logpdf(raw, a, b).sum(-1), atol=1e-10)
    np.testing.assert_allclose(law.entropy(), scipy.stats.beta.entropy(a, b).sum(-1), atol=1e-10)
    normal_law = gaussian()
    raw = normal_law.sample(generator(4))
    mean, std = normal_law.mean.numpy(), normal_law.log_std.exp().numpy()
    expected = scipy.stats.norm.logpdf(raw, mean, std).sum(-1)
    np.testing.assert_allclose(normal_law.log_prob(raw), expected, atol=1e-10)


@pytest.mark.parametrize("make", LAWS)
def test_fisher_product_is_the_hessian_of_kl_at_the_old_law(make: Callable[[int], ProductLaw]) -> None:
    old = make(0)
    leaves = [parameter.detach().clone().requires_grad_() for parameter in old.parameters()]
    tangents = tuple(normal(*leaf.shape, seed=20 + i) for i, leaf in enumerate(leaves))
    divergence = old.kl(old.with_parameters(tuple(leaves))).sum()
    gradients = torch.autograd.grad(divergence, leaves, create_graph=True)
    along = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    hessian = torch.autograd.grad(along, leaves)
    for ours, exact in zip(old.fisher_product(tangents), hessian, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", LAWS)
def test_kl_is_zero_to_itself_and_positive_to_another(make: Callable[[int], ProductLaw]) -> None:
    old, new = make(0), make(7)
    assert old.kl(new).shape == (2, 3)
    assert bool((old.kl(new) > 0).all())
    assert float(old.kl(old).abs().max()) < 1e-13


@pytest.mark.parametrize("make", LAWS)
def test_samples_follow_the_density(make: Callable[[int], ProductLaw]) -> None:
    law = make(0).map(lambda t: t[0, 0].expand(20_000, -1) if t.dim() == 3 else t)
    raw = law.sample(generator(5))
    surprise = -law.log_prob(raw)
    # The mean surprise is the entropy; five standard errors.
    error = float(surprise.mean() - law.entropy()[0])
    assert abs(error) < 5 * float(surprise.std()) / math.sqrt(20_000)


def test_equal_generators_give_equal_samples_and_leave_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    for make in LAWS:
        first, second = make(0).sample(generator(1)), make(0).sample(generator(1))
        first = first if isinstance(first, dict) else {"": first}
        second = second if isinstance(second, dict) else {"": second}
        assert all(torch.equal(first[leaf], second[leaf]) for leaf in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_beta_mode_is_the_maximum_of_its_density() -> None:
    law = Beta(torch.tensor([[2.0], [1.5], [1.0], [1.0]]), torch.tensor([[3.0], [1.5], [1.0], [4.0]]))
    expected = torch.tensor([[1 / 3], [0.5], [0.5], [1e-6]])
    torch.testing.assert_close(law.mode(), expected)
    grid = torch.linspace(0.001, 0.999, 999).unsqueeze(-1)
    best = grid[Beta(torch.tensor([2.0]), torch.tensor([3.0])).log_prob(grid).argmax()]
    assert float((best - law.mode()[0]).abs()) < 1e-3


def test_modes_are_the_most_likely_actions() -> None:
    for make in LAWS:
        law = make(0)
        best = law.log_prob(law.mode())
        if make is not beta and make is not product:  # half of those densities have a mode at an end
            for seed in range(20):
                assert bool((law.log_prob(law.sample(generator(seed))) <= best + 1e-12).all())


def test_masked_choices_are_never_drawn_and_cost_nothing() -> None:
    law, new = masked(0), masked(7)
    wide = law.map(lambda t: t.expand(500, *t.shape))
    assert not bool((wide.sample(generator(2)) == 1).any())
    allowed = [0, 2, 3]
    small = Categorical(law.logits[..., allowed])
    torch.testing.assert_close(law.kl(new), small.kl(Categorical(new.logits[..., allowed])))
    torch.testing.assert_close(law.entropy(), small.entropy())
    (product_,) = law.fisher_product((normal(*SHAPE, seed=9),))
    assert bool((product_[..., 1] == 0).all())


def test_a_row_that_allows_nothing_stays_finite() -> None:
    logits = normal(2, 4).requires_grad_()
    law = Categorical(logits, torch.tensor([[False] * 4, [True, True, False, False]]))
    total = law.log_prob(law.sample(generator())).sum() + law.entropy().sum() + law.kl(law.map(torch.clone)).sum()
    total.backward()
    assert torch.isfinite(total)
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_parameters_stay_finite(dtype: torch.dtype) -> None:
    def extremes(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    cases = [
        (Categorical(extremes(50, -50, 0, -50)), Categorical(extremes(-50, 50, 0, 50))),
        (
            MultiCategorical(extremes(50, -50, -50, 50), [2, 2]),
            MultiCategorical(extremes(-50, 50, 0, 0), [2, 2]),
        ),
        (
            Beta(extremes(1 + 1e-6, 1e4, 1e4, 1.0), extremes(1e4, 1 + 1e-6, 1e4, 1.0)),
            Beta(extremes(1e4, 1e4, 1.0, 2.0), extremes(1 + 1e-6, 1e4, 1.0, 1e4)),
        ),
        (Gaussian(extremes(1e3, -1e3), extremes(-5, 2)), Gaussian(extremes(-1e3, 1e3), extremes(2, -5))),
    ]
    for old, new in cases:
        raw = old.sample(generator())
        tangents = tuple(torch.ones_like(p) for p in old.parameters())
        for value in (
            old.log_prob(raw),
            new.log_prob(raw),
            old.entropy(),
            old.kl(new),
            *old.fisher_product(tangents),
        ):
            assert bool(torch.isfinite(value).all()), (old, value)
            assert value.dtype == dtype
        assert bool((old.kl(new) > 0).all())


def test_small_divergences_survive_float32() -> None:
    old = Gaussian(torch.zeros(1), torch.zeros(1))
    new = Gaussian(torch.zeros(1), torch.full((1,), 1e-4))
    assert float(old.kl(new)) == pytest.approx(1e-8, rel=1e-2)
    sharp = Beta(torch.tensor([1e4]), torch.tensor([2e4]))
    wide = Beta(torch.tensor([1.01e4]), torch.tensor([2e4]))
    exact = td.kl_divergence(*(td.Beta(law.alpha.double(), law.beta.double()) for law in (sharp, wide)))
    assert float(sharp.kl(wide)) == pytest.approx(float(exact), rel=1e-6)


def test_product_law_sums_its_leaves() -> None:
    old, new = product(0), product(7)
    raw = old.sample(generator())
    torch.testing.assert_close(old.log_prob(raw), sum(old.laws[leaf].log_prob(raw[leaf]) for leaf in raw))
    torch.testing.assert_close(old.kl(new), sum(old.laws[leaf].kl(new.laws[leaf]) for leaf in raw))
    torch.testing.assert_close(old.entropy(), sum(law.entropy() for law in old.laws.values()))
    with pytest.raises(ValueError, match="4 tensors for a law of 5 parameters"):
        old.with_parameters(old.parameters()[:4])
