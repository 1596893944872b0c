"""Gradient norms by chain step against Jacobians written out by autograd, and what the equalizer does to them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import generator, make_flow, make_policy
from torch import Tensor

from marl_tr.policy import Policy, PolicyBatch
from marl_tr.region.chain_gradients import ChainGradientNorms, chain_gradient_norms, learners_gradient_norms
from marl_tr.region.turn import Learners


def a_batch(policy: Any, time: int = 2, trajectories: int = 3) -> PolicyBatch:
    """Decisions of every learner as the policy takes them."""
    rows, random = policy.rows.learners, generator(1)
    observation = {"observation": torch.randn(rows, time, trajectories, 4, generator=random)}
    records = [policy.act({leaf: x[:, t] for leaf, x in observation.items()}, None, random).record for t in range(time)]
    return PolicyBatch(
        observation=observation,
        record={leaf: torch.stack([record[leaf] for record in records], 1) for leaf in records[0]},
        memory=None,
        starts=torch.zeros(rows, time, trajectories, dtype=torch.bool),
        mask=torch.ones(rows, time, trajectories, dtype=torch.bool),
    )


def by_hand(policy: Policy, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
    """Mean norms ``[K]`` of the rows of one Jacobian, raw and weighted."""
    names = [name for name, _ in policy.module.named_parameters()]
    values = tuple(p.detach().clone() for _, p in policy.module.named_parameters())

    def log_probs(*parameters: Tensor) -> Tensor:
        found = policy.evaluate(dict(zip(names, parameters, strict=True)), batch)
        weight = torch.ones(()) if found.weight is None else found.weight
        return torch.stack([found.log_prob[0], (found.log_prob * weight)[0]])

    jacobian = torch.autograd.functional.jacobian(log_probs, values)  # each [2, T, N, K, ...]
    squares = sum(part.double().flatten(4).square().sum(-1) for part in jacobian)
    assert isinstance(squares, Tensor)
    raw, weighted = squares.sqrt()[:, batch.mask[0]].mean(1)
    return raw, weighted


@pytest.mark.parametrize("settings", [{}, {"sampler": "cps", "cps_log_prob": "surrogate"}, {"sde_window": (1, 3)}])
def test_norms_are_those_of_the_rows_of_the_jacobian(settings: dict[str, Any]) -> None:
    policy = make_flow(**settings)
    batch = a_batch(policy)
    batch = replace(batch, mask=torch.tensor([[[True, False, True], [True, True, False]]]))
    parameters = {name: p.detach() for name, p in policy.module.named_parameters()}
    norms = chain_gradient_norms(policy, parameters, batch)
    raw, weighted = by_hand(policy, batch)
    torch.testing.assert_close(norms.raw, raw, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(norms.weighted, weighted, rtol=1e-5, atol=1e-7)
    assert norms.raw.dtype == torch.float64
    # Deterministic steps pull on nothing.
    if "sde_window" in settings:
        assert (norms.raw > 0).tolist() == [False, True, True, False]


def test_of_many_decisions_some_are_taken_that_are_spread_evenly() -> None:
    policy = make_flow()
    batch = a_batch(policy, time=1, trajectories=9)
    parameters = {name: p.detach() for name, p in policy.module.named_parameters()}
    some = chain_gradient_norms(policy, parameters, batch, decisions=3)
    chosen = batch.trajectories(torch.tensor([0, 4, 8]))
    torch.testing.assert_close(some.raw, by_hand(policy, chosen)[0], rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in policy.module.parameters())


def test_every_learner_has_its_own_and_policies_without_a_chain_have_none() -> None:
    policy = make_flow(shared=False)
    batch = a_batch(policy)
    batch.mask[1] = False
    found = learners_gradient_norms(Learners(policy, ("left", "right")), batch)
    assert set(found) == {"left"}
    alone = chain_gradient_norms(
        policy, {name: p.detach()[:1] for name, p in policy.module.named_parameters()}, batch.rows([0])
    )
    np.testing.assert_allclose(found["left"]["gradient_norm"], alone.raw)
    np.testing.assert_allclose(found["left"]["gradient_norm_weighted"], alone.weighted)
    for network in ("mlp", "gru"):
        plain = make_policy(network=network)
        learners = Learners(plain, tuple(f"agent_{i}" for i in range(3)))
        blank = PolicyBatch(
            observation={"observation": torch.zeros(3, 2, 2, 4)},
            record={"action": torch.zeros(3, 2, 2, 2)},
            memory=plain.initial_memory(2),
            starts=torch.zeros(3, 2, 2, dtype=torch.bool),
            mask=torch.ones(3, 2, 2, dtype=torch.bool),
        )
        assert learners_gradient_norms(learners, blank) == {}


def test_the_equalizer_brings_the_norms_of_a_long_chain_together() -> None:
    policy = make_flow(steps=20, shift=5.0, seed=3)
    batch = a_batch(policy, time=1, trajectories=32)
    parameters = {name: p.detach() for name, p in policy.module.named_parameters()}
    norms = chain_gradient_norms(policy, parameters, batch)
    assert ChainGradientNorms.spread(norms.raw) > 20
    assert ChainGradientNorms.spread(norms.weighted) < ChainGradientNorms.spread(norms.raw) / 5


def test_a_spread_is_largest_over_least_of_the_steps_that_have_a_gradient() -> None:
    assert ChainGradientNorms.spread(torch.tensor([0.0, 2.0, 8.0])) == pytest.approx(4.0)
    assert math.isclose(ChainGradientNorms.spread(torch.zeros(3)), 1.0)


def test_what_has_no_norms_by_step_is_refused() -> None:
    policy = make_flow(shared=False)
    batch = a_batch(policy)
    parameters = {name: p.detach()[:1] for name, p in policy.module.named_parameters()}
    with pytest.raises(ValueError, match="one learner without memory, and of whole chains"):
        chain_gradient_norms(policy, parameters, batch)
    one = batch.rows([0])
    with pytest.raises(ValueError, match="whole chains"):
        chain_gradient_norms(policy, parameters, replace(one, chain=torch.zeros(1, 2, 3, 1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="no decision"):
        chain_gradient_norms(policy, parameters, replace(one, mask=torch.zeros_like(one.mask)))
