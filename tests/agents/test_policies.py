"""Every registered kind of agent with every law, network and way of sharing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from learning_examples import (
    FEATURES,
    LAWS,
    SPACES,
    frozen,
    generator,
    make_policy,
    play,
    torch_kl,
    torch_log_prob,
)
from torch import Tensor

from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.agents.matr.agent import make as make_matr
from marl_tr.agents.matr.config import MatrConfig
from marl_tr.nn.heads import UnsupportedActionSpace
from marl_tr.policy import Capability, Policy, PolicyBatch, Rows
from marl_tr.registry import find, names
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

KINDS = [name for name in names("agents") if name in ("gaussian", "matr")]
EVERY = pytest.mark.parametrize(
    ("kind", "law", "network", "shared"),
    [
        pytest.param(kind, law, network, shared, id=f"{kind}-{law}-{network}-{'shared' if shared else 'own'}")
        for kind in KINDS
        for law in LAWS
        for network in ("mlp", "gru")
        for shared in (True, False)
    ],
)


def build(kind: str, law: str, network: str, shared: bool, **settings: Any) -> Policy:
    return make_policy(law, network, shared=shared, kind=kind, **settings)


def test_both_built_in_kinds_are_registered() -> None:
    assert KINDS == ["gaussian", "matr"]


@EVERY
def test_acts_within_the_space_and_evaluates_what_it_did(kind: str, law: str, network: str, shared: bool) -> None:
    policy = build(kind, law, network, shared)
    count = 24 if shared else 8
    observation = {"observation": 3 * torch.randn(policy.rows.learners, count, FEATURES, generator=generator(1))}
    memory = policy.initial_memory(count)
    assert (memory is not None) == policy.recurrent == (network == "gru")
    for mode in (False, True):
        with torch.no_grad():
            action = policy.act(observation, memory, generator(2), mode=mode)
        for row in action.env["action"].flatten(0, 1).numpy():
            assert SPACES[law].contains(row if law != "categorical" else np.int64(row)), row
    batch = play(policy)
    evaluation = policy.evaluate(frozen(policy), batch)
    shape = tuple(batch.mask.shape)
    assert tuple(evaluation.log_prob.shape) == (*shape, 1)
    assert tuple(evaluation.entropy.shape) == shape
    assert bool(torch.isfinite(evaluation.log_prob).all())
    assert {Capability.LOG_PROB, Capability.KL} <= policy.capabilities


@EVERY
def test_log_prob_while_acting_is_that_of_the_rollout_evaluated(
    kind: str, law: str, network: str, shared: bool
) -> None:
    """Step by step with the memory carried and zeroed by hand, scored by torch.distributions."""
    policy = build(kind, law, network, shared)
    batch = play(policy, steps=7)
    assert bool(batch.starts[:, 1:].any())
    parameters = frozen(policy)
    with torch.no_grad():
        whole = policy.evaluate(parameters, batch).log_prob.squeeze(-1)
        memory = batch.memory
        for t in range(7):
            if memory is not None:
                memory = memory * ~batch.starts[:, t, :, None]
            now = _step(batch, t, memory)
            law_parameters = policy.law_parameters(parameters, now)
            scored = torch_log_prob(law, law_parameters, now.record["action"])[:, 0]
            torch.testing.assert_close(whole[:, t].double(), scored, rtol=1e-4, atol=2e-5)
            memory = policy.act({"observation": now.observation["observation"][:, 0]}, memory, generator()).memory


@EVERY
def test_a_row_evaluated_alone_says_what_it_says_in_the_stack(kind: str, law: str, network: str, shared: bool) -> None:
    policy = build(kind, law, network, shared)
    batch, parameters = play(policy), frozen(policy)
    whole = policy.evaluate(parameters, batch)
    for row in range(policy.rows.learners):
        alone = policy.evaluate({name: p[[row]] for name, p in parameters.items()}, batch.rows([row]))
        torch.testing.assert_close(alone.log_prob[0], whole.log_prob[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole.rows([row]).entropy, whole.entropy[[row]])


@EVERY
def test_divergence_is_torchs(kind: str, law: str, network: str, shared: bool) -> None:
    policy = build(kind, law, network, shared)
    batch, old = play(policy), frozen(policy)
    new = {name: p + 0.1 * torch.randn(p.shape, generator=generator(3)) for name, p in old.items()}
    with torch.no_grad():
        laws = [policy.evaluate(parameters, batch).law for parameters in (old, new)]
        found = policy.divergence(*laws)
        assert tuple(found.shape) == (*batch.mask.shape, 1)
        expected = torch_kl(law, policy, old, new, batch)
    torch.testing.assert_close(found.squeeze(-1).double(), expected, rtol=1e-3, atol=1e-6)
    assert not policy.divergence(laws[0], laws[0]).abs().max() > 1e-9


@EVERY
def test_observing_moves_the_statistics_and_keeps_the_law(kind: str, law: str, network: str, shared: bool) -> None:
    policy = build(kind, law, network, shared, normalise_observation=True)
    batch = play(policy)
    noise = generator(4)
    scale, shift = torch.tensor([0.3, 1.0, 5.0, 40.0]), torch.tensor([0.0, -2.0, 10.0, 100.0])
    for update in range(3):
        before, batch = frozen(policy), _scaled(batch, scale, shift) if update == 0 else batch
        with torch.no_grad():
            old = policy.evaluate(before, batch)
            seen = scale * torch.randn(6, 8, 3, FEATURES, generator=noise) + shift
            policy.observe({"observation": seen}, torch.rand(6, 8, 3, generator=noise) < 0.8)
            new = policy.evaluate(frozen(policy), batch)
        divergence = policy.divergence(_double(old.law), _double(new.law))
        assert float(divergence.abs().max()) < 1e-8
        assert any(not torch.equal(p, before[name]) for name, p in frozen(policy).items())


def test_observing_leaves_out_who_was_not_there() -> None:
    seen = torch.randn(6, 8, 3, FEATURES, generator=generator(1))
    alive = torch.rand(6, 8, 3, generator=generator(2)) < 0.7
    states = []
    for junk in (0.0, 1e6):
        policy = make_policy("gaussian", normalise_observation=True)
        policy.observe({"observation": torch.where(alive[..., None], seen, junk)}, alive)
        states.append(policy.state_dict()["module"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_policy_acts_alike(kind: str) -> None:
    policy = make_policy("gaussian", "gru", kind=kind, normalise_observation=True)
    policy.observe({"observation": 5 + torch.randn(6, 8, 3, FEATURES, generator=generator(1))}, torch.ones(6, 8, 3) > 0)
    other = make_policy("gaussian", "gru", kind=kind, normalise_observation=True, seed=9)
    other.load_state_dict(copy.deepcopy(policy.state_dict()))
    first, second = (play(p) for p in (policy, other))
    assert torch.equal(first.record["action"], second.record["action"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_beta_law_on_an_unbounded_space_is_refused_with_its_cure(kind: str) -> None:
    group = GroupSpec(
        "group", ("a",), {"observation": spaces.Box(-1, 1, (2,))}, {"action": spaces.Box(0, np.inf, (1,))}
    )
    entry = find("agents", kind)
    config = entry.load_config()
    assert config is not None
    with pytest.raises(UnsupportedActionSpace, match=r"needs finite bounds.*use law: gaussian"):
        entry.load()(config(law="beta"), group, rows=Rows(1, False), generator=generator(), device=torch.device("cpu"))


def test_several_leaves_of_observation_and_action_are_one_decision() -> None:
    group = GroupSpec(
        "group",
        ("a", "b"),
        {"near": spaces.Box(-1, 1, (2,)), "far": spaces.Box(-1, 1, (3,))},
        {"move": spaces.Box(-1, 1, (2,)), "pick": spaces.Discrete(3, start=5)},
    )
    entry = find("agents", "gaussian")
    policy = entry.load()(
        GaussianConfig(hidden=[8]), group, rows=Rows(2, False), generator=generator(), device=torch.device("cpu")
    )
    noise = generator(1)
    observation = {"near": torch.randn(2, 4, 2, generator=noise), "far": torch.randn(2, 4, 3, generator=noise)}
    action = policy.act(observation, None, noise)
    assert tuple(action.env["move"].shape) == (2, 4, 2)
    assert set(action.env["pick"].flatten().tolist()) <= {5, 6, 7}
    everything = torch.ones(2, 1, 4, dtype=torch.bool)
    batch = PolicyBatch(
        observation={leaf: x[:, None] for leaf, x in observation.items()},
        record={leaf: x[:, None] for leaf, x in action.record.items()},
        memory=None,
        starts=everything,
        mask=everything,
    )
    parameters = frozen(policy)
    mean, log_std, logits = (p.detach() for p in policy.law_parameters(parameters, batch))
    expected = torch_log_prob("gaussian", (mean, log_std), batch.record["move"])
    expected = expected + torch_log_prob("categorical", (logits,), batch.record["pick"])
    found = policy.evaluate(parameters, batch).log_prob.detach().squeeze(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_learners_start_differently_and_repeat_with_the_generator() -> None:
    first, again = make_policy("gaussian", seed=3), make_policy("gaussian", seed=3)
    assert all(torch.equal(p, frozen(again)[name]) for name, p in frozen(first).items())
    weights = [p for p in frozen(first).values() if p.dim() == 3]
    assert weights
    assert all(not torch.equal(p[0], p[1]) for p in weights)


def test_new_agents_hardly_prefer_anything() -> None:
    policy = make_policy("categorical", head_gain=GaussianConfig().head_gain)
    entropy = policy.evaluate(frozen(policy), play(policy)).entropy
    torch.testing.assert_close(entropy, torch.full_like(entropy, float(np.log(5))), rtol=0, atol=1e-3)


def test_defaults_of_the_graph_agents_are_the_specifications() -> None:
    config = MatrConfig()
    assert (config.network, config.law, config.hidden, config.activation) == ("gru", "beta", [128], "relu")


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_hidden_layers_have_the_activation_of_the_settings(activation: str) -> None:
    body = make_policy("gaussian", activation=activation).module.encoder.body
    (layer,) = body.layers
    x = torch.randn(*layer.weight.shape[:1], 20, layer.weight.shape[1])
    expected = getattr(torch.nn.functional, activation)(x @ layer.weight + layer.bias.unsqueeze(1))
    torch.testing.assert_close(body(x), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_are_a_round_trip(shared: bool) -> None:
    rows = Rows(agents=3, shared=shared)
    x = torch.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5)
    stacked = rows.to_rows(x)
    assert tuple(stacked.shape) == ((1, 2, 12, 5) if shared else (3, 2, 4, 5))
    assert torch.equal(rows.from_rows(stacked), x)


def _step(batch: PolicyBatch, t: int, memory: Tensor | None) -> PolicyBatch:
    at = slice(t, t + 1)
    return PolicyBatch(
        observation={leaf: x[:, at] for leaf, x in batch.observation.items()},
        record={leaf: x[:, at] for leaf, x in batch.record.items()},
        memory=memory,
        starts=torch.zeros_like(batch.starts[:, at]),
        mask=batch.mask[:, at],
    )


def _scaled(batch: PolicyBatch, scale: Tensor, shift: Tensor) -> PolicyBatch:
    return PolicyBatch(
        observation={leaf: scale * x + shift for leaf, x in batch.observation.items()},
        record=batch.record,
        memory=batch.memory,
        starts=batch.starts,
        mask=batch.mask,
    )


def _double(law: Any) -> Any:
    return law.map(lambda x: x.double() if x.is_floating_point() else x)


@pytest.mark.parametrize("kind", ["flat", "entities"])
def test_the_first_statistics_bring_inputs_of_any_scale_to_order_one(kind: str) -> None:
    config = MatrConfig(network="mlp", hidden=[32], law="gaussian", activation="tanh", normalise_observation=True)
    config = config.model_copy(update={"encoder": kind})
    shapes = {"own": (4,), "users": (5, 3)}
    group = GroupSpec(
        name="robot",
        agents=("robot_0",),
        observation={name: spaces.Box(-np.inf, np.inf, shape) for name, shape in shapes.items()},
        action={"action": spaces.Box(-1.0, 1.0, (2,))},
    )
    policy = make_matr(
        config,
        group,
        rows=Rows(agents=1, shared=True),
        generator=torch.Generator().manual_seed(1),
        device=torch.device("cpu"),
    )
    noise = torch.Generator().manual_seed(2)
    seen = {name: 1e4 * torch.randn(20, 8, 1, *shape, generator=noise) + 3e4 for name, shape in shapes.items()}
    policy.observe(seen, torch.ones(20, 8, 1, dtype=torch.bool), first=True)
    encoder = policy.module.encoder
    layer = encoder.body.first if kind == "flat" else encoder.embed["users"].first
    normaliser = encoder.normaliser if kind == "flat" else encoder.normalisers["users"]
    inputs = torch.cat([x.flatten(3) for x in seen.values()], -1) if kind == "flat" else seen["users"]
    outputs = torch.tanh(layer(normaliser(inputs).reshape(1, -1, inputs.shape[-1])))
    assert float((outputs.abs() > 0.99).float().mean()) < 0.2
