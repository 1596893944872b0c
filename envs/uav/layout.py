"""Where users and UAVs are when an episode begins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.philox import normal, uniform

__all__ = ["draw_starts", "draw_users"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_CENTRES, _MEMBERSHIP, _SCATTER, _BACKGROUND, _STARTS = range(5)


def draw_users(config: DownlinkConfig, seed: int, stream: Array, episode: Array) -> Array:
    """User positions: hot spots over a uniform background.

    Hot-spot centres are uniform in ``[0.15 L, 0.85 L]^2``; a share of the users lies round them
    (isotropic normal, clipped to the area), each at a hot spot drawn uniformly; the others are uniform in the
    area.

    Args:
        config: Numbers and lengths.
        seed: The reset's seed.
        stream: Environment indices, ``[E]``.
        episode: Episode indices, ``[E]``.

    Returns:
        ``[E, G, 2]`` float64, in m.
    """
    envs, gathered = len(stream), round(config.hotspot_share * config.num_users)
    alone = config.num_users - gathered

    def draws(purpose: int, *shape: int) -> Array:
        count = int(np.prod(shape))
        return uniform(seed, stream, purpose=purpose, step=episode, count=count).reshape(envs, *shape)

    centres = config.area_m * (0.15 + 0.7 * draws(_CENTRES, config.hotspots, 2))
    spot = (draws(_MEMBERSHIP, gathered) * config.hotspots).astype(np.intp)
    scatter = normal(seed, stream, purpose=_SCATTER, step=episode, count=2 * gathered)
    near = np.take_along_axis(centres, spot[..., None], axis=1)
    near = near + config.hotspot_sigma_m * scatter.reshape(envs, gathered, 2)
    users = np.concatenate((near, config.area_m * draws(_BACKGROUND, alone, 2)), axis=1)
    return np.clip(users, 0.0, config.area_m, out=users)


def draw_starts(config: DownlinkConfig, seed: int, stream: Array, episode: Array) -> Array:
    """UAV positions, uniform in the area.

    Args:
        config: Numbers and lengths.
        seed: The reset's seed.
        stream: Environment indices, ``[E]``.
        episode: Episode indices, ``[E]``.

    Returns:
        ``[E, U, 2]`` float64, in m.
    """
    count = 2 * config.num_uavs
    draws = uniform(seed, stream, purpose=_STARTS, step=episode, count=count)
    return config.area_m * draws.reshape(len(stream), config.num_uavs, 2)
