"""What gradient steps see: decisions, or whole trajectories, in minibatches and in chunks of a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import PolicyBatch
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Pass", "Samples", "packed_rows", "passes_of_an_epoch"]


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass sees.

    Attributes:
        index: ``[n]``, which samples.
        chain: ``[R, T, n, k]``, which steps of each decision's chain; None: all.
    """

    index: Tensor
    chain: Tensor | None


@dataclass(frozen=True)
class Samples:
    """What passes see: whole trajectories where there is memory, else single decisions.

    Attributes:
        batch: ``[R, T, N, ...]``.
        old_log_prob: ``[R, T, N, k]``, of the chain steps that `batch` asks for.
        advantage: ``[R, T, N]``.
        law: The old policy's, of the same decisions and chain steps; None: nobody asked for it.
        labels: ``[R, T, N]`` each, what a region asked to know of the decisions (`marl_tr.region.needs.Need`), or
            ``[R, T, N, k]`` of their chain steps.
        blocks: ``[N]`` int64, what stays together in minibatches; None: each alone.
    """

    batch: PolicyBatch
    old_log_prob: Tensor
    advantage: Tensor
    law: Any = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    blocks: Tensor | None = None

    def flatten_time(self) -> Samples:
        """``[R, 1, T N, ...]``: for policies without memory."""
        return self._map(lambda x: x.flatten(1, 2).unsqueeze(1), self.batch.flatten_time())

    def packed(self, keep: Tensor) -> Samples:
        """Only the decisions to `keep`, of rows ``[R, 1, N]`` that may have unlike numbers of them.

        Each row's come first, in their order, and the rest is cut off at the longest row; where a row has fewer the
        mask is false.
        """

        def gathered(x: Tensor) -> Tensor:
            return packed_rows(x[:, 0], keep[:, 0]).unsqueeze(1)

        return self._map(gathered, replace(self.batch.map_rows(gathered), mask=gathered(keep)))

    def part(self, chosen: Pass) -> Samples:
        """Those of a pass."""
        found = self._map(lambda x: x.index_select(2, chosen.index), self.batch.trajectories(chosen.index))
        chain = chosen.chain
        if chain is None:
            return found
        return replace(
            found,
            batch=replace(found.batch, chain=chain),
            old_log_prob=found.old_log_prob.gather(-1, chain),
            law=None if found.law is None else found.law.map(lambda x: _steps(x, chain)),
            labels={name: x if x.ndim == chain.ndim - 1 else _steps(x, chain) for name, x in found.labels.items()},
        )

    def counts(self, chosen: Pass) -> Tensor:
        """How many decisions and chain steps of each row are in a pass: ``[R]`` float64."""
        steps = self.old_log_prob.shape[-1] if chosen.chain is None else chosen.chain.shape[-1]
        return self.batch.mask.index_select(2, chosen.index).sum((1, 2)).double() * steps

    def _map(self, function: Callable[[Tensor], Tensor], batch: PolicyBatch) -> Samples:
        """`function` applied to everything ``[R, T, N, ...]``, beside the `batch` that it makes."""
        lead = self.advantage.shape

        def on_law(x: Tensor) -> Tensor:
            # A law may hold what does not depend on the decision once for all of them.
            return function(x.expand(*lead, *x.shape[3:]))

        return Samples(
            batch,
            function(self.old_log_prob),
            function(self.advantage),
            law=None if self.law is None else self.law.map(on_law),
            labels={name: function(x) for name, x in self.labels.items()},
        )


def packed_rows(x: Tensor, keep: Tensor) -> Tensor:
    """``[R, M, ...]`` with what each row is to `keep` ``[R, M]`` first, in its order, cut off at the longest row."""
    order = torch.argsort(~keep, dim=1, stable=True)[:, : max(1, int(keep.sum(1).max()))]
    return torch.stack([row[index] for row, index in zip(x, order, strict=True)])


def passes_of_an_epoch(samples: Samples, settings: OptimizerSection, generator: torch.Generator) -> Iterator[Pass]:
    """Minibatches in random order, and of each the chain in chunks."""
    device = samples.advantage.device
    minibatches = _minibatches(samples, settings.minibatches, generator)
    chain = _chain_order(samples.old_log_prob.shape, settings, generator)
    for index in minibatches:
        if chain is None:
            yield Pass(index, None)
            continue
        for steps in chain.split(settings.chain_batch or chain.shape[-1], -1):
            yield Pass(index, steps.to(device)[:, :, index])


def _minibatches(samples: Samples, count: int, generator: torch.Generator) -> list[Tensor]:
    """Indices ``[n]`` of each minibatch, in random order; blocks stay whole."""
    device, blocks = samples.advantage.device, samples.blocks
    atoms = samples.advantage.shape[2] if blocks is None else int(blocks.max()) + 1
    # Drawn on the generator's device (CPU) so that runs repeat on any device.
    order = torch.randperm(atoms, generator=generator).to(device)
    parts = order.chunk(min(count, atoms))
    if blocks is None:
        return list(parts)
    return [(blocks.unsqueeze(-1) == part).any(-1).nonzero().flatten() for part in parts]


def _steps(x: Tensor, chain: Tensor) -> Tensor:
    """Of ``[R, T, n, K, ...]`` the chain steps ``[R, T, n, k]``."""
    index = chain.reshape(*chain.shape, *(1,) * (x.ndim - 4)).expand(*chain.shape, *x.shape[4:])
    return x.gather(3, index)


def _chain_order(shape: torch.Size, settings: OptimizerSection, generator: torch.Generator) -> Tensor | None:
    """The chain steps of an epoch in random order, each decision its own: ``[R, T, N, k]``; None: all at once.

    Source: the timestep permutation and fraction of published flow GRPO (specification 5).
    """
    length = shape[-1]
    kept = max(1, round(settings.chain_fraction * length))
    if kept == length and (settings.chain_batch or length) >= length:
        return None
    return torch.rand(shape, generator=generator).argsort(-1)[..., :kept]
