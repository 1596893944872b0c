"""Mixtures of Gaussians: several peaks with an explicit density.

The density is exact. KL divergence and entropy of mixtures have no closed form; each is replaced by a bound that errs
in the direction which keeps promises: the KL from above, the entropy from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from marl_tr.nn.discrete import Categorical
from marl_tr.nn.distributions import Gaussian, Tangents, pinsker

__all__ = ["GaussianMixture", "spread_means"]


class GaussianMixture:
    """``K`` Gaussians of independent dimensions, of which the logits choose one.

    Args:
        logits: Unnormalised log-weights, ``[..., K]``.
        means: ``[..., K D]``, component after component.
        log_std: Natural logarithm of the standard deviations, broadcastable to `means`.

    Raises:
        ValueError: The means are not ``K`` components of equal width.
    """

    def __init__(self, logits: Tensor, means: Tensor, log_std: Tensor) -> None:
        components = logits.shape[-1]
        if means.shape[-1] % components:
            raise ValueError(f"{means.shape[-1]} means are not those of {components} components")
        self.logits = logits
        self.means = means
        self.log_std = log_std.expand_as(means)
        self._choice = Categorical(logits)
        self._parts = Gaussian(
            means.unflatten(-1, (components, -1)),
            self.log_std.unflatten(-1, (components, -1)),
        )

    def parameters(self) -> tuple[Tensor, ...]:
        """``(logits [..., K], means [..., K D], log_std [..., K D])``."""
        return self.logits, self.means, self.log_std

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> GaussianMixture:
        """See `Law.with_parameters`."""
        logits, means, log_std = parameters
        return GaussianMixture(logits, means, log_std)

    def map(self, function: Callable[[Tensor], Tensor]) -> GaussianMixture:
        """See `Law.map`."""
        return GaussianMixture(function(self.logits), function(self.means), function(self.log_std))

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """``[..., D]``: a component first, then a point of it."""
        chosen = self._choice.sample(generator)
        return Gaussian(_pick(self._parts.mean, chosen), _pick(self._parts.log_std, chosen)).sample(generator)

    @torch.no_grad()
    def mode(self) -> Tensor:
        """The mean of the component of the largest weight, ``[..., D]``.

        A mixture's density may be higher elsewhere: where a lighter component is narrower, or where several overlap.
        """
        return _pick(self._parts.mean, self._choice.mode())

    def log_prob(self, raw: Tensor) -> Tensor:
        """See `Law.log_prob`; exact."""
        return torch.logsumexp(self._log_weights() + self._parts.log_prob(raw.unsqueeze(-2)), -1)

    def entropy(self) -> Tensor:
        """A lower bound of the differential entropy in nats, ``[...]``, at most ``H(w)`` below it.

        ``sum_i w_i (H_i - ln sum_j w_j B_ij)`` with the Bhattacharyya coefficients ``B_ij`` of components (Kolchinsky
        and Tracey, Entropy 19(7):361, 2017: pairwise distances, the Chernoff divergence at 1/2). Equal to the entropy
        where components lie far apart, and where all are the same: an entropy bonus gains nothing from several
        components in one place. ``K^2 D`` numbers a law.
        """
        log_weights = self._log_weights()
        overlap = torch.logsumexp(log_weights.unsqueeze(-2) + self._log_overlaps(), -1)
        return (log_weights.exp() * (self._parts.entropy() - overlap)).sum(-1)

    def kl(self, new: GaussianMixture) -> Tensor:
        """An upper bound of KL(self || new) in nats, ``[...]``; zero between equal laws.

        ``KL(w || w') + sum_k w_k KL(N_k || N'_k)``: what telling component and action together costs, which by the
        chain rule is never less than the action alone (Do, IEEE Signal Processing Letters 10(4), 2003; Hershey and
        Olsen, ICASSP 2007, the matched bound). Components are matched by their index, which is natural between the
        laws of one update; a law and another that has the same components in another order count as far apart.
        """
        return self._choice.kl(new._choice) + (self._weights() * self._parts.kl(new._parts)).sum(-1)

    def total_variation(self, new: GaussianMixture) -> Tensor:
        """See `Law.total_variation`; a bound."""
        return pinsker(self.kl(new))

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """The Fisher information of component and action together, times `tangents`.

        It is the Hessian of `kl`, not of the mixture's own KL, which it exceeds (the complete-data information; the
        difference is what the action leaves unknown of the component). A natural step by it is a cautious one.
        """
        d_logits, d_means, d_log_std = tangents
        weights = self._weights().unsqueeze(-1)
        (logits,) = self._choice.fisher_product((d_logits,))
        components = (self.logits.shape[-1], -1)
        parts = self._parts.fisher_product((d_means.unflatten(-1, components), d_log_std.unflatten(-1, components)))
        means, log_std = (weights * part for part in parts)
        return logits, means.flatten(-2), log_std.flatten(-2)

    def _log_weights(self) -> Tensor:
        return torch.log_softmax(self.logits, -1)

    def _weights(self) -> Tensor:
        return torch.softmax(self.logits, -1)

    def _log_overlaps(self) -> Tensor:
        """``ln`` of the integral of ``sqrt(N_i N_j)``, ``[..., K, K]``."""
        mean, log_std = self._parts.mean, self._parts.log_std
        apart = mean.unsqueeze(-2) - mean.unsqueeze(-3)
        # ln of the mean of both variances; by logaddexp, so that standard deviations of any size keep their ratio.
        log_mean = torch.logaddexp(2 * log_std.unsqueeze(-2), 2 * log_std.unsqueeze(-3)) - math.log(2)
        widths = log_std.unsqueeze(-2) + log_std.unsqueeze(-3) - log_mean
        return (0.5 * widths - 0.125 * apart.square() * torch.exp(-log_mean)).sum(-1)


def spread_means(rows: int, components: int, dimensions: int, *, spread: float, generator: torch.Generator) -> Tensor:
    """Where the components of new mixtures lie, ``[rows, components, dimensions]``: a Latin hypercube.

    In each dimension the components take the middles of `components` equal parts of ``[-spread, spread]``, in an order
    drawn for each row and dimension (McKay, Beckman and Conover, Technometrics 21(2), 1979, without the jitter). So
    that they differ by ``2 spread / components`` at least in every dimension, cover it evenly, and have mean 0.
    """
    shape = (rows, dimensions, components)
    order = torch.rand(shape, generator=generator, device=generator.device).argsort(-1).transpose(-1, -2)
    return spread * ((2 * order + 1) / components - 1)


def _pick(parts: Tensor, chosen: Tensor) -> Tensor:
    """``[..., K, D]`` at ``[...]`` int64 -> ``[..., D]``, no gradient."""
    index = chosen[..., None, None].expand(*chosen.shape, 1, parts.shape[-1])
    return parts.detach().gather(-2, index).squeeze(-2)
