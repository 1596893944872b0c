"""Plays an environment behind the parallel interface with drawn actions and keeps everything it answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.contract import Leaves
from marl_tr.vector.copies import amount
from marl_tr.vector.errors import BadEnvironmentData
from marl_tr.vector.sampling import choices, sample
from marl_tr.vector.turns import TurnBasedView

__all__ = ["Answer", "CornerRecorder", "Episode", "MaskFault", "Recorder", "first_difference", "play", "same"]


class MaskFault(BadEnvironmentData):
    """An action mask is missing, malformed, or allows nothing; names agent and step."""


@dataclass(frozen=True)
class Answer:
    """What ``reset`` (step 0) or ``step`` gave, copied, and who was alive before and is after.

    `actions` are those that the step was given; `kept` holds the observations themselves, which a later step should
    not change.
    """

    before: frozenset[str]
    observations: Mapping[str, Any]
    rewards: Mapping[str, Any]
    terminated: Mapping[str, Any]
    truncated: Mapping[str, Any]
    infos: Mapping[str, Any]
    after: frozenset[str]
    state: Any
    actions: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> frozenset[str]:
        """Agents whose episode ended in this step."""
        flags = (self.terminated, self.truncated)
        return frozenset(agent for agent in self.before if any(flag.get(agent, False) for flag in flags))


@dataclass
class Episode:
    """The answers of one episode, ``answers[0]`` being the reset's; `over` where it ended by itself."""

    answers: list[Answer] = field(default_factory=list)
    over: bool = False


class Recorder:
    """Plays one episode step by step; equal `action_seed` means equal actions.

    Args:
        env: See `marl_tr.vector.copies.as_parallel`.
        groups: Its agents and action codecs.
        action_seed: Seed of the drawn actions.
    """

    def __init__(self, env: Any, groups: Sequence[GroupCodec], action_seed: int = 7) -> None:
        self.env = env
        self.episode = Episode()
        self._groups = groups
        self._generator = np.random.default_rng(action_seed)
        self._lingering: set[str] = set()
        """Who ended and was not removed."""

    def reset(self, seed: int | None) -> None:
        """Reset the environment and record its answer.

        Raises:
            BadEnvironmentData: It gives no pair of dicts.
        """
        answer = self.env.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise BadEnvironmentData(f"reset returned {amount(answer)}; return (observations, infos)")
        nothing: dict[str, Any] = {}
        self._keep(frozenset(), {}, answer[0], nothing, nothing, nothing, answer[1])

    def step(self) -> None:
        """One step with drawn actions for everybody who is to move.

        Raises:
            MaskFault: What is allowed is not said, or nothing is.
            BadEnvironmentData: It gives no five dicts.
        """
        self.give(self.drawn())

    def drawn(self) -> dict[str, Any]:
        """Actions for everybody who is to move.

        Raises:
            MaskFault: What is allowed is not said, or nothing is.
        """
        turns = isinstance(self.env, TurnBasedView)
        movers: frozenset[str] = self.env.movers if turns else frozenset(self.env.agents)
        actions: dict[str, Any] = {}
        for group in self._groups:
            masks = self._masks(group, movers)
            rows = [
                self._choose(leaf.space, len(group.agents), masks.get(group.spec.masks.get(leaf.name, "")))
                for leaf in group.action.leaves
            ]
            for a, agent in enumerate(group.agents):
                if agent in movers:
                    actions[agent] = group.action.decode([leaf[a] for leaf in rows])
        return actions

    def give(self, actions: Mapping[str, Any]) -> None:
        """One step with these actions.

        Raises:
            BadEnvironmentData: It gives no five dicts.
        """
        before = frozenset(self.env.agents)
        answer = self.env.step(actions)
        if not isinstance(answer, tuple) or len(answer) != 5:
            expected = "(observations, rewards, terminations, truncations, infos)"
            raise BadEnvironmentData(f"step returned {amount(answer)}; return {expected}")
        self._keep(before, actions, *answer)
        self._lingering = (self._lingering | self.episode.answers[-1].ended) & set(self.env.agents)
        self.episode.over = set(self.env.agents) <= self._lingering

    def _choose(self, space: spaces.Space[Any], agents: int, mask: NDArray[Any] | None) -> NDArray[Any]:
        """Actions of a group, ``[A, ...]``; `mask` is ``[A, n]``."""
        return sample(space, (agents,), self._generator, mask)

    def _masks(self, group: GroupCodec, movers: frozenset[str]) -> Leaves:
        """What the newest answer allows to those who are to move, ``{leaf: [A, n]}``."""
        answer = self.episode.answers[-1]
        masks: Leaves = {}
        for mask in () if group.mask is None else group.mask.leaves:
            masks[mask.name] = np.zeros((len(group.agents), *mask.space.shape), dtype=np.int8)
        for a, agent in enumerate(group.agents):
            if masks and agent in movers:
                try:
                    group.write_mask(answer.observations.get(agent), answer.infos.get(agent), masks, a)
                except ValueError as error:
                    step = len(self.episode.answers) - 1
                    raise MaskFault(f"agent {agent!r}, step {step}: {error}") from error
        return masks

    def _keep(self, before: frozenset[str], actions: Mapping[str, Any], *values: Mapping[str, Any]) -> None:
        try:
            state = copy.deepcopy(self.env.state()) if callable(getattr(self.env, "state", None)) else None
        except NotImplementedError:
            state = None
        for name, value in zip(
            ("observations", "rewards", "terminations", "truncations", "infos"), values, strict=True
        ):
            if not isinstance(value, Mapping):
                raise BadEnvironmentData(f"{name} are a {type(value).__name__}; return a dict with one entry an agent")
        observations, rewards, terminated, truncated, infos = (dict(value) for value in values)
        self.episode.answers.append(
            Answer(
                before=before,
                observations=copy.deepcopy(observations),
                rewards=copy.deepcopy(rewards),
                terminated=terminated,
                truncated=truncated,
                infos=infos,
                after=frozenset(self.env.agents),
                state=state,
                actions=actions,
                kept=observations,
            )
        )


class CornerRecorder(Recorder):
    """Plays one corner of what is allowed in the action spaces, ``end`` being ``"lowest"`` or ``"highest"``."""

    def __init__(self, env: Any, groups: Sequence[GroupCodec], end: str) -> None:
        super().__init__(env, groups)
        self._end = end

    def _choose(self, space: spaces.Space[Any], agents: int, mask: NDArray[Any] | None) -> NDArray[Any]:
        corner = np.stack([_corner(space, self._end)] * agents)
        if mask is None:
            return corner
        entries = []
        first = 0
        for size in choices(space):
            allowed = mask[:, first : first + size]
            last = size - 1 - allowed[:, ::-1].argmax(axis=1)
            entries.append(allowed.argmax(axis=1) if self._end == "lowest" else last)
            first += size
        return np.stack(entries, axis=-1).reshape(corner.shape)


def _corner(space: spaces.Space[Any], end: str) -> Any:
    if isinstance(space, spaces.Discrete):
        return np.int64(0 if end == "lowest" else int(space.n) - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.zeros_like(space.nvec) if end == "lowest" else space.nvec - 1
    assert isinstance(space, spaces.Box)
    limit = space.low if end == "lowest" else space.high
    return np.where(np.isfinite(limit), limit, 0.0).astype(space.dtype)


def play(env: Any, groups: Sequence[GroupCodec], *, seed: int | None, cycles: int, action_seed: int = 7) -> Episode:
    """Play one episode to its end or for `cycles` steps."""
    recorder = Recorder(env, groups, action_seed)
    recorder.reset(seed)
    while not recorder.episode.over and len(recorder.episode.answers) <= cycles:
        recorder.step()
    return recorder.episode


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def first_difference(a: Episode, b: Episode) -> str | None:
    """Where two recordings part, in words, or None."""
    for step, (left, right) in enumerate(zip(a.answers, b.answers, strict=False)):
        where = "the reset" if step == 0 else f"step {step}"
        if left.after != right.after:
            return f"{where}: the living agents"
        for name in ("observations", "rewards", "terminated", "truncated"):
            mine, theirs = getattr(left, name), getattr(right, name)
            for agent in mine:
                if agent not in theirs or not same(mine[agent], theirs[agent]):
                    return f"{where}: {name} of agent {agent!r}"
        if not same(left.state, right.state):
            return f"{where}: state()"
    if len(a.answers) != len(b.answers):
        return f"step {min(len(a.answers), len(b.answers))}: one episode is longer"
    return None
