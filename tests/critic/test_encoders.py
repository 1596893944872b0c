"""What each critic may see, what its switches take away, and that it is no lie."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from critic_examples import AGENTS, COPIES, GROUPS, STEPS, generator, make_inputs, make_spec
from gymnasium import spaces
from torch import Tensor

from marl_tr.agents.matr.config import GraphRecurrentConfig
from marl_tr.agents.matr.critic import GraphRecurrentEncoder
from marl_tr.critic.config import MlpCriticConfig
from marl_tr.critic.inputs import CriticInputs
from marl_tr.critic.mlp import MlpEncoder
from marl_tr.registry import find, names
from marl_tr.vector.contract import EnvSpec, GroupSpec

torch.set_num_threads(1)


def graph_encoder(spec: EnvSpec | None = None, **settings: Any) -> GraphRecurrentEncoder:
    config = GraphRecurrentConfig(**{"width": 8, "heads": 2, **settings})
    return GraphRecurrentEncoder(config, spec or make_spec(), generator=generator(1))


def mlp_encoder(*, state: bool = True, **settings: Any) -> MlpEncoder:
    config = MlpCriticConfig(**{"hidden": [16], **settings})
    return MlpEncoder(config, make_spec(state=state), generator=generator(1))


def inputs_for(encoder: Any, **more: Any) -> CriticInputs:
    memory = encoder.initial_memory(COPIES)
    return make_inputs(memory=None if memory is None else torch.randn(memory.shape, generator=generator(5)), **more)


def values(encoder: Any, inputs: CriticInputs) -> Tensor:
    with torch.no_grad():
        result: Tensor = encoder.encode(None, inputs).values
    return result


def influence(encoder: Any, inputs: CriticInputs, what: str) -> Tensor:
    """``[T, T', A, A']`` bool: does the input of agent ``A'`` at ``T'`` reach the value of ``A`` at ``T``?"""
    leaves = {name: x.clone().requires_grad_() for name, x in getattr(inputs, what).items()}
    found = encoder.encode(None, replace(inputs, **{what: leaves})).values
    reached = torch.zeros(STEPS, STEPS, AGENTS, AGENTS, dtype=torch.bool)
    for t in range(STEPS):
        for a in range(AGENTS):
            if not found.requires_grad:
                return reached
            gradients = torch.autograd.grad(
                found[t, :, a].sum(), list(leaves.values()), retain_graph=True, materialize_grads=True
            )
            reached[t, :, a] = (torch.cat([g.abs().sum(-1) for g in gradients], -1) > 0).any(1)
    return reached


SAME_AGENT = torch.eye(AGENTS, dtype=torch.bool)
SAME_TIME = torch.eye(STEPS, dtype=torch.bool)
PAST = torch.ones(STEPS, STEPS).tril().bool()


@pytest.mark.parametrize("scope", ["centralized", "local"])
def test_local_values_see_their_own_observation_only(scope: str) -> None:
    encoder = mlp_encoder(scope=scope, state=False)
    reached = influence(encoder, inputs_for(encoder, state=False), "observation")
    for t in range(STEPS):
        assert torch.equal(reached[t, t], SAME_AGENT if scope == "local" else torch.ones_like(SAME_AGENT))
    assert torch.equal(reached.any(-1).any(-1), SAME_TIME)


def test_a_local_critic_has_no_state_and_a_centralized_one_has() -> None:
    inputs = inputs_for(mlp_encoder())
    moved = replace(inputs, state={**inputs.state, "position": inputs.state["position"] + 1})
    local, central = mlp_encoder(scope="local"), mlp_encoder()
    assert torch.equal(values(local, inputs), values(local, moved))
    assert not torch.equal(values(central, inputs), values(central, moved))


def _complete(inputs: CriticInputs) -> CriticInputs:
    adjacency = torch.ones_like(inputs.state["adjacency"])
    starts = torch.zeros_like(inputs.starts)
    return replace(inputs, state={**inputs.state, "adjacency": adjacency}, starts=starts)


def test_the_graph_recurrent_critic_sees_everybody_and_all_of_the_past() -> None:
    encoder = graph_encoder()
    reached = influence(encoder, _complete(inputs_for(encoder)), "observation")
    assert torch.equal(reached.any(-1).any(-1), PAST)
    assert all(bool(reached[t, t].all()) for t in range(STEPS))


@pytest.mark.parametrize("what", ["observation", "previous_action"])
def test_without_a_graph_a_node_knows_nothing_of_the_others(what: str) -> None:
    encoder = graph_encoder(graph=False)
    reached = influence(encoder, _complete(inputs_for(encoder)), what)
    assert not reached[:, :, ~SAME_AGENT].any()
    assert reached[:, :, SAME_AGENT].any()


def test_without_recurrence_a_value_knows_nothing_of_the_past() -> None:
    encoder = graph_encoder(recurrent=False)
    assert encoder.initial_memory(COPIES) is None
    reached = influence(encoder, _complete(inputs_for(encoder)), "observation")
    assert torch.equal(reached.any(-1).any(-1), SAME_TIME)


def test_the_past_ends_where_an_episode_starts() -> None:
    encoder = graph_encoder()
    inputs = _complete(inputs_for(encoder))
    inputs.starts[4] = True
    reached = influence(encoder, inputs, "observation").any(-1).any(-1)
    assert not reached[4:, :4].any()
    assert torch.equal(reached[4:, 4:], PAST[4:, 4:])


def test_one_attention_layer_reaches_the_neighbours_and_no_further() -> None:
    encoder = graph_encoder(layers=1, recurrent=False)
    inputs = _complete(inputs_for(encoder))
    chain = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]]).float()
    inputs.state["adjacency"][:] = chain
    reached = influence(encoder, inputs, "observation")
    assert all(torch.equal(reached[t, t], chain.bool()) for t in range(STEPS))


def test_the_dead_give_no_attention_and_get_none() -> None:
    encoder = graph_encoder(recurrent=False)
    alive = torch.ones(STEPS, COPIES, AGENTS, dtype=torch.bool)
    alive[:, :, 1] = False
    inputs = replace(_complete(inputs_for(encoder)), alive=alive)
    reached = influence(encoder, inputs, "previous_action")[0, 0]
    assert not reached[[0, 2], 1].any()
    assert not reached[1, [0, 2]].any()
    assert reached[0, 2]


def test_a_node_always_sees_itself() -> None:
    encoder = graph_encoder()
    inputs = inputs_for(encoder)
    with_self = replace(inputs, state={**inputs.state, "adjacency": torch.eye(AGENTS).expand(STEPS, COPIES, -1, -1)})
    without = replace(inputs, state={**inputs.state, "adjacency": torch.zeros(STEPS, COPIES, AGENTS, AGENTS)})
    assert torch.equal(values(encoder, with_self), values(encoder, without))


def test_uniform_attention_weighs_neighbours_equally() -> None:
    encoder = graph_encoder(attention="uniform")
    inputs = inputs_for(encoder)
    adjacency = inputs.state["adjacency"].bool()
    with torch.no_grad():
        _, _, weights = encoder.module(inputs, adjacency)
    expected = adjacency.float() / adjacency.sum(-1, keepdim=True)
    for alpha in weights:
        for head in range(2):
            torch.testing.assert_close(alpha[:, :, head], expected)


@pytest.mark.parametrize("attention", ["dot", "gatv2"])
def test_attention_weights_are_a_law_over_the_neighbours(attention: str) -> None:
    encoder = graph_encoder(attention=attention)
    inputs = inputs_for(encoder)
    adjacency = inputs.state["adjacency"].bool()
    with torch.no_grad():
        _, _, weights = encoder.module(inputs, adjacency)
    for alpha in weights:
        assert not alpha[~adjacency[:, :, None].expand_as(alpha)].any()
        torch.testing.assert_close(alpha.sum(-1), torch.ones_like(alpha[..., 0]))


def test_diagnostics_name_every_layer_and_head() -> None:
    encoder = graph_encoder(attention="uniform")
    scalars, maps = encoder.diagnostics(inputs_for(encoder))
    assert set(scalars) == {f"attention/entropy/layer{i}_head{h}" for i in range(2) for h in range(2)}
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in scalars.values())
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps.values())


def test_dense_and_torch_geometric_layers_give_critics_that_train_alike_in_shape() -> None:
    sparse = graph_encoder(attention="gatv2", backend="pyg")
    inputs = inputs_for(sparse)
    found = sparse.encode(None, inputs)
    assert found.values.shape == (STEPS, COPIES, AGENTS)
    assert bool(torch.isfinite(found.values).all())


def test_renaming_the_agents_renames_the_values() -> None:
    """One group: permuting agents with all that is theirs, their identity columns included, permutes the values."""
    group = GroupSpec("all", ("a", "b", "c"), {"observation": spaces.Box(-1, 1, (3,))}, {"action": spaces.Discrete(2)})
    spec = EnvSpec(id="test", num_envs=COPIES, groups=(group,), state=make_spec().state)
    encoder = graph_encoder(spec)
    noise = generator(3)
    base = make_inputs(memory=torch.randn(COPIES, AGENTS, 8, generator=noise))
    assert base.memory is not None
    inputs = replace(
        base,
        observation={"all": torch.randn(STEPS, COPIES, AGENTS, 3, generator=noise)},
        previous_action={"all": torch.randn(STEPS, COPIES, AGENTS, 2, generator=noise)},
    )
    order = torch.tensor([2, 0, 1])
    renamed = replace(
        inputs,
        observation={"all": inputs.observation["all"][:, :, order]},
        previous_action={"all": inputs.previous_action["all"][:, :, order]},
        state={**inputs.state, **{k: inputs.state[k][:, :, order][:, :, :, order] for k in ("edges", "adjacency")}},
        memory=base.memory[:, order],
    )
    other = copy.deepcopy(encoder)
    weight = other.module.get_parameter("embeddings.all.weight")
    with torch.no_grad():
        weight[:, 5:] = weight[:, 5:][:, order]  # 3 observed + 2 actions, then who one is
    torch.testing.assert_close(values(other, renamed), values(encoder, inputs)[:, :, order])


@pytest.mark.parametrize("state", [True, False], ids=["state", "no-state"])
@pytest.mark.parametrize("name", list(names("critics")))
def test_every_registered_critic_values_every_agent_and_repeats_itself(name: str, state: bool) -> None:
    entry = find("critics", name)
    config = entry.load_config()
    assert config is not None
    first, second = (entry.load()(config(), make_spec(state=state), generator=generator(2)) for _ in range(2))
    inputs = inputs_for(first, state=state)
    found = first.encode(None, inputs)
    assert found.values.shape == (STEPS, COPIES, AGENTS)
    assert torch.equal(values(second, inputs), values(first, inputs))
    given = {key: p.double() for key, p in first.module.named_parameters()}
    double = first.encode(given, inputs.to(torch.float64)).values
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), found.values, rtol=1e-3, atol=1e-4)
    outputs = sum(layer.bias.shape[-1] for layer in first.value_layers)
    assert outputs in (1, AGENTS, len(GROUPS))


def test_observed_statistics_keep_the_values() -> None:
    for scope in ("centralized", "local"):
        encoder = mlp_encoder(scope=scope, normalise_observation=True)
        inputs = inputs_for(encoder)
        shifted = replace(
            inputs,
            observation={k: 5 + 3 * x for k, x in inputs.observation.items()},
            state={**inputs.state, "position": 7 - 2 * inputs.state["position"]},
        )
        before = values(encoder, shifted)
        encoder.observe(shifted)
        torch.testing.assert_close(values(encoder, shifted), before, rtol=1e-4, atol=1e-5)
        scale = next(b for name, b in encoder.module.named_buffers() if name.endswith("scale"))
        assert not torch.equal(scale, torch.ones_like(scale))


@pytest.mark.parametrize("scope", ["centralized", "local"])
@pytest.mark.parametrize("normalise", [False, True])
def test_prepared_inputs_of_an_mlp_have_the_same_values(scope: str, normalise: bool):
    config = MlpCriticConfig(scope=scope, hidden=[8], normalise_observation=normalise)
    encoder = MlpEncoder(config, make_spec(), generator=generator())
    inputs = make_inputs()
    encoder.observe(inputs, first=True)
    index = torch.tensor([4, 1])
    prepared = encoder.prepare(inputs)
    assert not prepared.observation
    assert not prepared.state
    found = encoder.encode(None, prepared.environments(index)).values
    assert torch.equal(found, encoder.encode(None, inputs.environments(index)).values)
    windows = encoder.encode(None, prepared.windows(4, None)).values
    assert torch.equal(windows, encoder.encode(None, inputs.windows(4, None)).values)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_an_mlps_values_are_those_of_torchs_layers(activation: str):
    encoder = mlp_encoder(activation=activation, hidden=[16, 8])
    inputs = make_inputs()
    between = {"tanh": torch.nn.Tanh(), "relu": torch.nn.ReLU(), "silu": torch.nn.SiLU()}[activation]
    x = torch.cat([leaf.flatten(2) for name, leaf in inputs.state.items() if name not in ("edges", "adjacency")], -1)
    parameters = dict(encoder.module.named_parameters())
    weights = [p[0].mT for name, p in parameters.items() if name.endswith("weight")]
    biases = [p[0] for name, p in parameters.items() if name.endswith("bias")]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = torch.nn.functional.linear(x if index == 0 else between(x), weight, bias)
    torch.testing.assert_close(values(encoder, inputs), x.detach())
