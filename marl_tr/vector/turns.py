"""A turn-based PettingZoo environment (AEC) behind the parallel interface: one step is one agent's move."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium

from marl_tr.vector.errors import BadEnvironmentData

__all__ = ["TurnBasedView"]


class TurnBasedView:
    """An ``AECEnv`` with the methods of a ``ParallelEnv`` that the adapter calls, and `movers`.

    Of the actions given to `step` only that of the agent to move is used. Agents that ended are stepped with None and
    leave here. Rewards are what ``last()`` would report, handed on as soon as they are known: see `_Account`.

    Everybody who lives is observed after each step. An environment that cannot observe an agent out of turn (it raises,
    or gives None) leaves that agent with what it saw last; before it saw anything its observation is None.

    Args:
        env: The environment, with or without PettingZoo's wrappers.

    Attributes:
        env: The environment.
        possible_agents: All names.
        agents: Those that live.
        movers: The agent to move next; empty once the episode is over.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.possible_agents: list[str] = list(env.possible_agents)
        self.agents: list[str] = []
        self.movers: frozenset[str] = frozenset()
        self._account = _Account(env)
        self._seen: dict[str, Any] = {}

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        """See ``AECEnv.observation_space``."""
        space: gymnasium.Space[Any] = self.env.observation_space(agent)
        return space

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        """See ``AECEnv.action_space``."""
        space: gymnasium.Space[Any] = self.env.action_space(agent)
        return space

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``ParallelEnv.reset``."""
        self.env.reset(seed=seed)
        self._account = _Account(self.env)
        self._seen = {}
        for _ in self._burials():
            pass
        self._settle()
        return self._observe(self.agents), self._infos(self.agents)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The move of the agent whose turn it is; entries for everybody who lived before it, or joined.

        Raises:
            BadEnvironmentData: A reward is no number, an agent that ended cannot be stepped with None, or
                ``agent_selection`` names nobody who lives.
        """
        before, (mover,) = self.agents, self.movers
        self._account.moves(mover)
        self.env.step(actions[mover])
        self._account.moved(mover)
        terminated, truncated = self._flags(before)
        ended = [agent for agent in before if terminated[agent] or truncated[agent]]
        rewards = {agent: self._account.due(agent, final=agent in ended) for agent in before}
        self.agents = [agent for agent in before if agent not in ended]
        observations, infos = self._last_of(ended)
        for _ in self._burials():  # which may end others
            now, late = self._flags(self.agents)
            fallen = [agent for agent in self.agents if now[agent] or late[agent]]
            if fallen:
                self._account.look()
                for agent in fallen:
                    terminated[agent], truncated[agent] = now[agent], late[agent]
                    rewards[agent] += self._account.due(agent, final=True)
                ended += fallen
                self.agents = [agent for agent in self.agents if agent not in fallen]
                seen, said = self._last_of(fallen)
                observations, infos = observations | seen, infos | said
        self._settle()
        self._account.look()
        for agent in before:
            if agent in self.agents and agent not in ended:
                rewards[agent] += self._account.due(agent, final=agent in self.movers)
        observations |= self._observe(agent for agent in self.agents if agent not in ended)
        infos |= self._infos(agent for agent in self.agents if agent not in ended)
        for agent in before:  # one that vanished: whoever keeps account of the living says so
            observations.setdefault(agent, self._seen.get(agent))
            infos.setdefault(agent, {})
        return observations, rewards, terminated, truncated, infos

    def state(self) -> Any:
        """See ``AECEnv.state``.

        Raises:
            NotImplementedError: The environment has none; board games keep something else under this name.
        """
        if not callable(getattr(getattr(self.env, "unwrapped", self.env), "state", None)):
            raise NotImplementedError("this AECEnv has no state()")
        return self.env.state()

    def render(self) -> Any:
        """See ``AECEnv.render``."""
        return self.env.render()

    def close(self) -> None:
        """See ``AECEnv.close``."""
        self.env.close()

    def _ended(self, agent: str) -> bool:
        return bool(self.env.terminations.get(agent, False) or self.env.truncations.get(agent, False))

    def _flags(self, agents: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        """Who is terminated now, and who truncated."""
        terminations, truncations = self.env.terminations, self.env.truncations  # wrappers make each look-up dear
        return (
            {agent: bool(terminations.get(agent, False)) for agent in agents},
            {agent: bool(truncations.get(agent, False)) for agent in agents},
        )

    def _last_of(self, ended: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The last observations and infos of those that ended; nothing is remembered of them."""
        observations, infos = self._observe(ended), self._infos(ended)
        for agent in ended:
            self._account.close(agent)
            self._seen.pop(agent, None)
        return observations, infos

    def _burials(self) -> Iterator[None]:
        """Step with None, one after the other, those that have ended and are asked to move."""
        in_vain = 0
        while self.env.agents and self._ended(agent := self.env.agent_selection):
            listed = list(self.env.agents)
            self.env.step(None)
            in_vain = in_vain + 1 if list(self.env.agents) == listed else 0
            if in_vain == len(listed):
                raise BadEnvironmentData(
                    f"agent {agent!r}: step(None) left it in agents though its episode ended; begin step with 'if "
                    "self.terminations[agent] or self.truncations[agent]: return self._was_dead_step(action)'"
                )
            yield

    def _settle(self) -> None:
        """Who lives, and who is to move."""
        terminations, truncations = self.env.terminations, self.env.truncations
        self.agents = [
            agent for agent in self.env.agents if not (terminations.get(agent, False) or truncations.get(agent, False))
        ]
        self.movers = frozenset([self.env.agent_selection] if self.agents else [])
        if not self.movers <= set(self.agents):
            raise BadEnvironmentData(
                f"agent {self.env.agent_selection!r}: agent_selection names it, but agents are {self.agents}; select "
                "an agent that lives"
            )

    def _observe(self, agents: Any) -> dict[str, Any]:
        observations = {}
        for agent in agents:
            try:
                seen = self.env.observe(agent)
            except Exception:
                # Some environments know only what the agent to move sees; a fault shows when its turn comes.
                if agent in self.agents and agent == self.env.agent_selection:
                    raise
                seen = None
            # A copy: environments may write what the next agent sees into the same array.
            seen = self._seen.get(agent) if seen is None else copy.deepcopy(seen)
            observations[agent] = self._seen[agent] = seen
        return observations

    def _infos(self, agents: Any) -> dict[str, Any]:
        infos = self.env.infos
        return {agent: infos.get(agent, {}) for agent in agents}


class _Account:
    """What every agent is paid in a step, so that each reward is handed on exactly once.

    In PettingZoo an agent is told at its turn, by ``last()``, what it earned since its turn before:
    ``_cumulative_rewards[agent]``, set to 0 when it moves and grown by everybody's moves. What is handed on is how it
    changes. The sum between two turns of an agent is therefore what ``last()`` reports at the second, and the sum over
    an episode what a loop over ``agent_iter()`` sees.

    Some environments do not set it to 0 and replace it later (``parallel_to_aec``). An amount that stood before an
    agent's move, and stands after it while ``rewards`` pays nothing, is therefore *old*: nothing is handed on until it
    changes, ``rewards`` pays the same again, or the agent's next turn comes, where ``last()`` would report it again.

    Where there are no ``_cumulative_rewards``, ``rewards`` are added up in their place. What is paid to an agent after
    its end, before it is removed, is nobody's.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._told: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._sums: dict[str, float] | None = None if hasattr(env, "_cumulative_rewards") else {}
        self._before = 0.0
        self._totals: Mapping[str, Any] = {}
        self._rewards: Mapping[str, Any] = {}

    def look(self) -> None:
        """Read what stands in the environment's books now."""
        self._totals = self._env._cumulative_rewards if self._sums is None else self._sums
        self._rewards = self._env.rewards

    def moves(self, agent: str) -> None:
        """`agent` is about to move."""
        self.look()
        self._before = self._total(agent)

    def moved(self, agent: str) -> None:
        """`agent` has moved, and the environment has paid."""
        self.look()
        if self._sums is not None:
            self._sums[agent] = 0.0
            for name in self._rewards:
                self._sums[name] = self._sums.get(name, 0.0) + self._reward(name)
        total, owed = self._total(agent), self._change(agent, self._before)
        self._told[agent] = -owed if math.isfinite(owed) else 0.0
        self._old.pop(agent, None)
        if total == self._before != 0.0 and self._reward(agent) == 0.0:
            self._old[agent] = total

    def due(self, agent: str, *, final: bool) -> float:
        """What `agent` was paid and not told of; `final` at its next turn and its end, where nothing is kept back."""
        total = self._total(agent)
        old = agent in self._old and total == self._old[agent] and self._reward(agent) != total
        if old and not final:
            return 0.0
        self._old.pop(agent, None)
        change = self._change(agent, total)
        self._told[agent] = total
        return change

    def close(self, agent: str) -> None:
        """`agent` has ended; should it come back, it begins with nothing."""
        self._told.pop(agent, None)
        self._old.pop(agent, None)
        if self._sums is not None:
            self._sums.pop(agent, None)

    def _change(self, agent: str, total: float) -> float:
        told = self._told.get(agent, 0.0)
        if total == told or (math.isnan(total) and math.isnan(told)):  # a failed reward is handed on once, too
            return 0.0
        return total - told if math.isfinite(told) else total

    def _total(self, agent: str) -> float:
        return self._number(self._totals, agent)

    def _reward(self, agent: str) -> float:
        return self._number(self._rewards, agent)

    @staticmethod
    def _number(amounts: Mapping[str, Any], agent: str) -> float:
        try:
            return float(amounts.get(agent, 0.0))
        except (TypeError, ValueError) as error:
            raise BadEnvironmentData(
                f"agent {agent!r}: reward is {amounts[agent]!r}, not a number; put one float an agent into self.rewards"
            ) from error
