"""Trust region preference approximation: pairs across levels, the pull, and groups without a pair."""

from __future__ import annotations

import torch
from preference_examples import candidates_of, generator

from marl_tr.preference.config import TrpaConfig
from marl_tr.preference.data import Candidates
from marl_tr.preference.trpa import Trpa, k3

torch.set_num_threads(1)

PLAIN = TrpaConfig(pull=0)


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=generator(seed), dtype=torch.float64)


def test_every_pair_across_levels_counts_and_level_1_counts_more() -> None:
    log_prob, reference = draw(6, 1), draw(6, 2)
    level = torch.tensor([1, 3, 2, 3, 2, 4])
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    value = Trpa(PLAIN)(candidates_of(log_prob, reference=reference, group=group, level=level))
    rho = log_prob - reference
    # (better, worse): levels 1-3, 1-2, 1-3, 2-3, 2-3 of the first group, 2-4 of the second.
    pairs = {(0, 1): 2.5, (0, 2): 2.5, (0, 3): 2.5, (2, 1): 1.0, (2, 3): 1.0, (4, 5): 1.0}
    losses = [-torch.sigmoid(k * 0.1 * (rho[w] - rho[b])).log() for (w, b), k in pairs.items()]
    torch.testing.assert_close(value.loss, torch.stack(losses).mean()[None])
    assert value.count.tolist() == [6]


def test_log_ratios_are_means_over_the_decisions() -> None:
    log_prob = draw(12, 3).reshape(1, 3, 2, 2)
    mask = torch.tensor([[[True, True], [True, False], [True, False]]])
    labels = {
        "group": torch.zeros(1, 3, 2, dtype=torch.int64),
        "level": torch.tensor([1, 2]).expand(1, 3, 2),
        "reference": torch.zeros_like(log_prob),
    }
    value = Trpa(PLAIN)(Candidates(log_prob, log_prob, mask, labels))
    rho = [log_prob[0, :, 0].mean(), log_prob[0, 0, 1].mean()]
    torch.testing.assert_close(value.loss, -torch.sigmoid(0.25 * (rho[0] - rho[1])).log()[None])


def test_without_a_pair_level_1_is_raised_and_others_lowered() -> None:
    log_prob = draw(4, 4).requires_grad_()
    group = torch.tensor([0, 0, 1, 1])
    level = torch.tensor([1, 1, 3, 3])
    value = Trpa(PLAIN)(candidates_of(log_prob, group=group, level=level))
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
    torch.testing.assert_close(value.loss, -torch.sigmoid(sign * log_prob).log().mean()[None])
    (gradient,) = torch.autograd.grad(value.loss.sum(), log_prob)
    assert (gradient * sign < 0).all()


def test_one_pair_anywhere_in_a_row_is_enough_to_do_without_the_fallback() -> None:
    log_prob = draw(4, 5)
    value = Trpa(PLAIN)(candidates_of(log_prob, group=torch.tensor([0, 0, 1, 1]), level=torch.tensor([1, 1, 2, 3])))
    torch.testing.assert_close(value.loss, -torch.sigmoid(0.1 * (log_prob[2] - log_prob[3])).log()[None])


def test_the_pull_is_k3_to_the_old_policy_or_its_root() -> None:
    log_prob, old = draw(4, 6).requires_grad_(), draw(4, 7)
    labels = {"group": torch.zeros(4, dtype=torch.int64), "level": torch.tensor([1, 2, 3, 4])}
    candidates = candidates_of(log_prob, old=old, **labels)
    plain = Trpa(PLAIN)(candidates).loss
    d = old - log_prob
    apart = d.exp() - 1 - d
    pulled = Trpa(TrpaConfig(pull=0.5))(candidates).loss
    torch.testing.assert_close(pulled - plain, 0.5 * apart.mean()[None])
    rooted = Trpa(TrpaConfig(pull=0.5, root=True))(candidates).loss
    torch.testing.assert_close(rooted - plain, 0.5 * (apart + 0.25).sqrt().mean()[None])
    # At the old policy neither pulls.
    at_old = k3(old.clone().requires_grad_(), old)
    assert not at_old.any()


def test_k3_estimates_the_divergence_of_what_it_is_sampled_from() -> None:
    p, q = (x.log_softmax(-1) for x in torch.randn(2, 5, generator=generator(8), dtype=torch.float64))
    torch.testing.assert_close((p.exp() * k3(p, q)).sum(), (p.exp() * (p - q)).sum())
