"""Two cranes unload a ship in turn, and whoever takes the last container wins: a turn-based PettingZoo ``AECEnv``.

This is Nim with a limit to what one move may take, so that the best policy is known: see `best_action`. Which moves are
allowed changes with the stacks, and an action mask says which they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from numpy.typing import NDArray
from pettingzoo import AECEnv

__all__ = ["Cranes", "best_action"]


class Cranes(AECEnv[str, dict[str, Any], int]):
    """Two agents, ``crane_0`` and ``crane_1``.

    **Action**, ``Discrete(stacks * grab)``: ``stack * grab + (containers - 1)`` takes so many from one stack.

    **Observation**, a ``Dict``: ``observation`` ``[stacks]`` are the stacks' heights / `height`, and ``action_mask``
    ``[stacks * grab]`` says which actions are allowed (1) or not (0). Only the agent to move has any.

    **Reward**: 1 for who takes the last container, -1 for the other, 0 before.

    Args:
        stacks: Stacks of containers.
        height: Containers on the highest stack that a ship can bring; each is drawn from 1 to this.
        grab: Containers that one move takes at most.
        render_mode: ``"ansi"`` or None.
    """

    metadata = {"name": "cranes_v0", "render_modes": ["ansi"], "is_parallelizable": False}

    def __init__(self, stacks: int = 3, height: int = 5, grab: int = 3, render_mode: str | None = None) -> None:
        super().__init__()
        self.height, self.grab, self.render_mode = height, grab, render_mode
        self.possible_agents = ["crane_0", "crane_1"]
        self.np_random = np.random.default_rng()
        self.stacks = np.zeros(stacks, dtype=np.int64)
        self.observation_spaces = {
            agent: Dict(
                observation=Box(0.0, 1.0, (stacks,), np.float32),
                action_mask=MultiBinary(stacks * grab),
            )
            for agent in self.possible_agents
        }
        self.action_spaces = {agent: Discrete(stacks * grab) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Dict:
        """What `agent` sees; see the class."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Discrete:
        """What `agent` can do; see the class."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """A new ship; ``crane_0`` begins."""
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.stacks = self.np_random.integers(1, self.height + 1, size=len(self.stacks))
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def observe(self, agent: str) -> dict[str, Any]:
        """The stacks, and what `agent` may do now."""
        moves = np.arange(1, self.grab + 1)
        allowed = moves[None, :] <= self.stacks[:, None]
        if agent != self.agent_selection:
            allowed = np.zeros_like(allowed)
        heights = (self.stacks / self.height).astype(np.float32)
        return {"observation": heights, "action_mask": allowed.ravel().astype(np.int8)}

    def step(self, action: int | None) -> None:
        """One move of `agent_selection`; afterwards it is the other's turn.

        Raises:
            ValueError: The move is not allowed.
        """
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        stack, taken = divmod(int(action), self.grab) if action is not None else (0, -1)
        taken += 1
        if not 1 <= taken <= self.stacks[stack]:
            raise ValueError(f"{mover} cannot take {taken} of stack {stack}, which has {self.stacks[stack]}")
        # The mover has seen what it was paid so far; what it is paid from now on is counted anew.
        self._cumulative_rewards[mover] = 0.0
        self._clear_rewards()
        self.stacks[stack] -= taken
        other = next(agent for agent in self.possible_agents if agent != mover)
        if not self.stacks.any():
            self.rewards = {mover: 1.0, other: -1.0}
            self.terminations = dict.fromkeys(self.agents, True)
        self._accumulate_rewards()
        self.agent_selection = other

    def render(self) -> str:
        """The stacks' heights."""
        return " ".join(map(str, self.stacks))

    def close(self) -> None:
        """Nothing is held."""


def best_action(stacks: NDArray[np.int64], grab: int) -> int:
    """The action of a player who wins whenever the position can be won.

    A stack of ``n`` is worth ``n mod (grab + 1)``, and a position the exclusive or of its stacks' worths. The player to
    move wins where that is not zero, by a move that makes it zero. Where it is zero every move is as bad; this takes
    one container of the highest stack.

    Source: Bouton, "Nim, a game with a complete mathematical theory" (1901), and Sprague's and Grundy's theorem for
    the limited move.
    """
    worth = stacks % (grab + 1)
    total = int(np.bitwise_xor.reduce(worth))
    for stack, value in enumerate(worth):
        if (value ^ total) < value:
            return int(stack * grab + (value - (value ^ total)) - 1)
    return int(np.argmax(stacks) * grab)
