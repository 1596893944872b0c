import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from marl_tr.errors import UserError
from marl_tr.nn.velocity import MlpVelocity, build_velocity
from marl_tr.registry import Entry, register
from marl_tr.scenario.velocity import MlpVelocityConfig, ResidualVelocityConfig
from marl_tr.vector.contract import GroupSpec


def group(event=(3, 2), **action: gymnasium.Space) -> GroupSpec:
    observation = {"goal": Box(-1, 1, (4,)), "picture": Box(-1, 1, (2, 5))}
    return GroupSpec("flows", ("a",), observation, action or {"action": Box(-1, 1, event)})


def batch(count: int = 6, dtype=torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, 2, generator=generator, dtype=dtype)
    sigma = torch.rand(count, generator=generator, dtype=dtype)
    goal = torch.randn(count, 4, generator=generator, dtype=dtype)
    return x, sigma, {"goal": goal, "picture": torch.randn(count, 2, 5, generator=generator, dtype=dtype)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Contraction(nn.Module):
    """The velocity of a flow that ends in the origin, times a number that could be trained."""

    def __init__(self, group: GroupSpec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, sigma, observation):
        return self.scale * x / sigma.view(-1, 1, 1)


def perturbed(network: nn.Module) -> nn.Module:
    generator = seeded(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def test_an_mlp_starts_at_zero_and_keeps_the_shape_of_a_sample():
    velocity = build_velocity(MlpVelocityConfig(hidden=[16]), group(), seeded())(*batch())
    assert torch.equal(velocity, torch.zeros(6, 3, 2))


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_an_mlp_is_the_network_that_its_docstring_says(activation):
    config = MlpVelocityConfig(hidden=[16, 8], activation=activation, frequencies=3)
    network = perturbed(build_velocity(config, group(), seeded()))
    x, sigma, observation = batch()
    s = sigma.numpy()
    inputs = [x.flatten(1).numpy(), s[:, None]]
    inputs += [np.sin(math.pi * k * s)[:, None] for k in (1, 2, 3)] + [
        np.cos(math.pi * k * s)[:, None] for k in (1, 2, 3)
    ]
    inputs += [observation["goal"].numpy(), observation["picture"].numpy().reshape(6, -1)]
    function = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0), "silu": lambda z: z / (1 + np.exp(-z))}[activation]
    z = np.concatenate(inputs, 1).astype(np.float64)
    weights = [parameter.detach().numpy().astype(np.float64) for parameter in network.parameters()]
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        z = function(z @ w.T + b)
    expected = (z @ weights[-2].T + weights[-1]).reshape(6, 3, 2)
    np.testing.assert_allclose(network(x, sigma, observation).detach().numpy(), expected, atol=1e-5)


def test_equal_generators_give_equal_starts_and_the_global_one_is_left_alone():
    before = torch.random.get_rng_state()
    first, second, other = (build_velocity(MlpVelocityConfig(), group(), seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.body[0].weight, other.body[0].weight)


def test_outputs_are_as_exact_as_their_inputs_and_parameters():
    network = perturbed(build_velocity(MlpVelocityConfig(hidden=[16]), group(), seeded()))
    single = network(*batch())
    doubles = {name: parameter.double() for name, parameter in network.named_parameters()}
    x, sigma, observation = batch()
    double = torch.func.functional_call(
        network, doubles, (x.double(), sigma.double(), {leaf: v.double() for leaf, v in observation.items()})
    )
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-5)


def test_a_residual_starts_as_its_base_which_never_learns():
    register("models", "tests/contraction", Entry(Contraction))
    network = build_velocity(ResidualVelocityConfig(base="tests/contraction", hidden=[16]), group(), seeded())
    x, sigma, observation = batch()
    assert torch.equal(network(x, sigma, observation), 2 * x / sigma.view(-1, 1, 1))
    network(x, sigma, observation).square().sum().backward()
    learned = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert network.base.scale.grad is None
    assert learned == {name for name, parameter in network.named_parameters() if name.startswith("correction.")}
    assert network.correction.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "action",
    [{"action": Discrete(3)}, {"left": Box(-1, 1, (2,)), "right": Box(-1, 1, (2,))}],
)
def test_actions_other_than_one_box_are_refused(action):
    with pytest.raises(UserError, match="generates one Box"):
        build_velocity(MlpVelocityConfig(), group(**action), seeded())


def test_an_unknown_base_is_named_with_the_command_that_lists_all():
    with pytest.raises(UserError, match="marl-tr models"):
        build_velocity(ResidualVelocityConfig(base="no/such"), group(), seeded())


def test_an_mlp_without_observation_reads_sample_and_level_alone():
    network = perturbed(MlpVelocity(MlpVelocityConfig(hidden=[8], frequencies=0), (2,), {}, seeded()))
    assert network.body[0].in_features == 3
    assert network(torch.ones(1, 2), torch.ones(1), {}).shape == (1, 2)
