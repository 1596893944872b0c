"""What a flow policy says of its decisions: a chain of Gaussian steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_tr.nn.distributions import chi_squared_tail, shifted_gaussians

__all__ = ["ChainLaw"]


@dataclass(frozen=True)
class ChainLaw:
    """Steps ``N(mean, std^2 I)``; a step with ``std = 0`` is deterministic and has no density.

    Attributes:
        mean: ``[L, T, N, k, D]``.
        std: ``[L, T, N, k]``; the same under all parameters.
    """

    mean: Tensor
    std: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> ChainLaw:
        """The law with `function` applied to its tensors."""
        return ChainLaw(mean=function(self.mean), std=function(self.std))

    @property
    def stochastic(self) -> Tensor:
        """``[L, T, N, k]`` bool."""
        return self.std > 0

    @property
    def _scale(self) -> Tensor:
        """The deviations, with 1 where there is none: what is divided by it is masked."""
        return torch.where(self.stochastic, self.std, 1)

    def log_prob(self, x_next: Tensor) -> Tensor:
        """``[L, T, N, k]``, summed over dimensions; zero for deterministic steps."""
        z = (x_next - self.mean) / self._scale.unsqueeze(-1)
        constant = x_next.shape[-1] * (self._scale.log() + 0.5 * math.log(2 * math.pi))
        return torch.where(self.stochastic, -0.5 * z.square().sum(-1) - constant, 0)

    def surrogate(self, x_next: Tensor) -> Tensor:
        """``-|x_next - mean|^2`` (Flow-CPS, arXiv 2509.05952); shapes as in `log_prob`."""
        return torch.where(self.stochastic, -(x_next - self.mean).square().sum(-1), 0)

    def kl(self, other: ChainLaw) -> Tensor:
        """KL to `other`, and from it, for their deviations are the same: ``[L, T, N, k]``."""
        difference = (self.mean - other.mean) / self._scale.unsqueeze(-1)
        return torch.where(self.stochastic, 0.5 * difference.square().sum(-1), 0)

    def total_variation(self, other: ChainLaw) -> Tensor:
        """Half the L1 distance of each step's laws, ``[L, T, N, k]``: exact."""
        return shifted_gaussians(self.kl(other))

    def tail_mass(self, log_prob: Tensor, *, surrogate: bool = False) -> Tensor:
        """The probability of a step less likely than one of this log-density (or `surrogate`), ``[L, T, N, k]``; 1 for
        deterministic steps."""
        size = self.mean.shape[-1]
        if surrogate:
            distance = -log_prob.double() / self._scale.double().square()
        else:
            distance = -2 * log_prob.double() - size * (2 * self._scale.double().log() + math.log(2 * math.pi))
        tail = chi_squared_tail(distance.clamp_min(1e-9), size).to(log_prob.dtype)
        return torch.where(self.stochastic, tail, 1)

    def entropy(self) -> Tensor:
        """Of the stochastic steps together, ``[L, T, N]`` nats; no gradient leads through it."""
        each = self.mean.shape[-1] * (self._scale.log() + 0.5 * math.log(2 * math.pi * math.e))
        return torch.where(self.stochastic, each, 0).sum(-1)
