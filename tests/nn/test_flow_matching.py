import numpy as np
import pytest
import torch
from scipy import stats

from marl_tr.nn.flow_matching import flow_matching_loss, ode_samples, random_levels, shifted


def gaussian_velocity(mean: float, std: float):
    """The conditional mean of ``e - x0`` at ``x_s`` for data of a normal law (linear regression)."""

    def velocity(x, sigma, observation):
        s = sigma.view(-1, *(1,) * (x.ndim - 1))
        variance = (1 - s) ** 2 * std**2 + s**2
        return (s - (1 - s) * std**2) / variance * (x - (1 - s) * mean) - mean

    return velocity


def test_levels_follow_the_shifted_logit_normal_law():
    levels = random_levels(20_000, 3.0, torch.Generator().manual_seed(0)).double().numpy()
    u = levels / (3 - 2 * levels)  # the inverse of the shift
    assert stats.kstest(np.log(u / (1 - u)), "norm").pvalue > 0.01


def test_the_shift_keeps_the_ends_and_one_is_no_shift():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(shifted(u, 1.0), u)
    assert shifted(u, 7.0)[[0, -1]].tolist() == [0, 1]
    assert float(shifted(torch.tensor(0.5), 3.0)) == 0.75


def test_the_loss_at_the_best_velocity_is_the_variance_that_no_velocity_explains():
    generator = torch.Generator().manual_seed(1)
    x0 = 0.4 + 0.5 * torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    sigma = torch.full((len(x0),), 0.3, dtype=torch.float64)
    # Var(e - x0 | x_s) = std^2 / Var(x_s): the map (x0, e) -> (x_s, e - x0) keeps areas.
    expected = 0.25 / (0.7**2 * 0.25 + 0.3**2)
    best = flow_matching_loss(gaussian_velocity(0.4, 0.5), x0, noise, sigma, {})
    other = flow_matching_loss(gaussian_velocity(0.5, 0.5), x0, noise, sigma, {})
    assert float(best) == pytest.approx(expected, rel=0.01)
    assert other > best


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_of_a_gaussian_ends_in_its_mean_and_scale(shift):
    noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    samples = ode_samples(gaussian_velocity(0.4, 0.5), noise, {}, steps=2000, shift=shift)
    torch.testing.assert_close(samples, 0.4 + 0.5 * noise, atol=3e-3, rtol=0)


def test_samples_do_not_depend_on_how_many_the_network_sees_at_once():
    noise = torch.randn(10, 3, generator=torch.Generator().manual_seed(2))
    goal = torch.arange(10.0).unsqueeze(1)

    def velocity(x, sigma, observation):
        return x * sigma.unsqueeze(1) + observation["goal"]

    whole, parts = (ode_samples(velocity, noise, {"goal": goal}, steps=3, batch=size) for size in (10, 4))
    torch.testing.assert_close(whole, parts)
