"""DPPO (arXiv 2602.04879): what moved too far by its divergence is masked out, exactly."""

from __future__ import annotations

import pytest
import torch
from family_examples import policy_of, region_of, turn_for
from learning_examples import generator, make_region
from shaping_examples import grid, slope
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import kl_divergence

from marl_tr.nn.discrete import Categorical
from marl_tr.region.family.dppo import binary_kl, binary_tv, kept, top_k_divergence

torch.set_num_threads(1)


def laws(*, choices: int = 40, count: int = 200) -> tuple[Categorical, Categorical, Tensor]:
    noise = generator(0)
    old = Categorical(2 * torch.randn(count, choices, generator=noise, dtype=torch.float64))
    new = Categorical(old.logits + 0.7 * torch.randn(count, choices, generator=noise, dtype=torch.float64))
    return old, new, old.sample(noise)


@pytest.mark.parametrize("kl", [True, False])
def test_merging_outcomes_lowers_the_divergence(kl: bool) -> None:
    old, new, taken = laws()
    p, q = old.log_prob(taken).exp(), new.log_prob(taken).exp()
    binary = binary_kl(p, q) if kl else binary_tv(p, q)
    some = top_k_divergence(old, new, taken, count=8, kl=kl)
    full = old.kl(new) if kl else old.total_variation(new)
    assert bool((binary <= some + 1e-10).all())
    assert bool((some <= full + 1e-10).all())
    # Not by being equal.
    assert float((some - binary).mean()) > 1e-3
    assert float((full - some).mean()) > 1e-3
    torch.testing.assert_close(top_k_divergence(old, new, taken, count=40, kl=kl), full)


def test_binary_divergences_are_those_of_two_outcomes() -> None:
    p, q = torch.rand(50, generator=generator(1)).double(), torch.rand(50, generator=generator(2)).double()
    expected = kl_divergence(*(TorchCategorical(probs=torch.stack([x, 1 - x], -1)) for x in (p, q)))
    torch.testing.assert_close(binary_kl(p, q), expected)
    certain = torch.tensor([1.0, 1.0, 0.0, 1e-12, 0.3])
    torch.testing.assert_close(binary_kl(certain, certain), torch.zeros(5))
    assert bool(torch.isfinite(binary_kl(certain, certain.flip(0))).all())


def test_the_merged_outcomes_are_the_old_laws_likeliest_the_taken_one_and_the_rest() -> None:
    old = Categorical(torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04], dtype=torch.float64).log())
    new = Categorical(torch.tensor([0.2, 0.3, 0.1, 0.3, 0.1], dtype=torch.float64).log())
    # {0}, {1}, the taken 4, and 2 and 3 together.
    p, q = torch.tensor([[0.4, 0.3, 0.04, 0.26], [0.2, 0.3, 0.1, 0.4]], dtype=torch.float64)
    taken = torch.tensor(4)
    torch.testing.assert_close(
        top_k_divergence(old, new, taken, count=2, kl=True), (p * (p / q).log()).sum(), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(top_k_divergence(old, new, taken, count=2, kl=False), 0.5 * (p - q).abs().sum())


def test_with_the_deviation_of_the_ratio_the_mask_is_ppos() -> None:
    ratio, advantage = grid()
    mask = kept((ratio - 1).abs(), ratio=ratio, advantage=advantage, high=0.28, low=0.2)
    clipped = slope(make_region("ppo_clip", clip=0.2, clip_high=0.28), ratio, advantage)
    assert torch.equal(mask, clipped != 0)
    assert 0 < int(mask.sum()) < len(mask)


@pytest.mark.parametrize("measure", ["tv", "kl"])
def test_what_went_too_far_has_no_gradient_at_all_and_the_rest_all_of_it(measure: str) -> None:
    ratio, advantage = grid()
    p = 0.015
    region = make_region("dppo", divergence=f"binary_{measure}", threshold=0.1, threshold_low=0.005, truncation=20)
    q = ratio * p
    if measure == "tv":
        distance = (q - p).abs()
    else:
        distance = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    masked = ((advantage > 0) & (ratio > 1) & (distance > 0.1)) | ((advantage < 0) & (ratio < 1) & (distance > 0.005))
    expected = torch.where(masked, 0, advantage * ratio.clamp_max(20))
    torch.testing.assert_close(slope(region, ratio, advantage, p), expected)
    assert 0 < int(masked.sum()) < len(masked)


def test_without_a_limit_it_is_the_truncated_policy_gradient() -> None:
    ratio, advantage = grid()
    region = make_region("dppo", threshold=1e6, truncation=3)
    torch.testing.assert_close(slope(region, ratio, advantage, 0.01), advantage * ratio.clamp_max(3))


def test_the_usual_limits_are_those_of_the_divergence() -> None:
    assert make_region("dppo").config.limits == (0.15, 0.15)
    assert make_region("dppo", divergence="top_k_kl").config.limits == (0.05, 0.05)
    assert make_region("dppo", threshold=0.3, threshold_low=0.1).config.limits == (0.3, 0.1)


@pytest.mark.parametrize("kind", ["gaussian", "categorical", "flow"])
@pytest.mark.parametrize("divergence", ["full_kl", "full_tv", "top_k_kl", "top_k_tv"])
def test_other_divergences_serve_who_has_them(divergence: str, kind: str) -> None:
    policy, region = policy_of(kind), region_of("dppo", divergence=divergence, learning_rate=0.03)
    assert (region.requires <= policy.capabilities) == (kind == "categorical" or divergence.startswith("full"))
    if not region.requires <= policy.capabilities:
        return
    turn = turn_for(policy)
    measured = turn.measure(region.propose(turn).parameters)
    reach = region.reach(turn, measured)
    assert bool((reach.value > 1e-4).all())
    each = policy.divergence(turn.old.law, measured.evaluation.law)
    largest = torch.where(turn.batch.mask, each.amax(-1), 0).flatten(1).amax(-1)
    if divergence == "full_kl":
        torch.testing.assert_close(reach.value, largest)
    elif divergence == "full_tv":
        # Pinsker.
        assert bool((reach.value <= (0.5 * largest).sqrt() + 1e-6).all())
