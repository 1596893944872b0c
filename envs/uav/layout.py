"""Where users and UAVs are when an episode begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from marl_tr.philox import normal, uniform

if TYPE_CHECKING:
    from marl_tr.envs.uav.config import DownlinkConfig

__all__ = ["checked_centres", "depot_places", "draw_starts", "draw_users"]

Array = NDArray[Any]

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_CENTRES, _MEMBERSHIP, _SCATTER, _BACKGROUND, _STARTS = range(5)


def draw_users(
    config: DownlinkConfig,
    seed: int,
    stream: Array,
    episode: Array,
    *,
    centres: Sequence[tuple[float, float]] | None = None,
) -> Array:
    """User positions: hot spots over a uniform background.

    Hot-spot centres are uniform in ``[0.15 L, 0.85 L]^2``, or given; a share of the users lies round them
    (isotropic normal, clipped to the area), each at a hot spot drawn uniformly; the others are uniform in the
    area.

    Args:
        config: Numbers and lengths.
        seed: The reset's seed.
        stream: Environment indices, ``[E]``.
        episode: Episode indices, ``[E]``.
        centres: Hot spots of every episode, in m, in place of `config.hotspots` drawn ones.

    Returns:
        ``[E, G, 2]`` float64, in m.

    Raises:
        ValueError: `centres` is empty, or one of them is outside the area.
    """
    envs, gathered = len(stream), round(config.hotspot_share * config.num_users)
    alone = config.num_users - gathered

    def draws(purpose: int, *shape: int) -> Array:
        count = int(np.prod(shape))
        return uniform(seed, stream, purpose=purpose, step=episode, count=count).reshape(envs, *shape)

    if centres is None:
        hotspots = config.area_m * (0.15 + 0.7 * draws(_CENTRES, config.hotspots, 2))
    else:
        hotspots = np.broadcast_to(checked_centres(centres, config.area_m), (envs, len(centres), 2))
    spot = (draws(_MEMBERSHIP, gathered) * hotspots.shape[1]).astype(np.intp)
    scatter = normal(seed, stream, purpose=_SCATTER, step=episode, count=2 * gathered)
    near = np.take_along_axis(hotspots, spot[..., None], axis=1)
    near = near + config.hotspot_sigma_m * scatter.reshape(envs, gathered, 2)
    users = np.concatenate((near, config.area_m * draws(_BACKGROUND, alone, 2)), axis=1)
    return np.clip(users, 0.0, config.area_m, out=users)


def draw_starts(
    config: DownlinkConfig,
    seed: int,
    stream: Array,
    episode: Array,
    *,
    kind: Literal["uniform", "depot"] = "uniform",
    spacing_m: float = 50.0,
) -> Array:
    """UAV positions: uniform in the area, or parked at a depot in its corner.

    Args:
        config: Numbers and lengths.
        seed: The reset's seed.
        stream: Environment indices, ``[E]``.
        episode: Episode indices, ``[E]``.
        kind: ``uniform``, or ``depot``: a square grid whose first place is ``(0, 0)``, filled along x first.
        spacing_m: Between neighbours in the depot, in m.

    Returns:
        ``[E, U, 2]`` float64, in m.

    Raises:
        ValueError: The depot does not fit into the area.
    """
    if kind == "depot":
        return np.repeat(depot_places(config.num_uavs, spacing_m, config.area_m)[None], len(stream), axis=0)
    count = 2 * config.num_uavs
    draws = uniform(seed, stream, purpose=_STARTS, step=episode, count=count)
    return config.area_m * draws.reshape(len(stream), config.num_uavs, 2)


def checked_centres(centres: Sequence[tuple[float, float]], area_m: float) -> Array:
    """Hot spots as an array ``[n, 2]``, in m.

    Raises:
        ValueError: There is none, or one is outside the area.
    """
    if not centres:
        raise ValueError("hot spots: no centre is given")
    for number, centre in enumerate(centres):
        if not all(0.0 <= coordinate <= area_m for coordinate in centre):
            raise ValueError(
                f"hot spots: centre {number}, ({centre[0]:g}, {centre[1]:g}) m, is outside the area, "
                f"[0, {area_m:g}] m each way"
            )
    return np.array(centres, float)


def depot_places(num_uavs: int, spacing_m: float, area_m: float) -> Array:
    """Places in the depot, ``[U, 2]``, in m.

    Raises:
        ValueError: The depot does not fit into the area.
    """
    columns = math.ceil(math.sqrt(num_uavs))
    side = (columns - 1) * spacing_m
    if side > area_m:
        raise ValueError(
            f"depot: {num_uavs} UAVs {spacing_m:g} m apart need {side:g} m each way, and the area has "
            f"{area_m:g} m; set a smaller spacing, or more area"
        )
    index = np.arange(num_uavs)
    return spacing_m * np.stack((index % columns, index // columns), axis=-1).astype(float)
