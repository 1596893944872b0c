"""Projected choices in the loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_examples import policy_of, region_of, turn_for
from gymnasium import spaces
from learning_examples import SPACES, generator, make_policy
from torch import Tensor

from marl_tr.policy import Parameters, masked_mean
from marl_tr.region.family.projected import Projected
from marl_tr.region.family.troll import kept_choices, sparse_new, sparse_old
from marl_tr.region.gradient import GradientRegion, Update
from marl_tr.region.samples import Pass
from marl_tr.region.turn import Turn

torch.set_num_threads(1)


def moved(turn: Turn, scale: float) -> Parameters:
    noise = generator(3)
    old = turn.learners.parameters(turn.rows)
    return {name: p + scale * torch.randn(p.shape, generator=noise) for name, p in old.items()}


def seen(region: GradientRegion, turn: Turn, parameters: Parameters) -> tuple[Tensor, Projected]:
    """Gain, and projection, on all samples."""
    update = Update(turn, region._rows(turn, 1.0), region._samples(turn), [{} for _ in turn.rows])
    samples = update.samples.part(Pass(torch.arange(update.samples.advantage.shape[2]), None))
    return region.estimate(update, parameters, samples).gain, region.project(update, parameters, samples)


def test_the_loss_is_that_of_the_paper() -> None:
    """By hand, with the multiplier by bisection of one decision's KL."""
    region = region_of("troll", epsilon=0.02, alpha=0.7)
    turn = turn_for(policy_of("categorical"))
    point = moved(turn, 0.4)
    found, _ = seen(region, turn, point)
    with torch.no_grad():
        p = turn.learners.policy.evaluate(point, turn.batch).law.laws["action"].log_probabilities.double()
    q = turn.old.law.laws["action"].log_probabilities.double()
    low, high = torch.zeros_like(p[..., :1]), torch.full_like(p[..., :1], 1e6)
    beyond = (p.exp() * (p - q)).sum(-1, keepdim=True) > 0.02
    for _ in range(200):
        eta = (low + high) / 2
        mixed = torch.log_softmax((p + eta * q) / (1 + eta), -1)
        far = (mixed.exp() * (mixed - q)).sum(-1, keepdim=True) > 0.02
        low, high = torch.where(far, eta, low), torch.where(far, high, eta)
    projected = torch.where(beyond, torch.log_softmax((p + high * q) / (1 + high), -1), p)
    taken = turn.batch.record["action"].unsqueeze(-1)
    ratio = (projected - q).gather(-1, taken).squeeze(-1).exp()
    pull = (p.exp() * (p - projected)).sum(-1)
    expected = masked_mean(ratio * turn.advantage - 0.7 * pull, turn.batch.mask)
    assert 0.2 < float(beyond.double().mean()) < 1
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("law", ["categorical", "multidiscrete"])
def test_an_infinite_bound_makes_it_the_unclipped_surrogate(law: str) -> None:
    turn = turn_for(make_policy(law, agents=2))
    plain = region_of("measured").propose(replace(turn, generator=generator(4)))
    found = region_of("troll", epsilon=1e9).propose(replace(turn, generator=generator(4)))
    for name, p in plain.parameters.items():
        torch.testing.assert_close(found.parameters[name], p)


@pytest.mark.parametrize("law", ["categorical", "multidiscrete"])
def test_as_many_as_there_are_is_dense(law: str) -> None:
    turn = turn_for(make_policy(law, agents=2))
    point = moved(turn, 0.4)
    dense, _ = seen(region_of("troll", top=None), turn, point)
    sparse, _ = seen(region_of("troll", top=5), turn, point)
    assert torch.equal(dense, sparse)
    few, _ = seen(region_of("troll", top=1), turn, point)
    assert bool(torch.isfinite(few).all())
    assert not torch.equal(dense, few)


def test_of_many_choices_nothing_is_projected_before_anything_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new policy's choices are about even: cutting off the old law's tail would part it from itself."""
    monkeypatch.setitem(SPACES, "wide", spaces.Discrete(100))
    turn = turn_for(make_policy("wide", agents=2, hidden=[6]))
    old = turn.learners.parameters(turn.rows)
    found, projected = seen(region_of("troll"), turn, old)
    assert not bool(projected.distance.any())
    torch.testing.assert_close(found, masked_mean(turn.advantage, turn.batch.mask))
    _, cut = seen(region_of("troll", top=64), turn, old)
    assert bool((cut.distance > 0).all())


def test_sparse_laws_keep_their_mass_and_the_gradient_of_the_rest() -> None:
    logits = torch.randn(20, 9, generator=generator(1), dtype=torch.float64).requires_grad_()
    log_p = torch.log_softmax(2 * logits, -1)
    log_q = torch.log_softmax(2 * torch.randn(20, 9, generator=generator(2), dtype=torch.float64), -1)
    taken = torch.arange(20) % 9
    allowed = torch.ones(20, 9, dtype=torch.bool)
    kept = kept_choices(log_p.detach(), log_q, taken, top=2)
    assert bool(kept.gather(-1, taken.unsqueeze(-1)).all())
    assert int(kept.sum(-1).min()) >= 2
    assert int(kept.sum(-1).max()) <= 5
    new, old = sparse_new(log_p, kept, allowed), sparse_old(log_q, kept, allowed)
    for law in (new.detach(), old):
        torch.testing.assert_close(law.exp().sum(-1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(new[kept], log_p[kept])
    rest = ~kept
    mass = (log_p.exp() * rest).sum(-1, keepdim=True) / rest.sum(-1, keepdim=True)
    torch.testing.assert_close(new.exp()[rest], mass.expand(-1, 9)[rest])
    assert torch.autograd.gradcheck(lambda x: sparse_new(torch.log_softmax(x, -1), kept, allowed), [logits])


def test_its_own_law_acts_and_is_what_stops_and_regularisers_see() -> None:
    region = region_of("troll", epsilon=1e-3)
    policy = policy_of("categorical")
    assert region.deployed(policy) is policy
    turn = turn_for(policy)
    point = moved(turn, 0.4)
    _, found = seen(region, turn, point)
    own = found.acting.log_prob
    assert not torch.allclose(found.evaluation.log_prob, own)
