"""The law nearest to a given one inside a region around an anchor: diagonal Gaussians and choices among few.

Everything is differentiable in the law, also through multipliers that are solved for: these are found without gradient
and then moved by one Newton step ``x - F(x) / sg(F'(x))``, whose value is a rounding and whose derivative is that of
the implicit function. Computed in float64 whatever comes in; decisions that are inside pass unchanged, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Geometry",
    "ProjectedChoices",
    "anchored_mean_distance",
    "anchored_spread_distance",
    "choices_kl",
    "project_choices",
    "project_mean",
    "project_spread",
]

Geometry = Literal["kl", "w2", "frobenius"]

_STEPS = 36
"""Bisections of ``log eta``: to 1e-8, of which the Newton step leaves 1e-15."""
_FARTHEST = 300.0
"""Of ``log eta``, and of logarithms of ratios of variances: squares of their exponentials are finite."""


def anchored_mean_distance(mean: Tensor, anchor: Tensor, anchor_log_std: Tensor, *, geometry: Geometry) -> Tensor:
    """``(m - m_a)^T S_a^-1 (m - m_a)``, of ``kl`` half of it: ``[..., D]`` each to ``[...]`` float64."""
    standard = (mean.double() - anchor.double()) * torch.exp(-anchor_log_std.double())
    return standard.square().sum(-1) * (0.5 if geometry == "kl" else 1.0)


def anchored_spread_distance(log_std: Tensor, anchor: Tensor, *, geometry: Geometry) -> Tensor:
    """How far a diagonal covariance is from the anchor's: ``[..., D]`` each to ``[...]`` float64.

    ``kl``: the covariances' part of KL(law || anchor). ``w2``: ``sum (1 - s / s_a)^2``, with ``s`` standard
    deviations. ``frobenius``: ``sum (s^2 - s_a^2)^2``.
    """
    new, old = log_std.double(), anchor.double()
    if geometry == "kl":
        return _kl_of(2 * (new - old))
    if geometry == "w2":
        return torch.expm1(new - old).square().sum(-1)
    return ((2 * new).exp() - (2 * old).exp()).square().sum(-1)


def project_mean(mean: Tensor, anchor: Tensor, anchor_log_std: Tensor, *, bound: Tensor, geometry: Geometry) -> Tensor:
    """``(m + w m_a) / (1 + w)`` with ``w = sqrt(distance / bound) - 1`` where the distance exceeds the bound.

    Args:
        mean: ``[..., D]``.
        anchor: The anchor's, ``[..., D]``.
        anchor_log_std: Log standard deviations of the anchor, ``[..., D]``.
        bound: Broadcastable to ``[...]``, positive.
        geometry: `anchored_mean_distance`.

    Source: Otto et al., arXiv 2101.09207, by the official code (all geometries share it).
    """
    distance = anchored_mean_distance(mean, anchor, anchor_log_std, geometry=geometry)
    active = distance > bound
    share = torch.where(active, bound / torch.where(active, distance, 1), 1).sqrt().unsqueeze(-1)
    moved = anchor.double() + share * (mean.double() - anchor.double())
    return torch.where(active.unsqueeze(-1), moved.to(mean.dtype), mean)


def project_spread(log_std: Tensor, anchor: Tensor, *, bound: Tensor, geometry: Geometry) -> Tensor:
    """Log standard deviations of the nearest diagonal covariance within the bound.

    ``frobenius`` and ``w2`` mix variances, or standard deviations, with the anchor's; ``kl`` mixes precisions,
    ``S~^-1 = (eta S_a^-1 + S^-1) / (1 + eta)``, which is the minimiser of KL(law~ || law) on the bound.

    Args:
        log_std: ``[..., D]``.
        anchor: The anchor's, ``[..., D]``.
        bound: Broadcastable to ``[...]``, positive.
        geometry: `anchored_spread_distance`.

    Source: arXiv 2101.09207, by the official code.
    """
    new, old = log_std.double(), anchor.double()
    distance = anchored_spread_distance(new, old, geometry=geometry)
    active = distance > bound
    if geometry == "kl":
        moved = old + 0.5 * _bounded_log_ratio(2 * (new - old), bound, active)
    else:
        power = 1.0 if geometry == "w2" else 2.0
        share = torch.where(active, bound / torch.where(active, distance, 1), 1).sqrt().unsqueeze(-1)
        # Of 1 + share (s^p / s_a^p - 1), which is positive for share < 1.
        moved = old + torch.log1p(share * torch.expm1(power * (new - old))) / power
    return torch.where(active.unsqueeze(-1), moved.to(log_std.dtype), log_std)


@dataclass(frozen=True)
class ProjectedChoices:
    """Independent choices within a KL of their anchor.

    Attributes:
        log_p: Of each branch, ``[..., C]``; forbidden choices have the lowest finite number.
        active: ``[...]`` bool, what was moved.
        eta: ``[...]`` float64, multiplier of the bound; 0 where nothing was.
    """

    log_p: list[Tensor]
    active: Tensor
    eta: Tensor


def choices_kl(log_p: Sequence[Tensor], log_q: Sequence[Tensor], allowed: Sequence[Tensor | None]) -> Tensor:
    """KL(p || q) of all branches together, ``[...]`` float64; see `project_choices`."""
    total = torch.zeros(log_p[0].shape[:-1], dtype=torch.float64, device=log_p[0].device)
    for p, q, may in zip(log_p, log_q, allowed, strict=True):
        probability = _kept(may, _kept(may, p.double()).exp())
        total = total + (probability * _between(p, q, may)).sum(-1)
    return total


def project_choices(
    log_p: Sequence[Tensor], log_q: Sequence[Tensor], allowed: Sequence[Tensor | None], *, bound: float
) -> ProjectedChoices:
    """The minimiser of KL(p~ || p) with KL(p~ || q) at most `bound`: ``p~ ~ p^(1 / (1 + eta)) q^(eta / (1 + eta))``.

    One multiplier serves all branches, for the bound is on the KL of the joint choice.

    Args:
        log_p: Log-probabilities of each branch, normalised, ``[..., C]``.
        log_q: The anchor's.
        allowed: ``[..., C]`` bool of each, or None; forbidden choices stay at probability 0.
        bound: Nats, positive.

    Source: arXiv 2510.03817.
    """
    inside = choices_kl([p.detach() for p in log_p], [q.detach() for q in log_q], allowed)
    active = inside > bound
    logs = [
        (_kept(may, q.detach().double()), _between(p, q.detach(), may), may)
        for p, q, may in zip(log_p, log_q, allowed, strict=True)
    ]
    with torch.no_grad():
        fixed = [(q, u.detach(), may) for q, u, may in logs]
        log_eta = _bisected(lambda x: _tempered(fixed, torch.sigmoid(-x))[0] > bound, active)
        # The exponent of p, which is what falls with the multiplier.
        power = torch.where(active, torch.sigmoid(-log_eta), 1)
        variance = _tempered(fixed, power)[1]
        slope = torch.where(active, power * variance, 1)
    divergence, _, _ = _tempered(logs, power)
    power = power - torch.where(active, (divergence - bound) / slope, 0)
    found = []
    for p, projected, may in zip(log_p, _tempered(logs, power)[2], allowed, strict=True):
        low = torch.finfo(p.dtype).min
        kept = projected.to(p.dtype) if may is None else projected.to(p.dtype).masked_fill(~may, low)
        found.append(torch.where(active.unsqueeze(-1), kept, p))
    return ProjectedChoices(found, active, torch.where(active, log_eta.exp(), 0))


def _tempered(
    logs: Sequence[tuple[Tensor, Tensor, Tensor | None]], power: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """KL(p~ || q) of ``p~ ~ q exp(power u)``, the variance of ``u`` under ``p~``, and the ``log p~``, masked ones 0."""
    divergence, variance, found = torch.zeros_like(power), torch.zeros_like(power), []
    for q, u, may in logs:
        logits = q + power.unsqueeze(-1) * u
        if may is not None:
            logits = logits.masked_fill(~may, -torch.inf)
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        log_p = _kept(may, log_p)
        divergence = divergence + (p * (log_p - q)).sum(-1)
        mean = (p * u).sum(-1, keepdim=True)
        variance = variance + (p * (u - mean).square()).sum(-1)
        found.append(log_p)
    return divergence, variance, found


def _kept(allowed: Tensor | None, x: Tensor) -> Tensor:
    return x if allowed is None else torch.where(allowed, x, 0)


def _between(log_p: Tensor, log_q: Tensor, allowed: Tensor | None) -> Tensor:
    """``log p - log q`` of what is allowed, else 0."""
    return _kept(allowed, log_p.double()) - _kept(allowed, log_q.double())


def _kl_of(log_ratio: Tensor) -> Tensor:
    """``0.5 sum (r - 1 - log r)`` of ratios of variances."""
    return 0.5 * (torch.expm1(log_ratio) - log_ratio).sum(-1)


def _bounded_log_ratio(log_ratio: Tensor, bound: Tensor, active: Tensor) -> Tensor:
    """``log r~`` with ``r~ = (1 + eta) / (eta + 1 / r)``, on the bound where `active`."""
    inverse = torch.exp(-log_ratio.clamp(-_FARTHEST, _FARTHEST))

    def mixed(eta: Tensor) -> Tensor:
        return torch.log1p(eta).unsqueeze(-1) - torch.log(eta.unsqueeze(-1) + inverse)

    with torch.no_grad():
        log_eta = _bisected(lambda x: _kl_of(mixed(x.exp())) > bound, active)
        eta = torch.where(active, log_eta.exp(), 0)
        ratio = mixed(eta).exp()
        # d r~ / d eta = (1 / r - 1) / (eta + 1 / r)^2.
        slope = 0.5 * ((1 - 1 / ratio) * (inverse - 1) / (eta.unsqueeze(-1) + inverse).square()).sum(-1)
        slope = torch.where(active, slope, 1)
    eta = eta - torch.where(active, (_kl_of(mixed(eta)) - bound) / slope, 0)
    return mixed(eta)


def _bisected(beyond: Callable[[Tensor], Tensor], active: Tensor) -> Tensor:
    """``log eta`` up to which a falling function is beyond its bound; float64, of the shape of `active`."""
    low = torch.full(active.shape, -_FARTHEST, dtype=torch.float64, device=active.device)
    high = -low
    if not bool(active.any()):
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        more = beyond(middle)
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return high
