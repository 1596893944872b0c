"""Flow matching: the loss, its noise levels, and samples by the flow's own equation.

Source: Lipman et al., Flow Matching for Generative Modeling (arXiv 2210.02747); levels from a logit-normal law and
their shift as in Esser et al., Scaling Rectified Flow Transformers (arXiv 2403.03206), sections 3.1 and 5.3.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from marl_tr.nn.velocity import Velocity

__all__ = ["flow_matching_loss", "ode_samples", "random_levels", "shifted"]

_EDGE = 1e-5
"""What levels keep from 0 and 1 before the shift."""


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise levels ``shift u / (1 + (shift - 1) u)``: 0 and 1 stay, and `shift` above 1 spends more on noise."""
    return shift * u / (1 + (shift - 1) * u)


def random_levels(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels ``[count]``: the sigmoid of standard normal numbers, shifted; on the generator's device."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return shifted(torch.sigmoid(normal).clamp(_EDGE, 1 - _EDGE), shift)


def flow_matching_loss(
    velocity: Velocity, x0: Tensor, noise: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]
) -> Tensor:
    """Mean squared error of ``v(x_s, s | observation)`` against ``noise - x0``, ``x_s = (1 - s) x0 + s noise``.

    Args:
        velocity: The network.
        x0: Data, ``[B, *event]``.
        noise: Standard normal numbers, ``[B, *event]``.
        sigma: Levels ``s``, ``[B]``.
        observation: ``{leaf: [B, ...]}``.

    Returns:
        A number, mean over batch and event.
    """
    s = sigma.view(-1, *(1,) * (x0.ndim - 1))
    return (velocity((1 - s) * x0 + s * noise, sigma, observation) - (noise - x0)).square().mean()


@torch.no_grad()
def ode_samples(
    velocity: Velocity,
    noise: Tensor,
    observation: Mapping[str, Tensor],
    *,
    steps: int = 20,
    shift: float = 1.0,
    batch: int = 64,
) -> Tensor:
    """Data ``[B, *event]`` from `noise` by Euler steps of ``dx = v ds`` from ``s = 1`` to 0.

    Args:
        velocity: The network.
        noise: ``[B, *event]``.
        observation: ``{leaf: [B, ...]}``.
        steps: How many; levels are `shifted` from equal distances.
        shift: See `shifted`.
        batch: Samples that the network sees at once.
    """
    levels = shifted(torch.linspace(1, 0, steps + 1, dtype=noise.dtype, device=noise.device), shift)
    done = []
    for begin in range(0, len(noise), batch):
        x = noise[begin : begin + batch]
        condition = {leaf: values[begin : begin + batch] for leaf, values in observation.items()}
        for now, then in itertools.pairwise(levels):
            x = x + (then - now) * velocity(x, now.expand(len(x)), condition)
        done.append(x)
    return torch.cat(done)
