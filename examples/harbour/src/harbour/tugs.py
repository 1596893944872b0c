"""Tugs that bring a drifting barge to its berth: a PettingZoo ``ParallelEnv`` with continuous actions.

Lengths are in metres, times in seconds, speeds in m/s. The berth is the origin. A current that is the same all episode
long carries the barge away; no tug sees it, but the barge's speed tells of it. A tug that has used up its fuel leaves
the episode, and the others go on with what they have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

__all__ = ["Tugs"]

ARENA = 50.0
"""The barge starts this far from its berth at most."""
PULL = 0.4
"""Acceleration that one tug gives the barge at full thrust, m/s^2."""
DRAG = 0.2
"""Share of the difference between barge and water that is lost in a second."""
MOORED = 3.0
"""The barge is moored within this distance of the berth ..."""
SLOW = 1.0
"""... if it is slower than this."""


class Tugs(ParallelEnv[str, NDArray[np.float32], NDArray[np.float32]]):
    """`tugs` tugs pull one barge.

    **Action** of a tug, ``Box(-1, 1, (2,))``: its thrust along x and y, shortened to the unit circle.

    **Observation** of a tug, ``Box(-inf, inf, (7,))``:

    | entry | meaning |
    |---|---|
    | 0, 1 | from the barge to the berth / `ARENA` |
    | 2, 3 | the barge's velocity, m/s |
    | 4 | own fuel, as a share of what it began with |
    | 5 | share of the tugs that still have fuel |
    | 6 | share of the episode's time that is left |

    **Reward** of a tug and second: ``-distance / ARENA - price |thrust|^2``, and 10 once the barge is moored, for
    everybody who is still there. Mooring and running out of fuel are terminations, the end of the time is a truncation.

    **State**, for a centralized critic: position (2) / `ARENA`, velocity (2), current (2), every tug's fuel, time left.

    Args:
        tugs: Number of agents.
        horizon: Seconds of an episode.
        fuel: Seconds of full thrust that a tug has.
        price: What a second of full thrust costs.
        current: Largest speed of the water along each axis, m/s.
        render_mode: ``"rgb_array"`` or None.
    """

    metadata = {"name": "tugs_v0", "render_modes": ["rgb_array"], "is_parallelizable": True}

    def __init__(
        self,
        tugs: int = 3,
        horizon: int = 60,
        fuel: float = 25.0,
        price: float = 0.02,
        current: float = 0.5,
        render_mode: str | None = None,
    ) -> None:
        self.horizon, self.fuel_of_start, self.price, self.largest_current = horizon, fuel, price, current
        self.render_mode = render_mode
        self.possible_agents = [f"tug_{index}" for index in range(tugs)]
        self.agents: list[str] = []
        self.np_random = np.random.default_rng()
        # Built once: a space made anew in every call could not be seeded.
        self._observation_space = Box(-np.inf, np.inf, (7,), np.float32)
        self._action_spaces = {agent: Box(-1.0, 1.0, (2,), np.float32) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Box:
        """What `agent` sees; see the class."""
        return self._observation_space

    def action_space(self, agent: str) -> Box:
        """What `agent` can do; see the class."""
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, Any]]]:
        """Put the barge somewhere at rest, and draw the current; 0 is a seed like any other."""
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.t = 0
        angle, distance = self.np_random.uniform([0.0, 0.3 * ARENA], [2 * np.pi, ARENA])
        self.position = distance * np.array([np.cos(angle), np.sin(angle)])
        self.velocity = np.zeros(2)
        self.current = self.np_random.uniform(-self.largest_current, self.largest_current, 2)
        self.fuel = dict.fromkeys(self.possible_agents, self.fuel_of_start)
        return self._observations(self.agents), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, NDArray[np.float32]]
    ) -> tuple[
        dict[str, NDArray[np.float32]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """One second."""
        moved = self.agents
        thrust = {agent: _within_circle(actions[agent]) for agent in moved}
        work = {agent: float(thrust[agent] @ thrust[agent]) for agent in moved}
        for agent in moved:
            self.fuel[agent] = max(0.0, self.fuel[agent] - work[agent])
        self.velocity = self.velocity + PULL * np.sum(list(thrust.values()), axis=0)
        self.velocity = self.velocity - DRAG * (self.velocity - self.current)
        self.position = self.position + self.velocity
        self.t += 1

        distance = float(np.linalg.norm(self.position))
        moored = distance < MOORED and float(np.linalg.norm(self.velocity)) < SLOW
        rewards = {agent: -distance / ARENA - self.price * work[agent] + 10.0 * moored for agent in moved}
        terminated = {agent: moored or self.fuel[agent] == 0.0 for agent in moved}
        truncated = {agent: self.t >= self.horizon and not terminated[agent] for agent in moved}
        # Whoever ended in this step leaves in this step, and its last observation goes with it.
        self.agents = [agent for agent in moved if not (terminated[agent] or truncated[agent])]
        return self._observations(moved), rewards, terminated, truncated, {agent: {} for agent in moved}

    def state(self) -> NDArray[np.float32]:
        """What is known to nobody at sea; always of one shape, whoever has left."""
        fuel = [self.fuel[agent] / self.fuel_of_start for agent in self.possible_agents]
        parts = [*self.position / ARENA, *self.velocity, *self.current, *fuel, 1 - self.t / self.horizon]
        return np.array(parts, dtype=np.float32)

    def render(self) -> NDArray[np.uint8]:
        """The barge (blue) and its berth (orange) on the water, ``[128, 128, 3]``; 1 px is about 1 m."""
        picture = np.full((128, 128, 3), (222, 235, 247), dtype=np.uint8)
        for place, size, colour in ((np.zeros(2), 4, (230, 120, 30)), (self.position, 3, (30, 70, 150))):
            x, y = np.clip(np.rint(64 + place * [1, -1]), size, 127 - size).astype(int)
            picture[y - size : y + size + 1, x - size : x + size + 1] = colour
        return picture

    def _observations(self, agents: list[str]) -> dict[str, NDArray[np.float32]]:
        shared = [*-self.position / ARENA, *self.velocity]
        pulling = sum(fuel > 0 for fuel in self.fuel.values()) / len(self.fuel)
        left = 1 - self.t / self.horizon
        return {
            agent: np.array([*shared, self.fuel[agent] / self.fuel_of_start, pulling, left], dtype=np.float32)
            for agent in agents
        }


def _within_circle(thrust: NDArray[np.float32]) -> NDArray[np.float64]:
    length = max(1.0, float(np.linalg.norm(thrust)))
    return np.asarray(thrust, dtype=np.float64) / length
