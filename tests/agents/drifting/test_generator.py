"""What a generator is at the start, what it may depend on, and how it acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from learning_examples import FEATURES, frozen, generator, play

from marl_tr.agents.drifting.config import DriftingConfig
from marl_tr.agents.drifting.modes import count_modes
from marl_tr.agents.drifting.policy import DriftingPolicy, densest, medoid
from marl_tr.errors import UserError
from marl_tr.policy import Capability, Rows
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

BOX = spaces.Box(np.float32([-2, 0]), np.float32([2, 3]))


def build(*, agents: int = 2, shared: bool = True, box: spaces.Space[Any] = BOX, **settings: Any) -> DriftingPolicy:
    group = GroupSpec(
        name="group",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation={"observation": spaces.Box(-np.inf, np.inf, (FEATURES,))},
        action={"action": box},
    )
    return DriftingPolicy(
        DriftingConfig(**{"hidden": [16], "head": [16], **settings}),
        group,
        rows=Rows(agents=agents, shared=shared),
        generator=generator(),
        device=torch.device("cpu"),
    )


def act(policy: DriftingPolicy, count: int, *, mode: bool = False, seed: int = 3) -> Any:
    observation = torch.randn(policy.rows.learners, count, FEATURES, generator=generator(seed))
    with torch.no_grad():
        return policy.act({"observation": observation}, policy.initial_memory(count), generator(seed), mode=mode)


@pytest.mark.parametrize("conditioning", ["film", "concat"])
def test_the_initial_policy_is_the_gaussian_it_is_said_to_be_whatever_is_observed(conditioning: str) -> None:
    policy = build(conditioning=conditioning, initial_spread=0.4, exploration=0.0, reach=10.0, latent=5, head_gain=0.0)
    raw = act(policy, 20_000).record["action"]
    torch.testing.assert_close(raw.mean(1), torch.zeros(1, 2), atol=0.012, rtol=0)
    torch.testing.assert_close(raw.std(1), torch.full((1, 2), 0.4), atol=0.01, rtol=0)
    # With the start that is used, nearly.
    near = act(build(conditioning=conditioning, initial_spread=0.4, exploration=0.0, reach=10.0), 20_000)
    torch.testing.assert_close(near.record["action"].std(1), torch.full((1, 2), 0.4), atol=0.15, rtol=0)


def test_exploration_adds_its_variance_to_samples_and_nothing_to_modes() -> None:
    settings: dict[str, Any] = {"initial_spread": 0.3, "reach": 10.0, "head_gain": 0.0, "mode": "sample"}
    noisy = act(build(exploration=0.4, **settings), 20_000).record["action"]
    assert noisy.std().item() == pytest.approx(0.5, abs=0.01)
    still = act(build(exploration=0.4, **settings), 20_000, mode=True).record["action"]
    assert still.std().item() == pytest.approx(0.3, abs=0.01)


def test_what_acts_is_clipped_and_stretched_while_what_is_learned_from_reaches_a_little_farther() -> None:
    action = act(build(initial_spread=3.0, reach=1.2), 2_000)
    raw, env = action.record["action"][0], action.env["action"][0]
    assert raw.abs().max().item() == pytest.approx(1.2)
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 3.0])
    torch.testing.assert_close(env, (low + high) / 2 + raw.clamp(-1, 1) * (high - low) / 2)
    free = act(build(box=spaces.Box(-np.inf, np.inf, (2,)), initial_spread=3.0), 2_000)
    assert torch.equal(free.env["action"], free.record["action"])
    assert free.record["action"].abs().max() > 5


def test_bounds_on_one_side_hold() -> None:
    box = spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, 1]))
    env = act(build(box=box, initial_spread=3.0), 500).env["action"][0]
    assert env[:, 0].min() == 0
    assert env[:, 1].max() == 1
    assert env[:, 1].min() < -3


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("shared", [True, False])
def test_recorded_noise_gives_the_recorded_action_again(network: str, shared: bool) -> None:
    policy = build(network=network, shared=shared, exploration=0.0, reach=10.0)
    batch = play(policy)
    evaluation = policy.evaluate(frozen(policy), batch)
    torch.testing.assert_close(evaluation.law.action, batch.record["action"], atol=1e-5, rtol=1e-5)
    assert not evaluation.log_prob.any()
    assert evaluation.log_prob.shape == (*batch.mask.shape, 1)
    assert evaluation.entropy is None
    assert policy.capabilities == {Capability.SAMPLE_DISTANCE}


def test_the_memory_depends_on_observations_and_never_on_the_noise() -> None:
    policy = build(network="gru")
    observation = {"observation": torch.randn(1, 5, FEATURES, generator=generator())}
    memory = torch.randn(1, 5, 16, generator=generator(1))
    with torch.no_grad():
        first, second = (policy.act(observation, memory, generator(seed)) for seed in (1, 2))
    assert torch.equal(first.memory, second.memory)
    assert not torch.equal(first.record["action"], second.record["action"])


@pytest.mark.parametrize("conditioning", ["film", "concat"])
def test_a_row_of_the_stack_is_the_learner_alone(conditioning: str) -> None:
    policy = build(agents=3, shared=False, conditioning=conditioning)
    batch, parameters = play(policy), frozen(policy)
    whole = policy.evaluate(parameters, batch).law.action
    for row in range(3):
        alone = policy.evaluate({name: p[[row]] for name, p in parameters.items()}, batch.rows([row])).law.action
        torch.testing.assert_close(alone, whole[[row]], atol=1e-6, rtol=1e-5)


def test_the_divergence_is_the_mean_squared_step_and_its_hessian_is_the_metric() -> None:
    policy = build()
    batch, old = play(policy).to(torch.float64), {name: p.double() for name, p in frozen(policy).items()}
    moved = {name: p + 0.1 * torch.randn(p.shape, generator=generator(2)) for name, p in old.items()}
    before, after = (policy.evaluate(p, batch).law for p in (old, moved))
    found = policy.divergence(before, after)
    expected = ((after.action - before.action) ** 2).mean(-1, keepdim=True)
    torch.testing.assert_close(found, expected)
    assert policy.direction == "squared_step"
    direction = {name: torch.randn(p.shape, generator=generator(4), dtype=torch.float64) for name, p in old.items()}
    (tangent,) = torch.func.jvp(lambda p: policy.law_parameters(p, batch), (old,), (direction,))[1]
    curved = (tangent * policy.fisher_product(before, (tangent,))[0]).sum(-1)
    size = 1e-4
    near = policy.evaluate({name: p + size * direction[name] for name, p in old.items()}, batch).law
    torch.testing.assert_close(
        policy.divergence(before, near)[..., 0] / size**2, curved / 2, rtol=1e-2, atol=1e-4 * float(curved.max())
    )


def test_the_medoid_is_the_sample_nearest_to_all_others_and_lies_in_a_mode() -> None:
    noise = 0.05 * torch.randn(1, 33, 2, generator=generator(), dtype=torch.float64)
    samples = noise + torch.where(torch.arange(33)[:, None] < 18, 0.7, -0.7)
    index = int(medoid(samples))
    distances = np.linalg.norm(samples[0].numpy()[:, None] - samples[0].numpy()[None], axis=-1).sum(1)
    assert index == int(distances.argmin())
    assert index < 18
    assert samples.mean().abs() < 0.2


def test_the_densest_sample_lies_in_a_mode_where_the_medoid_is_a_stray_between_two() -> None:
    noise = 0.05 * torch.randn(1, 41, 2, generator=generator(), dtype=torch.float64)
    centre = torch.tensor([[0.7, 0.0]], dtype=torch.float64)
    samples = noise + torch.where(torch.arange(41)[:, None] < 20, 1, -1) * centre
    samples[0, 40] = 0.0
    assert int(medoid(samples)) == 40
    chosen = samples[0, int(densest(samples))]
    assert float(chosen[0].abs()) == pytest.approx(0.7, abs=0.08)
    # Shifts and scales do not matter.
    assert int(densest(7 * samples + 3)) == int(densest(samples))


@pytest.mark.parametrize("rule", ["medoid", "densest", "zero"])
def test_modes_repeat_what_the_rule_says(rule: str) -> None:
    policy = build(mode=rule, shared=False)
    with torch.no_grad():
        policy.module.head.body.last.bias += 0.3
    action = act(policy, 6, mode=True)
    batch_features = policy.module.observation(
        {"observation": torch.randn(2, 6, FEATURES, generator=generator(3))[:, None]},
        None,
        torch.zeros(2, 1, 6, dtype=torch.bool),
    )[0][:, 0]
    with torch.no_grad():
        again = policy.module.head(batch_features, action.record["latent"].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(again, action.record["action"], atol=1e-5, rtol=1e-5)
    assert bool(action.record["latent"].any()) is (rule != "zero")


def test_modes_are_counted_by_gaps() -> None:
    centres = torch.tensor([[-0.7, 0.0], [0.7, 0.0], [0.0, 0.9]])
    noise = 0.04 * torch.randn(1, 60, 2, generator=generator())
    three = centres.repeat(20, 1)[None] + noise
    one = noise
    line = torch.stack([torch.linspace(-1, 1, 60), torch.zeros(60)], -1)[None]
    assert count_modes(torch.cat([three, one, line]), link=0.25, share=0.05).tolist() == [3, 1, 1]
    stray = torch.cat([noise, torch.full((1, 2, 2), 5.0)], 1)
    assert count_modes(stray, link=0.25, share=0.05).tolist() == [1]


def test_actions_that_cannot_drift_are_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match=r"a drifting policy draws one continuous.*use agents of kind 'gaussian'"):
        build(box=spaces.Discrete(3))
    with pytest.raises(UserError, match="1 dimensions of noise cannot fill an action of 2"):
        build(latent=1)


def test_moving_input_statistics_leave_the_generator_as_it_was() -> None:
    policy = build(normalise_observation=True, agents=3)
    batch = play(policy)
    before = policy.evaluate(frozen(policy), batch).law.action
    observed = policy.rows.from_rows(5 + 3 * batch.observation["observation"])
    policy.observe({"observation": observed}, torch.ones(observed.shape[:3], dtype=torch.bool))
    torch.testing.assert_close(policy.evaluate(frozen(policy), batch).law.action, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("conditioning", ["film", "concat"])
def test_the_head_is_the_formula_of_its_docstring(conditioning: str) -> None:
    policy = build(agents=1, conditioning=conditioning, latent=3, latent_gain=1.7, initial_spread=0.4, head=[16, 8])
    head = policy.module.head
    p = {name: value[0].detach().double().numpy() for name, value in head.named_parameters()}
    features = torch.randn(1, 5, 16, generator=generator(1))
    z = torch.randn(1, 5, 4, 3, generator=generator(2))
    found = head(features, z)[0].detach().double().numpy()

    def silu(x: Any) -> Any:
        return x / (1 + np.exp(-x))

    h, scaled = features[0].double().numpy(), 1.7 * z[0].double().numpy()
    if conditioning == "film":
        scale, shift = np.split(h @ p["film.weight"] + p["film.bias"], 2, -1)
        x = silu((1 + scale[:, None]) * (scaled @ p["noise.weight"] + p["noise.bias"]) + shift[:, None])
        layers = 2
    else:
        x = np.concatenate([np.broadcast_to(h[:, None], (5, 4, 16)), scaled], -1)
        layers = 3
    for k in range(layers):
        x = x @ p[f"body.layers.{k}.weight"] + p[f"body.layers.{k}.bias"]
        x = silu(x) if k < layers - 1 else x
    np.testing.assert_allclose(found, x + 0.4 * z[0, ..., :2].double().numpy(), rtol=1e-4, atol=1e-5)


def test_features_of_the_noise_vary_by_its_gain_at_the_start() -> None:
    policy = build(agents=1, head=[128], latent_gain=1.5)
    noise = policy.module.head.noise
    assert noise is not None
    z = torch.randn(1, 4000, 2, generator=generator(1))
    assert float(noise(1.5 * z).detach().std()) == pytest.approx(1.5, rel=0.03)
