"""Actors that attend to entities: what they must not depend on, and what they refuse."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test
from pydantic import ValidationError

from marl_tr.agents.matr.agent import make
from marl_tr.agents.matr.config import MatrConfig
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.pettingzoo import DownlinkParallelEnv
from marl_tr.envs.uav.vector import make as make_env
from marl_tr.errors import UserError
from marl_tr.policy import PolicyBatch, Rows
from marl_tr.vector import GroupSpec

CONFIG = MatrConfig(
    network="mlp", encoder="entities", entity_width=16, hidden=[32], law="gaussian", normalise_observation=True
)
SHAPES = {"own": (8,), "others": (2, 7), "users": (5, 7)}


def group(shapes: dict[str, tuple[int, ...]] = SHAPES, agents: int = 3) -> GroupSpec:
    return GroupSpec(
        name="uav",
        agents=tuple(f"uav_{i}" for i in range(agents)),
        observation={name: gymnasium.spaces.Box(-np.inf, np.inf, shape) for name, shape in shapes.items()},
        action={"action": gymnasium.spaces.Box(-1.0, 1.0, (3,))},
    )


def policy(config: MatrConfig = CONFIG, *, shared: bool = False):
    return make(
        config,
        group(),
        rows=Rows(agents=3, shared=shared),
        generator=torch.Generator().manual_seed(1),
        device=torch.device("cpu"),
    )


def observations(seed: int, rows: int = 3, copies: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, 6, copies, *shape, generator=generator) for name, shape in SHAPES.items()}


def means(actors, seen: dict[str, torch.Tensor]) -> torch.Tensor:
    lead = seen["own"].shape[:3]
    batch = PolicyBatch(
        observation=seen,
        record={"action": torch.zeros(*lead, 3)},
        memory=None,
        starts=torch.zeros(lead, dtype=torch.bool),
        mask=torch.ones(lead, dtype=torch.bool),
    )
    parameters = dict(actors.module.named_parameters())
    with torch.no_grad():
        return actors.law_parameters(parameters, batch)[0]


def test_the_order_of_users_and_of_other_agents_does_not_matter() -> None:
    actors, seen = policy(), observations(2)
    shuffled = {**seen, "users": seen["users"][..., [3, 1, 4, 0, 2], :], "others": seen["others"][..., [1, 0], :]}
    torch.testing.assert_close(means(actors, shuffled), means(actors, seen), rtol=1e-5, atol=1e-7)
    moved = {**seen, "users": seen["users"] + 1}
    assert (means(actors, moved) - means(actors, seen)).abs().max() > 1e-5


def test_an_unseen_entity_is_as_good_as_none() -> None:
    actors, seen = policy(), observations(3)
    hidden = seen["users"].clone()
    hidden[..., 2:, :] = 0
    expected = means(actors, {**seen, "users": hidden[..., :2, :]})
    torch.testing.assert_close(means(actors, {**seen, "users": hidden}), expected, rtol=1e-5, atol=1e-7)


def test_nobody_in_sight_gives_finite_actions() -> None:
    actors, seen = policy(), observations(4)
    alone = {**seen, "users": torch.zeros_like(seen["users"]), "others": torch.zeros_like(seen["others"])}
    assert torch.isfinite(means(actors, alone)).all()


def test_one_head_pools_as_written_in_the_paper() -> None:
    config = CONFIG.model_copy(update={"entity_heads": 1, "normalise_observation": False})
    encoder = policy(config).module.encoder
    seen = {name: x[:1, :1, :1].double() for name, x in observations(5).items()}
    encoder.double()
    weight = {name: p[0] for name, p in encoder.named_parameters()}

    def embed(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ weight[f"embed.{name}.layers.0.weight"] + weight[f"embed.{name}.layers.0.bias"])

    own = embed("own", seen["own"][0, 0, 0])
    pooled = [own]
    for kind in ("others", "users"):
        entities = embed(kind, seen[kind][0, 0, 0])
        scores = own @ weight[f"source.{kind}.weight"] + weight[f"source.{kind}.bias"]
        scores = scores + entities @ weight[f"target.{kind}.weight"] + weight[f"target.{kind}.bias"]
        alpha = torch.softmax(torch.where(scores > 0, scores, 0.2 * scores).squeeze(-1), 0)
        pooled.append(sum(a * entity for a, entity in zip(alpha, entities, strict=True)))
    expected = torch.relu(torch.cat(pooled) @ weight["body.layers.0.weight"] + weight["body.layers.0.bias"])
    rows = {name: x.expand(3, -1, -1, *x.shape[3:]) for name, x in seen.items()}
    with torch.no_grad():
        torch.testing.assert_close(encoder(rows)[0, 0, 0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_moving_statistics_leave_the_law(shared: bool) -> None:
    actors = policy(shared=shared)
    seen = observations(6, rows=actors.rows.learners)
    before = means(actors, seen)
    raw = {name: 3 * torch.randn(7, 5, 3, *shape) + 2 for name, shape in SHAPES.items()}
    actors.observe(raw, torch.ones(7, 5, 3, dtype=torch.bool))
    torch.testing.assert_close(means(actors, seen), before, rtol=1e-4, atol=1e-6)
    assert actors.module.encoder.normalisers["users"].count == 7 * 5 * 3 * 5


def test_a_flat_observation_is_refused_with_the_cure() -> None:
    with pytest.raises(UserError, match=r"env\.config\.observation to entities"):
        make(
            CONFIG,
            group({"observation": (163,)}),
            rows=Rows(agents=3, shared=False),
            generator=torch.Generator(),
            device=torch.device("cpu"),
        )


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="entity_heads must divide entity_width"):
        MatrConfig(entity_width=10, entity_heads=4)


def test_the_environment_shows_the_same_numbers_as_tables() -> None:
    flat = make_env(num_envs=2, num_users=6).reset(3).groups["uav"].observation["observation"]
    tables = make_env(num_envs=2, num_users=6, observation="entities").reset(3).groups["uav"].observation
    assert {name: x.shape[2:] for name, x in tables.items()} == {"own": (8,), "others": (2, 7), "users": (6, 7)}
    beside = np.concatenate([x.reshape(2, 3, -1) for x in tables.values()], -1)
    np.testing.assert_array_equal(beside, flat)


def test_the_pettingzoo_view_has_a_dict_space_of_tables() -> None:
    env = DownlinkParallelEnv(DownlinkConfig(num_users=4, horizon=8, observation="entities"))
    parallel_api_test(env, num_cycles=20)
    observations, _ = env.reset(seed=1)
    assert env.observation_space("uav_0").contains(observations["uav_0"])


@pytest.mark.parametrize("hidden", ["nobody", "some", "all"])
def test_pooling_is_the_attention_of_the_docstring_entity_by_entity(hidden: str):
    actors = policy()
    encoder = actors.module.encoder
    seen = observations(3)
    if hidden != "nobody":
        seen["users"][:, :, 1, : 5 if hidden == "all" else 3] = 0
    parameters = {name: p.detach().double() for name, p in actors.module.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(
            encoder,
            {name.removeprefix("encoder."): p for name, p in parameters.items() if name.startswith("encoder.")},
            ({name: x.double() for name, x in seen.items()},),
        )

    def layer(name: str, row: int, x: np.ndarray) -> np.ndarray:
        return x @ parameters[f"{name}.weight"][row].numpy() + parameters[f"{name}.bias"][row].numpy()

    def embed(kind: str, row: int, x: np.ndarray) -> np.ndarray:
        return np.maximum(layer(f"encoder.embed.{kind}.layers.0", row, x), 0)

    for row, step, copy in [(0, 0, 0), (1, 2, 1), (2, 5, 3)]:
        own = embed("own", row, seen["own"][row, step, copy].double().numpy())
        joined = [own]
        for kind in ("others", "users"):
            table = seen[kind][row, step, copy].double().numpy()
            table = table[(table != 0).any(-1)]
            pooled = np.zeros(16)
            if len(table):
                entities = embed(kind, row, table)
                scores = layer(f"encoder.source.{kind}", row, own) + layer(f"encoder.target.{kind}", row, entities)
                scores = np.where(scores > 0, scores, 0.2 * scores)
                weights = np.exp(scores - scores.max(0))
                weights /= weights.sum(0)
                for head in range(4):
                    part = slice(4 * head, 4 * head + 4)
                    pooled[part] = weights[:, head] @ entities[:, part]
            joined.append(pooled)
        expected = np.maximum(layer("encoder.body.layers.0", row, np.concatenate(joined)), 0)
        np.testing.assert_allclose(found[row, step, copy].numpy(), expected, atol=1e-12)
