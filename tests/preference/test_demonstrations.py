"""TrSFT and PSFT: where their gradients are those of the likelihood, and where they are not."""

from __future__ import annotations

import math

import pytest
import torch
from preference_examples import PreferenceTrainer, candidates_of, data_of, generator, policy_of, settings_of

from marl_tr.errors import UserError
from marl_tr.preference.config import PsftConfig, TrsftConfig
from marl_tr.preference.psft import Psft, psft_loss
from marl_tr.preference.trsft import Trsft, trsft_loss

torch.set_num_threads(1)

ALPHA = 0.1


def published(log_p: torch.Tensor, alpha: float) -> torch.Tensor:
    """The form of the paper's code."""
    p = log_p.exp()
    return -p / p.clamp_min(alpha).detach()


def test_trsft_gradient_is_the_likelihoods_above_the_threshold_and_fades_below() -> None:
    p = torch.tensor([0.001, 0.03, 0.0999, 0.1001, 0.4, 1.0], dtype=torch.float64)
    log_p = p.log().requires_grad_()
    (gradient,) = torch.autograd.grad(trsft_loss(log_p, math.log(ALPHA)).sum(), log_p)
    torch.testing.assert_close(gradient, -(p / ALPHA).clamp_max(1), rtol=1e-12, atol=0)
    (theirs,) = torch.autograd.grad(published(log_p, ALPHA).sum(), log_p)
    torch.testing.assert_close(gradient, theirs, rtol=1e-12, atol=0)


def test_trsft_is_smooth_at_the_threshold() -> None:
    p = torch.tensor([0.001, 0.03, 0.09, 0.12, 0.4, 0.99], dtype=torch.float64)
    log_a, step = math.log(ALPHA), 1e-6
    slope = (trsft_loss((p + step).log(), log_a) - trsft_loss((p - step).log(), log_a)) / (2 * step)
    torch.testing.assert_close(p * slope, -(p / ALPHA).clamp_max(1), rtol=1e-6, atol=1e-8)
    edge = torch.tensor([ALPHA - 1e-9, ALPHA + 1e-9], dtype=torch.float64, requires_grad=True)
    values = trsft_loss(edge.log(), log_a)
    assert float((values[0] - values[1]).detach().abs()) < 1e-7
    (slopes,) = torch.autograd.grad(values.sum(), edge)
    torch.testing.assert_close(slopes, torch.full((2,), -1 / ALPHA, dtype=torch.float64), rtol=1e-7, atol=0)


def test_trsft_with_threshold_0_is_the_likelihood_and_with_1_the_probability() -> None:
    log_p = (-8 * torch.rand(20, generator=generator(1), dtype=torch.float64)).requires_grad_()
    none, whole = (Trsft(TrsftConfig(threshold=threshold)) for threshold in (0.0, 1.0))
    (gradient,) = torch.autograd.grad(none(candidates_of(log_p)).loss.sum(), log_p)
    torch.testing.assert_close(gradient, torch.full_like(log_p, -1 / 20))
    (gradient,) = torch.autograd.grad(whole(candidates_of(log_p)).loss.sum(), log_p)
    torch.testing.assert_close(gradient, -log_p.detach().exp() / 20)
    small = [torch.autograd.grad(trsft_loss(log_p, math.log(a)).sum(), log_p)[0] + 1 for a in (1e-1, 1e-2, 1e-4)]
    errors = [float(x.abs().max()) for x in small]
    assert errors[0] > errors[1] > errors[2] == 0.0


def test_trsft_by_quantile_fades_the_given_share_of_a_rows_demonstrations() -> None:
    log_p = (30 * torch.randn(40, generator=generator(2), dtype=torch.float64)).requires_grad_()
    expert = torch.arange(40) < 20
    value = Trsft(TrsftConfig(threshold=0.25, of="quantile"))(candidates_of(log_p, expert=expert))
    (gradient,) = torch.autograd.grad(value.loss.sum(), log_p)
    assert not gradient[20:].any()
    full = torch.isclose(gradient[:20], torch.full((20,), -1 / 20, dtype=torch.float64))
    assert int(full.sum()) == 15
    assert log_p.detach()[:20][~full].max() < log_p.detach()[:20][full].min()


def test_trsft_asks_for_choices_unless_told_otherwise() -> None:
    with pytest.raises(UserError, match="of: quantile"):
        PreferenceTrainer(policy_of("gaussian"), settings_of({"kind": "trsft"}))
    PreferenceTrainer(policy_of("gaussian"), settings_of({"kind": "trsft", "of": "quantile"}))
    PreferenceTrainer(policy_of("categorical"), settings_of({"kind": "trsft"}))


def test_psft_gradient_is_zero_exactly_where_the_ratio_is_beyond_its_clip() -> None:
    ratio = torch.tensor([1e-3, 0.5, 0.79, 1.0, 1.2799, 1.2801, 2.0, 50.0], dtype=torch.float64)
    log_p = ratio.log().requires_grad_()
    (gradient,) = torch.autograd.grad(psft_loss(log_p, torch.zeros_like(log_p), clip=0.28).sum(), log_p)
    inside = ratio <= 1.28
    torch.testing.assert_close(gradient[inside], -ratio[inside])
    assert not gradient[~inside].any()


@pytest.mark.parametrize("kind", ["gaussian", "categorical", "flow"])
def test_a_single_psft_update_has_the_gradient_of_the_likelihood(kind: str) -> None:
    policy = policy_of(kind)
    data = data_of(policy)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in policy.module.named_parameters()}
    log_prob = policy.evaluate(parameters, data.batch).log_prob
    trainer = PreferenceTrainer(policy, settings_of({"kind": "psft"}))
    turn = trainer._turn(data, 0.0)
    samples = turn.objective.samples(turn)
    gain = turn.objective.estimate(turn, parameters, samples).gain
    ours = torch.autograd.grad(gain.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
    chosen = (data.batch.mask & data.expert).unsqueeze(-1).expand_as(log_prob)
    likelihood = torch.stack([log_prob[row][chosen[row]].mean() for row in range(len(log_prob))]).sum()
    expected = torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in expected)
    for one, other in zip(ours, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_demonstrations_count() -> None:
    log_p = torch.randn(6, generator=generator(3), dtype=torch.float64).requires_grad_()
    expert = torch.tensor([True, False, True, False, False, True])
    for loss in (Psft(PsftConfig()), Trsft(TrsftConfig())):
        value = loss(candidates_of(log_p, expert=expert))
        (gradient,) = torch.autograd.grad(value.loss.sum(), log_p)
        assert value.count.tolist() == [3]
        assert ((gradient != 0) == expert).all()
