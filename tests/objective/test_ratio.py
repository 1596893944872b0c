"""Objectives against the derivative that their definition has, point by point."""

from __future__ import annotations

import math

import pytest
import torch
from learning_examples import generator, make_policy, make_turn, play
from torch import Tensor

from marl_tr.objective.config import ClippedRatioConfig, SurrogateConfig
from marl_tr.objective.ratio import ClippedRatio, Surrogate, likelihood_ratio
from marl_tr.policy import Capability, PolicyBatch, masked_mean
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Turn
from marl_tr.registry import find, names

torch.set_num_threads(1)


OF_RATIOS = [
    name
    for name in names("objectives")
    if Capability.LOG_PROB in getattr(find("objectives", name).load_config()(), "requires", ())
]


def every_objective(**settings: float) -> list[Surrogate]:
    made = []
    for name in OF_RATIOS:
        config = find("objectives", name).load_config()
        assert config is not None
        made.append(find("objectives", name).load()(config(**settings)))
    assert len(made) >= 2
    return made


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.35])
def test_clip_gradient_is_zero_exactly_where_the_ratio_has_left_the_interval_the_good_way(clip: float) -> None:
    ratio = torch.linspace(0.3, 2.0, 341, dtype=torch.float64).repeat(2)
    # On the corner itself either one-sided derivative is right.
    ratio = ratio[((ratio - 1 - clip).abs() > 1e-9) & ((ratio - 1 + clip).abs() > 1e-9)].requires_grad_()
    advantage = torch.ones_like(ratio).detach()
    advantage[len(ratio) // 2 :] = -0.7
    ClippedRatio(ClippedRatioConfig(clip=clip)).gain(ratio, advantage).sum().backward()
    assert ratio.grad is not None
    zero = ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
    assert torch.equal(ratio.grad, torch.where(zero, 0, advantage))
    assert zero.any()
    assert not zero.all()


def test_clip_is_never_above_the_plain_surrogate() -> None:
    log_ratio = torch.randn(1000, generator=generator(), dtype=torch.float64)
    advantage = torch.randn(1000, generator=generator(1), dtype=torch.float64)
    plain = Surrogate(SurrogateConfig()).gain(log_ratio.exp(), advantage)
    clipped = ClippedRatio(ClippedRatioConfig()).gain(log_ratio.exp(), advantage)
    assert bool((clipped <= plain).all())


@pytest.mark.parametrize("name", OF_RATIOS)
def test_gradient_at_ratio_one_is_the_policy_gradient(name: str) -> None:
    config = find("objectives", name).load_config()
    assert config is not None
    objective = find("objectives", name).load()(config(entropy=0.0))
    advantage = torch.randn(50, generator=generator(3), dtype=torch.float64)
    log_prob = torch.randn(50, generator=generator(4), dtype=torch.float64)

    def gain(shift: Tensor) -> Tensor:
        return objective.gain(likelihood_ratio(log_prob + shift, log_prob), advantage)

    step = 1e-5
    at = (torch.tensor(sign * step, dtype=torch.float64) for sign in (1, -1))
    up, down = (gain(shift) for shift in at)
    slope = (up - down) / (2 * step)
    torch.testing.assert_close(slope, advantage, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OF_RATIOS)
def test_gain_of_a_policy_has_the_policy_gradient_by_finite_differences(name: str) -> None:
    config = find("objectives", name).load_config()
    assert config is not None
    policy = make_policy("beta", shared=True)
    turn = _double(make_turn(policy, play(policy), objective=find("objectives", name).load()(config(entropy=0.0))))
    parameters = {key: p.double().requires_grad_() for key, p in turn.learners.parameters([0]).items()}

    def log_prob_average(point: dict[str, Tensor]) -> Tensor:
        """E[A log pi], whose gradient is the policy gradient."""
        values = policy.evaluate(point, turn.batch).log_prob.squeeze(-1)
        return masked_mean(values * turn.advantage, turn.batch.mask).sum()

    gain = turn.objective.estimate(turn, parameters, _whole(turn)).gain.sum()
    gradient = torch.autograd.grad(gain, list(parameters.values()))
    for (key, p), g in zip(parameters.items(), gradient, strict=True):
        direction = torch.randn(p.shape, generator=generator(5), dtype=torch.float64)
        moved = [float(log_prob_average({**parameters, key: p + sign * 1e-5 * direction}).detach()) for sign in (1, -1)]
        assert float((g * direction).sum()) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("log_ratio", [50.0, -50.0, 1e4, -1e4])
def test_a_log_ratio_of_fifty_stays_finite(log_ratio: float) -> None:
    for objective in every_objective():
        for advantage in (3.0, -3.0):
            log_prob = torch.tensor([log_ratio], requires_grad=True)
            gain = objective.gain(likelihood_ratio(log_prob, torch.zeros(1)), torch.tensor([advantage]))
            gain.sum().backward()
            assert math.isfinite(float(gain.detach()))
            assert log_prob.grad is not None
            assert bool(torch.isfinite(log_prob.grad).all())


def test_ratio_is_exact_within_twenty_nats() -> None:
    log_ratio = torch.linspace(-19.9, 19.9, 101, dtype=torch.float64)
    torch.testing.assert_close(likelihood_ratio(log_ratio + 3, torch.full_like(log_ratio, 3.0)), log_ratio.exp())


@pytest.mark.parametrize("entropy", [0.0, 0.5])
def test_masked_decisions_contribute_exactly_nothing(entropy: float) -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    for objective in every_objective(entropy=entropy):
        clean = _gain_and_gradient(make_turn(policy, batch, objective=objective))
        absent = ~batch.mask
        wild = PolicyBatch(
            observation={"observation": torch.where(absent[..., None], 1e3, batch.observation["observation"])},
            record={"action": torch.where(absent[..., None], -77.0, batch.record["action"])},
            memory=None,
            starts=batch.starts,
            mask=batch.mask,
        )
        advantage = torch.randn(batch.mask.shape, generator=generator(102))
        turn = make_turn(policy, wild, objective=objective, advantage=torch.where(absent, 1e30, advantage))
        touched = _gain_and_gradient(turn)
        assert all(torch.equal(a, b) for a, b in zip(clean, touched, strict=True))


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e38])
def test_masked_mean_is_the_mean_of_the_rest_whatever_is_masked(junk: float) -> None:
    x, mask = torch.randn(3, 5, 4, generator=generator()), torch.rand(3, 5, 4, generator=generator(1)) < 0.6
    mask[2] = False
    found = masked_mean(torch.where(mask, x, junk), mask)
    assert found.tolist() == pytest.approx([float(x[0][mask[0]].mean()), float(x[1][mask[1]].mean()), 0.0])


def test_entropy_bonus_is_its_weight_times_the_mean_entropy() -> None:
    policy = make_policy("beta")
    batch = play(policy)
    with_bonus = make_turn(policy, batch, objective=Surrogate(SurrogateConfig(entropy=0.3)))
    without = make_turn(policy, batch, objective=Surrogate(SurrogateConfig()))
    bonus = _gain(with_bonus) - _gain(without)
    torch.testing.assert_close(bonus, 0.3 * masked_mean(with_bonus.old.entropy, batch.mask))


def _whole(turn: Turn) -> Samples:
    return Samples(turn.batch, turn.old.log_prob, turn.advantage)


def _gain(turn: Turn) -> Tensor:
    """Of the old parameters."""
    return turn.objective.estimate(turn, turn.learners.parameters(turn.rows), _whole(turn)).gain.detach()


def _gain_and_gradient(turn: Turn) -> list[Tensor]:
    parameters = {key: p.requires_grad_() for key, p in turn.learners.parameters(turn.rows).items()}
    gain = turn.objective.estimate(turn, parameters, _whole(turn)).gain
    return [gain.detach(), *torch.autograd.grad(gain.sum(), list(parameters.values()))]


def _double(turn: Turn) -> Turn:
    batch = turn.batch.to(torch.float64)
    parameters = {key: p.double() for key, p in turn.learners.parameters(turn.rows).items()}
    with torch.no_grad():
        old = turn.learners.policy.evaluate(parameters, batch)
    return Turn(
        learners=turn.learners,
        rows=turn.rows,
        batch=batch,
        advantage=turn.advantage.double(),
        objective=turn.objective,
        old=old,
        generator=turn.generator,
    )
