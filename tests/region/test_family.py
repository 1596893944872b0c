"""What every mechanism must do, whichever it is: parametrised over the registry (specification 8)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_examples import pairs, policy_of, region_of, turn_for
from learning_examples import generator, make_learners
from torch import Tensor

from marl_tr.policy import Parameters, masked_mean
from marl_tr.region.gradient import GradientRegion, Update
from marl_tr.region.samples import Pass, Samples
from marl_tr.region.turn import Turn

torch.set_num_threads(1)

PAIRS = pairs()


def test_the_mechanisms_known_are_among_those_tested() -> None:
    assert {"measured", "ppo_clip", "spo"} <= {name for name, _ in PAIRS}


def begun(region: GradientRegion, turn: Turn) -> Update:
    """An update before its first step, as `GradientRegion.propose` begins it."""
    update = Update(
        turn=turn,
        rows=region._rows(turn, 1.0),
        samples=region._samples(turn),
        memory=[dict(turn.learners.memory[row]) for row in turn.rows],
    )
    with torch.no_grad():
        region.prepare(update)
    return update


def gradient_of(region: GradientRegion, turn: Turn, parameters: Parameters, *, index: Tensor | None = None) -> Tensor:
    """Gradient of what the region maximises at `parameters`, on all samples or in another order: ``[R P]``."""
    update = begun(region, turn)
    samples = update.samples
    part: Samples = samples.part(Pass(torch.arange(samples.advantage.shape[2]) if index is None else index, None))
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    gain = region.estimate(update, leaves, part).gain.sum()
    found = torch.autograd.grad(gain, list(leaves.values()), allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves.values(), found, strict=True)]
    return torch.cat([g.flatten() for g in gradients])


def policy_gradient(turn: Turn, aggregation: str = "token_mean") -> Tensor:
    """Gradient of ``mean A log pi`` summed over the chain, by hand; turns have one episode a trajectory."""
    policy = turn.learners.policy
    leaves = {name: p.requires_grad_() for name, p in turn.learners.parameters(turn.rows).items()}
    log_prob = policy.evaluate(leaves, turn.batch).log_prob
    weight = policy.evaluate(leaves, turn.batch).weight
    gains = log_prob * turn.advantage.unsqueeze(-1) * (1 if weight is None else weight)
    per_decision, mask = gains.sum(-1), turn.batch.mask
    if aggregation == "token_mean":
        gain = masked_mean(per_decision, mask).sum()
    else:
        sums, counts = (per_decision * mask).sum(1), mask.sum(1)
        each = sums / counts.clamp_min(1) if aggregation == "trajectory_mean" else sums
        gain = (each.sum(-1) / (counts > 0).sum(-1)).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(gain, list(leaves.values()))])


def moved(turn: Turn, scale: float, seed: int = 3) -> Parameters:
    noise = generator(seed)
    old = turn.learners.parameters(turn.rows)
    return {name: p + scale * torch.randn(p.shape, generator=noise) for name, p in old.items()}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_at_the_old_policy_the_gradient_is_the_policy_gradient_times_a_known_factor(name: str, kind: str) -> None:
    region = region_of(name)
    factor = region.unit_gradient
    if factor is None:
        pytest.skip("its gradient has another direction there, by design")
    turn = turn_for(policy_of(kind))
    found = gradient_of(region, turn, turn.learners.parameters(turn.rows))
    expected = factor * policy_gradient(turn, getattr(region.config, "aggregation", "token_mean"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_without_advantages_nothing_pushes_away_from_the_old_policy(name: str, kind: str) -> None:
    """Only what pulls back may be left, and at the old policy nothing is to be pulled back."""
    region = region_of(name)
    turn = turn_for(policy_of(kind))
    labels = turn.labels | {name: torch.zeros_like(turn.labels[name]) for name in ("score", "raw_advantage")}
    turn = replace(turn, advantage=torch.zeros_like(turn.advantage), labels=labels)
    found = gradient_of(region, turn, turn.learners.parameters(turn.rows))
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_decisions_that_are_masked_out_count_nothing(name: str, kind: str) -> None:
    region = region_of(name)
    turn = turn_for(policy_of(kind))
    hidden = ~turn.batch.mask
    assert bool(hidden.any())
    wild = replace(turn, advantage=torch.where(hidden, 1e6, turn.advantage))
    point = moved(turn, 0.05)
    torch.testing.assert_close(gradient_of(region, wild, point), gradient_of(region, turn, point))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_order_of_a_minibatch_does_not_matter(name: str, kind: str) -> None:
    region = region_of(name)
    turn = turn_for(policy_of(kind))
    size = begun(region, turn).samples.advantage.shape[2]
    order = torch.randperm(size, generator=generator(4))
    point = moved(turn, 0.05)
    expected = gradient_of(region, turn, point)
    scale = float(expected.abs().max())
    torch.testing.assert_close(gradient_of(region, turn, point, index=order), expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("gap", [50.0, -50.0])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_log_ratios_of_fifty_leave_everything_finite(name: str, kind: str, gap: float) -> None:
    region = region_of(name)
    turn = turn_for(policy_of(kind))
    old = replace(turn.old, log_prob=turn.old.log_prob - gap)
    found = gradient_of(region, replace(turn, old=old), turn.learners.parameters(turn.rows))
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] == "categorical"])
@pytest.mark.parametrize("sharpness", [1e3, -1e3], ids=["certain", "impossible"])
def test_probabilities_of_one_and_zero_leave_everything_finite(name: str, kind: str, sharpness: float) -> None:
    """All policies become (nearly) certain of one choice: the taken one has probability 1, or about 1e-12 and less."""
    region = region_of(name)
    policy = policy_of(kind)
    turn = turn_for(policy)
    choice = turn.batch.record["action"]
    learners = make_learners(policy)
    with torch.no_grad():
        bias = dict(policy.module.named_parameters())["head.bias"]
        bias[..., 0] += sharpness
    record = {"action": torch.zeros_like(choice)}
    batch = replace(turn.batch, record=record)
    with torch.no_grad():
        old = policy.evaluate(learners.parameters(turn.rows), batch)
    turn = replace(turn, learners=learners, batch=batch, old=old)
    assert bool(torch.isfinite(gradient_of(region, turn, moved(turn, 0.05))).all())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_proposal_changes_nothing_and_says_how_far_it_reaches(name: str, kind: str) -> None:
    region = region_of(name)
    turn = turn_for(policy_of(kind))
    before = turn.learners.parameters(turn.rows)
    candidate = region.propose(turn)
    after = turn.learners.parameters(turn.rows)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(turn.learners.memory)
    assert any(not torch.equal(candidate.parameters[key], before[key]) for key in before)
    if hasattr(region, "reach"):
        reach = region.reach(turn, turn.measure(candidate.parameters))
        assert reach.value.shape == (len(turn.rows),)
        assert bool(torch.isfinite(reach.value).all())
        assert reach.limit > 0
        assert bool((region.reach(turn, turn.measure(before)).value.abs() < 1e-5).all())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_configuration_and_region_say_the_same(name: str, kind: str) -> None:
    region = region_of(name)
    config = region.config
    assert region.own_guarantee == type(config).guarantee
    assert {str(need) for need in region.needs} == set(getattr(config, "needs", frozenset()))
    assert {str(capability) for capability in region.requires} == set(getattr(config, "requires", frozenset()))
    assert region_of(name, bound=0.01).guarantee == "hard"
