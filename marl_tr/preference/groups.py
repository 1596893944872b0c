"""Candidates side by side with those that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Groups", "row_mean"]


@dataclass(frozen=True)
class Groups:
    """The ``g`` groups of all rows, each padded to the largest.

    Attributes:
        index: ``[g, G]`` int64, into candidates ``[R, N]`` as one axis; 0 where there is none.
        valid: ``[g, G]`` bool.
        row: ``[g]`` int64, the learner of each group.
        rows: ``R``.
    """

    index: Tensor
    valid: Tensor
    row: Tensor
    rows: int

    @staticmethod
    def of(group: Tensor, present: Tensor) -> Groups:
        """From the number of each candidate's group ``[R, N]`` int64; who is not `present` ``[R, N]`` is left out."""
        rows, device = group.shape[0], group.device
        where = present.flatten().nonzero().flatten()
        span = int(group.max()) + 1 if group.numel() else 1
        names = (group + span * torch.arange(rows, device=device).unsqueeze(-1)).flatten()[where]
        unlike, inverse, sizes = names.unique(return_inverse=True, return_counts=True)
        order = inverse.argsort(stable=True)
        first = sizes.cumsum(0) - sizes
        place = torch.arange(len(where), device=device) - first[inverse[order]]
        shape = (len(unlike), int(sizes.max()) if len(sizes) else 1)
        index = torch.zeros(shape, dtype=torch.int64, device=device)
        valid = torch.zeros(shape, dtype=torch.bool, device=device)
        index[inverse[order], place] = where[order]
        valid[inverse[order], place] = True
        return Groups(index, valid, unlike // span, rows)

    def gather(self, x: Tensor) -> Tensor:
        """Of candidates ``[R, N]``: ``[g, G]``; zero where there is none."""
        return torch.where(self.valid, x.flatten()[self.index], 0)

    def better(self, rank: Tensor) -> Tensor:
        """Which pairs there are: ``[g, G, G]`` bool, the first's `rank` ``[R, N]`` higher than the second's."""
        own = self.gather(rank)
        both = self.valid.unsqueeze(-1) & self.valid.unsqueeze(-2)
        return both & (own.unsqueeze(-1) > own.unsqueeze(-2))

    def mean(self, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of ``[g, ...]`` over what is `counted`, a row, and how many those are: ``[R]`` each."""
        each = x[0].numel() if len(x) else 1
        return row_mean(x.flatten(), counted.flatten(), self.row.repeat_interleave(each), self.rows)


def row_mean(x: Tensor, counted: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Mean of ``[n]`` over what is `counted`, by `row` ``[n]``; zero for a row without any. And the counts, ``[R]``."""
    kept = torch.where(counted, x, 0)
    total = kept.new_zeros(rows).index_add(0, row, kept)
    count = kept.new_zeros(rows).index_add(0, row, counted.to(kept.dtype))
    return total / count.clamp_min(1), count
