"""Policies with masks, against laws enumerated choice by choice in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from learning_examples import frozen, generator, make_learners, make_region, make_turn
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.policy import Parameters, Policy, PolicyBatch, Rows, masked_mean
from marl_tr.region.guard import Guard
from marl_tr.region.natural_step import gauss_newton_matvec
from marl_tr.registry import find
from marl_tr.vector.contract import GroupSpec

torch.set_num_threads(1)

PICK, ARMS = 4, (3, 2)
GROUP = GroupSpec(
    "group",
    ("a", "b"),
    {
        "own": spaces.Box(-1, 1, (3,)),
        "others": spaces.Box(-1, 1, (2, 2)),
        "pixels": spaces.Box(0, 255, (2, 2, 1), np.uint8),
        "may_pick": spaces.MultiBinary(PICK),
        "may_arm": spaces.MultiBinary(sum(ARMS)),
    },
    {"pick": spaces.Discrete(PICK, start=5), "arms": spaces.MultiDiscrete(ARMS)},
    masks={"pick": "may_pick", "arms": "may_arm"},
)
EVERY = pytest.mark.parametrize(
    ("encoder", "network", "shared"), list(itertools.product(("flat", "entities"), ("mlp", "gru"), (True, False)))
)


def make(
    encoder: str = "flat", network: str = "mlp", *, shared: bool = True, group: GroupSpec = GROUP, **more: Any
) -> Policy:
    entry = find("agents", "matr")
    settings = {"hidden": [6], "head_gain": 1.0, "entity_width": 4, "entity_heads": 2, "activation": "tanh", **more}
    config = entry.load_config()(network=network, encoder=encoder, **settings)  # type: ignore[misc]
    rows = Rows(len(group.agents), shared)
    policy: Policy = entry.load()(config, group, rows=rows, generator=generator(3), device=torch.device("cpu"))
    return policy


def observe(policy: Policy, *lead: int, seed: int = 0) -> dict[str, Tensor]:
    """Random observations ``[L, *lead, ...]`` whose masks differ everywhere, some of zeros alone."""
    noise = generator(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(policy.rows.learners, *lead, *shape, generator=noise)

    return {
        "own": 2 * uniform(3) - 1,
        "others": 2 * uniform(2, 2) - 1,
        "pixels": (255 * uniform(2, 2, 1)).to(torch.uint8),
        "may_pick": (uniform(PICK) < 0.4).to(torch.int8),
        "may_arm": (uniform(sum(ARMS)) < 0.4).to(torch.int8),
    }


def allowed(observation: dict[str, Tensor]) -> list[Tensor]:
    """Of each of the three choices, ``[..., n]`` bool; none forbidden where none is allowed."""
    parts = [observation["may_pick"], *observation["may_arm"].split(ARMS, -1)]
    return [(part != 0) | ~(part != 0).any(-1, keepdim=True) for part in parts]


def chosen(record: dict[str, Tensor]) -> list[Tensor]:
    return [record["pick"], *record["arms"].unbind(-1)]


def play(policy: Policy, steps: int = 3, count: int = 5) -> PolicyBatch:
    observation = observe(policy, steps, count)
    noise, memory = generator(7), policy.initial_memory(count)
    first, records = memory, []
    for t in range(steps):
        with torch.no_grad():
            action = policy.act({leaf: x[:, t] for leaf, x in observation.items()}, memory, noise)
        memory = action.memory
        records.append(action.record)
    lead = (policy.rows.learners, steps, count)
    return PolicyBatch(
        observation=observation,
        record={leaf: torch.stack([r[leaf] for r in records], 1) for leaf in records[0]},
        memory=first,
        starts=torch.zeros(lead, dtype=torch.bool),
        mask=torch.rand(lead, generator=noise) < 0.7,
    )


def tables(policy: Policy, parameters: Parameters, batch: PolicyBatch) -> list[Tensor]:
    """Probabilities of each choice ``[L, T, N, n]``, by exponentials over the allowed alone."""
    pick, arms = policy.law_parameters(parameters, batch)
    logits = [pick, *arms.split(ARMS, -1)]
    weights = [x.exp() * free for x, free in zip(logits, allowed(batch.observation), strict=True)]
    return [w / w.sum(-1, keepdim=True) for w in weights]


def double(policy: Policy) -> Parameters:
    return {name: p.double() for name, p in frozen(policy).items()}


def moved(parameters: Parameters, seed: int, size: float = 0.3) -> Parameters:
    noise = generator(seed)
    return {name: p + size * torch.randn(p.shape, generator=noise, dtype=p.dtype) for name, p in parameters.items()}


@EVERY
def test_no_forbidden_choice_is_ever_made(encoder: str, network: str, shared: bool) -> None:
    policy = make(encoder, network, shared=shared, head_gain=5.0)
    noise, forbidden, free = generator(1), 0, 0
    for seed in range(30):
        observation = observe(policy, 40, seed=seed)
        memory = policy.initial_memory(40)
        action = policy.act(observation, memory, noise, mode=seed % 3 == 0)
        for choice, free_now in zip(chosen(action.record), allowed(observation), strict=True):
            assert bool(free_now.gather(-1, choice.unsqueeze(-1)).all())
            free += int(free_now.sum())
            forbidden += int((~free_now).sum())
    assert min(forbidden, free) > 1000


@EVERY
def test_log_probabilities_entropies_and_divergences_are_those_of_the_enumerated_law(
    encoder: str, network: str, shared: bool
) -> None:
    policy = make(encoder, network, shared=shared)
    batch = play(policy).to(torch.float64)
    old, new = double(policy), moved(double(policy), 4)
    evaluation = policy.evaluate(old, batch)
    before, after = tables(policy, old, batch), tables(policy, new, batch)
    log_prob = sum(
        p.gather(-1, choice.unsqueeze(-1)).squeeze(-1).log()
        for p, choice in zip(before, chosen(batch.record), strict=True)
    )
    assert isinstance(log_prob, Tensor)
    torch.testing.assert_close(evaluation.log_prob.squeeze(-1), log_prob, rtol=1e-9, atol=1e-9)

    def summed(of: Any) -> Tensor:
        # Choice by choice, so that 0 log 0 is left out by an if and not by arithmetic.
        total = torch.zeros(batch.mask.shape, dtype=torch.float64)
        for p, q in zip(before, after, strict=True):
            for at in itertools.product(*(range(n) for n in p.shape[:-1])):
                total[at] += sum(of(float(a), float(b)) for a, b in zip(p[at], q[at], strict=True) if a > 0)
        return total

    assert evaluation.entropy is not None
    torch.testing.assert_close(evaluation.entropy, summed(lambda p, q: -p * np.log(p)), rtol=1e-9, atol=1e-9)
    divergence = policy.divergence(evaluation.law, policy.evaluate(new, batch).law).squeeze(-1)
    torch.testing.assert_close(divergence, summed(lambda p, q: p * np.log(p / q)), rtol=1e-9, atol=1e-9)
    for p in (*before, *after):
        assert bool((p == 0).any())


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_fisher_products_are_those_of_the_enumerated_scores(network: str) -> None:
    policy = make(network=network)
    batch = play(policy, steps=2, count=2).to(torch.float64)
    parameters = double(policy)
    names = list(parameters)

    def logs(flat: Tensor) -> Tensor:
        parts = flat.split([parameters[name].numel() for name in names])
        leaves = {n: part.view_as(parameters[n]) for n, part in zip(names, parts, strict=True)}
        return torch.cat([p.clamp_min(1e-300).log() for p in tables(policy, leaves, batch)], -1)

    flat = torch.cat([parameters[name].flatten() for name in names])
    scores = torch.autograd.functional.jacobian(logs, flat)  # [1, T, N, 9, P]
    p = logs(flat).exp().unsqueeze(-1)
    p = torch.where(p > 1e-200, p, 0)
    assert isinstance(scores, Tensor)
    # The three choices are independent, and mean scores zero: their information adds up.
    fisher = torch.einsum("ltncp,ltncq->pq", torch.where(p > 0, scores, 0) * p.sqrt(), scores * p.sqrt())

    law = policy.evaluate(parameters, batch).law
    matvec, _ = gauss_newton_matvec(
        lambda q: policy.law_parameters(q, batch), parameters, lambda v: policy.fisher_product(law, v)
    )
    for seed in range(3):
        v = torch.randn(len(flat), generator=generator(seed), dtype=torch.float64)
        torch.testing.assert_close(matvec(v), fisher @ v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_natural_steps_keep_their_bound_of_the_enumerated_divergence(network: str, shared: bool) -> None:
    policy = make(network=network, shared=shared)
    learners, region = make_learners(policy), make_region("trpo", bound=0.01, subsample=0.5)
    batch = play(policy, steps=6, count=12)
    turn, before = make_turn(policy, batch, learners=learners), double(policy)
    reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    exact = batch.to(torch.float64)
    old, new = tables(policy, before, exact), tables(policy, double(policy), exact)
    divergence = sum(torch.where(p > 0, p * (p / q).log(), 0).sum(-1) for p, q in zip(old, new, strict=True))
    assert isinstance(divergence, Tensor)
    for report, measured in zip(reports, masked_mean(divergence, batch.mask).tolist(), strict=True):
        assert report.outcome == "accepted"
        assert report.surrogate_gain > 0
        assert report.accepted == pytest.approx(measured, rel=1e-3, abs=1e-7)
        assert measured <= 0.01 * (1 + 1e-6)
        # What a sequential schedule multiplies: the ratio of the action that was taken.
        row = reports.index(report)
        ratio = sum(
            (q.gather(-1, c.unsqueeze(-1)) / p.gather(-1, c.unsqueeze(-1))).squeeze(-1)[row].log()
            for p, q, c in zip(old, new, chosen(batch.record), strict=True)
        )
        assert isinstance(ratio, Tensor)
        torch.testing.assert_close(report.log_ratio.squeeze(-1).double(), ratio, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("encoder", ["flat", "entities"])
def test_networks_and_their_statistics_see_no_masks(encoder: str) -> None:
    policy = make(encoder, normalise_observation=True)
    observation = observe(policy, 4, 5)
    other = observation | {leaf: 1 - observation[leaf] for leaf in ("may_pick", "may_arm")}
    lead = (policy.rows.learners, 4, 5)
    nothing = torch.zeros(lead, dtype=torch.bool)
    outputs = [
        policy.law_parameters(frozen(policy), PolicyBatch(seen, {}, None, nothing, ~nothing))
        for seen in (observation, other)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    states = []
    for seen in (observation, other):
        again = make(encoder, normalise_observation=True)
        by_agent = {leaf: x[0].unflatten(1, (-1, 1)) for leaf, x in seen.items()}
        again.observe(by_agent, torch.ones(4, 5, 1, dtype=torch.bool), first=True)
        states.append(again.state_dict()["module"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": {"pick": "own"}}, r"'pick' has 4 choices, and its mask 'own' the shape \(3,\)"),
        ({"masks": {"pick": "nowhere"}}, "no such leaves"),
        ({"masks": {"move": "may_pick"}, "action": {"move": spaces.Box(-1, 1, (4,))}}, "a mask forbids choices"),
        ({"observation": {"may_pick": spaces.MultiBinary(PICK)}, "masks": {"pick": "may_pick"}}, "masks alone"),
    ],
)
def test_masks_that_fit_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    fields = {"observation": GROUP.observation, "action": GROUP.action, "masks": GROUP.masks, **change}
    with pytest.raises(UserError, match=message):
        make(group=GroupSpec("group", ("a",), **fields))


@pytest.mark.parametrize("kind", ["drifting", "flow"])
def test_agents_of_continuous_actions_refuse_choices_and_name_who_takes_them(kind: str) -> None:
    entry = find("agents", kind)
    settings = {"network": {"kind": "mlp"}} if kind == "flow" else {}
    config = entry.load_config()(**settings)  # type: ignore[misc]
    with pytest.raises(UserError, match=r"one continuous action.*use agents of kind 'gaussian'"):
        entry.load()(config, GROUP, rows=Rows(2, True), generator=generator(), device=torch.device("cpu"))
