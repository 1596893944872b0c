"""How many modes samples have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["count_modes"]


def count_modes(samples: Tensor, *, link: float, share: float) -> Tensor:
    """Clusters among samples of each problem, by single linkage.

    Two samples are of one cluster where steps no longer than `link` lead from one to the other.

    Args:
        samples: ``[B, G, D]``.
        link: Euclidean distance.
        share: Clusters with a smaller share of the samples do not count.

    Returns:
        ``[B]`` int64.
    """
    count = samples.shape[1]
    near = (torch.cdist(samples, samples) <= link).to(torch.float32)
    # Squaring doubles the number of steps that are followed.
    for _ in range(max(1, math.ceil(math.log2(count)))):
        near = (near @ near > 0).to(torch.float32)
    size = near.sum(-1)
    # A sample stands for its cluster once, by the inverse of the cluster's size.
    counted = torch.where(size >= share * count, 1 / size, 0)
    return counted.sum(-1).round().long()
