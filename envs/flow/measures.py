"""Measures of many clips together: diversity, and the constants that standardise the reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_tr.envs.flow.bank import Fit
from marl_tr.envs.flow.rewards import Scores
from marl_tr.envs.flow.shapes import SIZE
from marl_tr.envs.flow.standardisation import COMPONENTS, Standardisation

__all__ = ["Diversity", "diversity", "measured_standardisation", "pairwise_distance", "start_entropy", "torus_distance"]


@dataclass(frozen=True)
class Diversity:
    """How different samples are.

    Attributes:
        start_entropy: Entropy of the fitted starts over the 16 cells of 4 x 4 pixels, in nats; at most log 16.
        pairwise: Root mean squared difference a pixel of two samples of a cohort, mean over all pairs.
    """

    start_entropy: float
    pairwise: float


def diversity(samples: Tensor, fit: Fit, cohort: Tensor) -> Diversity:
    """Of samples ``[N, *event]``, their nearest legal clips, and their cohorts ``[N]``.

    `pairwise` is 0 where no cohort has two samples.
    """
    pairwise = pairwise_distance(samples, cohort)
    return Diversity(start_entropy=start_entropy(fit.start), pairwise=0.0 if pairwise is None else pairwise)


def pairwise_distance(samples: Tensor, cohort: Tensor) -> float | None:
    """Root mean squared difference of two samples ``[N, *event]`` of a cohort ``[N]``, mean over all pairs.

    None where no cohort has two samples.
    """
    order = cohort.argsort(stable=True)
    flat = samples[order].flatten(1).double() / samples[0].numel() ** 0.5
    sizes = cohort.unique(return_counts=True)[1].tolist()
    distances = torch.cat([torch.nn.functional.pdist(part) for part in flat.split(sizes)])
    return float(distances.mean()) if len(distances) else None


def start_entropy(start: Tensor, *, cells: int = 4) -> float:
    """Entropy in nats of positions ``[N, 2]`` (pixels) over ``cells x cells`` equal squares.

    It is the entropy of the counts as they are: with few samples it is too small, by about ``cells^2 / (2 N)``.
    """
    index = (start / (SIZE / cells)).floor().long().clamp(0, cells - 1)
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).double()
    return float(torch.special.entr(counts / counts.sum()).sum())


def torus_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distances ``[...]`` in pixels between positions ``[..., 2]``, the short way round."""
    distances: Tensor = ((a - b + SIZE / 2) % SIZE - SIZE / 2).norm(dim=-1)
    return distances


def measured_standardisation(scores: Scores) -> Mapping[str, Standardisation]:
    """Mean and standard deviation of each raw component over the clips scored, for `standardisation`."""
    return {
        name: Standardisation(mean=float(raw.mean()), std=float(raw.std(correction=0)))
        for name, raw in ((name, getattr(scores, name)) for name in COMPONENTS)
    }
