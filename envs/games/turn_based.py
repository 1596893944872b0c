"""Any game played in turns as a PettingZoo environment."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import AECEnv

from marl_tr.envs.games.normal_form import Policy
from marl_tr.envs.games.sequential import CHANCE, OVER, GameTree, SequentialGame, State

__all__ = ["SequentialAECEnv"]

Array = NDArray[Any]


class SequentialAECEnv(AECEnv):  # type: ignore[misc]
    """A `SequentialGame`, one agent moving after the other.

    An observation is a ``Dict`` of ``observation`` ``[F]``, what the agent knows, and ``action_mask`` ``[n]``, zeros
    out of turn. Rewards come with the last move, which terminates everybody.

    Args:
        game: Which one.
        render_mode: ``"ansi"`` or None.

    Raises:
        ValueError: `render_mode` is not offered.
    """

    def __init__(self, game: SequentialGame, *, render_mode: str | None = None) -> None:
        super().__init__()
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode {render_mode!r} is not offered; 'ansi' or None")
        name = game.id.replace("/", "_").replace("-", "_")
        self.metadata = {"name": name, "render_modes": ["ansi"], "is_parallelizable": False}
        self.render_mode = render_mode
        self.game = game
        self.possible_agents = list(game.agents)
        self.agents: list[str] = []
        self.observation_spaces = {
            agent: spaces.Dict(
                {
                    "observation": spaces.Box(-np.inf, np.inf, (game.features,), np.float32),
                    "action_mask": spaces.Box(0, 1, (game.actions,), np.int8),
                }
            )
            for agent in self.possible_agents
        }
        self.action_spaces = {agent: spaces.Discrete(game.actions) for agent in self.possible_agents}
        self._generator: np.random.Generator | None = None
        self._now: State | None = None

    @cached_property
    def tree(self) -> GameTree:
        """Every history, made when it is first asked for.

        Raises:
            TooManyHistories: The game is too large.
        """
        return GameTree(self.game)

    def exact_gaps(self, policy: Policy) -> dict[str, float]:
        """What each agent would gain by a best response, the others keeping to `policy`; by enumeration.

        Args:
            policy: ``(agent, {"observation": [N, F], "action_mask": [N, n]}) -> [N, n]``, probabilities of the actions.

        Raises:
            NotAPolicy: It gives something else than distributions over what is allowed.
            TooManyHistories: The game is too large.
        """
        return dict(zip(self.possible_agents, self.tree.gaps(self.tree.asked(policy)).tolist(), strict=True))

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin a game; equal seeds give equal cards for equal moves. None: the generator goes on."""
        if seed is not None or self._generator is None:
            self._generator = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        self._now = self._dealt(self.game.start())
        self.agent_selection = self.possible_agents[self._now.turn()]

    def step(self, action: int | None) -> None:
        """The move of the agent whose turn it is.

        Raises:
            ValueError: It is not allowed now.
        """
        if self.terminations[self.agent_selection]:
            self._was_dead_step(action)
            return
        assert self._now is not None
        agent, allowed = self.agent_selection, self._now.allowed()
        if action is None or action not in allowed:
            raise ValueError(f"{self.game.id}: action {action!r} of {agent} is not among the allowed {list(allowed)}")
        self._clear_rewards()
        self._cumulative_rewards[agent] = 0.0
        self._now = self._dealt(self._now.after(int(action)))
        turn = self._now.turn()
        if turn == OVER:
            self.rewards = dict(zip(self.possible_agents, map(float, self._now.returns()), strict=True))
            self.terminations = dict.fromkeys(self.agents, True)
            turn = (self.possible_agents.index(agent) + 1) % len(self.possible_agents)
        self.agent_selection = self.possible_agents[turn]
        self._accumulate_rewards()

    def observe(self, agent: str) -> dict[str, Array]:
        """What an agent knows, and what it may do now."""
        assert self._now is not None
        player = self.possible_agents.index(agent)
        mask = np.zeros(self.game.actions, np.int8)
        if self._now.turn() == player:
            mask[list(self._now.allowed())] = 1
        return {"observation": self._now.seen(player), "action_mask": mask}

    def render(self) -> str | None:
        """What each player knows; None without a render mode."""
        if self.render_mode is None or self._now is None:
            return None
        return "  ".join(f"{agent} {self._now.known(i)}" for i, agent in enumerate(self.possible_agents))

    def close(self) -> None:
        """Nothing is held."""

    def _dealt(self, state: State) -> State:
        """Where chance has had its turns."""
        assert self._generator is not None
        while state.turn() == CHANCE:
            outcomes, probabilities = zip(*state.chances(), strict=True)
            drawn = np.searchsorted(np.cumsum(probabilities)[:-1], self._generator.random(), side="right")
            state = state.after(outcomes[int(drawn)])
        return state
