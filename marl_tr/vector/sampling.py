"""Uniformly random actions: the reference that every environment has, and the probe of `check-env`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.contract import EnvSpec, Leaves
from marl_tr.vector.errors import UnsupportedSpace

__all__ = ["random_actions", "sample"]


def random_actions(spec: EnvSpec, generator: np.random.Generator) -> dict[str, Leaves]:
    """Actions for every agent of every copy, ``{group: {leaf: [E, A, ...]}}``."""
    return {
        group.name: {
            leaf: sample(space, (spec.num_envs, len(group.agents)), generator) for leaf, space in group.action.items()
        }
        for group in spec.groups
    }


def sample(space: spaces.Space[Any], batch: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    """Draw from `space`, ``[*batch, *space.shape]``; uniform where bounded.

    A `Box` without a bound on one side has an exponential tail there, one without bounds is standard normal,
    as ``gymnasium.spaces.Box.sample`` does.

    Raises:
        UnsupportedSpace: `space` is no `Box`, `Discrete` or `MultiDiscrete`.
    """
    if isinstance(space, spaces.Discrete):
        return generator.integers(0, int(space.n), size=batch, dtype=np.int64) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return generator.integers(0, space.nvec, size=(*batch, *space.nvec.shape), dtype=np.int64) + space.start
    if not isinstance(space, spaces.Box):
        raise UnsupportedSpace(f"no random actions for {space}; supported are Box, Discrete and MultiDiscrete")
    shape = (*batch, *space.shape)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    below, above = np.isfinite(low), np.isfinite(high)
    both = below & above
    uniform = np.where(both, low, 0.0) + generator.random(shape) * np.where(both, high - low, 1.0)
    tail = generator.exponential(size=shape)
    drawn = np.where(both, uniform, generator.standard_normal(shape))
    drawn = np.where(below & ~above, low + tail, drawn)
    drawn = np.where(above & ~below, high - tail, drawn)
    clipped: NDArray[Any] = np.clip(drawn.astype(space.dtype), space.low, space.high)
    return clipped
