"""A block of moving users with less to say, for the tests of each model."""

import numpy as np
import pytest

from marl_tr.envs.uav.mobility import make_mobility


class Users:
    """Environments ``offset .. offset + envs - 1`` of a batch, begun at `start` (default: the area's centre)."""

    def __init__(
        self,
        config,
        *,
        envs=1,
        users=5,
        area_m=1000.0,
        slot_s=1.0,
        horizon=100,
        seed=1,
        offset=0,
        start=None,
        dtype=np.float32,
    ):
        self.mobility = make_mobility(
            config, area_m=area_m, slot_s=slot_s, horizon=horizon, num_envs=envs, num_users=users, dtype=dtype
        )
        self.start = np.full((envs, users, 2), 0.5 * area_m) if start is None else np.asarray(start, float)
        self.horizon, self.seed = horizon, seed
        self.stream = offset + np.arange(envs)
        self.episode, self.slot = np.zeros(envs, np.int64), np.zeros(envs, np.int64)
        self.begin(np.arange(envs), 0)

    def begin(self, rows, episode):
        self.episode[rows], self.slot[rows] = episode, 0
        self.mobility.begin(
            rows, self.start[rows], seed=self.seed, stream=self.stream[rows], episode=self.episode[rows]
        )

    def move(self):
        self.slot += 1
        moment = self.episode * (self.horizon + 1) + self.slot
        self.mobility.move(seed=self.seed, stream=self.stream, moment=moment)

    def walk(self, slots):
        """Positions from now on, ``[slots + 1, E, G, 2]``, and velocities in each slot, ``[slots, E, G, 2]``."""
        positions, velocities = [self.mobility.position.copy()], []
        for _ in range(slots):
            self.move()
            positions.append(self.mobility.position.copy())
            velocities.append(self.mobility.velocity.copy())
        return np.array(positions), np.array(velocities)


@pytest.fixture(scope="session")
def users_of():
    return Users
