"""Decisions with ratios, advantages and probabilities as one likes, to ask a mechanism for the slope of its gain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from learning_examples import make_region
from torch import Tensor

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Evaluation, PolicyBatch
from marl_tr.region.reshaped import Decisions
from marl_tr.region.samples import Samples


def decisions(ratio: Tensor, advantage: Tensor, p: Tensor | float = 0.1) -> tuple[Decisions, Tensor]:
    """One decision an element ``[n]``, and its log-probability, which a gradient is taken of; float64.

    Args:
        ratio: ``[n]``.
        advantage: ``[n]``.
        p: Old probability of the action taken.
    """
    shape = (1, 1, len(ratio))
    old = torch.as_tensor(p, dtype=torch.float64).expand(len(ratio)).log().reshape(*shape, 1)
    log_prob = (old + ratio.double().log().reshape(*shape, 1)).requires_grad_()
    mask = torch.ones(shape, dtype=torch.bool)
    batch = PolicyBatch({}, {}, None, torch.zeros_like(mask), mask)
    samples = Samples(batch, old, advantage.double().reshape(shape))
    evaluation = Evaluation(log_prob, None, None)
    policy: Any = None
    return Decisions(evaluation, samples, policy, Surrogate(SurrogateConfig())), log_prob


def slope(
    region: Any,
    ratio: Tensor,
    advantage: Tensor,
    p: Tensor | float = 0.1,
    *,
    update: Any = None,
    prepared: bool = False,
) -> Tensor:
    """d gain / d log pi of each decision, ``[n]``; `prepared`: after the region has looked at them."""
    made, log_prob = decisions(ratio, advantage, p)
    if prepared:
        turn = SimpleNamespace(learners=SimpleNamespace(policy=made.policy))
        region.prepare(SimpleNamespace(turn=turn, samples=made.samples))
    gain = region.gain(made, update)
    (found,) = torch.autograd.grad(gain.sum(), log_prob)
    return found.flatten()


def value(region: Any, ratio: Tensor, advantage: Tensor, p: Tensor | float = 0.1, *, update: Any = None) -> Tensor:
    """The gain of each decision, ``[n]``."""
    made, _ = decisions(ratio, advantage, p)
    found: Tensor = region.gain(made, update)
    return found.detach().flatten()


def steps_taken(*counts: int) -> Any:
    """An update of which each row has taken so many steps, and remembers nothing."""
    rows = [SimpleNamespace(steps=count) for count in counts]
    return SimpleNamespace(rows=rows, remembered=lambda name, default: [default for _ in counts])


def grid(*, points: int = 41) -> tuple[Tensor, Tensor]:
    """Every ratio from 0.02 to 50 with advantages of both signs, ``[n]`` each."""
    ratios = torch.logspace(-1.7, 1.7, points, dtype=torch.float64)
    advantages = torch.tensor([-2.0, -0.5, 0.3, 1.5], dtype=torch.float64)
    pairs = torch.cartesian_prod(ratios, advantages)
    return pairs[:, 0], pairs[:, 1]


__all__ = ["decisions", "grid", "make_region", "slope", "steps_taken", "value"]
