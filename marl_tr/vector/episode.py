"""One copy of an environment, written row by row into stacked arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.errors import BadEnvironmentData

__all__ = ["Batch", "EnvironmentCopy", "Rows", "episode_seed"]

Array = NDArray[Any]


def episode_seed(seed: int, copy: int, episode: int) -> int:
    """The seed below ``2**31`` of episode `episode` of copy `copy`; the number of copies does not matter."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(copy, episode))
    return int(sequence.generate_state(1, np.uint32)[0] >> 1)


@dataclass
class Rows:
    """One copy's part of a `Batch`: lists over the groups of views ``[A, ...]``, and the state ``[S]``."""

    observation: list[Array]
    reward: list[Array]
    terminated: list[Array]
    truncated: list[Array]
    alive: list[Array]
    state: Array | None

    def digest(self, *, at_reset: bool) -> int:
        """64 bits of BLAKE2b over every byte, signed; at a reset over what a reset writes."""
        hashed = hashlib.blake2b(digest_size=8)
        parts = [self.observation, self.alive]
        if not at_reset:
            parts += [self.reward, self.terminated, self.truncated]
        for part in parts:
            for array in part:
                hashed.update(array.data)
        if self.state is not None:
            hashed.update(self.state.data)
        return int.from_bytes(hashed.digest(), "little", signed=True)


class Batch:
    """Fresh zeroed arrays of one step: lists over the groups of ``[E, A, ...]``, and the state ``[E, S]``."""

    def __init__(self, groups: Sequence[GroupCodec], num_envs: int, state_size: int | None) -> None:
        sizes = [(num_envs, len(group.agents)) for group in groups]
        self.observation: list[Array] = [
            np.zeros((*size, *group.observation.space.shape), dtype=np.float32)
            for size, group in zip(sizes, groups, strict=True)
        ]
        self.reward: list[Array] = [np.zeros(size, dtype=np.float32) for size in sizes]
        self.terminated: list[Array] = [np.zeros(size, dtype=np.bool_) for size in sizes]
        self.truncated: list[Array] = [np.zeros(size, dtype=np.bool_) for size in sizes]
        self.alive: list[Array] = [np.zeros(size, dtype=np.bool_) for size in sizes]
        self.state: Array | None = None
        if state_size is not None:
            self.state = np.zeros((num_envs, state_size), dtype=np.float32)

    def rows(self, copy: int) -> Rows:
        """Views of one copy's rows."""
        return Rows(
            observation=[array[copy] for array in self.observation],
            reward=[array[copy] for array in self.reward],
            terminated=[array[copy] for array in self.terminated],
            truncated=[array[copy] for array in self.truncated],
            alive=[array[copy] for array in self.alive],
            state=None if self.state is None else self.state[copy],
        )


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
        self._ended: set[str] = set()
        self._id = env_id
        self._places = [
            (g, a, agent, group.observation, group.action.decode)
            for g, group in enumerate(groups)
            for a, agent in enumerate(group.agents)
        ]
        self._known = {place[2] for place in self._places}

    def reset(self, seed: int, rows: Rows) -> None:
        """Begin an episode; writes observation, alive and state into `rows`.

        Raises:
            BadEnvironmentData: A value is missing, of a wrong size, or nobody is alive.
        """
        self.steps, self._ended = 0, set()
        with self._located():
            result = self.env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._bad("reset", f"returned {type(result).__name__}", "return (observations, infos)")
        self.living = self._members()
        if not self.living:
            raise self._bad("agents", "is empty after reset", "set self.agents = self.possible_agents[:] in reset")
        for g, a, agent, codec, _ in self._places:
            rows.alive[g][a] = agent in self.living
            if agent in self.living:
                self._observe(codec, result[0], agent, rows.observation[g][a])
            else:
                rows.observation[g][a] = 0.0
        self._write_state(rows)

    def step(self, actions: Sequence[Array], rows: Rows) -> bool:
        """Advance by one step.

        Args:
            actions: A list over the groups of stacked actions, ``[A, ...]``; rows of the dead are ignored.
            rows: Zeroed; gets everything. Agents that ended in this step have their last observation there.

        Returns:
            Whether the episode is over.

        Raises:
            BadEnvironmentData: A value is missing or malformed, an agent vanished, or one came back to life.
        """
        self.steps += 1
        decoded = {agent: decode(actions[g][a]) for g, a, agent, _, decode in self._places if agent in self.living}
        with self._located():
            result = self.env.step(decoded)
        if not isinstance(result, tuple) or len(result) != 5:
            cure = "return (observations, rewards, terminations, truncations, infos)"
            raise self._bad("step", f"returned {type(result).__name__}", cure)
        observations, rewards, terminations, truncations, _ = result
        ended = set()
        for g, a, agent, codec, _ in self._places:
            if agent not in self.living:
                continue
            rows.reward[g][a] = self._number(rewards, agent)
            rows.terminated[g][a] = terminated = self._flag(terminations, agent, "terminated")
            rows.truncated[g][a] = truncated = self._flag(truncations, agent, "truncated")
            self._observe(codec, observations, agent, rows.observation[g][a])
            if terminated or truncated:
                ended.add(agent)
        done = self._account(ended)
        for g, a, agent, codec, _ in self._places:
            rows.alive[g][a] = agent in self.living
            if agent in self.living and agent not in decoded:  # joined in this step
                self._observe(codec, observations, agent, rows.observation[g][a])
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
                agent=min(vanished),
            )
        self._ended |= ended
        revived = members & self._ended
        if revived:
            raise self._bad(
                "agents",
                "lists it after its episode ended (revived, or never removed)",
                "remove an agent from self.agents in the step that ends it, and add it again only in reset",
                agent=min(revived),
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

    def _observe(self, codec: Any, observations: Mapping[str, Any], agent: str, row: Array) -> None:
        try:
            codec.write(observations[agent], row)
        except KeyError:
            raise self._missing("observation", agent) from None
        except (TypeError, ValueError) as error:
            cure = "return observations that lie in observation_space(agent)"
            raise self._bad("observation", f"is malformed: {error}", cure, agent=agent) from error

    def _number(self, rewards: Mapping[str, Any], agent: str) -> float:
        if agent not in rewards:
            raise self._missing("reward", agent)
        try:
            return float(rewards[agent])
        except (TypeError, ValueError) as error:
            raise self._bad(
                "reward", f"is {rewards[agent]!r}, not a number", "return one float an agent", agent=agent
            ) from error

    def _flag(self, flags: Mapping[str, Any], agent: str, field: str) -> bool:
        if agent not in flags:
            raise self._missing(field, agent)
        return bool(flags[agent])

    def _write_state(self, rows: Rows) -> None:
        if rows.state is None:
            return
        with self._located():
            state = np.asarray(self.env.state())
        if state.size != rows.state.size:
            raise self._bad(
                "state",
                f"has {state.size} numbers, {rows.state.size} after the first reset",
                "let state() have one shape always; fill the places of dead agents with zeros",
            )
        rows.state[:] = state.reshape(-1)

    def _missing(self, field: str, agent: str) -> BadEnvironmentData:
        cure = "every agent that was alive before the step gets an entry in each of the five dicts"
        return self._bad(field, "is missing", cure, agent=agent)

    def _bad(self, field: str, what: str, cure: str, *, agent: str | None = None) -> BadEnvironmentData:
        return BadEnvironmentData(f"{self._where(agent)}: {field} {what}; {cure}")

    def _where(self, agent: str | None = None) -> str:
        who = "" if agent is None else f", agent {agent!r}"
        return f"environment {self._id!r}, copy {self.index}{who}, step {self.steps}"

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Whatever the environment's own code raises says where."""
        try:
            yield
        except Exception as error:
            error.add_note(f"(raised inside {self._where()})")
            raise
