"""What a law of actions is, and the laws of real numbers: exact densities, divergences and Fisher information.

A law has any leading axes ``[...]``; its parameters carry them and one last axis of the action's dimensions.
Every per-dimension quantity is summed over that axis, so that `log_prob`, `entropy` and `kl` have shape
``[...]``. A *raw* action is what the density is about, before an environment clips or scales it
(`marl_tr.nn.heads`). Choices among few are in `marl_tr.nn.discrete`, mixtures in `marl_tr.nn.mixture`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

__all__ = ["Beta", "Gaussian", "Law", "ProductLaw", "chi_squared_tail", "pinsker", "shifted_gaussians"]

RawT = TypeVar("RawT")
Tangents = tuple[Tensor, ...]

# Beta samples stay this far from 0 and 1: the density at the ends is 0 or infinite, and 1 - 1e-6 is the
# closest round number to 1 that float32 still tells apart from it by several units in the last place.
_MARGIN = 1e-6


class Law(Protocol[RawT]):
    """What an objective, a region and the Guard may ask of a distribution of raw actions.

    `RawT` is ``Tensor``, or ``dict[str, Tensor]`` for a `ProductLaw`.
    """

    def parameters(self) -> tuple[Tensor, ...]:
        """The law's own parameters, each ``[..., D]``, in a fixed order."""
        ...

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Self:
        """The law of the same family (and the same mask) with other parameters."""
        ...

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The law with `function` applied to each tensor it holds, masks too: detach, slice a row, choose
        times.
        """
        ...

    def sample(self, generator: torch.Generator) -> RawT:
        """A raw action drawn with `generator`, no gradient; the generator lives on the parameters' device."""
        ...

    def mode(self) -> RawT:
        """The most likely raw action, no gradient."""
        ...

    def log_prob(self, raw: RawT) -> Tensor:
        """Log-density (or log-probability) of `raw` in nats, ``[...]``."""
        ...

    def entropy(self) -> Tensor:
        """Differential (or Shannon) entropy in nats, ``[...]``; a lower bound of it where it has no closed form."""
        ...

    def kl(self, new: Self) -> Tensor:
        """KL(self || new) in nats, ``[...]``: `self` is the old law (kl_old_new).

        Exact; or an upper bound where there is no closed form, so that a bound kept on it is kept on the KL too.
        """
        ...

    def total_variation(self, new: Self) -> Tensor:
        """Half the L1 distance of the two laws, ``[...]`` in [0, 1]; an upper bound where there is no closed form."""
        ...

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """Fisher information in the law's own parameters times `tangents` (one for each of `parameters`).

        Equals the Hessian of ``kl(self || .)`` at `self` applied to `tangents`, for each leading index alone.
        """
        ...


class Gaussian:
    """Independent normal dimensions.

    Args:
        mean: ``[..., D]``.
        log_std: Natural logarithm of the standard deviation, broadcastable to `mean`.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std.expand_as(mean)

    def parameters(self) -> tuple[Tensor, ...]:
        """``(mean, log_std)``, each ``[..., D]``."""
        return self.mean, self.log_std

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Gaussian:
        """See `Law.with_parameters`."""
        mean, log_std = parameters
        return Gaussian(mean, log_std)

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussian:
        """See `Law.map`."""
        return Gaussian(function(self.mean), function(self.log_std))

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """``[..., D]``."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The mean, ``[..., D]``."""
        return self.mean.detach()

    def log_prob(self, raw: Tensor) -> Tensor:
        """See `Law.log_prob`."""
        standard = (raw - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * standard.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, new: Gaussian) -> Tensor:
        """See `Law.kl`."""
        shrink = self.log_std - new.log_std
        standard = (self.mean - new.mean) * torch.exp(-new.log_std)
        # expm1 instead of a ratio of variances minus one: a KL of 1e-8 survives in float32.
        return (0.5 * torch.expm1(2 * shrink) - shrink + 0.5 * standard.square()).sum(-1)

    def total_variation(self, new: Gaussian) -> Tensor:
        """See `Law.total_variation`; exact where the deviations are the same."""
        kl = self.kl(new)
        same = (self.log_std == new.log_std).all(-1)
        return torch.where(same, shifted_gaussians(kl), pinsker(kl))

    def tail_mass(self, log_prob: Tensor) -> Tensor:
        """The probability of an action that is less likely than one with this log-density: shapes ``[...]``.

        Of the law's own samples it is uniform on (0, 1).
        """
        return _tail_mass(log_prob, self.entropy(), self.mean.shape[-1])

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """``(d_mean / var, 2 d_log_std)``."""
        d_mean, d_log_std = tangents
        return d_mean * torch.exp(-2 * self.log_std), 2 * d_log_std


class Beta:
    """Independent Beta dimensions on (0, 1).

    Everything is computed in float64 and returned in the parameters' dtype: at concentrations of 1e4 the
    log-gamma terms are near 1e5 and cancel, which would leave float32 an error as large as a usual KL bound.

    Args:
        alpha: First concentration, positive, ``[..., D]``.
        beta: Second concentration, positive, ``[..., D]``.
    """

    def __init__(self, alpha: Tensor, beta: Tensor) -> None:
        self.alpha = alpha
        self.beta = beta

    def parameters(self) -> tuple[Tensor, ...]:
        """``(alpha, beta)``, each ``[..., D]``."""
        return self.alpha, self.beta

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> Beta:
        """See `Law.with_parameters`."""
        alpha, beta = parameters
        return Beta(alpha, beta)

    def map(self, function: Callable[[Tensor], Tensor]) -> Beta:
        """See `Law.map`."""
        return Beta(function(self.alpha), function(self.beta))

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """``[..., D]`` in ``[1e-6, 1 - 1e-6]``, as a ratio of two gamma variables."""
        # torch.distributions.Beta takes no generator; the operator under it does.
        first = torch._standard_gamma(self.alpha.double(), generator=generator)
        second = torch._standard_gamma(self.beta.double(), generator=generator)
        return self._inside(first / (first + second))

    @torch.no_grad()
    def mode(self) -> Tensor:
        """``(a - 1) / (a + b - 2)``, ``[..., D]``; 0.5 where the density is flat or has its modes at both
        ends.
        """
        above_a = (self.alpha.double() - 1).clamp_min(0)
        above_b = (self.beta.double() - 1).clamp_min(0)
        total = above_a + above_b
        flat = total <= 0
        return self._inside(torch.where(flat, 0.5, above_a / total.masked_fill(flat, 1)))

    def log_prob(self, raw: Tensor) -> Tensor:
        """See `Law.log_prob`; `raw` is moved into ``[1e-6, 1 - 1e-6]`` first."""
        alpha, beta = self.alpha.double(), self.beta.double()
        x = raw.double().clamp(_MARGIN, 1 - _MARGIN)
        density = (alpha - 1) * x.log() + (beta - 1) * torch.log1p(-x) - _log_beta(alpha, beta)
        return density.sum(-1).to(self.alpha.dtype)

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        alpha, beta = self.alpha.double(), self.beta.double()
        value = (
            _log_beta(alpha, beta)
            - (alpha - 1) * torch.digamma(alpha)
            - (beta - 1) * torch.digamma(beta)
            + (alpha + beta - 2) * torch.digamma(alpha + beta)
        )
        return value.sum(-1).to(self.alpha.dtype)

    def kl(self, new: Beta) -> Tensor:
        """See `Law.kl`."""
        a, b = self.alpha.double(), self.beta.double()
        a_new, b_new = new.alpha.double(), new.beta.double()
        value = (
            _log_beta(a_new, b_new)
            - _log_beta(a, b)
            + (a - a_new) * torch.digamma(a)
            + (b - b_new) * torch.digamma(b)
            + (a_new - a + b_new - b) * torch.digamma(a + b)
        )
        return value.sum(-1).to(self.alpha.dtype)

    def total_variation(self, new: Beta) -> Tensor:
        """See `Law.total_variation`; a bound."""
        return pinsker(self.kl(new))

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """The 2x2 trigamma matrix: ``diag(psi1(a), psi1(b)) - psi1(a + b)``."""
        alpha, beta = self.alpha.double(), self.beta.double()
        d_alpha, d_beta = (tangent.double() for tangent in tangents)
        shared = torch.polygamma(1, alpha + beta) * (d_alpha + d_beta)
        return (
            (torch.polygamma(1, alpha) * d_alpha - shared).to(self.alpha.dtype),
            (torch.polygamma(1, beta) * d_beta - shared).to(self.alpha.dtype),
        )

    def _inside(self, x: Tensor) -> Tensor:
        return x.clamp(_MARGIN, 1 - _MARGIN).to(self.alpha.dtype)


class ProductLaw:
    """Independent laws side by side, one for each leaf of an action.

    Args:
        laws: ``{leaf: law}`` with equal leading axes. Raw actions are ``{leaf: Tensor}``; the parameters are
            those of the leaves in this order.
    """

    def __init__(self, laws: Mapping[str, Law[Tensor]]) -> None:
        self.laws = dict(laws)

    def parameters(self) -> tuple[Tensor, ...]:
        """All leaves' parameters, leaf after leaf."""
        return tuple(parameter for law in self.laws.values() for parameter in law.parameters())

    def with_parameters(self, parameters: tuple[Tensor, ...]) -> ProductLaw:
        """See `Law.with_parameters`."""
        parts = self._split(parameters)
        return ProductLaw({leaf: law.with_parameters(parts[leaf]) for leaf, law in self.laws.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> ProductLaw:
        """See `Law.map`."""
        return ProductLaw({leaf: law.map(function) for leaf, law in self.laws.items()})

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``{leaf: raw}``."""
        return {leaf: law.sample(generator) for leaf, law in self.laws.items()}

    def mode(self) -> dict[str, Tensor]:
        """``{leaf: raw}``."""
        return {leaf: law.mode() for leaf, law in self.laws.items()}

    def log_prob(self, raw: Mapping[str, Tensor]) -> Tensor:
        """See `Law.log_prob`."""
        return torch.stack([law.log_prob(raw[leaf]) for leaf, law in self.laws.items()]).sum(0)

    def entropy(self) -> Tensor:
        """See `Law.entropy`."""
        return torch.stack([law.entropy() for law in self.laws.values()]).sum(0)

    def kl(self, new: ProductLaw) -> Tensor:
        """See `Law.kl`."""
        return torch.stack([law.kl(new.laws[leaf]) for leaf, law in self.laws.items()]).sum(0)

    def total_variation(self, new: ProductLaw) -> Tensor:
        """See `Law.total_variation`; of one leaf as exact as it is, of several the sum, which is a bound."""
        parts = [law.total_variation(new.laws[leaf]) for leaf, law in self.laws.items()]
        return torch.stack(parts).sum(0).clamp_max(1)

    def tail_mass(self, log_prob: Tensor) -> Tensor:
        """See `Gaussian.tail_mass`; of Gaussian leaves, together."""
        dimensions = sum(law.parameters()[0].shape[-1] for law in self.laws.values())
        return _tail_mass(log_prob, self.entropy(), dimensions)

    def fisher_product(self, tangents: Tangents) -> Tangents:
        """See `Law.fisher_product`; block-diagonal over the leaves."""
        parts = self._split(tangents)
        return tuple(product for leaf, law in self.laws.items() for product in law.fisher_product(parts[leaf]))

    def _split(self, tensors: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, ...]]:
        parts: dict[str, tuple[Tensor, ...]] = {}
        start = 0
        for leaf, law in self.laws.items():
            stop = start + len(law.parameters())
            parts[leaf] = tensors[start:stop]
            start = stop
        if start != len(tensors):
            raise ValueError(f"{len(tensors)} tensors for a law of {start} parameters")
        return parts


def pinsker(kl: Tensor) -> Tensor:
    """The largest total variation that a KL divergence in nats allows, by Pinsker's inequality."""
    return (0.5 * kl.clamp_min(0)).sqrt().clamp_max(1)


def shifted_gaussians(kl: Tensor) -> Tensor:
    """The total variation of two Gaussians of one covariance at this KL: ``2 Phi(D / 2) - 1``, ``D^2 / 2`` the KL."""
    return torch.erf(0.5 * kl.clamp_min(0).sqrt())


def chi_squared_tail(x: Tensor, dimensions: int) -> Tensor:
    """``1 - F(x)``, F the chi-squared distribution's of so many degrees of freedom."""
    half = x.new_tensor(0.5 * dimensions)
    tail: Tensor = torch.special.gammaincc(half, 0.5 * x)
    return tail


def _tail_mass(log_prob: Tensor, entropy: Tensor, dimensions: int) -> Tensor:
    # log p = -(D + m) / 2 + D / 2 - H with the squared Mahalanobis distance m: neither mean nor action is needed. The
    # difference of two numbers near each other is taken in float64; nearer to the mean than the clamp nothing changes.
    distance = dimensions - 2 * (log_prob.double() + entropy.double())
    return chi_squared_tail(distance.clamp_min(1e-9), dimensions).to(log_prob.dtype)


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
