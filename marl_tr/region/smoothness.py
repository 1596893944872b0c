"""The observation nearby at which a policy decides most unlike.

Of SMART's smoothness-inducing regulariser (Jiang et al., arXiv 1911.03437): ``R_s = mean max sKL(pi(o'), pi(o))`` over
``||o' - o||_inf <= radius``, with the symmetric KL that its text means; released code has another quantity there, which
is none. The maximum is looked for by projected ascent from a random point, so that it is a lower bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from marl_tr.errors import UserError
from marl_tr.policy import Parameters, Policy, PolicyBatch
from marl_tr.scenario.regularisers import SmoothConfig

__all__ = ["farthest_law", "farthest_observation", "symmetric_divergence"]

_LENGTH = 100
"""Published: a step of 1e-3 in a box of 1e-5."""


def symmetric_divergence(policy: Policy, one: Any, other: Any) -> Tensor:
    """``KL(one || other) + KL(other || one)`` a decision and chain step, ``[R, T, N, k]``."""
    return policy.divergence(one, other) + policy.divergence(other, one)


def farthest_law(
    policy: Policy,
    parameters: Parameters,
    batch: PolicyBatch,
    law: Any,
    *,
    ball: SmoothConfig,
    generator: torch.Generator,
) -> Any:
    """The law at `farthest_observation`, differentiable in the parameters; its observations are taken as given.

    Raises:
        UserError: There is no law at observations nearby, though there is one at those of the batch.
    """
    observation = farthest_observation(policy, parameters, batch, law, ball=ball, generator=generator)
    found = policy.evaluate(parameters, replace(batch, observation=observation)).law
    if not _finite(found) and _finite(law):
        raise UserError(
            f"regulariser 'smooth': these policies have no finite law at observations up to {ball.radius:g} away from "
            "those of the environment, which may lie at the edge of what a policy takes (a weight of 0, for example); "
            "leave the term out"
        )
    return found


def farthest_observation(
    policy: Policy,
    parameters: Parameters,
    batch: PolicyBatch,
    law: Any,
    *,
    ball: SmoothConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Observations within the ball, each moved up the gradient of the symmetric KL to the law at its middle.

    Leaves of whole numbers, and those that the law does not differentiate, such as masks, stay. A step is the gradient
    over its own largest entry, a decision each, times the step's length.

    Args:
        policy: Whose.
        parameters: ``[R, ...]``.
        batch: The decisions.
        law: Of the policy on `batch`.
        ball: Radius, start and ascent.
        generator: Of the start, on the CPU, so that runs repeat on any device.
    """
    fixed = {name: p.detach() for name, p in parameters.items()}
    middle = law.map(lambda x: x.detach())
    observation = batch.observation
    leaves = _differentiable(policy, fixed, batch)
    spread = ball.radius if ball.noise is None else ball.noise
    length = _LENGTH * ball.radius if ball.step is None else ball.step
    moved = {
        leaf: _inside(x, x + spread * _normal(x, generator), ball.radius)
        for leaf, x in observation.items()
        if leaf in leaves
    }
    for _ in range(ball.ascents if moved else 0):
        gradients = _ascent(policy, fixed, batch, middle, moved)
        largest = torch.stack([_widest(g, batch.mask) for g in gradients.values()]).amax(0)
        largest = torch.where(largest > 0, largest, 1)
        moved = {
            leaf: _inside(observation[leaf], moved[leaf] + length * g / _beside(largest, g), ball.radius)
            for leaf, g in gradients.items()
        }
    return observation | moved


def _ascent(
    policy: Policy, parameters: Parameters, batch: PolicyBatch, middle: Any, observation: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Gradient of the sum of the distances over decisions."""
    with torch.enable_grad():
        points = {leaf: x.detach().requires_grad_() for leaf, x in observation.items()}
        law = policy.evaluate(parameters, replace(batch, observation=batch.observation | points)).law
        distance = symmetric_divergence(policy, middle, law).sum(-1)
        total = torch.where(batch.mask, distance, 0).sum()
        found = torch.autograd.grad(total, list(points.values()))
    return dict(zip(points, found, strict=True))


def _differentiable(policy: Policy, parameters: Parameters, batch: PolicyBatch) -> frozenset[str]:
    """Which leaves the law is differentiable in, by a look at one trajectory."""
    first = batch.trajectories(torch.zeros(1, dtype=torch.int64, device=batch.mask.device))
    with torch.enable_grad():
        points = {leaf: x.detach().requires_grad_() for leaf, x in first.observation.items() if x.is_floating_point()}
        law = policy.evaluate(parameters, replace(first, observation=first.observation | points)).law
        value = policy.divergence(law.map(lambda x: x.detach()), law).sum()
        if not points or not value.requires_grad:
            return frozenset()
        found = torch.autograd.grad(value, list(points.values()), allow_unused=True)
    return frozenset(leaf for leaf, g in zip(points, found, strict=True) if g is not None)


def _finite(law: Any) -> bool:
    found: list[bool] = []

    def look(x: Tensor) -> Tensor:
        found.append(bool(torch.isfinite(x).all()))
        return x

    law.map(look)
    return all(found)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """The same for every row: what is found for one does not hang on the others beside it."""
    return torch.randn(x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)


def _inside(middle: Tensor, x: Tensor, radius: float) -> Tensor:
    return torch.minimum(torch.maximum(x, middle - radius), middle + radius)


def _widest(x: Tensor, like: Tensor) -> Tensor:
    """The largest entry of each decision's leaf, ``[R, T, N]``."""
    return x.abs().reshape(*like.shape, -1).amax(-1)


def _beside(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))
