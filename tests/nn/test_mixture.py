"""Mixtures against torch.distributions, samples in float64, double backward and limits known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor
from torch import distributions as td

from marl_tr.nn import Beta, Categorical, Gaussian, GaussianMixture, ProductLaw, make_head
from marl_tr.nn.mixture import spread_means

torch.set_num_threads(1)
COMPONENTS, DIMENSIONS = 3, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mixture(seed: int = 0, *, lead: tuple[int, ...] = (2, 4), apart: float = 1.0) -> GaussianMixture:
    width = COMPONENTS * DIMENSIONS
    return GaussianMixture(
        normal(*lead, COMPONENTS, seed=seed),
        apart * normal(*lead, width, seed=seed + 100),
        0.4 * normal(*lead, width, seed=seed + 200) - 0.3,
    )


def moved(law: GaussianMixture, size: float, seed: int = 50) -> GaussianMixture:
    shifts = (size * normal(*p.shape, seed=seed + i) for i, p in enumerate(law.parameters()))
    return law.with_parameters(tuple(p + shift for p, shift in zip(law.parameters(), shifts, strict=True)))


def reference(law: GaussianMixture) -> td.MixtureSameFamily:
    logits, means, log_std = law.parameters()
    shape = (*logits.shape, -1)
    return td.MixtureSameFamily(
        td.Categorical(logits=logits), td.Independent(td.Normal(means.reshape(shape), log_std.exp().reshape(shape)), 1)
    )


def drawn(law: GaussianMixture, count: int, seed: int = 3) -> Tensor:
    """``[count, ..., D]``."""
    return law.map(lambda x: x.expand(count, *x.shape)).sample(generator(seed))


def test_log_prob_is_torchs() -> None:
    law = mixture()
    raw = 2 * normal(2, 4, DIMENSIONS, seed=7)
    torch.testing.assert_close(law.log_prob(raw), reference(law).log_prob(raw), rtol=1e-12, atol=1e-12)


def test_components_in_one_place_are_one_gaussian() -> None:
    mean, log_std = normal(5, DIMENSIONS), 0.3 * normal(5, DIMENSIONS, seed=1)
    law = GaussianMixture(normal(5, COMPONENTS), mean.repeat(1, COMPONENTS), log_std.repeat(1, COMPONENTS))
    one, raw = Gaussian(mean, log_std), normal(5, DIMENSIONS, seed=2)
    torch.testing.assert_close(law.log_prob(raw), one.log_prob(raw))
    torch.testing.assert_close(law.entropy(), one.entropy())
    torch.testing.assert_close(law.mode(), mean)


@pytest.mark.parametrize("size", [0.02, 0.3, 1.5])
@pytest.mark.parametrize("apart", [0.2, 1.0, 6.0])
def test_divergence_is_never_below_the_kl_of_the_mixtures(size: float, apart: float) -> None:
    old = mixture(apart=apart, lead=(6,))
    new = moved(old, size)
    raw = drawn(old, 40_000)
    ratio = reference(old).log_prob(raw) - reference(new).log_prob(raw)
    # The estimator w - 1 - ln w of the same mean has far less variance for laws close by.
    estimate = ratio + torch.expm1(-ratio)
    error = estimate.std(0) / math.sqrt(len(raw))
    assert bool((old.kl(new) >= estimate.mean(0) - 4 * error).all())
    assert bool((old.kl(new) > 0).all())


def test_divergence_is_the_kl_where_components_lie_far_apart() -> None:
    means = torch.tensor([[-100.0, 0.0, 0.0, 100.0, 100.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64)
    log_std = torch.zeros_like(means)
    old = GaussianMixture(logits, means, log_std)
    new = GaussianMixture(-logits, means + 0.5, log_std + 0.2)
    raw = drawn(old, 200_000)
    ratio = (old.log_prob(raw) - new.log_prob(raw))[:, 0]
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(old.kl(new)) - float(ratio.mean())) < 4 * error < 0.02


def test_divergence_of_equal_weights_is_the_mean_over_components() -> None:
    old, new = mixture(0), mixture(1)
    zeros = torch.zeros_like(old.logits)
    old, new = (GaussianMixture(zeros, law.means, law.log_std) for law in (old, new))
    parts = [
        td.kl_divergence(
            *(
                td.Independent(td.Normal(law.means[..., at], law.log_std[..., at].exp()), 1)
                for law in (old, new)
                for at in [slice(k * DIMENSIONS, (k + 1) * DIMENSIONS)]
            )
        )
        for k in range(COMPONENTS)
    ]
    torch.testing.assert_close(old.kl(new), torch.stack(parts).mean(0))


def test_divergence_of_equal_laws_is_zero() -> None:
    law = mixture()
    assert float(law.kl(law.map(torch.clone)).abs().max()) < 1e-15


@pytest.mark.parametrize("apart", [0.1, 1.0, 3.0, 30.0])
def test_entropy_is_never_above_the_true_one_and_at_most_that_of_the_choice_below(apart: float) -> None:
    law = mixture(apart=apart, lead=(6,))
    surprise = -reference(law).log_prob(drawn(law, 40_000))
    error = surprise.std(0) / math.sqrt(len(surprise))
    gap = surprise.mean(0) - law.entropy()
    assert bool((gap >= -4 * error).all())
    assert bool((gap <= Categorical(law.logits).entropy() + 4 * error).all())


def test_entropy_of_components_far_apart_is_that_of_choice_and_components() -> None:
    law = mixture()
    means = law.means + 1e4 * torch.arange(COMPONENTS, dtype=torch.float64).repeat_interleave(DIMENSIONS)
    law = GaussianMixture(law.logits, means, law.log_std)
    parts = td.Normal(0.0, law.log_std.exp()).entropy().unflatten(-1, (COMPONENTS, -1)).sum(-1)
    weights = law.logits.softmax(-1)
    expected = td.Categorical(logits=law.logits).entropy() + (weights * parts).sum(-1)
    torch.testing.assert_close(law.entropy(), expected)


def test_overlaps_of_components_are_the_integrals_of_the_root_of_their_product() -> None:
    law = GaussianMixture(
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([[-0.4, 0.9]], dtype=torch.float64),
        torch.tensor([[-0.7, 0.3]], dtype=torch.float64),
    )
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    narrow, wide = td.Normal(-0.4, math.exp(-0.7)), td.Normal(0.9, math.exp(0.3))
    overlap = float(torch.trapezoid((0.5 * (narrow.log_prob(grid) + wide.log_prob(grid))).exp(), grid))
    expected = float(narrow.entropy() + wide.entropy()) / 2 - math.log(0.5 + 0.5 * overlap)
    assert float(law.entropy()) == pytest.approx(expected, rel=1e-6)


def test_fisher_product_is_the_hessian_of_the_divergence() -> None:
    old = mixture()
    leaves = [p.clone().requires_grad_() for p in old.parameters()]
    tangents = tuple(normal(*leaf.shape, seed=20 + i) for i, leaf in enumerate(leaves))
    gradients = torch.autograd.grad(old.kl(old.with_parameters(tuple(leaves))).sum(), leaves, create_graph=True)
    along = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    hessian = torch.autograd.grad(along, leaves)
    for ours, exact in zip(old.fisher_product(tangents), hessian, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_fisher_product_bounds_the_information_of_the_action_alone() -> None:
    """``v . F v`` is not below the mean square of the score along `v`, which is the marginal information."""
    law = mixture(lead=())
    raw = drawn(law, 20_000)
    leaves = tuple(law.parameters())
    for seed in range(3):
        tangents = tuple(normal(*p.shape, seed=seed + 10 * i) for i, p in enumerate(leaves))
        _, score = torch.func.jvp(lambda *p: law.with_parameters(p).log_prob(raw), leaves, tangents)
        assert score.shape == (20_000,)
        bound = sum(float((t * f).sum()) for t, f in zip(tangents, law.fisher_product(tangents), strict=True))
        error = float(score.square().std()) / math.sqrt(len(raw))
        assert bound >= float(score.square().mean()) - 4 * error


def test_samples_take_components_by_their_weights_and_spread_about_their_means() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor([-50.0, 1.0, 0.0, 2.0, 50.0, 3.0], dtype=torch.float64)
    log_std = torch.tensor([0.0, 0.5, -1.0, 0.0, 1.0, -0.5], dtype=torch.float64)
    count = 40_000
    raw = drawn(GaussianMixture(probabilities.log(), means, log_std), count)
    chosen = torch.bucketize(raw[:, 0].contiguous(), torch.tensor([-25.0, 25.0], dtype=torch.float64))
    found = torch.bincount(chosen, minlength=3) / count
    np.testing.assert_allclose(found, probabilities, atol=4 * 0.5 / math.sqrt(count))
    for k in range(COMPONENTS):
        points, at = raw[chosen == k], slice(k * DIMENSIONS, (k + 1) * DIMENSIONS)
        error = 4 * log_std[at].exp() / math.sqrt(len(points))
        assert bool(((points.mean(0) - means[at]).abs() < error).all())
        torch.testing.assert_close(points.std(0), log_std[at].exp(), rtol=0.04, atol=0)


def test_equal_generators_give_equal_samples() -> None:
    law = mixture()
    assert torch.equal(law.sample(generator(1)), law.sample(generator(1)))
    assert not torch.equal(law.sample(generator(1)), law.sample(generator(2)))


def test_mode_is_the_mean_of_the_heaviest_component() -> None:
    law = GaussianMixture(
        torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.arange(12.0).reshape(2, 6), torch.zeros(6)
    )
    assert law.mode().tolist() == [[2.0, 3.0], [6.0, 7.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_points_far_away_and_of_extreme_laws_are_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([[60.0, -60.0], [0.0, 0.0]], dtype=dtype)
    means = torch.tensor([[0.0, 1e3, -1e3, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    log_std = torch.tensor([-5.0, 2.0, 2.0, -5.0], dtype=dtype).expand(2, 4)
    leaves = [p.clone().requires_grad_() for p in (logits, means, log_std)]
    law = GaussianMixture(*leaves)
    old = GaussianMixture(-logits, -means, -log_std)
    raw = torch.tensor([[1e6, -1e6], [-1e4, 1e4]], dtype=dtype)
    total = law.log_prob(raw) + law.entropy() + old.kl(law)
    assert total.dtype == dtype
    assert bool(torch.isfinite(total).all())
    total.sum().backward()
    assert all(bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)


def test_float32_says_what_float64_says() -> None:
    law = mixture(apart=3.0)
    new, raw = moved(law, 0.3), 3 * normal(2, 4, DIMENSIONS, seed=8)
    for value in (lambda a, b, x: a.log_prob(x), lambda a, b, x: a.entropy(), lambda a, b, x: a.kl(b)):
        found = value(law.map(torch.Tensor.float), new.map(torch.Tensor.float), raw.float())
        torch.testing.assert_close(found.double(), value(law, new, raw), rtol=1e-5, atol=1e-5)


def test_a_mixture_beside_other_leaves_adds_up() -> None:
    def beside(seed: int) -> ProductLaw:
        beta = Beta(normal(2, 4, 3, seed=seed).exp(), normal(2, 4, 3, seed=seed + 1).exp())
        return ProductLaw({"move": mixture(seed), "power": beta})

    old, new = beside(0), beside(5)
    torch.testing.assert_close(old.kl(new), sum(old.laws[leaf].kl(new.laws[leaf]) for leaf in old.laws))
    again = old.with_parameters(new.parameters())
    assert float(new.kl(again).abs().max()) < 1e-13


def test_means_that_are_not_of_all_components_are_refused() -> None:
    with pytest.raises(ValueError, match="7 means are not those of 3 components"):
        GaussianMixture(torch.zeros(3), torch.zeros(7), torch.zeros(7))


# The head

SPACE = Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))


def test_head_splits_outputs_into_logits_and_components_and_clips_what_is_done() -> None:
    head = make_head(SPACE, "mixture", components=3)
    outputs, extra = torch.randn(2, 4, 5, 9, generator=generator()), torch.randn(2, 6, generator=generator(1))
    law = head.law(outputs, extra)
    logits, means, log_std = law.parameters()
    assert torch.equal(torch.cat([logits, means], -1), outputs)
    assert torch.equal(log_std[1, 3, 2], extra[1])
    raw = law.sample(generator(2))
    assert raw.shape == (2, 4, 5, *head.raw_shape)
    assert all(SPACE.contains(a) for a in head.env_action(raw).flatten(0, 2).numpy())
    torch.testing.assert_close(head.env_action(torch.tensor([[0.0, 9.0]])), torch.tensor([[-0.5, 10.0]]))
    torch.testing.assert_close(head.encode(torch.tensor([[-0.5, 10.0]])), torch.tensor([[0.0, 1.0]]))


def test_head_wants_its_log_stds_and_no_mask() -> None:
    head = make_head(SPACE, "mixture")
    with pytest.raises(ValueError, match="log standard deviations"):
        head.law(torch.zeros(1, 12))
    with pytest.raises(ValueError, match="discrete"):
        head.law(torch.zeros(1, 12), torch.zeros(1, 8), torch.ones(1, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="two components that lie apart"):
        make_head(SPACE, "mixture", components=1)


@pytest.mark.parametrize(("components", "spread"), [(2, 1.0), (4, 0.5), (7, 3.0)])
def test_new_components_cover_each_dimension_evenly_and_are_never_in_one_place(components: int, spread: float) -> None:
    means = spread_means(3, components, 5, spread=spread, generator=generator())
    middles = torch.tensor([spread * ((2 * k + 1) / components - 1) for k in range(components)])
    torch.testing.assert_close(means.sort(1).values, middles[None, :, None].expand(3, -1, 5))
    assert torch.equal(means, spread_means(3, components, 5, spread=spread, generator=generator()))


def test_every_order_of_new_components_is_drawn() -> None:
    many = spread_means(300, 4, 1, spread=1.0, generator=generator(1))
    assert len({tuple(row) for row in many.squeeze(-1).tolist()}) == 24
