"""What paired episodes say of a joint policy: each agent's gap, their sum and their largest, with intervals.

``gap_i = max J_i(pi_i', pi_-i) - J_i(pi)`` over all policies of agent ``i``; NashConv is their sum and epsilon the
largest. A learned best response is one policy among all, so that its gap is a lower bound in expectation. Gaps are
signed: a responder that plays worse than the policy itself is shown as such, for a gap cut off at 0 has a positive mean
at an equilibrium as well.

Source: Lanctot et al., A Unified Game-Theoretic Approach to Multiagent Reinforcement Learning (NeurIPS 2017), section
    4, for NashConv.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Interval", "JointGap", "joint_gap"]

_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over paired episodes and its 95 % bootstrap interval.

    Attributes:
        estimate: The mean.
        low: Lower end.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class JointGap:
    """The gaps of some agents of one joint policy.

    Attributes:
        agents: Each one's own.
        nash_conv: Their sum, each times its weight.
        epsilon: The largest. The interval of a largest leans upwards where several are alike.
    """

    agents: dict[str, Interval]
    nash_conv: Interval
    epsilon: Interval


def joint_gap(
    differences: Mapping[str, ArrayLike],
    *,
    seed: int,
    weights: Mapping[str, float] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> JointGap:
    """Percentile bootstrap over paired episodes; all agents' episodes are redrawn together, for they share seeds.

    Args:
        differences: ``{agent: [n]}``: return with the deviation less return without it, episode by episode.
        seed: Equal seeds give equal intervals.
        weights: How many agents each stands for in the sum; 1 each where left out.
        resamples: How often episodes are redrawn.
        confidence: Share of the resamples inside.

    Raises:
        ValueError: No agents, no episodes, different numbers of them, or a number that is not finite.
    """
    if not differences:
        raise ValueError("no agents' differences are given")
    columns = [np.asarray(x, np.float64) for x in differences.values()]
    if len({x.shape for x in columns}) != 1 or columns[0].ndim != 1 or columns[0].size == 0:
        raise ValueError(f"differences must be [n] each, of one length, not {[list(x.shape) for x in columns]}")
    paired = np.stack(columns, axis=1)
    if not np.isfinite(paired).all():
        raise ValueError("a difference is not finite")
    drawn = _resampled_means(paired, resamples, seed)
    means = paired.mean(0)
    weight = np.array([1.0 if weights is None else weights[agent] for agent in differences])
    tail = (1 - confidence) / 2

    def interval(estimate: float, values: NDArray[np.float64]) -> Interval:
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(float(estimate), float(low), float(high))

    return JointGap(
        agents={agent: interval(means[i], drawn[:, i]) for i, agent in enumerate(differences)},
        nash_conv=interval(float((means * weight).sum()), (drawn * weight).sum(1)),
        epsilon=interval(float(means.max()), drawn.max(1)),
    )


def _resampled_means(x: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """``[n, A]`` to ``[R, A]``: means over ``n`` episodes drawn with replacement."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // x.size)
    parts = []
    for first in range(0, resamples, block):
        index = generator.integers(0, len(x), (min(block, resamples - first), len(x)))
        parts.append(x[index].mean(1))
    return np.concatenate(parts)
