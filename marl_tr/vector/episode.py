"""One copy of an environment, written row by row into stacked arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.vector.batch import Rows
from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.copies import amount
from marl_tr.vector.errors import BadEnvironmentData, environment_code
from marl_tr.vector.turns import TurnBasedView

__all__ = ["EnvironmentCopy", "episode_seed"]

Array = NDArray[Any]


def episode_seed(seed: int, copy: int, episode: int) -> int:
    """The seed below ``2**31`` of episode `episode` of copy `copy`; the number of copies does not matter."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(copy, episode))
    return int(sequence.generate_state(1, np.uint32)[0] >> 1)


class EnvironmentCopy:
    """Runs one environment behind the parallel interface and keeps account of who lives.

    Attributes:
        env: The environment (see `marl_tr.vector.copies.as_parallel`).
        index: Which copy this is, for messages.
        steps: Steps since the reset.
        living: Agents that take part in the next step.
    """

    def __init__(self, env: Any, index: int, groups: Sequence[GroupCodec], env_id: str) -> None:
        self.env = env
        self.index = index
        self.steps = 0
        self.living: set[str] = set()
        self._acting: set[str] = set()
        self._turns = isinstance(env, TurnBasedView)
        self._id = env_id
        self._places = [
            (g, a, agent, group, [leaf.name for leaf in group.action.leaves])
            for g, group in enumerate(groups)
            for a, agent in enumerate(group.agents)
        ]
        self._known = {place[2] for place in self._places}

    def reset(self, seed: int, rows: Rows) -> None:
        """Begin an episode; writes observation, alive, acting and state into `rows`.

        Raises:
            BadEnvironmentData: A value is missing, of a wrong size, or nobody is alive.
        """
        self.steps = 0
        with self._located("reset"):
            result = self.env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._bad("reset", f"returned {amount(result)}", "return (observations, infos)")
        self.living = self._members()
        if not self.living:
            raise self._bad("agents", "is empty after reset", "set self.agents = self.possible_agents[:] in reset")
        self._acting = self._movers()
        for g, a, agent, group, _ in self._places:
            leaves = rows.observation[g]
            for array in leaves.values():
                array[a] = 0
            rows.alive[g][a] = agent in self.living
            rows.acting[g][a] = agent in self._acting
            if agent in self.living:
                self._observe(group, result[0], agent, leaves, a)
                if group.mask is not None and agent in self._acting:
                    self._mask(group, *result, agent, leaves, a)
        self._write_state(rows)

    def step(self, actions: Sequence[Mapping[str, Array]], rows: Rows) -> bool:
        """Advance by one step.

        Args:
            actions: A list over the groups of stacked actions, ``{leaf: [A, ...]}``; rows of agents that are not to
                move are ignored.
            rows: Zeroed; gets everything. Agents that ended in this step have their last observation there.

        Returns:
            Whether the episode is over.

        Raises:
            BadEnvironmentData: A value is missing or malformed, an agent vanished, or one ended and stayed.
        """
        self.steps += 1
        before = self.living
        decoded = {
            agent: group.action.decode([actions[g][leaf][a] for leaf in leaves])
            for g, a, agent, group, leaves in self._places
            if agent in self._acting
        }
        with self._located("step"):
            result = self.env.step(decoded)
        if not isinstance(result, tuple) or len(result) != 5:
            cure = "return (observations, rewards, terminations, truncations, infos)"
            raise self._bad("step", f"returned {amount(result)}", cure)
        observations, rewards, terminations, truncations, infos = result
        ended = set()
        for g, a, agent, group, _ in self._places:
            if agent not in before:
                continue
            rows.reward[g][a] = self._number(rewards, agent)
            terminated = self._flag(terminations, agent, "terminated")
            truncated = self._flag(truncations, agent, "truncated")
            self._observe(group, observations, agent, rows.observation[g], a)
            if terminated or truncated:
                rows.terminated[g][a], rows.truncated[g][a] = terminated, truncated
                ended.add(agent)
        done = self._account(ended)
        self._acting = self._movers()
        for g, a, agent, group, _ in self._places:
            if agent not in self.living:
                continue
            rows.alive[g][a] = True
            if agent not in before:  # joined, or came back, in this step
                self._observe(group, observations, agent, rows.observation[g], a)
            if agent in self._acting:
                rows.acting[g][a] = True
                if group.mask is not None:
                    self._mask(group, observations, infos, agent, rows.observation[g], a)
        self._write_state(rows)
        return done

    def _account(self, ended: set[str]) -> bool:
        """Settle who lives on, given who ended in this step; True where nobody does."""
        members = self._members()
        if ended == self.living and members <= ended:
            # Many environments leave `agents` as it is once everybody has ended; nothing is ambiguous then.
            self.living = set()
            return True
        vanished = self.living - ended - members
        if vanished:
            raise self._bad(
                "agents",
                "lost it, though it was neither terminated nor truncated",
                "say in terminations or truncations why an agent leaves, in the step in which it leaves",
                agent=min(vanished, key=str),
            )
        stayed = members & ended
        if stayed:
            raise self._bad(
                "agents",
                "lists it in the step in which its episode ended",
                "remove an agent from self.agents in the step that ends it; add it again in a later step, or in reset",
                agent=min(stayed, key=str),
            )
        self.living = members
        return False

    def _members(self) -> set[str]:
        members = set(self.env.agents)
        strangers = members - self._known
        if strangers:
            cure = "list every agent that can ever exist in possible_agents"
            raise self._bad("agents", "is not in possible_agents", cure, agent=min(strangers, key=str))
        return members

    def _movers(self) -> set[str]:
        return self.living & self.env.movers if self._turns else self.living

    def _observe(
        self, group: GroupCodec, observations: Mapping[str, Any], agent: str, leaves: dict[str, Array], row: int
    ) -> None:
        try:
            value = observations[agent]
        except (KeyError, TypeError, IndexError):
            raise self._missing("observation", agent) from None
        if value is None and self._turns and agent not in self._acting:
            return  # not observable out of turn, and not observed yet
        try:
            group.observation.write(value, leaves, row)
        except ValueError as error:
            cure = "return observations that lie in observation_space(agent)"
            raise self._bad(str(error), "", cure, agent=agent) from error

    def _mask(
        self,
        group: GroupCodec,
        observations: Mapping[str, Any],
        infos: Mapping[str, Any],
        agent: str,
        leaves: dict[str, Array],
        row: int,
    ) -> None:
        try:
            group.write_mask(observations[agent], infos.get(agent) if isinstance(infos, Mapping) else None, leaves, row)
        except ValueError as error:
            cure = "give every agent that is to move one 0 or 1 for each of its choices, in every reset and step"
            raise self._bad(str(error), "", cure, agent=agent) from error

    def _number(self, rewards: Mapping[str, Any], agent: str) -> float:
        reward = self._entry(rewards, agent, "reward")
        try:
            return float(reward)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._bad(
                "reward", f"is {reward!r}, not a number", "return one float an agent", agent=agent
            ) from error

    def _flag(self, flags: Mapping[str, Any], agent: str, field: str) -> bool:
        flag = self._entry(flags, agent, field)
        try:
            return bool(flag)
        except (TypeError, ValueError) as error:
            cure = "return True or False an agent"
            raise self._bad(field, f"is {flag!r}, neither true nor false", cure, agent=agent) from error

    def _entry(self, given: Mapping[str, Any], agent: str, field: str) -> Any:
        if not isinstance(given, Mapping) or agent not in given:
            raise self._missing(field, agent)
        return given[agent]

    def _write_state(self, rows: Rows) -> None:
        if rows.state is None:
            return
        with self._located("state"):
            state = np.asarray(self.env.state())
        if state.size != rows.state.size:
            raise self._bad(
                "state",
                f"has {state.size} numbers, {rows.state.size} after the first reset",
                "let state() have one shape always; fill the places of dead agents with zeros",
            )
        rows.state[:] = state.reshape(-1)

    def _missing(self, field: str, agent: str) -> BadEnvironmentData:
        cure = (
            "every agent that was alive before the step gets an entry in each of the five dicts, and one that joins in "
            "it an observation"
        )
        return self._bad(field, "is missing", cure, agent=agent)

    def _bad(self, field: str, what: str, cure: str, *, agent: str | None = None) -> BadEnvironmentData:
        more = f"('marl-tr check-env {self._id}' looks for more)"
        return BadEnvironmentData(f"{self._where(agent)}: {field}{what and ' '}{what}; {cure} {more}")

    def _where(self, agent: str | None = None) -> str:
        who = "" if agent is None else f", agent {agent!r}"
        return f"environment {self._id!r}, copy {self.index}{who}, step {self.steps}"

    def _located(self, called: str) -> AbstractContextManager[None]:
        """Whatever the environment's own code raises says where."""
        return environment_code(self._where(), self._id, called=f"{called}()")
