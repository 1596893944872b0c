"""Episodes as they were flown: the global state in physical units, and what records it without a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.observation import own_extras
from marl_tr.vector.contract import Leaves, Trajectory

if TYPE_CHECKING:
    from marl_tr.envs.uav.pettingzoo import DownlinkParallelEnv

__all__ = ["GROUP", "EpisodeLog", "Moment", "read_state"]

Array = NDArray[Any]

GROUP = "uav"
"""Name of the one group of agents."""

_SERVED = 5
"""First of a user's columns that say who serves it."""
_OWN = 7
"""First of a UAV's columns that only some settings have."""


@dataclass(frozen=True)
class Moment:
    """The global state in physical units; ``...`` are the axes of the state it was read from (copies, or slots).

    Attributes:
        position: ``[..., U, D]``, UAVs, in m; ``D`` is 3 where heights differ (`DownlinkConfig.coordinates`), else 2.
        velocity: ``[..., U, D]``, in m/s, as flown in the slot that ended.
        power_w: ``[..., U]``, transmit power in that slot.
        load: ``[..., U]`` int, users served.
        uav_rates_bps: ``[..., U]``, sum over each UAV's users.
        users: ``[..., G, 2]``, in m.
        rates_bps: ``[..., G]``.
        sinr_db: ``[..., G]``; NaN where nothing was received.
        serving: ``[..., G]`` int, index of the serving UAV, -1 where nobody serves.
    """

    position: Array
    velocity: Array
    power_w: Array
    load: Array
    uav_rates_bps: Array
    users: Array
    rates_bps: Array
    sinr_db: Array
    serving: Array


def read_state(config: DownlinkConfig, state: Mapping[str, Array]) -> Moment:
    """Undo the scaling of `marl_tr.envs.uav.observation.write_state`.

    Args:
        config: Units of the state.
        state: Leaves ``uavs`` and ``users``, with any axes before theirs.
    """
    uavs, users = state["uavs"], state["users"]
    served = users[..., _SERVED : _SERVED + config.num_uavs] > 0
    anybody = served.any(axis=-1)
    level = users[..., 4]
    height, climb = _heights(config, uavs)
    return Moment(
        position=np.concatenate((uavs[..., 0:2] * config.area_m, height), axis=-1),
        velocity=np.concatenate((uavs[..., 2:4] * config.v_max, climb), axis=-1),
        power_w=uavs[..., 4] * config.p_max_w,
        load=np.rint(uavs[..., 5] * config.num_users).astype(np.int64),
        uav_rates_bps=uavs[..., 6] * (config.num_users / config.num_uavs * config.rate_ref),
        users=users[..., 0:2] * config.area_m,
        rates_bps=users[..., 2] * config.rate_ref,
        sinr_db=np.where(anybody | (level != 0), 40.0 * level, np.nan),
        serving=np.where(anybody, served.argmax(axis=-1), -1),
    )


def _heights(config: DownlinkConfig, uavs: Array) -> tuple[Array, Array]:
    """Heights in m and vertical speeds in m/s, ``[..., U, 1]``, or ``[..., U, 0]`` where all are the same."""
    if config.coordinates == 2:
        return uavs[..., :0], uavs[..., :0]
    extras = own_extras(config)
    column = {name: uavs[..., _OWN + index, None] for index, name in enumerate(extras)}
    if "height" in column:
        return column["height"] * config.flight.altitude_max_m, column["climb"] * config.v_max
    # Level flight, in which only empty batteries are on the ground.
    height = np.where(column["battery"] > 0, config.altitude_m, 0.0).astype(uavs.dtype)
    return height, np.zeros_like(height)


class EpisodeLog:
    """Keeps what happens in a PettingZoo environment, for pictures, videos and tables.

    Example:
        >>> from marl_tr.envs.uav.pettingzoo import parallel_env
        >>> env = parallel_env(num_uavs=2, num_users=5, horizon=3)
        >>> observations, infos = env.reset(seed=1)
        >>> log = EpisodeLog(env)
        >>> while env.agents:
        ...     actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        ...     observations, rewards, terminations, truncations, infos = env.step(actions)
        ...     log.add(rewards)
        >>> log.trajectory().state["uavs"].shape
        (4, 2, 7)

    Args:
        env: After a reset; its present state is the first that is kept.
    """

    def __init__(self, env: DownlinkParallelEnv) -> None:
        self._env = env
        self._states: list[Leaves] = [env.snapshot()]
        self._rewards: list[Array] = []

    def add(self, rewards: Mapping[str, float]) -> None:
        """Keep the state after a step, and what the step paid (0 to agents that are not named)."""
        self._states.append(self._env.snapshot())
        self._rewards.append(np.array([rewards.get(agent, 0.0) for agent in self._env.possible_agents], np.float32))

    def trajectory(self) -> Trajectory:
        """What was kept so far, as the environment's hooks take it; without actions and metrics."""
        shape = (len(self._rewards), len(self._env.possible_agents))
        return Trajectory(
            state={leaf: np.stack([state[leaf] for state in self._states]) for leaf in self._states[0]},
            actions={},
            reward={GROUP: np.array(self._rewards, np.float32).reshape(shape)},
            metrics={},
        )
