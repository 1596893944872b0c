"""The critic around its network: units, bootstraps, memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from critic_examples import AGENTS, COPIES, STEPS, generator, make_inputs, make_rollout, make_spec

from marl_tr.agents.matr.config import GraphRecurrentConfig
from marl_tr.agents.matr.critic import GraphRecurrentEncoder
from marl_tr.critic.config import AdamFitConfig, CriticConfig, MlpCriticConfig, TrustRegionFitConfig
from marl_tr.critic.critic import Critic
from marl_tr.critic.mlp import MlpEncoder
from marl_tr.rollout.container import Bootstrap, Rollout

torch.set_num_threads(1)


def graph_critic(seed: int = 1, **settings: Any) -> Critic:
    config = GraphRecurrentConfig(width=8, heads=2, **settings)
    encoder = GraphRecurrentEncoder(config, make_spec(), generator=generator(seed))
    return Critic(config, encoder, environments=COPIES, generator=generator(2))


def mlp_critic(**settings: Any) -> Critic:
    config = MlpCriticConfig(hidden=[16], **settings)
    encoder = MlpEncoder(config, make_spec(), generator=generator(1))
    return Critic(config, encoder, environments=COPIES, generator=generator(2))


EVERYBODY = torch.ones(STEPS, COPIES, AGENTS, dtype=torch.bool)


@pytest.mark.parametrize("scope", ["centralized", "local"])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1e-3), (100.0, 30.0), (-5.0, 0.5)])
def test_a_change_of_units_leaves_the_values(mean: float, spread: float, scope: str) -> None:
    """PopArt: a fit with a step of nearly nothing moves the units only, once the first targets have set them."""
    critic = mlp_critic(scope=scope, fit=AdamFitConfig(learning_rate=1e-30))
    rollout = make_rollout(make_inputs())
    critic.fit(critic.evaluate(rollout), 2 * mean + spread * torch.randn(STEPS, COPIES, AGENTS), EVERYBODY)
    before = critic.evaluate(rollout)
    for update in range(3):
        noise = torch.randn(STEPS, COPIES, AGENTS, generator=generator(update))
        critic.fit(before, mean + spread * noise, EVERYBODY)
        after = critic.evaluate(rollout)
        for old, new in ((before.value, after.value), (before.next_value, after.next_value)):
            assert float((new - old).abs().max()) < 1e-4 * max(float(old.abs().max()), abs(mean))


def test_the_first_targets_set_the_units_before_they_are_fitted() -> None:
    critic = mlp_critic(fit=AdamFitConfig(learning_rate=1e-30))
    rollout = make_rollout(make_inputs())
    target = 500 + 20 * torch.randn(STEPS, COPIES, AGENTS, generator=generator(4))
    report = critic.fit(critic.evaluate(rollout), target, EVERYBODY)
    # A head that starts near zero now says about the targets' mean, one standard deviation off: F is one half.
    assert critic.evaluate(rollout).value.mean() == pytest.approx(500, abs=5)
    assert report.loss_before == pytest.approx(0.5, abs=0.01)
    assert abs(report.explained_variance) < 0.1


def test_learned_values_reach_targets_in_any_unit() -> None:
    for unit in (1e-3, 1.0, 1e4):
        critic = mlp_critic(fit=TrustRegionFitConfig(bound=1.0, steps=3, subsample=1.0))
        rollout = make_rollout(make_inputs())
        target = unit * (3 + torch.randn(STEPS, COPIES, AGENTS, generator=generator(4)))
        for _ in range(10):
            critic.fit(critic.evaluate(rollout), target, EVERYBODY)
        rest = (critic.evaluate(rollout).value - target).square().mean().sqrt() / target.std()
        assert float(rest) < 0.5, f"unit {unit}"


def test_a_fit_prepares_its_inputs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs and products that made an MLP's features anew would be right, and slow."""
    critic = mlp_critic(fit=AdamFitConfig(epochs=3, minibatches=2))
    seen, encode = [], critic.encoder.encode
    values = critic.evaluate(make_rollout(make_inputs()))
    monkeypatch.setattr(critic.encoder, "encode", lambda p, inputs: seen.append(inputs) or encode(p, inputs))
    critic.fit(values, torch.randn(STEPS, COPIES, AGENTS, generator=generator(4)), EVERYBODY)
    fitted = [inputs for inputs in seen if inputs is not values.inputs]
    assert len(fitted) >= 6
    assert all(inputs.features is not None and not inputs.observation for inputs in fitted)


def test_the_dead_do_not_move_the_units() -> None:
    critics = [mlp_critic(), mlp_critic()]
    rollout = make_rollout(make_inputs())
    alive = torch.rand(STEPS, COPIES, AGENTS, generator=generator(8)) < 0.7
    target = torch.randn(STEPS, COPIES, AGENTS, generator=generator(9))
    for critic, junk in zip(critics, (0.0, 1e6), strict=True):
        critic.fit(critic.evaluate(rollout), torch.where(alive, target, junk), alive)
    assert torch.equal(critics[0].evaluate(rollout).value, critics[1].evaluate(rollout).value)


def _with_cuts(rollout: Rollout, *, cuts: list[tuple[int, int, list[bool]]]) -> Rollout:
    """`rollout` with a bootstrap of its own at each ``(time, environment, agents)``."""
    noise = generator(20)
    old = rollout.bootstrap
    bootstrap = Bootstrap(
        time=torch.tensor([cut[0] for cut in cuts]),
        env=torch.tensor([cut[1] for cut in cuts]),
        agents=torch.tensor([cut[2] for cut in cuts]),
        living=torch.ones(len(cuts), AGENTS, dtype=torch.bool),
        starts=torch.zeros(len(cuts), AGENTS, dtype=torch.bool),
        acting=torch.ones(len(cuts), AGENTS),
        observation={
            name: {leaf: torch.randn(len(cuts), *x.shape[1:], generator=noise) for leaf, x in leaves.items()}
            for name, leaves in old.observation.items()
        },
        state={leaf: torch.randn(len(cuts), *x.shape[1:], generator=noise) for leaf, x in old.state.items()},
    )
    return replace(rollout, bootstrap=bootstrap)


@pytest.mark.parametrize("order", [1, -1])
def test_next_values_follow_each_agents_own_trajectory(order: int) -> None:
    """Two entries of one moment, for who was cut alone and for who goes on, in either order."""
    everybody, alone, others = [True] * 3, [False, True, False], [True, False, True]
    cuts = [(2, 0, everybody), (4, 1, alone), *[(STEPS - 1, e, everybody) for e in range(COPIES - 1)]]
    cuts += [(STEPS - 1, COPIES - 1, alone), (STEPS - 1, COPIES - 1, others)][::order]
    critic = mlp_critic(normalise_value=False)
    rollout = _with_cuts(make_rollout(make_inputs()), cuts=cuts)
    values = critic.evaluate(rollout)
    expected = torch.cat([values.value[1:], torch.full_like(values.value[:1], torch.nan)])
    for m, (t, e, agents) in enumerate(cuts):
        one = replace(make_inputs(), state={k: x[m][None, None] for k, x in rollout.bootstrap.state.items()})
        beyond = critic.encoder.encode(None, one).values[0, 0]
        for a in range(AGENTS):
            if agents[a]:
                expected[t, e, a] = beyond[a]
    torch.testing.assert_close(values.next_value, expected)


def test_neither_what_the_dead_see_nor_what_their_policies_say_reaches_the_critic() -> None:
    critic, same = graph_critic(), graph_critic()
    rollout = make_rollout(make_inputs())
    name, group = next(iter(rollout.groups.items()))
    group.alive[2:, :, 0] = False
    cut = rollout.bootstrap
    cut.living[:, 0] = False
    values = critic.evaluate(rollout)
    for leaf in (group.observation["observation"], group.previous_action):
        leaf[2:, :, 0] += 5
    group.action[-1, :, 0] += 5
    cut.observation[name]["observation"][:, 0] += 5
    again = same.evaluate(rollout)
    assert torch.equal(again.value, values.value)
    assert torch.equal(again.next_value, values.next_value)


def test_next_values_of_a_recurrent_critic_remember_the_rollout() -> None:
    """A rollout of eight steps and its bootstrap are nine steps of one sequence."""
    critic = graph_critic(normalise_value=False)
    inputs = make_inputs(memory=torch.zeros(COPIES, AGENTS, 8))
    rollout = make_rollout(inputs)
    values = critic.evaluate(rollout)
    cut = rollout.bootstrap
    longer = replace(
        inputs,
        observation={n: torch.cat([x, cut.observation[n]["observation"][None]]) for n, x in inputs.observation.items()},
        previous_action={n: torch.cat([x, x[-1:]]) for n, x in inputs.previous_action.items()},
        state={n: torch.cat([x, cut.state[n][None]]) for n, x in inputs.state.items()},
        alive=torch.cat([inputs.alive, inputs.alive[-1:]]),
        acting=torch.cat([inputs.acting, inputs.acting[-1:]]),
        starts=torch.cat([inputs.starts, torch.zeros(1, COPIES, AGENTS, dtype=torch.bool)]),
    )
    with torch.no_grad():
        whole = critic.encoder.encode(None, longer).values
    torch.testing.assert_close(values.value, whole[:-1])
    torch.testing.assert_close(values.next_value, whole[1:])


def test_memory_goes_on_across_rollouts_until_an_episode_ends() -> None:
    critic = graph_critic(normalise_value=False)
    inputs = make_inputs()
    rollout = make_rollout(inputs)
    rollout.done[-1, :2] = True
    critic.evaluate(rollout)
    second = critic.evaluate(rollout).inputs.memory
    assert second is not None
    assert not second[:2].any()
    assert bool(second[2:].abs().sum((1, 2)).all())


@pytest.mark.parametrize("kind", ["adam", "trust_region"])
def test_a_restored_critic_goes_on_bit_for_bit(kind: str) -> None:
    fit: Any = AdamFitConfig(minibatches=2) if kind == "adam" else TrustRegionFitConfig(window=4)
    critic = graph_critic(fit=fit)
    rollouts = [make_rollout(make_inputs(seed)) for seed in range(3)]
    target = torch.randn(STEPS, COPIES, AGENTS, generator=generator(3))
    critic.fit(critic.evaluate(rollouts[0]), target, EVERYBODY)
    state = copy.deepcopy(critic.state_dict())
    other = graph_critic(seed=77, fit=fit)
    other.load_state_dict(state)
    for rollout in rollouts[1:]:
        first, second = critic.evaluate(rollout), other.evaluate(rollout)
        assert torch.equal(first.value, second.value)
        assert torch.equal(first.next_value, second.next_value)
        reports = [c.fit(v, target, EVERYBODY) for c, v in ((critic, first), (other, second))]
        assert reports[0] == reports[1]


def test_a_critic_without_value_units_learns_in_reward_units() -> None:
    critic = mlp_critic(normalise_value=False, fit=TrustRegionFitConfig(bound=0.1))
    assert isinstance(critic, Critic)
    rollout = make_rollout(make_inputs())
    values = critic.evaluate(rollout)
    with torch.no_grad():
        assert torch.equal(values.value, critic.encoder.encode(None, values.inputs).values)
    assert CriticConfig(normalise_value=False).normalise_value is False
