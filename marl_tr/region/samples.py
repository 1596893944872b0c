"""What gradient steps see: decisions, or whole trajectories, in minibatches and in chunks of a chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    """

    batch: PolicyBatch
    old_log_prob: Tensor
    advantage: Tensor

    def flatten_time(self) -> Samples:
        """``[R, 1, T N, ...]``: for policies without memory."""
        return Samples(
            self.batch.flatten_time(),
            self.old_log_prob.flatten(1, 2).unsqueeze(1),
            self.advantage.flatten(1, 2).unsqueeze(1),
        )

    def packed(self, keep: Tensor) -> Samples:
        """Only the decisions to `keep`, of rows ``[R, 1, N]`` that may have unlike numbers of them.

        Each row's come first, in their order, and the rest is cut off at the longest row; where a row has fewer the
        mask is false.
        """

        def gathered(x: Tensor) -> Tensor:
            return packed_rows(x[:, 0], keep[:, 0]).unsqueeze(1)

        batch = replace(self.batch.map_rows(gathered), mask=gathered(keep))
        return Samples(batch, gathered(self.old_log_prob), gathered(self.advantage))

    def part(self, chosen: Pass) -> Samples:
        """Those of a pass."""
        batch = self.batch.trajectories(chosen.index)
        old_log_prob = self.old_log_prob[:, :, chosen.index]
        if chosen.chain is not None:
            batch = replace(batch, chain=chosen.chain)
            old_log_prob = old_log_prob.gather(-1, chosen.chain)
        return Samples(batch, old_log_prob, self.advantage[:, :, chosen.index])

    def counts(self, chosen: Pass) -> Tensor:
        """How many decisions and chain steps of each row are in a pass: ``[R]`` float64."""
        steps = self.old_log_prob.shape[-1] if chosen.chain is None else chosen.chain.shape[-1]
        return self.batch.mask[:, :, chosen.index].sum((1, 2)).double() * steps


def packed_rows(x: Tensor, keep: Tensor) -> Tensor:
    """``[R, M, ...]`` with what each row is to `keep` ``[R, M]`` first, in its order, cut off at the longest row."""
    order = torch.argsort(~keep, dim=1, stable=True)[:, : max(1, int(keep.sum(1).max()))]
    return torch.stack([row[index] for row, index in zip(x, order, strict=True)])


def passes_of_an_epoch(samples: Samples, settings: OptimizerSection, generator: torch.Generator) -> Iterator[Pass]:
    """Minibatches in random order, and of each the chain in chunks."""
    device = samples.advantage.device
    # Drawn on the generator's device (CPU) so that runs repeat on any device.
    order = torch.randperm(samples.advantage.shape[2], generator=generator).to(device)
    chain = _chain_order(samples.old_log_prob.shape, settings, generator)
    for index in order.chunk(min(settings.minibatches, len(order))):
        if chain is None:
            yield Pass(index, None)
            continue
        for steps in chain.split(settings.chain_batch or chain.shape[-1], -1):
            yield Pass(index, steps.to(device)[:, :, index])


def _chain_order(shape: torch.Size, settings: OptimizerSection, generator: torch.Generator) -> Tensor | None:
    """The chain steps of an epoch in random order, each decision its own: ``[R, T, N, k]``; None: all at once.

    Source: the timestep permutation and fraction of published flow GRPO (specification 5).
    """
    length = shape[-1]
    kept = max(1, round(settings.chain_fraction * length))
    if kept == length and (settings.chain_batch or length) >= length:
        return None
    return torch.rand(shape, generator=generator).argsort(-1)[..., :kept]
