"""Running statistics of inputs and of values whose changes leave every network's function as it was.

Statistics are gathered by `update` and come into force only by `apply_update` or `rescale`, which rewrites
the layer beside them in the same moment. A rollout is thus collected, and a divergence measured, under one
normalisation. Before anything has been learned there is no function worth keeping: `adopt` brings the first
statistics into force alone, so that a network starts from inputs (and values) of order one.

An optimizer's moments of a rewritten layer are in the old units. After the first statistics units move by
little, and the moments forget.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_tr.nn.stacked import StackedLinear, affine

__all__ = ["InputNormaliser", "ValueNormaliser"]

_FAR = 32.0
"""Deviations from 0 at which an input's mean is far: cancellation takes five of a float32's 24 bits there."""
_BLOCK = 1024
"""Samples that are taken in at once: in float64 they stay in the cache, where a whole rollout leaves it thrice."""


class InputNormaliser(nn.Module):
    """Shifts and scales inputs to mean 0 and standard deviation 1, in front of a `StackedLinear`.

    Args:
        features: Width ``D`` of the input.
        minimum_std: No input is divided by less, so that a feature which hardly ever moves is not blown up
            when it does. A feature that never moved is divided by 1.

    Attributes:
        count: Samples so far, float64 scalar.
        mean: Their running mean, float64 ``[D]``.
        m2: Their summed squared deviations, float64 ``[D]``.
        shift: What `forward` subtracts, float64 ``[D]``.
        scale: What `forward` divides by, float64 ``[D]``.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, *, minimum_std: float = 1e-2) -> None:
        super().__init__()
        self.minimum_std = minimum_std
        _register(self, (features,), ())

    def forward(self, x: Tensor) -> Tensor:
        """``(x - shift) / scale``, ``[..., D]`` in the dtype of `x`."""
        return (x - self.shift.to(x.dtype)) / self.scale.to(x.dtype)

    def through(self, linear: StackedLinear, x: Tensor) -> Tensor:
        """``linear(self(x))`` ``[L, ..., out]``; many samples in one product, without writing the normalised inputs.

        ``W (x - m) / s + b = W' x + b'`` with ``W' = W / s`` and ``b' = b - W' m``. An input far from zero beside its
        spread would lose digits to cancellation, so that such statistics take the plain way; and few samples do, for
        which rewriting the layer is more work.
        """
        if x.numel() < 2 * linear.weight.numel() or bool((self.shift.abs() > _FAR * self.scale).any()):
            plain: Tensor = linear(self(x))
            return plain
        shift, scale = self.shift.to(x.dtype), self.scale.to(x.dtype)
        weight = linear.weight / scale.unsqueeze(-1)
        return affine(x, weight, linear.bias - shift @ weight)

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Take samples ``[..., D]`` into the statistics, only those where `mask` ``[...]`` is true.

        Source: Chan, Golub and LeVeque (1983), the pairwise update of a mean and a sum of squares.
        """
        everything = mask is None or bool(mask.all())
        samples = x.reshape(-1, x.shape[-1]) if everything else x[mask]
        if samples.shape[0] == 0:
            return
        for part in samples.split(_BLOCK):
            block = part.to(torch.float64, copy=True)
            mean = block.mean(0)
            _merge(self, torch.full_like(self.count, block.shape[0]), mean, block.sub_(mean).square_().sum(0))

    @torch.no_grad()
    def adopt(self) -> None:
        """Bring the statistics into force and rewrite nothing: the composed function changes."""
        shift, scale = _moments(self, self.minimum_std)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    @torch.no_grad()
    def apply_update(self, first_linear: StackedLinear) -> None:
        """Bring the statistics into force and rewrite `first_linear` so that the composed function stays.

        ``W (x - m) / s + b = W' (x - m') / s' + b'`` with ``W' = W s' / s`` and ``b' = b + W (m' - m) / s``.
        The rewriting is exact in float64; only the cast back to the layer's dtype rounds.
        """
        shift, scale = _moments(self, self.minimum_std)
        weight = first_linear.weight.double()
        moved = torch.einsum("lio,i->lo", weight, (shift - self.shift) / self.scale)
        first_linear.bias.copy_(first_linear.bias.double() + moved)
        first_linear.weight.copy_(weight * (scale / self.scale).unsqueeze(-1))
        self.shift.copy_(shift)
        self.scale.copy_(scale)


class ValueNormaliser(nn.Module):
    """Units of mean 0 and standard deviation 1 for values, behind a `StackedLinear`.

    The statistics forget: a sample counts ``decay`` times less for each sample after it. With the sum of
    those weights kept as `count`, mean and variance are those of the debiased exponential average (as HARL's
    ValueNorm), and follow values that grow while the policy improves.

    Args:
        size: Values ``O`` in the last axis (for example one an agent).
        rows: Learners ``L``; 1 also fits values without a row axis.
        decay: Weight lost a sample; 0.99999 forgets over about 100,000 samples.
        minimum_std: No value is divided by less.

    Attributes:
        count: Sum of the samples' weights, float64 ``[L, O]``.
        mean: Running mean, float64 ``[L, O]``.
        m2: Weighted sum of squared deviations, float64 ``[L, O]``.
        shift: The mean in force, float64 ``[L, O]``.
        scale: The standard deviation in force, float64 ``[L, O]``.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int, *, rows: int = 1, decay: float = 0.99999, minimum_std: float = 1e-4) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], not {decay}")
        self.decay = decay
        self.minimum_std = minimum_std
        _register(self, (rows, size), (rows, size))

    def normalise(self, values: Tensor) -> Tensor:
        """Values ``[L, ..., O]`` (any ``[..., O]`` for one row) in the units in force."""
        shift, scale = self._units(values)
        return (values - shift) / scale

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        shift, scale = self._units(normalised)
        return normalised * scale + shift

    @torch.no_grad()
    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Take values ``[L, ..., O]`` into the statistics, only those where `mask` (same shape) is true."""
        rows, size = self.mean.shape
        samples = values.double().reshape(rows, -1, size)
        taken = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.expand_as(values)
        weight = taken.reshape_as(samples).double()
        # Rows that are not taken may hold anything, NaN too.
        samples = torch.where(weight > 0, samples, 0.0)
        number = weight.sum(1)
        mean = samples.sum(1) / number.clamp_min(1)
        m2 = (weight * (samples - mean.unsqueeze(1)).square()).sum(1)
        if self.decay < 1:
            kept = self.decay**number
            self.count.mul_(kept)
            self.m2.mul_(kept)
            share = (1 - kept) / (1 - self.decay) / number.clamp_min(1)
            number, m2 = number * share, m2 * share
        _merge(self, number, mean, m2)

    @property
    def fresh(self) -> bool:
        """Whether no value was taken yet."""
        return not bool(self.count.any())

    @torch.no_grad()
    def adopt(self) -> None:
        """Bring the statistics into force and rewrite nothing: denormalised outputs change."""
        shift, scale = _moments(self, self.minimum_std)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    @torch.no_grad()
    def rescale(self, *last_linears: StackedLinear) -> None:
        """Bring the statistics into force and rewrite `last_linears` so that denormalised outputs stay.

        ``W' = W s / s'``, ``b' = (s b + m - m') / s'``. Each layer has ``O`` outputs,
        or any number where ``O = 1``.

        Source: PopArt, van Hasselt et al., arXiv 1602.07714, equations 9 and 10.
        """
        shift, scale = _moments(self, self.minimum_std)
        ratio = self.scale / scale
        for layer in last_linears:
            layer.weight.copy_(layer.weight.double() * ratio.unsqueeze(1))
            layer.bias.copy_(ratio * layer.bias.double() + (self.shift - shift) / scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def _units(self, values: Tensor) -> tuple[Tensor, Tensor]:
        rows, size = self.shift.shape
        shape = (size,) if rows == 1 else (rows, *(1,) * (values.dim() - 2), size)
        return self.shift.to(values.dtype).reshape(shape), self.scale.to(values.dtype).reshape(shape)


def _register(module: nn.Module, shape: tuple[int, ...], count_shape: tuple[int, ...]) -> None:
    # float64 whatever the network's dtype: thousands of merges must not drift. A `.float()` on the whole
    # module would undo that; a float64 path casts the parameters instead (`functional_call`).
    module.register_buffer("count", torch.zeros(count_shape, dtype=torch.float64))
    for name in ("mean", "m2", "shift"):
        module.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
    module.register_buffer("scale", torch.ones(shape, dtype=torch.float64))


def _merge(statistics: InputNormaliser | ValueNormaliser, number: Tensor, mean: Tensor, m2: Tensor) -> None:
    total = statistics.count + number
    share = number / total.clamp_min(torch.finfo(torch.float64).tiny)
    difference = mean - statistics.mean
    statistics.m2.add_(m2 + difference.square() * statistics.count * share)
    statistics.mean.add_(difference * share)
    statistics.count.copy_(total)


def _moments(statistics: InputNormaliser | ValueNormaliser, minimum_std: float) -> tuple[Tensor, Tensor]:
    seen = statistics.count > 0
    variance = statistics.m2 / torch.where(seen, statistics.count, 1.0)
    moved = seen & (variance > 0)
    scale = torch.where(moved, variance.sqrt().clamp_min(minimum_std), 1.0)
    return torch.where(seen, statistics.mean, statistics.shift), torch.where(moved, scale, statistics.scale)
