"""Two players count to ten: a PettingZoo ``AECEnv``, in which agents act in turn, with an action mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from pettingzoo import AECEnv

__all__ = ["NewEnvironment"]


class NewEnvironment(AECEnv):
    """Each player adds 1, 2 or 3 to a count; who reaches the goal wins, and nobody may go beyond it.

    **Action**, ``Discrete(3)``: one less than what is added.

    **Observation**, a ``Dict``: ``observation`` (1), the count / `goal`; and ``action_mask`` (3), 1 where an action is
    allowed now. Only the player to move has any.

    **Reward**: 1 for who wins, -1 for the other.

    Args:
        goal: The number that wins.
        render_mode: ``"ansi"`` or None.
    """

    metadata = {"name": "new_environment_v0", "render_modes": ["ansi"], "is_parallelizable": False}

    def __init__(self, goal: int = 10, render_mode: str | None = None) -> None:
        super().__init__()
        self.goal, self.render_mode = goal, render_mode
        self.possible_agents = ["player_0", "player_1"]
        self.np_random = np.random.default_rng()
        # Built once: a space that is made anew in every call cannot be seeded.
        self.observation_spaces = {
            agent: Dict(observation=Box(0.0, 1.0, (1,), np.float32), action_mask=MultiBinary(3))
            for agent in self.possible_agents
        }
        self.action_spaces = {agent: Discrete(3) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Dict:
        """What `agent` sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Discrete:
        """What `agent` can do."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode. Everything that `step` changes is set here, and every random number follows from `seed`."""
        if seed is not None:  # 0 is a seed too
            self.np_random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.count = int(self.np_random.integers(0, self.goal // 2))
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def observe(self, agent: str) -> dict[str, Any]:
        """What `agent` sees now, its turn or not."""
        allowed = (self.count + np.arange(1, 4) <= self.goal) & (agent == self.agent_selection)
        count = np.array([self.count / self.goal], dtype=np.float32)
        return {"observation": count, "action_mask": allowed.astype(np.int8)}

    def step(self, action: int | None) -> None:
        """The move of `agent_selection`; None where its episode is over, which takes it out of `agents`."""
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        if action is None or self.count + int(action) + 1 > self.goal:
            raise ValueError(f"{mover} cannot play {action} at {self.count}")
        # The mover has seen what it was paid so far; what it is paid from now on is counted anew.
        self._cumulative_rewards[mover] = 0.0
        self._clear_rewards()
        self.count += int(action) + 1
        other = next(agent for agent in self.possible_agents if agent != mover)
        if self.count == self.goal:
            self.rewards = {mover: 1.0, other: -1.0}
            self.terminations = dict.fromkeys(self.agents, True)
        self._accumulate_rewards()
        self.agent_selection = other

    def render(self) -> str:
        """The count."""
        return f"{self.count} of {self.goal}"

    def close(self) -> None:
        """Nothing is held."""
