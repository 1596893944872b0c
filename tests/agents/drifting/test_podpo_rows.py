"""The gradient of positive-only drift, put together anew; what one learner's update is does not depend on another's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import generator, make_turn, play
from test_generator import build
from torch import Tensor

from marl_tr.agents.drifting.config import BalancedPodpoConfig, PodpoConfig
from marl_tr.agents.drifting.field import drift
from marl_tr.agents.drifting.podpo import Podpo
from marl_tr.policy import Parameters
from marl_tr.region.turn import Turn

torch.set_num_threads(1)

SAMPLES, TEMPERATURES = 4, [0.2, 0.7]


class Given(Podpo):
    """Samples on given noise ``[R, M, G, Z]``, so that a row alone has the noise that it has beside others."""

    def __init__(self, config: PodpoConfig, noise: Tensor) -> None:
        super().__init__(config)
        self.noise = noise

    def _generate(
        self, policy: Any, parameters: Parameters, features: Tensor, generator: torch.Generator, count: int
    ) -> Tensor:
        return policy.generate(parameters, features, self.noise[:, : features.shape[1], :count])  # type: ignore[no-any-return]


def gradient(turn: Turn, objective: Podpo) -> tuple[Parameters, tuple[Tensor, ...]]:
    leaves = {name: p.requires_grad_() for name, p in turn.learners.parameters(turn.rows).items()}
    gain = objective.estimate(turn, leaves, objective.samples(turn)).gain
    return leaves, torch.autograd.grad(gain.sum(), list(leaves.values()))


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"field": "row", "kernel": "gaussian", "normalise_drift": False}, {"negatives": "independent"}],
    ids=["as published", "other field", "independent negatives"],
)
def test_samples_are_pulled_along_the_field_of_actions_weighed_by_advantages(
    network: str, settings: dict[str, Any]
) -> None:
    policy = build(network=network, agents=1)
    batch = play(policy)
    advantage = 0.7 * torch.randn(batch.mask.shape, generator=generator(4)) + 0.2
    turn = make_turn(policy, batch, advantage=advantage)
    noise = torch.randn(1, 64, 2 * SAMPLES, policy.latent, generator=generator(5))
    config = PodpoConfig(minimum_positives=1, samples=SAMPLES, temperatures=TEMPERATURES, weight_cap=1.5, **settings)
    leaves, found = gradient(turn, Given(config, noise))

    keep = (batch.mask & (advantage > 0))[0]
    independent = "negatives" in settings
    features = policy.features(leaves, batch)[0][keep]
    drawn = noise[:, : len(features), : (1 + independent) * SAMPLES]
    x = policy.generate(leaves, features[None], drawn)[0]
    weight = (advantage[0][keep] / advantage[0][batch.mask[0]].std(correction=0)).clamp(max=1.5)
    field = drift(
        x[:, :SAMPLES].detach(),
        batch.record["action"][0][keep].unsqueeze(1),
        x[:, SAMPLES:].detach() if independent else None,
        own=not independent,
        weights=(weight / weight.mean()).unsqueeze(1),
        temperatures=TEMPERATURES,
        kind=settings.get("field", "joint"),
        kernel=settings.get("kernel", "laplacian"),
        normalise=settings.get("normalise_drift", True),
    )
    pull = 2 * field.force / (field.unit * field.force.numel())
    expected = torch.autograd.grad((pull * x[:, :SAMPLES]).sum(), list(leaves.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_a_learner_beside_another_has_the_gradient_that_it_has_alone(network: str) -> None:
    policy = build(network=network, agents=2, shared=False)
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    advantage[1] = 5 * advantage[1] - 2
    turn = make_turn(policy, batch, advantage=advantage)
    config = BalancedPodpoConfig(minimum_positives=1, samples=SAMPLES)
    noise = torch.randn(2, 64, SAMPLES, policy.latent, generator=generator(5))
    together = gradient(turn, Given(config, noise))[1]
    for row in range(2):
        alone = gradient(turn.only(row), Given(config, noise[[row]]))[1]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[[row]], b, rtol=1e-3, atol=1e-6)


def test_weights_with_balance_are_capped_in_units_of_their_mean() -> None:
    advantage = torch.tensor([[0.1, 0.1, 0.1, 3.7]])
    problems: Any = SimpleNamespace(advantage=advantage, action=torch.zeros(1, 4, 2))
    samples = torch.randn(1, 1, 6, 2, generator=generator()).expand(1, 4, 6, 2)
    everyone = torch.ones(1, 4, dtype=torch.bool)
    found = Podpo(PodpoConfig(balance=0.5, balance_cap=1.5))._weights(problems, samples, everyone, 0.0)
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.1, 1.5]], rtol=1e-5)


def test_what_fills_up_a_row_says_nothing_of_its_densities() -> None:
    samples, action = torch.randn(1, 4, 6, 2, generator=generator(1)), torch.randn(1, 4, 2, generator=generator(2))
    samples[:, 3] *= 100
    problems: Any = SimpleNamespace(advantage=torch.ones(1, 4), action=action)
    fewer: Any = SimpleNamespace(advantage=torch.ones(1, 3), action=action[:, :3])
    objective = Podpo(BalancedPodpoConfig())
    found = objective._weights(problems, samples, torch.tensor([[True, True, True, False]]), 0.0)
    expected = objective._weights(fewer, samples[:, :3], torch.ones(1, 3, dtype=torch.bool), 0.0)
    torch.testing.assert_close(found[:, :3], expected)
    assert found[0, 3] == 0
