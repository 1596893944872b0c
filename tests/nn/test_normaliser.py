"""Normalisers: their statistics against NumPy, and functions that stay when the statistics move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl_tr.nn import InputNormaliser, StackedLinear, StackedMLP, ValueNormaliser

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def test_running_statistics_equal_numpy_on_everything_seen() -> None:
    normaliser = InputNormaliser(3)
    batches = [data(n, 2, 3, seed=n) * 5 + n for n in (4, 1, 30)]
    masks = [torch.rand(n, 2, generator=generator(n)) < 0.7 for n in (4, 1, 30)]
    for batch, mask in zip(batches, masks, strict=True):
        normaliser.update(batch, mask)
    seen = np.concatenate([b[m].double().numpy() for b, m in zip(batches, masks, strict=True)])
    np.testing.assert_allclose(normaliser.mean, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normaliser.m2 / normaliser.count, seen.var(0), rtol=1e-12)
    assert int(normaliser.count) == len(seen)


def test_moving_the_input_statistics_keeps_the_function() -> None:
    network, normaliser = StackedMLP(2, [3, 16, 4], generator=generator()), InputNormaliser(3)
    scale = torch.tensor([1.0, 20.0, 0.0])
    for round_ in range(4):
        x = data(2, 50, 3, seed=round_) * scale + 2 * round_
        before = network(normaliser(x))
        normaliser.update(x)
        torch.testing.assert_close(network(normaliser(x)), before, rtol=0, atol=0)
        normaliser.apply_update(network.first)
        assert float((network(normaliser(x)) - before).detach().abs().max()) < 1e-5
    assert float(normaliser.scale[1]) > 10
    assert bool(torch.isfinite(normaliser(x)).all())


def test_moving_the_input_statistics_is_exact_in_float64() -> None:
    network = StackedMLP(1, [3, 8, 2], generator=generator()).double()
    normaliser = InputNormaliser(3)
    x = 100 * data(1, 40, 3).double() + 7
    before = network(normaliser(x))
    normaliser.update(x)
    normaliser.apply_update(network.first)
    torch.testing.assert_close(network(normaliser(x)), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normaliser(x).std((0, 1), correction=0), torch.ones(3).double())


def test_moving_the_value_statistics_keeps_the_denormalised_outputs() -> None:
    critic, normaliser = StackedMLP(1, [3, 8, 2], generator=generator()).double(), ValueNormaliser(2)
    x = data(1, 40, 3).double()
    for round_ in range(3):
        before = normaliser.denormalise(critic(x))
        targets = data(1, 40, 2, seed=round_) * torch.tensor([0.01, 300.0]) + round_
        normaliser.update(targets)
        normaliser.rescale(critic.last)
        torch.testing.assert_close(normaliser.denormalise(critic(x)), before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(normaliser.denormalise(normaliser.normalise(targets)), targets)


def test_value_statistics_are_the_debiased_exponential_average() -> None:
    decay = 0.99
    normaliser = ValueNormaliser(1, decay=decay)
    mean = square = debias = 0.0
    for n in (5, 50, 20):
        batch = 3 * data(n, 1, seed=n).double() + n
        normaliser.update(batch)
        kept = decay**n
        mean = kept * mean + (1 - kept) * float(batch.mean())
        square = kept * square + (1 - kept) * float(batch.square().mean())
        debias = kept * debias + (1 - kept)
    assert float(normaliser.mean) == pytest.approx(mean / debias, rel=1e-12)
    variance = float(normaliser.m2 / normaliser.count)
    assert variance == pytest.approx(square / debias - (mean / debias) ** 2, rel=1e-10)


def test_value_rows_and_masked_values_stay_apart() -> None:
    normaliser = ValueNormaliser(1, rows=2, decay=1.0)
    values = torch.stack([torch.arange(6.0), 100 + torch.arange(6.0)]).reshape(2, 3, 2, 1)
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[1, 0] = False
    values[1, 0] = torch.nan
    normaliser.update(values, mask)
    assert normaliser.mean.flatten().tolist() == [2.5, 103.5]
    assert normaliser.count.flatten().tolist() == [6, 4]
    normaliser.rescale(StackedMLP(2, [3, 1], generator=generator()).last)
    assert normaliser.normalise(torch.full((2, 5, 4, 1), 103.5))[1].abs().max() == 0


def test_state_survives_a_state_dict() -> None:
    first, second = ValueNormaliser(2), ValueNormaliser(2)
    first.update(data(9, 2))
    second.load_state_dict(first.state_dict())
    for batch in (data(3, 2, seed=1), data(4, 2, seed=2)):
        first.update(batch)
        second.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_an_empty_batch_changes_nothing() -> None:
    inputs, values = InputNormaliser(3), ValueNormaliser(2)
    inputs.update(data(4, 3), torch.zeros(4, dtype=torch.bool))
    values.update(data(4, 2), torch.zeros(4, 2, dtype=torch.bool))
    layer = StackedMLP(1, [3, 2], generator=generator()).first
    weight = layer.weight.clone()
    inputs.apply_update(layer)
    values.rescale(layer)
    assert torch.equal(layer.weight, weight)
    assert bool((values.scale == 1).all())


@pytest.mark.parametrize("far", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("samples", [2, 500])
def test_a_layer_behind_the_normaliser_is_what_float64_says(far: float, samples: int):
    generator = torch.Generator().manual_seed(0)
    normaliser, linear = InputNormaliser(5), StackedLinear(2, 5, 7, generator=generator)
    normaliser.update(torch.randn(100, 5, generator=generator) * torch.tensor([0.1, 1, 2, 5, 30]) + far)
    normaliser.adopt()
    x = torch.randn(2, samples, 5, generator=generator) + far
    exact = (x.double() - normaliser.shift) / normaliser.scale
    expected = torch.einsum("lni,lio->lno", exact, linear.weight.double()) + linear.bias.double().unsqueeze(1)
    if far > 1e3:
        # float32 has no more to say of such inputs than the subtraction: nothing may be folded.
        assert torch.equal(normaliser.through(linear, x), linear(normaliser(x)))
    else:
        assert (normaliser.through(linear, x) - expected).abs().max() < 2e-5 * (1 + expected.abs().max())
    gradients = torch.autograd.grad(normaliser.through(linear, x).square().sum(), [linear.weight, linear.bias])
    plain = torch.autograd.grad(linear(normaliser(x)).square().sum(), [linear.weight, linear.bias])
    for found, wanted in zip(gradients, plain, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_samples_are_taken_in_block_by_block_and_left_alone(dtype: torch.dtype):
    x = torch.randn(50, 60, 3, generator=torch.Generator().manual_seed(0), dtype=dtype) * 5 + 100
    mask = torch.rand(50, 60, generator=torch.Generator().manual_seed(1)) < 0.8
    for taken in (None, torch.ones_like(mask), mask):
        kept, normaliser = x.clone(), InputNormaliser(3)
        normaliser.update(x, taken)
        samples = x[mask if taken is mask else torch.ones_like(mask)].double().numpy()
        assert torch.equal(x, kept)
        assert float(normaliser.count) == len(samples)
        np.testing.assert_allclose(normaliser.mean, samples.mean(0), rtol=1e-12)
        np.testing.assert_allclose(normaliser.m2, ((samples - samples.mean(0)) ** 2).sum(0), rtol=1e-10)
