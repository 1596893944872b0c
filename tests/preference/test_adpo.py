"""Anchored DPO: its derivatives at the anchor, what it reduces to, and the targets."""

from __future__ import annotations

import math

import pytest
import torch
from preference_examples import candidates_of, generator

from marl_tr.preference.adpo import Adpo, adpo_loss, group_target
from marl_tr.preference.config import AdpoConfig

torch.set_num_threads(1)

TAU = 0.8


def target(size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=generator(seed), dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("size", [2, 5])
def test_gradient_at_the_anchor_is_that_of_the_specification(size: int) -> None:
    anchor = torch.randn(size, generator=generator(1), dtype=torch.float64)
    log_prob, q = anchor.clone().requires_grad_(), target(size)
    (gradient,) = torch.autograd.grad(adpo_loss(log_prob, anchor, q, temperature=TAU), log_prob)
    torch.testing.assert_close(gradient, (1 / size - q) / TAU, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [2, 5])
def test_hessian_at_the_anchor_is_that_of_the_specification(size: int) -> None:
    anchor, q = torch.randn(size, generator=generator(1), dtype=torch.float64), target(size)
    hessian = torch.autograd.functional.hessian(lambda x: adpo_loss(x, anchor, q, temperature=TAU), anchor)
    p = torch.full((size,), 1 / size, dtype=torch.float64)
    torch.testing.assert_close(hessian, (p.diag() - p.outer(p)) / TAU**2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("beta", [0.05, 1.0, 3.0])
def test_a_pair_with_all_on_one_is_dpo(beta: float) -> None:
    x = torch.randn(4, 50, generator=generator(2), dtype=torch.float64)
    chosen, rejected, chosen_ref, rejected_ref = x
    ours = adpo_loss(
        torch.stack([chosen, rejected], -1),
        torch.stack([chosen_ref, rejected_ref], -1),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        temperature=1 / beta,
    )
    dpo = torch.log1p(torch.exp(-beta * ((chosen - chosen_ref) - (rejected - rejected_ref))))
    torch.testing.assert_close(ours, dpo, rtol=1e-12, atol=1e-12)


def test_what_shifts_a_whole_group_changes_nothing() -> None:
    x = torch.randn(2, 6, generator=generator(3), dtype=torch.float64)
    losses = [adpo_loss(x[0] + shift, x[1], target(6), temperature=TAU) for shift in (0.0, 7.5, -300.0)]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(3), rtol=1e-12, atol=1e-12)


def test_padding_changes_nothing() -> None:
    x, q = torch.randn(2, 3, generator=generator(4), dtype=torch.float64), target(3)
    wide = torch.cat([x, torch.full((2, 2), 50.0, dtype=torch.float64)], -1)
    valid = torch.tensor([True, True, True, False, False])
    padded = wide[0].requires_grad_()
    loss = adpo_loss(padded, wide[1], torch.cat([q, torch.zeros(2)]), temperature=TAU, valid=valid)
    torch.testing.assert_close(loss.detach(), adpo_loss(x[0], x[1], q, temperature=TAU))
    (gradient,) = torch.autograd.grad(loss, padded)
    assert torch.isfinite(gradient).all()
    assert not gradient[3:].any()


def test_targets_by_hand() -> None:
    score = torch.tensor([[1.0, 3.0, 5.0, 99.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    q = group_target(score, valid, AdpoConfig(score_temperature=0.5))
    # Population deviation of 1, 3, 5 is sqrt(8/3).
    z = [math.exp(v / math.sqrt(8 / 3) / 0.5) for v in (-2, 0, 2)]
    expected = torch.tensor([v / sum(z) for v in z] + [0.0], dtype=torch.float64)
    torch.testing.assert_close(q[0], expected)
    torch.testing.assert_close(q[1], torch.full((4,), 0.25, dtype=torch.float64))
    best = group_target(score, valid, AdpoConfig(target="best", smoothing=0.3))
    torch.testing.assert_close(best[0], torch.tensor([0.1, 0.1, 0.8, 0], dtype=torch.float64))
    given = group_target(score, valid, AdpoConfig(target="given"))
    torch.testing.assert_close(given[0], torch.tensor([1 / 9, 3 / 9, 5 / 9, 0], dtype=torch.float64))


def test_loss_of_groups_of_unlike_sizes_is_the_mean_over_those_that_teach() -> None:
    log_prob = torch.randn(7, generator=generator(5), dtype=torch.float64)
    anchor = torch.randn(7, generator=generator(6), dtype=torch.float64)
    score = torch.tensor([1.0, 2, 5, 4, 3, 0.5, 0.1], dtype=torch.float64)
    group = torch.tensor([0, 1, 0, 1, 1, 2, 3])  # the last two are alone
    settings = AdpoConfig(anchor="reference", target="best", temperature=TAU)
    value = Adpo(settings)(candidates_of(log_prob, reference=anchor, group=group, score=score))
    u = (log_prob - anchor) / TAU
    expected = [u[[0, 2]].logsumexp(0) - u[2], u[[1, 3, 4]].logsumexp(0) - u[3]]
    torch.testing.assert_close(value.loss, torch.stack(expected).mean()[None])
    assert value.count.tolist() == [2]
    dropped = Adpo(settings.model_copy(update={"drop_below": 4.5}))(
        candidates_of(log_prob, reference=anchor, group=group, score=score)
    )
    torch.testing.assert_close(dropped.loss, expected[0][None])


def test_the_dynamic_anchor_is_the_policy_before_the_update() -> None:
    log_prob = torch.randn(4, generator=generator(7), dtype=torch.float64)
    labels = {"group": torch.zeros(4, dtype=torch.int64), "score": torch.arange(4.0)}
    value = Adpo(AdpoConfig())(candidates_of(log_prob, old=log_prob, **labels))
    torch.testing.assert_close(value.loss, torch.full((1,), math.log(4), dtype=torch.float64))
