"""Entropy of the likely choices alone (TRE, arXiv 2602.03635)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.nn.discrete import Categorical, MultiCategorical
from marl_tr.nn.distributions import Gaussian, ProductLaw
from marl_tr.objective.config import ClippedRatioConfig, NucleusSupport, SurrogateConfig, TopKSupport
from marl_tr.objective.ratio import ClippedRatio, Surrogate
from marl_tr.objective.support_entropy import nucleus, support_entropy, support_entropy_of, top_k
from marl_tr.policy import Evaluation

torch.set_num_threads(1)


def logits(count: int = 6, rows: int = 20) -> Tensor:
    return 2 * torch.randn(rows, count, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("support", [TopKSupport(count=6), TopKSupport(count=99), NucleusSupport(mass=1.0)])
def test_of_all_choices_it_is_the_entropy(support: TopKSupport | NucleusSupport) -> None:
    law = ProductLaw({"action": Categorical(logits())})
    torch.testing.assert_close(support_entropy_of(law, support), law.entropy())


@pytest.mark.parametrize("support", [TopKSupport(count=2), TopKSupport(count=3), NucleusSupport(mass=0.8)])
def test_the_gradient_is_zero_outside_and_that_of_the_renormalised_entropy_inside(
    support: TopKSupport | NucleusSupport,
) -> None:
    x = logits().requires_grad_()
    (found,) = torch.autograd.grad(support_entropy_of(ProductLaw({"a": Categorical(x)}), support).sum(), x)
    for row in range(len(x)):
        p = x[row].detach().softmax(-1)
        order = p.argsort(descending=True).tolist()
        if isinstance(support, TopKSupport):
            chosen = order[: support.count]
        else:
            chosen = [c for n, c in enumerate(order) if float(p[order[:n]].sum()) < support.mass]
        outside = [c for c in range(6) if c not in chosen]
        assert bool((found[row, outside].abs() < 1e-15).all())
        part = x[row].detach()[chosen].requires_grad_()
        if len(chosen) == 1:
            assert bool((found[row] == 0).all())
            continue
        scaled = torch.distributions.Categorical(logits=part).entropy() * math.log(6) / math.log(len(chosen))
        torch.testing.assert_close(found[row, chosen], torch.autograd.grad(scaled, part)[0])


def test_probability_outside_does_not_matter() -> None:
    x = logits()
    chosen = top_k(Categorical(x).log_probabilities, 3)
    lower = torch.where(chosen, x, x - 5)
    torch.testing.assert_close(
        support_entropy(Categorical(lower).log_probabilities, chosen),
        support_entropy(Categorical(x).log_probabilities, chosen),
    )


def test_a_nucleus_is_the_shortest_prefix_whose_predecessors_hold_less_than_the_mass() -> None:
    log_p = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64).log()
    assert nucleus(log_p, 0.75, most=256).tolist() == [[False, True, True, False], [True, False, False, False]]
    assert nucleus(log_p, 1.0, most=2).sum(-1).tolist() == [2, 2]


def test_of_one_choice_it_is_the_min_entropy_for_top_one_and_nothing_for_a_nucleus() -> None:
    law = Categorical(logits())
    product = ProductLaw({"action": law})
    least = -law.log_probabilities.amax(-1)
    torch.testing.assert_close(support_entropy_of(product, TopKSupport(count=1)), least)
    assert not bool(support_entropy_of(product, NucleusSupport(mass=1e-6)).any())


def test_forbidden_choices_are_outside_and_not_counted() -> None:
    x, allowed = logits(4), torch.tensor([True, True, True, False, True, False])
    full = torch.full((20, 6), 7.0, dtype=torch.float64)
    full[:, allowed] = x
    masked = ProductLaw({"action": Categorical(full.requires_grad_(), allowed)})
    small = ProductLaw({"action": Categorical(x)})
    for support in (TopKSupport(count=2), TopKSupport(count=5), NucleusSupport(mass=0.9)):
        found = support_entropy_of(masked, support)
        torch.testing.assert_close(found, support_entropy_of(small, support))
        (gradient,) = torch.autograd.grad(found.sum(), full, retain_graph=True)
        assert bool(torch.isfinite(gradient).all())
    nothing = Categorical(full, torch.zeros(6, dtype=torch.bool))
    assert bool(torch.isfinite(support_entropy_of(ProductLaw({"a": nothing}), TopKSupport())).all())


def test_of_several_choices_it_is_the_sum() -> None:
    x = logits(7)
    both = ProductLaw({"action": MultiCategorical(x, (3, 4))})
    each = [support_entropy_of(ProductLaw({"a": Categorical(part)}), TopKSupport()) for part in x.split((3, 4), -1)]
    torch.testing.assert_close(support_entropy_of(both, TopKSupport()), each[0] + each[1])


def test_laws_without_choices_are_refused() -> None:
    with pytest.raises(UserError, match="not made of choices"):
        support_entropy_of(ProductLaw({"a": Gaussian(torch.zeros(1), torch.zeros(1))}), TopKSupport())


@pytest.mark.parametrize(("objective", "config"), [(Surrogate, SurrogateConfig), (ClippedRatio, ClippedRatioConfig)])
def test_the_bonus_of_an_objective_takes_it_in_place_of_the_whole_entropy(objective: type, config: type) -> None:
    law = ProductLaw({"action": Categorical(logits().reshape(2, 2, 5, 6))})
    log_prob = torch.zeros(2, 2, 5, 1, dtype=torch.float64)
    evaluation = Evaluation(log_prob, law.entropy(), law)
    arguments = (evaluation, log_prob, torch.zeros(2, 2, 5).double(), torch.ones(2, 2, 5, dtype=torch.bool), 1)
    bonus = objective(config(entropy=0.1, entropy_support=TopKSupport(count=3))).mean_gain(*arguments)
    torch.testing.assert_close(bonus, 0.1 * support_entropy_of(law, TopKSupport(count=3)).mean((1, 2)))
    whole = objective(config(entropy=0.1)).mean_gain(*arguments)
    torch.testing.assert_close(whole, 0.1 * law.entropy().mean((1, 2)))
    assert objective(config()).requires == {"log_prob"}
    assert objective(config(entropy_support=NucleusSupport())).requires == {"log_prob", "mass"}
