"""Uniformly random actions: the reference that every environment has, and the probe of `check-env`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.contract import EnvSpec, Leaves, Step
from marl_tr.vector.errors import UnsupportedSpace

__all__ = ["choices", "random_actions", "sample"]


def random_actions(spec: EnvSpec, generator: np.random.Generator, step: Step | None = None) -> dict[str, Leaves]:
    """Actions for every agent of every copy, ``{group: {leaf: [E, A, ...]}}``.

    Args:
        spec: The environment's.
        generator: Draws.
        step: The newest `Step`; leaves that it masks are drawn from what it allows. Without it, from everything.
    """
    actions: dict[str, Leaves] = {}
    for group in spec.groups:
        masks: Leaves = {}
        if step is not None:
            seen = step.groups[group.name].observation
            masks = {leaf: seen[mask] for leaf, mask in group.masks.items()}
        batch = (spec.num_envs, len(group.agents))
        actions[group.name] = {
            leaf: sample(space, batch, generator, masks.get(leaf)) for leaf, space in group.action.items()
        }
    return actions


def sample(
    space: spaces.Space[Any],
    batch: tuple[int, ...],
    generator: np.random.Generator,
    mask: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw from `space`, ``[*batch, *space.shape]``; uniform where bounded.

    A `Box` without a bound on one side has an exponential tail there, one without bounds is standard normal,
    as ``gymnasium.spaces.Box.sample`` does.

    Args:
        space: A `Box`, `Discrete` or `MultiDiscrete`.
        batch: Shape of the draws.
        generator: Draws.
        mask: ``[*batch, n]``, see `GroupSpec.masks`; the choice is uniform among those marked 1.

    Raises:
        UnsupportedSpace: `space` is no `Box`, `Discrete` or `MultiDiscrete`.
    """
    if mask is not None:
        return _allowed(space, mask, generator)
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


def choices(space: spaces.Space[Any]) -> list[int]:
    """How many choices each entry of a `Discrete` or `MultiDiscrete` has, in the order of a mask."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    raise UnsupportedSpace(f"no mask for {space}; only Discrete and MultiDiscrete have one")


def _allowed(space: spaces.Space[Any], mask: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    noise = generator.random(mask.shape)
    entries = []
    first = 0
    for size in choices(space):
        allowed = mask[..., first : first + size] != 0
        allowed |= ~allowed.any(axis=-1, keepdims=True)  # nobody acts there: nothing is forbidden
        # The largest of independent uniform numbers is any of them with equal probability.
        entries.append(np.where(allowed, noise[..., first : first + size], -1.0).argmax(axis=-1))
        first += size
    drawn = np.stack(entries, axis=-1).reshape(*mask.shape[:-1], *(space.shape or ()))
    shifted: NDArray[Any] = drawn + getattr(space, "start", 0)
    return shifted
