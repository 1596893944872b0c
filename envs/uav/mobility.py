"""How ground users move: from settings to what moves them.

Numbers are drawn from `marl_tr.philox` for the purposes 20 to 29: users of environment ``j`` of any batch move as in
a batch of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from marl_tr.envs.uav.mobility_config import (
    GaussMarkovConfig,
    GroupConfig,
    MobilityConfig,
    RandomWalkConfig,
    RandomWaypointConfig,
    StaticConfig,
    TraceConfig,
)
from marl_tr.envs.uav.motion import Mobility
from marl_tr.envs.uav.traces import TraceReplay
from marl_tr.envs.uav.walks import GaussMarkov, RandomWalk
from marl_tr.envs.uav.waypoint import Groups, RandomWaypoint

__all__ = ["Mobility", "MobilityConfig", "make_mobility"]


def make_mobility(
    config: MobilityConfig,
    *,
    area_m: float,
    slot_s: float,
    horizon: int,
    num_envs: int,
    num_users: int,
    dtype: DTypeLike = np.float32,
) -> Mobility:
    """What moves the users of a block of environments.

    Args:
        config: The model of motion, and its settings.
        area_m: Side of the square area, in m.
        slot_s: Length of a slot, in s.
        horizon: Slots of an episode; a trace is begun so that it lasts for them.
        num_envs: ``E``.
        num_users: ``G``.
        dtype: Of positions and velocities.

    Raises:
        ValueError: The settings do not suit the other numbers; see `RandomWaypoint`, `Groups`, `TraceReplay`.

    Example:
        >>> users = make_mobility(
        ...     RandomWaypointConfig(), area_m=1000.0, slot_s=1.0, horizon=100, num_envs=2, num_users=20
        ... )
        >>> stream, start = np.arange(2), np.zeros((2, 20, 2))
        >>> users.begin(np.arange(2), start, seed=1, stream=stream, episode=np.zeros(2, int))
        >>> users.move(seed=1, stream=stream, moment=np.ones(2, int))
        >>> users.position.shape
        (2, 20, 2)
    """
    block: dict[str, Any] = {
        "area_m": area_m,
        "slot_s": slot_s,
        "num_envs": num_envs,
        "num_users": num_users,
        "dtype": dtype,
    }
    match config:
        case StaticConfig():
            return Mobility(**block)
        case RandomWalkConfig():
            return RandomWalk(config, **block)
        case RandomWaypointConfig():
            return RandomWaypoint(config, **block)
        case GaussMarkovConfig():
            return GaussMarkov(config, **block)
        case GroupConfig():
            return Groups(config, **block)
        case TraceConfig():
            return TraceReplay(config, horizon=horizon, **block)
