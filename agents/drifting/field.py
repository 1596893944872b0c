"""The drifting field: where samples of a generator move to become samples of a target (arXiv 2602.04770).

A *problem* is one state or condition: queries ``x`` (samples of the generator), positives (samples of the target) and
negatives, which are the queries themselves unless others are given. Attraction to positives and repulsion from
negatives cancel in expectation when both have one law. `drift` makes the normalised force of a batch of problems,
`drift_loss` the regression onto it, and `raw_field` is the field of one problem at one bandwidth, for a closer look.

Shape letters here: ``B`` problems, ``G`` queries, ``P`` positives, ``M`` external negatives, ``D`` coordinates, ``K``
temperatures; ``...`` are leading axes (learners), whose rows never see each other.

Everything is computed in float32, or in float64 where the queries are, also under autocast. Only `drift_loss` carries
a gradient, and only through its `x`: nothing is differentiated through the field.

What differs from the authors' released loss: a query is masked from itself exactly (they add 100 to its distance);
products of softmaxes stay logarithms until a common factor has been taken out (they clamp products below at 1e-6), so
that a small temperature still moves samples that start far from every positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Drift", "Kernel", "Normalisation", "drift", "drift_loss", "raw_field"]

Normalisation = Literal["joint", "row", "separate", "sharp", "attraction"]
"""How kernels become weights of targets.

- ``joint``: geometric mean of the softmax over all targets of a query, both signs together, and the softmax over the
  queries of a target. The default, and the one that a single positive does not bias (the released estimator).
- ``row``: the former softmax alone.
- ``separate``: a softmax over the positives and one over the negatives: the difference of two mean-shift vectors, the
  field of the paper's text. A single positive then attracts every query alike, whatever the kernel: it averages modes.
- ``sharp``: as ``separate``, but normalised by the kernel whose gradient the mean shift is, so that the field is the
  gradient of ``log(p/q)`` of densities smoothed by that kernel (arXiv 2604.06333).
- ``attraction``: ``separate`` without its repulsion; its only fixed points are point masses.
"""

Kernel = Literal["laplacian", "gaussian"]
"""``exp(-r / tau)``, or ``exp(-r^2 / (2 tau^2))``, of the Euclidean distance ``r``."""

_SMALLEST_SCALE = 1e-3
_SMALLEST_RMS = 1e-4


@dataclass(frozen=True)
class Drift:
    """Where to move a batch of queries, and how large the field was before it was normalised.

    Attributes:
        force: ``[..., B, G, D]``, the step in normalised coordinates (``x / unit``); zero in masked problems.
        scale: ``[...]``, mean distance of a query to its targets, in the units of `x`.
        unit: ``[...]``, what coordinates are divided by: ``max(scale / sqrt(D), 1e-3)``.
        rms: ``[..., K]``, root mean square of each temperature's force in normalised coordinates, before division. At
            wide temperatures it falls as training converges (a narrow one first has to come within reach); the loss
            does not. May underflow to zero where the force does not.
        signal: ``[...]``, in ``[0, 1]``: root mean square of the force's mean over queries, as a share of the force's
            own: what is common to all queries of a problem. Independent forces would give ``1 / sqrt(G)``.
        mask: ``[..., B]``, the problems that count, or None for all.
    """

    force: Tensor
    scale: Tensor
    unit: Tensor
    rms: Tensor
    signal: Tensor
    mask: Tensor | None = None

    @property
    def displacement(self) -> Tensor:
        """``[..., B, G, D]``: the force in the units of `x`."""
        return self.force * self.unit[..., None, None, None]


@torch.no_grad()
def drift(
    x: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperatures: Sequence[float],
    kind: Normalisation = "joint",
    kernel: Kernel = "laplacian",
    weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    own: bool = True,
    mask: Tensor | None = None,
    normalise: bool = True,
) -> Drift:
    """Sum over temperatures of forces that each have root mean square one over the batch.

    Bandwidths are relative to one scale of the whole batch, and each temperature's force is divided by one number: the
    relative sizes of the problems' forces survive, the global size does not. Divide over many problems: the joint
    field's expectation is exactly zero at the target only before this division, whose bias is of order ``1/B``.

    Args:
        x: Queries ``[..., B, G, D]``.
        positives: ``[..., B, P, D]``; leading axes broadcast to those of `x`.
        negatives: External negatives ``[..., B, M, D]``.
        temperatures: Bandwidths in units of the mean distance of a query to its targets (self-distances count as
            zeros in that mean).
        kind: See `Normalisation`.
        kernel: See `Kernel`.
        weights: Of positives, non-negative, ``[..., B, P]`` or broadcastable to it; ones by default. They multiply the
            normalised kernels: with ``P = 1`` the whole force of a problem. A weight of zero removes a positive.
        negative_weights: Of external negatives, ``[..., B, M]`` likewise; queries as negatives have weight one. With
            unconditional target samples as negatives, ``(alpha - 1) (G - 1) / M`` is guidance of strength ``alpha``.
        own: The queries of a problem are each other's negatives. False: `negatives` alone are; drawn independently of
            `x` they leave the joint field without the ``O(1/G)`` outward bias that sharing causes.
        mask: Bool ``[..., B]``, the problems that count; others (padding) get no force and enter no mean.
        normalise: False leaves out the division by root mean squares.

    Raises:
        ValueError: Shapes do not fit, a temperature or weight is out of range, or there are fewer than two queries
            with ``own=True``.

    Source: arXiv 2602.04770, the authors' released loss; formulas checked against float64 loops in the tests. The
    floor of the root mean square (1e-4) holds after the largest weight of the batch has been taken out.
    """
    if x.ndim < 3:
        raise ValueError(f"queries of a batch of problems are [..., B, G, D], not {_shape(x)}")
    widths = [_checked_temperature(t) for t in temperatures]
    if not widths:
        raise ValueError("drift needs at least one temperature")
    with torch.autocast(x.device.type, enabled=False):
        counted = _checked_mask(mask, x)
        targets = _targets(x, positives, negatives, weights, negative_weights, own, counted)
        share = counted.to(targets.x.dtype)
        share = share / share.sum(-1, keepdim=True).clamp(min=1)  # [..., B], sums to one, or to zero
        near = targets.weights.unsqueeze(-2)
        mean_weight = (share * near.mean((-2, -1))).sum(-1)
        scale = (share * (targets.distance * near).mean((-2, -1))).sum(-1) / mean_weight.clamp(min=1e-30)
        unit = (scale / math.sqrt(x.shape[-1])).clamp(min=_SMALLEST_SCALE)
        targets = targets.rescaled(unit, scale.clamp(min=_SMALLEST_SCALE))
        force, sizes = torch.zeros_like(targets.x), []
        for width in widths:
            direction, log_mass = _field(targets, width, kind, kernel)
            one, top = _without_common_factor(direction, log_mass, counted)
            rms = _rms(one, share)
            sizes.append(rms * top.exp())
            factor = 1 / rms.clamp(min=_SMALLEST_RMS) if normalise else top.exp()
            force += one * factor[..., None, None, None]
        common = _rms(force.mean(-2, keepdim=True), share)
        signal = common / _rms(force, share).clamp(min=1e-30)
    return Drift(force, scale, unit, torch.stack(sizes, -1), signal, None if mask is None else counted)


def drift_loss(x: Tensor, drift: Drift) -> Tensor:
    """Mean of ``(x / unit - sg(x / unit + force))^2`` over counted problems, queries and coordinates.

    The whole target is detached. Were only the force, both ``x`` would cancel and the gradient would be zero. Its
    gradient with respect to ``x`` is ``-2 force / (unit B G D)``, ``B`` the counted problems: of one size, whatever
    the advantages or the distance to the target. So the value is no measure of progress: it is the mean square of the
    force, at most ``K^2`` for ``K`` normalised temperatures (all forces alike) and about ``K`` for unrelated ones, and
    does not go down. Watch `Drift.rms` and `Drift.scale`.

    Args:
        x: Queries ``[..., B, G, D]`` with their graph, as given to `drift`.
        drift: Of these queries.

    Returns:
        ``[...]``: one value a leading row (a scalar for ``[B, G, D]``); zero where no problem counts.

    Raises:
        ValueError: `x` has another shape than the force.

    Source: arXiv 2602.04770, the fixed-point loss.
    """
    if x.shape != drift.force.shape:
        raise ValueError(f"queries {_shape(x)} are not those of a force {_shape(drift.force)}")
    with torch.autocast(x.device.type, enabled=False):
        here = x.to(drift.force.dtype)
        mask = torch.ones_like(here[..., 0, 0], dtype=torch.bool) if drift.mask is None else drift.mask
        # Padding may hold anything; as a constant it passes no gradient, not even that of a NaN.
        here = torch.where(mask[..., None, None], here, torch.zeros_like(here)) / drift.unit[..., None, None, None]
        target = (here + drift.force).detach()
        squares = (here - target).square().mean((-2, -1))
        return squares.sum(-1) / mask.sum(-1).clamp(min=1)


@torch.no_grad()
def raw_field(
    x: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float,
    kind: Normalisation = "joint",
    kernel: Kernel = "laplacian",
    weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    own: bool = True,
) -> Tensor:
    """The field of each problem by itself, at one absolute bandwidth, without any scale or division.

    With ``A`` the weights of targets that `kind` and `kernel` give, ``S+`` and ``S-`` their sums over positives and
    negatives, the field is ``V(x_i) = sum_jk A_ij A_ik (y_j - y_k) = S-_i sum_j A_ij y_j - S+_i sum_k A_ik y_k``. It
    depends on differences of samples alone; exchanging positives and independent negatives turns its sign.

    Args:
        x: Queries ``[..., G, D]``.
        positives: ``[..., P, D]``.
        negatives: External negatives ``[..., M, D]``.
        temperature: Bandwidth in the units of `x`.
        kind: See `Normalisation`.
        kernel: See `Kernel`.
        weights: Of positives, ``[..., P]``; as for `drift`.
        negative_weights: Of external negatives, ``[..., M]``.
        own: The queries are each other's negatives.

    Returns:
        ``[..., G, D]``, in the units of `x` (``sharp``: their reciprocal, a score).

    Raises:
        ValueError: As `drift`.

    Source: arXiv 2602.04770 for ``joint`` and ``separate``; arXiv 2604.06333 for ``sharp``.
    """
    if x.ndim < 2:
        raise ValueError(f"queries are [..., G, D], not {_shape(x)}")
    width = _checked_temperature(temperature)
    with torch.autocast(x.device.type, enabled=False):
        counted = torch.ones(x.shape[:-2], dtype=torch.bool, device=x.device)
        targets = _targets(x, positives, negatives, weights, negative_weights, own, counted)
        direction, log_mass = _field(targets, width, kind, kernel)
        return direction * log_mass.exp().unsqueeze(-1)


@dataclass(frozen=True)
class _Targets:
    """Queries and what they are drawn to and pushed from: negatives first (own, then external), then positives.

    Coordinates are relative to the mean query of each problem, which keeps float32 exact far from the origin.
    """

    x: Tensor  # [..., G, D]
    points: Tensor  # [..., N, D]
    weights: Tensor  # [..., N]
    distance: Tensor  # [..., G, N]
    hidden: Tensor  # [G, N], a query as its own target
    negatives: int  # how many of the N

    def rescaled(self, unit: Tensor, scale: Tensor) -> _Targets:
        """With coordinates divided by `unit` and distances by `scale`, each ``[...]`` without ``B``."""
        unit, scale = unit[..., None, None, None], scale[..., None, None, None]
        return replace(self, x=self.x / unit, points=self.points / unit, distance=self.distance / scale)


def _targets(
    x: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    weights: Tensor | None,
    negative_weights: Tensor | None,
    own: bool,
    counted: Tensor,
) -> _Targets:
    if own and x.shape[-2] < 2:
        raise ValueError(f"{x.shape[-2]} query has no other as its negative: draw two or more, or pass own=False")
    if negatives is None and negative_weights is not None:
        raise ValueError("negative_weights without negatives: they weigh external ones alone")
    here = x.to(torch.promote_types(x.dtype, torch.float32))
    parts, masses = ([here], [here.new_ones(here.shape[:-1])]) if own else ([], [])
    for name, points, weight in (("negatives", negatives, negative_weights), ("positives", positives, weights)):
        if points is not None:
            parts.append(_like(here, points, name))
            masses.append(_weights_like(parts[-1], weight, name))
    # Padding may hold anything, NaN included: it becomes a problem whose points all lie at zero.
    kept = counted[..., None, None]
    here, there = (torch.where(kept, part, part.new_zeros(())) for part in (here, torch.cat(parts, -2)))
    mass = torch.where(counted.unsqueeze(-1), torch.cat(masses, -1), here.new_ones(()))
    if bool((mass < 0).any()):
        raise ValueError("weights of targets must not be negative")
    centre = here.mean(-2, keepdim=True)
    here, there = here - centre, there - centre
    # Differences, not the product form: near points would lose their distance to cancellation.
    distance = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist")
    hidden = torch.zeros(distance.shape[-2:], dtype=torch.bool, device=x.device)
    if own:
        hidden.diagonal().fill_(True)
    return _Targets(here, there, mass, distance, hidden, there.shape[-2] - positives.shape[-2])


def _field(targets: _Targets, temperature: float, kind: Normalisation, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Direction ``[..., G, D]`` and the logarithm of what multiplies it, ``[..., G]``.

    Since ``V = S- S+ (sum_j A_ij y_j / S+ - sum_k A_ik y_k / S-)``, the field is a difference of weighted means, of
    the size of the samples' spread, times a mass that may be too small for a float.
    """
    _check_choice("normalisation", kind, get_args(Normalisation))
    _check_choice("kernel", kernel, get_args(Kernel))
    if targets.negatives == 0 and kind != "attraction":
        raise ValueError(f"the {kind} field needs negatives: pass some, or own=True")
    logits = _log_kernel(targets.distance, temperature, kernel).masked_fill(targets.hidden, -math.inf)
    repelling, attracting = slice(0, targets.negatives), slice(targets.negatives, None)
    if kind in ("joint", "row"):
        log_share = torch.log_softmax(logits, -1)
        if kind == "joint":
            log_share = (log_share + torch.log_softmax(logits, -2)) / 2
    else:
        log_share = torch.cat([torch.log_softmax(logits[..., part], -1) for part in (repelling, attracting)], -1)
    log_share = log_share + targets.weights.log().unsqueeze(-2)
    toward, log_mass = _mean_of(targets, attracting, log_share)
    if kind == "attraction":
        return _where_any(log_mass, toward - targets.x), log_mass
    away, log_repulsion = _mean_of(targets, repelling, log_share)
    log_mass = log_mass + log_repulsion
    if kind == "sharp":
        log_sharp = _log_sharp_kernel(targets.distance, temperature, kernel).masked_fill(targets.hidden, -math.inf)
        toward = (toward - targets.x) * _kernel_ratio(targets, attracting, logits, log_sharp)
        away = (away - targets.x) * _kernel_ratio(targets, repelling, logits, log_sharp)
    return _where_any(log_mass, toward - away), log_mass


def _mean_of(targets: _Targets, part: slice, log_share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean target of each query under its shares, and the logarithm of their sum."""
    chosen = log_share[..., part]
    log_sum = torch.logsumexp(chosen, -1)
    lowest = torch.finfo(log_sum.dtype).min  # a sum of nothing would give infinity minus infinity
    return (chosen - log_sum.clamp(min=lowest).unsqueeze(-1)).exp() @ targets.points[..., part, :], log_sum


def _kernel_ratio(targets: _Targets, part: slice, log_kernel: Tensor, log_sharp: Tensor) -> Tensor:
    """``sum_j w_j k_ij / sum_j w_j k#_ij``, ``[..., G, 1]``: from the mean shift to the gradient of a log density."""
    log_weights = targets.weights[..., part].log().unsqueeze(-2)
    sums = [torch.logsumexp(log[..., part] + log_weights, -1, keepdim=True) for log in (log_kernel, log_sharp)]
    return (sums[0] - sums[1]).exp()


def _where_any(log_mass: Tensor, direction: Tensor) -> Tensor:
    """Zero where every target of a sign has weight zero."""
    return torch.where((log_mass == -math.inf).unsqueeze(-1), direction.new_zeros(()), direction)


def _log_kernel(distance: Tensor, temperature: float, kernel: Kernel) -> Tensor:
    reduced = distance / temperature
    return -reduced if kernel == "laplacian" else -reduced.square() / 2


def _log_sharp_kernel(distance: Tensor, temperature: float, kernel: Kernel) -> Tensor:
    """Of ``k#(r) = int_r^inf s k(s) ds``, so that ``grad_x k#(|x - y|) = k(|x - y|) (y - x)``."""
    log_kernel = _log_kernel(distance, temperature, kernel)
    if kernel == "laplacian":
        return log_kernel + (distance + temperature).log() + math.log(temperature)
    return log_kernel + 2 * math.log(temperature)


def _without_common_factor(direction: Tensor, log_mass: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The force over the largest mass of its row, ``[..., B, G, D]``, and the logarithm of that mass, ``[...]``."""
    log_mass = log_mass.masked_fill(~counted.unsqueeze(-1), -math.inf)
    top = log_mass.amax((-2, -1))
    top = torch.where(top == -math.inf, top.new_zeros(()), top)
    return direction * (log_mass - top[..., None, None]).exp().unsqueeze(-1), top


def _rms(force: Tensor, share: Tensor) -> Tensor:
    return (share * force.square().mean((-2, -1))).sum(-1).sqrt()


def _like(x: Tensor, points: Tensor, name: str) -> Tensor:
    """`points` in the queries' dtype, with their leading axes."""
    if points.ndim < 2 or 0 in points.shape[-2:] or points.shape[-1] != x.shape[-1]:
        raise ValueError(f"{name} are [..., points, {x.shape[-1]}] for queries {_shape(x)}, not {_shape(points)}")
    try:
        return points.to(x.dtype).expand(*x.shape[:-2], *points.shape[-2:])
    except RuntimeError as error:
        raise ValueError(f"{name} {_shape(points)} are not of the problems of queries {_shape(x)}") from error


def _weights_like(points: Tensor, weights: Tensor | None, name: str) -> Tensor:
    if weights is None:
        return points.new_ones(points.shape[:-1])
    try:
        return weights.to(points.dtype).expand(points.shape[:-1])
    except RuntimeError as error:
        raise ValueError(f"weights {_shape(weights)} do not fit {name} {_shape(points)}") from error


def _checked_mask(mask: Tensor | None, x: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(x.shape[:-2], dtype=torch.bool, device=x.device)
    if mask.dtype != torch.bool or mask.shape != x.shape[:-2]:
        raise ValueError(f"a mask of queries {_shape(x)} is bool {list(x.shape[:-2])}, not {mask.dtype} {_shape(mask)}")
    return mask


def _checked_temperature(temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperatures are positive numbers, not {temperature}")
    return temperature


def _check_choice(what: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise ValueError(f"no {what} {name!r}; there are {', '.join(choices)}")


def _shape(x: Tensor) -> str:
    return str(list(x.shape))
