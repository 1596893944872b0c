"""Two robots that should meet: a PettingZoo ``ParallelEnv``, in which all agents act at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

__all__ = ["NewEnvironment"]

Agents = dict[str, Any]
"""``{agent: value}``, for every agent that was there before the step."""


class NewEnvironment(ParallelEnv):
    """Robots on a plane.

    **Action**, ``Box(-1, 1, (2,))``: a tenth of it is how far the robot moves.

    **Observation**, ``Box(-inf, inf, (5,))``: my place (2), the other's place (2), share of the time that is left.

    **Reward**, the same for both: minus their distance.

    Args:
        robots: Number of agents; each sees the next one as "the other".
        horizon: Steps of an episode.
        render_mode: ``"rgb_array"`` or None.
    """

    metadata = {"name": "new_environment_v0", "render_modes": ["rgb_array"]}

    def __init__(self, robots: int = 2, horizon: int = 25, render_mode: str | None = None) -> None:
        self.horizon, self.render_mode = horizon, render_mode
        self.possible_agents = [f"robot_{index}" for index in range(robots)]
        self.agents: list[str] = []
        self.np_random = np.random.default_rng()
        # Built once: a space that is made anew in every call cannot be seeded.
        self.observation_spaces = {agent: Box(-np.inf, np.inf, (5,), np.float32) for agent in self.possible_agents}
        self.action_spaces = {agent: Box(-1.0, 1.0, (2,), np.float32) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Box:
        """What `agent` sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        """What `agent` can do."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Agents, Agents]:
        """Begin an episode. Everything that `step` changes is set here, and every random number follows from `seed`."""
        if seed is not None:  # 0 is a seed too
            self.np_random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.t = 0
        self.places = self.np_random.uniform(-1.0, 1.0, (len(self.agents), 2))
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: Agents) -> tuple[Agents, Agents, Agents, Agents, Agents]:
        """Move everybody: observations, rewards, terminations, truncations, infos."""
        agents = self.agents
        self.places = self.places + 0.1 * np.stack([actions[agent] for agent in agents])
        self.t += 1
        apart = np.linalg.norm(self.places - np.roll(self.places, -1, axis=0), axis=1).mean()
        # Termination: the task is over, nothing is lost beyond. Truncation: the clock stopped it.
        met, late = bool(apart < 0.1), self.t >= self.horizon
        if met or late:
            self.agents = []  # whoever ended leaves at once
        return (
            self._observations(),
            dict.fromkeys(agents, -float(apart)),
            dict.fromkeys(agents, met),
            dict.fromkeys(agents, late and not met),
            {agent: {} for agent in agents},
        )

    def state(self) -> NDArray[np.float32]:
        """What the centralized critic sees; without this method it sees all observations."""
        return np.array([*self.places.ravel(), 1 - self.t / self.horizon], dtype=np.float32)

    def render(self) -> NDArray[np.uint8]:
        """The robots on the plane, ``[96, 96, 3]``."""
        picture = np.full((96, 96, 3), 255, dtype=np.uint8)
        for x, y in np.clip(48 + 24 * self.places, 2, 93).astype(int):
            picture[y - 2 : y + 3, x - 2 : x + 3] = (30, 70, 150)
        return picture

    def _observations(self) -> Agents:
        left = 1 - self.t / self.horizon
        others = np.roll(self.places, -1, axis=0)
        return {
            agent: np.array([*mine, *other, left], dtype=np.float32)
            for agent, mine, other in zip(self.possible_agents, self.places, others, strict=True)
        }
