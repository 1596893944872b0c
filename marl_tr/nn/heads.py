"""From a network's outputs to a law of actions, and from raw actions to an environment's space and back.

A `Head` binds one gymnasium space. Outputs have shape ``[..., size]``; state-independent parameters (a
Gaussian's log standard deviations) are rows ``[L, extra_size]`` that the policy owns and passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from marl_tr.nn.discrete import Categorical, MultiCategorical
from marl_tr.nn.distributions import Beta, Gaussian, Law, ProductLaw
from marl_tr.nn.mixture import GaussianMixture, spread_means

__all__ = [
    "BoxBetaHead",
    "BoxGaussianHead",
    "BoxLaw",
    "BoxMixtureHead",
    "CategoricalHead",
    "Head",
    "MultiDiscreteHead",
    "ProductHead",
    "UnsupportedActionSpace",
    "make_head",
]


BoxLaw = Literal["gaussian", "beta", "mixture"]
"""Laws of a Box action."""


class UnsupportedActionSpace(ValueError):
    """No law covers this space; the message says which do."""


class Head(Protocol):
    """What a policy needs to know of one action leaf.

    Attributes:
        size: Network outputs.
        extra_size: State-independent parameters a row; 0 for most.
        raw_shape: Shape of one raw action, without leading axes.
        raw_dtype: Its dtype; float actions are stored in float32.
        encoded_size: Width of `encode`.
    """

    size: int
    extra_size: int
    raw_shape: tuple[int, ...]
    raw_dtype: torch.dtype
    encoded_size: int

    def law(self, outputs: Tensor, extra: Tensor | None = None, mask: Tensor | None = None) -> Law[Tensor]:
        """The law at `outputs` ``[L, ..., size]``, with `extra` ``[L, extra_size]`` where there is any.

        Args:
            outputs: The network's outputs.
            extra: State-independent parameters of each row.
            mask: Allowed choices, bool, ``[L, ..., size]``; discrete spaces only.
        """
        ...

    def env_action(self, raw: Tensor) -> Tensor:
        """Raw actions ``[..., *raw_shape]`` as elements of the space, ``[..., *space.shape]``."""
        ...

    def encode(self, action: Tensor) -> Tensor:
        """An environment's actions as float32 features for a critic, ``[..., encoded_size]``."""
        ...


class _Box:
    """Bounds of a Box, and the maps between it and units where a bounded dimension is ``[-1, 1]``."""

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self.shape = space.shape
        self.dimensions = int(np.prod(space.shape))
        self.dtype = torch.from_numpy(np.zeros((), space.dtype)).dtype
        low = torch.from_numpy(np.asarray(space.low, np.float64).reshape(-1))
        high = torch.from_numpy(np.asarray(space.high, np.float64).reshape(-1))
        self.bounded = torch.isfinite(low) & torch.isfinite(high)
        # A half-bounded dimension passes through like an unbounded one, and is clipped at the bound it has.
        self.low, self.high = low, high
        self.centre = torch.where(self.bounded, (low + high) / 2, 0.0)
        self.half_width = torch.where(self.bounded, (high - low) / 2, 1.0)

    def from_units(self, units: Tensor) -> Tensor:
        """``[..., D]``, bounded dimensions in [-1, 1] -> ``[..., *space.shape]``, clipped to the bounds."""
        centre, half_width, low, high = (
            bound.to(units.device) for bound in (self.centre, self.half_width, self.low, self.high)
        )
        value = torch.clamp(centre + half_width * units.double(), low, high)
        if not self.dtype.is_floating_point:
            value = value.round()
        return value.to(self.dtype).reshape(*units.shape[:-1], *self.shape)

    def to_units(self, action: Tensor) -> Tensor:
        """The inverse, float32 ``[..., D]``; a dimension of no width gives 0."""
        lead = action.shape[: action.dim() - len(self.shape)]
        centre, half_width = self.centre.to(action.device), self.half_width.to(action.device)
        flat = action.reshape(*lead, self.dimensions).double() - centre
        return (flat / half_width.masked_fill(half_width == 0, 1)).float()


class BoxGaussianHead:
    """A diagonal Gaussian over a Box, one output a dimension, log standard deviations independent of the
    state.

    Raw actions are in units where a bounded dimension is [-1, 1]; the environment gets them clipped, the
    density is that of the unclipped sample. Unbounded dimensions pass through.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self._box = _Box(space)
        self.size = self.extra_size = self.encoded_size = self._box.dimensions
        self.raw_shape: tuple[int, ...] = (self._box.dimensions,)
        self.raw_dtype = torch.float32

    def law(self, outputs: Tensor, extra: Tensor | None = None, mask: Tensor | None = None) -> Gaussian:
        """See `Head.law`; `extra` holds the log standard deviations ``[L, D]``."""
        _refuse(mask)
        if extra is None:
            raise ValueError("a Gaussian head needs its log standard deviations, extra=[L, D]")
        rows = extra.shape[0]
        return Gaussian(outputs, extra.reshape(rows, *(1,) * (outputs.dim() - 2), self.size))

    def env_action(self, raw: Tensor) -> Tensor:
        """See `Head.env_action`."""
        return self._box.from_units(raw)

    def encode(self, action: Tensor) -> Tensor:
        """See `Head.encode`: the action in units of [-1, 1]."""
        return self._box.to_units(action)


class BoxMixtureHead:
    """A mixture of diagonal Gaussians over a Box: several ways to act, of which each decision takes one.

    Outputs are a logit for each component, then its means; log standard deviations are independent of the state, one
    for each component and dimension. Units and clipping are those of `BoxGaussianHead`.

    Args:
        space: Any Box.
        components: Gaussians ``K``, two at least.
        spread: How far from the centre the components of a new network lie, in units where a bounded dimension is
            [-1, 1]; positive. Components that start alike would learn alike, and stay one.
    """

    def __init__(self, space: gymnasium.spaces.Box, *, components: int = 4, spread: float = 1.0) -> None:
        if components < 2 or not spread > 0:
            raise ValueError(f"a mixture needs two components that lie apart, not {components} within {spread}")
        self._box = _Box(space)
        self._components = components
        self._spread = spread
        self.encoded_size = self._box.dimensions
        self.extra_size = components * self._box.dimensions
        self.size = components + self.extra_size
        self.raw_shape: tuple[int, ...] = (self._box.dimensions,)
        self.raw_dtype = torch.float32

    def initial_outputs(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """What a new network adds to its outputs, ``[rows, size]``: equal weights, means by `spread_means`."""
        means = spread_means(
            rows, self._components, self._box.dimensions, spread=self._spread, generator=generator
        ).flatten(1)
        return torch.cat([means.new_zeros(rows, self._components), means], -1)

    def law(self, outputs: Tensor, extra: Tensor | None = None, mask: Tensor | None = None) -> GaussianMixture:
        """See `Head.law`; `extra` holds the log standard deviations ``[L, K D]``, component after component."""
        _refuse(mask)
        if extra is None:
            raise ValueError("a mixture head needs its log standard deviations, extra=[L, K D]")
        logits, means = torch.split(outputs, [self._components, self.extra_size], -1)
        return GaussianMixture(logits, means, extra.reshape(-1, *(1,) * (outputs.dim() - 2), self.extra_size))

    def env_action(self, raw: Tensor) -> Tensor:
        """See `Head.env_action`."""
        return self._box.from_units(raw)

    def encode(self, action: Tensor) -> Tensor:
        """See `Head.encode`: the action in units of [-1, 1]."""
        return self._box.to_units(action)


class BoxBetaHead:
    """Independent Beta laws on a bounded Box: ``alpha, beta = 1 + softplus(output)``, so every law is
    unimodal.

    Raw actions are in (0, 1), mapped onto ``[low, high]`` (Chou et al. 2017).

    Raises:
        UnsupportedActionSpace: A dimension is not bounded on both sides.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self._box = _Box(space)
        if not bool(self._box.bounded.all()):
            raise UnsupportedActionSpace(f"a Beta law needs finite bounds, not {space}; use law: gaussian")
        self.size = 2 * self._box.dimensions
        self.extra_size = 0
        self.encoded_size = self._box.dimensions
        self.raw_shape: tuple[int, ...] = (self._box.dimensions,)
        self.raw_dtype = torch.float32

    def law(self, outputs: Tensor, extra: Tensor | None = None, mask: Tensor | None = None) -> Beta:
        """See `Head.law`; the first half of `outputs` makes alpha, the second beta."""
        _refuse(mask)
        concentrations = 1 + softplus(outputs)
        alpha, beta = concentrations.chunk(2, -1)
        return Beta(alpha, beta)

    def env_action(self, raw: Tensor) -> Tensor:
        """See `Head.env_action`."""
        return self._box.from_units(2 * raw.double() - 1)

    def encode(self, action: Tensor) -> Tensor:
        """See `Head.encode`: the action in units of [-1, 1]."""
        return self._box.to_units(action)


class CategoricalHead:
    """Logits over a Discrete space; raw actions count from 0, the environment's from ``space.start``."""

    def __init__(self, space: gymnasium.spaces.Discrete) -> None:
        self.size = self.encoded_size = int(space.n)
        self.extra_size = 0
        self.raw_shape: tuple[int, ...] = ()
        self.raw_dtype = torch.int64
        self._start = int(space.start)

    def law(self, outputs: Tensor, extra: Tensor | None = None, mask: Tensor | None = None) -> Categorical:
        """See `Head.law`."""
        return Categorical(outputs, mask)

    def env_action(self, raw: Tensor) -> Tensor:
        """See `Head.env_action`, int64."""
        return raw + self._start

    def encode(self, action: Tensor) -> Tensor:
        """See `Head.encode`: one-hot."""
        return one_hot(action.long() - self._start, self.size).float()


class MultiDiscreteHead:
    """Logits over each part of a one-dimensional MultiDiscrete space, side by side."""

    def __init__(self, space: gymnasium.spaces.MultiDiscrete) -> None:
        if space.nvec.ndim != 1:
            raise UnsupportedActionSpace(f"a MultiDiscrete space of one axis is needed, not {space}")
        self._sizes = tuple(int(n) for n in space.nvec)
        self._start = torch.from_numpy(np.asarray(space.start, np.int64))
        self.size = self.encoded_size = sum(self._sizes)
        self.extra_size = 0
        self.raw_shape: tuple[int, ...] = (len(self._sizes),)
        self.raw_dtype = torch.int64

    def law(self, outputs: Tensor, extra: Tensor | None = None, mask: Tensor | None = None) -> MultiCategorical:
        """See `Head.law`."""
        return MultiCategorical(outputs, self._sizes, mask)

    def env_action(self, raw: Tensor) -> Tensor:
        """See `Head.env_action`, int64."""
        return raw + self._start.to(raw.device)

    def encode(self, action: Tensor) -> Tensor:
        """See `Head.encode`: one one-hot block a part."""
        choices = (action.long() - self._start.to(action.device)).unbind(-1)
        return torch.cat([one_hot(choice, n) for choice, n in zip(choices, self._sizes, strict=True)], -1).float()


class ProductHead:
    """One head a leaf, their outputs and extra parameters side by side; the law is a `ProductLaw`.

    Args:
        heads: ``{leaf: head}``.

    Attributes:
        size: Sum of the heads' outputs.
        extra_size: Sum of their state-independent parameters.
        encoded_size: Sum of their encoded widths.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = dict(heads)
        self.size = sum(head.size for head in self.heads.values())
        self.extra_size = sum(head.extra_size for head in self.heads.values())
        self.encoded_size = sum(head.encoded_size for head in self.heads.values())

    def initial_outputs(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """What a new network adds to its outputs, ``[rows, size]``: zeros but for mixtures, which alone draw."""
        parts = [
            head.initial_outputs(rows, generator=generator)
            if isinstance(head, BoxMixtureHead)
            else torch.zeros(rows, head.size, device=generator.device)
            for head in self.heads.values()
        ]
        return torch.cat(parts, -1)

    def law(
        self, outputs: Tensor, extra: Tensor | None = None, masks: Mapping[str, Tensor] | None = None
    ) -> ProductLaw:
        """The law at `outputs` ``[L, ..., size]``, `extra` ``[L, extra_size]``, `masks` ``{leaf: bool}``."""
        parts = torch.split(outputs, [head.size for head in self.heads.values()], -1)
        extras: list[Tensor | None] = [None] * len(self.heads)
        if extra is not None:
            extras = list(torch.split(extra, [head.extra_size for head in self.heads.values()], -1))
        allowed = masks or {}
        return ProductLaw(
            {
                leaf: head.law(part, more if head.extra_size else None, allowed.get(leaf))
                for (leaf, head), part, more in zip(self.heads.items(), parts, extras, strict=True)
            }
        )

    def env_action(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Head.env_action`, leaf by leaf."""
        return {leaf: head.env_action(raw[leaf]) for leaf, head in self.heads.items()}

    def encode(self, action: Mapping[str, Tensor]) -> Tensor:
        """All leaves' features side by side, float32 ``[..., encoded_size]``."""
        return torch.cat([head.encode(action[leaf]) for leaf, head in self.heads.items()], -1)


def make_head(
    space: gymnasium.Space[Any], law: BoxLaw = "gaussian", *, components: int = 4, spread: float = 1.0
) -> Head:
    """The head for `space`: Box by `law`; Discrete and MultiDiscrete are categorical.

    Args:
        space: What an action leaf may be.
        law: Of a Box.
        components: Of a mixture.
        spread: Of a mixture's components at the start, as in `BoxMixtureHead`.

    Raises:
        UnsupportedActionSpace: Another kind of space, or one that `law` cannot cover.
    """
    if isinstance(space, gymnasium.spaces.Box):
        if law == "mixture":
            return BoxMixtureHead(space, components=components, spread=spread)
        return BoxBetaHead(space) if law == "beta" else BoxGaussianHead(space)
    if isinstance(space, gymnasium.spaces.Discrete):
        return CategoricalHead(space)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return MultiDiscreteHead(space)
    raise UnsupportedActionSpace(
        f"no law for actions of {space}; Box, Discrete and MultiDiscrete spaces have one, a Dict one a leaf"
    )


def _refuse(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError("an action mask belongs to a discrete space; this one is a Box")
