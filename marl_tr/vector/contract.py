"""What the trainer needs of a batch of environments, and nothing more.

Shape letters: ``E`` parallel environments, ``A`` agents of a group, ``D`` features. Arrays are C-contiguous NumPy;
a Python dict of agents or a copy per agent never sits in the hot loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium
from numpy.typing import NDArray

__all__ = [
    "Actions",
    "EnvSpec",
    "GroupSpec",
    "GroupStep",
    "Leaves",
    "Reference",
    "Step",
    "Table",
    "Trajectory",
    "VectorEnv",
]

Array = NDArray[Any]
Leaves = dict[str, Array]
"""``{leaf name: array}``: the parts of an observation, a state or an action. A plain Box or Discrete space has
one leaf, ``"observation"`` or ``"action"``."""

Actions = Mapping[str, Leaves]
"""``{group: {leaf: [E, A, ...]}}``."""


Table = Mapping[str, Array]
"""Columns ``[N]`` by name, in the order in which they are written; a name ends in its unit, such as ``rate_bps``."""


@dataclass(frozen=True)
class GroupSpec:
    """Agents with equal spaces, stacked along one axis.

    Attributes:
        name: The group's name, for example ``"uav"``.
        agents: Agent names in the order of the axis ``A``.
        observation: Space of each observation leaf, without the axes ``[E, A]``.
        action: Space of each action leaf, without the axes ``[E, A]``; ``Box``, ``Discrete`` or ``MultiDiscrete``.
        masks: ``{action leaf: observation leaf}``: the observation leaf says which choices of a discrete action leaf
            are allowed now (1) or not (0). Its space is ``MultiBinary(n)``, ``n`` the sum of the leaf's choices,
            those of a ``MultiDiscrete`` side by side. A row of zeros (nobody acts there) forbids nothing.
    """

    name: str
    agents: tuple[str, ...]
    observation: Mapping[str, gymnasium.Space[Any]]
    action: Mapping[str, gymnasium.Space[Any]]
    masks: Mapping[str, str] = field(default_factory=dict)

    @property
    def features(self) -> dict[str, gymnasium.Space[Any]]:
        """The observation leaves that networks see: all but the masks."""
        hidden = set(self.masks.values())
        return {leaf: space for leaf, space in self.observation.items() if leaf not in hidden}


@dataclass(frozen=True)
class EnvSpec:
    """What is fixed for the whole life of a `VectorEnv`.

    Attributes:
        id: The registered name, for messages and figures.
        num_envs: ``E``.
        groups: The groups, in the order in which the critic concatenates their agents.
        state: Space of each leaf of the global state, without the axis ``E``. May be empty: the critic then sees
            the groups' observations alone. A leaf ``"edges"`` of shape ``[A, A, D]`` holds features of the edges
            between all agents, a leaf ``"adjacency"`` of shape ``[A, A]`` which of them exist (1) or not (0),
            row = receiver, self included.
        horizon: Steps of an episode where every episode has the same length, else None.
        autoreset: ``"same_step"``: the observation returned with an episode's last step is the first of the next.
        turns: Whether agents take turns: critics are then shown who is to move, which observations need not say.
        own_state: True where `VectorEnv.state_dict` alone restores the environment (native simulators); False
            where it replays actions.
    """

    id: str
    num_envs: int
    groups: tuple[GroupSpec, ...]
    state: Mapping[str, gymnasium.Space[Any]] = field(default_factory=dict)
    horizon: int | None = None
    autoreset: str = "same_step"
    own_state: bool = False
    turns: bool = False

    @property
    def agents(self) -> tuple[str, ...]:
        """All agents' names, group after group."""
        return tuple(agent for group in self.groups for agent in group.agents)


@dataclass
class GroupStep:
    """One group's part of a `Step`.

    Attributes:
        observation: ``{leaf: [E, A, ...]}``; after an episode's end the first observation of the next episode.
        reward: ``[E, A]`` float32; zero at a reset and for agents that were not alive.
        terminated: ``[E, A]`` bool; the agent's episode ended by the task's rules (its value beyond is zero).
        truncated: ``[E, A]`` bool; it was cut off (its value beyond is bootstrapped).
        alive: ``[E, A]`` bool; who takes part in the step that follows. An agent that ended may come back later in
            the same episode: a new life, of which the one before knows nothing.
        acting: ``[E, A]`` bool; alive and to move in the step that follows. In a turn-based game one agent is; the
            others' actions are ignored, and what they are paid meanwhile belongs to their last decision.
        final_observation: ``{leaf: [E, A, ...]}`` where any environment ended in this step, else None; rows of
            environments that did not end are unspecified.
    """

    observation: Leaves
    reward: Array
    terminated: Array
    truncated: Array
    alive: Array
    acting: Array
    final_observation: Leaves | None = None


@dataclass
class Step:
    """What `VectorEnv.reset` and `VectorEnv.step` return.

    Attributes:
        groups: One `GroupStep` a group.
        done: ``[E]`` bool; this environment's episode ended in this step and the next has begun.
        state: ``{leaf: [E, ...]}``, the global state that belongs to `groups[...].observation`.
        final_state: The state that belongs to the final observations, or None.
        cohort: ``[E]`` int64, which samples are compared with each other, or None.
        metrics: Named ``[E]`` float arrays of this step (before any reset), for example ``{"jain": ...}``.
    """

    groups: dict[str, GroupStep]
    done: Array
    state: Leaves = field(default_factory=dict)
    final_state: Leaves | None = None
    cohort: Array | None = None
    metrics: Leaves = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """One episode of one environment, recorded in evaluation, for an environment's hooks that draw.

    Attributes:
        state: ``{leaf: [T + 1, ...]}``, from the reset to the final state.
        actions: ``{group: {leaf: [T, A, ...]}}``.
        reward: ``{group: [T, A]}``.
        metrics: ``{name: [T]}``.
    """

    state: Leaves
    actions: Mapping[str, Leaves]
    reward: Leaves
    metrics: Leaves


@dataclass(frozen=True)
class Reference:
    """A policy to compare with that needs no learning.

    Attributes:
        name: Short name, for example ``"k-means, full power"``.
        act: From the newest `Step` of the environment that made this reference to its next actions.
    """

    name: str
    act: Callable[[Step], Actions]


@runtime_checkable
class VectorEnv(Protocol):
    """A batch of ``E`` copies of one environment, reset in the same step in which an episode ends.

    Optional hooks, looked up by name:
        ``references() -> Sequence[Reference]``: policies to compare a learned one with, bound to this object.
        ``media(trajectory: Trajectory) -> Mapping[str, Array | Callable[[], Array]]``: pictures (``[H, W, 3]``
        uint8) or videos (``[T, H, W, 3]`` uint8) by name. A callable makes what takes long, and is called for the
        final evaluation only.
        ``tables(trajectory: Trajectory) -> Mapping[str, Table]``: an episode in numbers, by name, for CSV files.
        ``render() -> Array``: the first environment now, ``[H, W, 3]`` uint8.
        ``gallery(trajectories: Sequence[Trajectory])``: pictures and videos, as `media` gives them, of several episodes
            together: 16 of an evaluation, or as many as the attribute ``gallery_size`` says, two of a cohort before
            more of it.
        ``before_after(before: Sequence[Trajectory], after: Sequence[Trajectory])``: the same, of equal conditions (and
            equal noise, where actions are modes) before anything was learned and at the end of a run.
        ``measures(actions: Actions, cohort: Array) -> Mapping[str, float]``: numbers of all of an evaluation's
            episodes together, such as their diversity; the actions of each episode's last step, and ``[E]`` which
            episodes are of one cohort.
        ``exact_gaps(policy: Callable[[str, Leaves], Array]) -> Mapping[str, float]``: what each agent would gain in an
            episode by a best response, exactly, where all play `policy`: from an agent's name and a batch of its
            observations ``{leaf: [N, ...]}``, masks among them, to the probabilities ``[N, n]`` of its one discrete
            action. The policy depends on nothing else. For games that can be enumerated.
        ``hacking: tuple[str, str]``: names of two metrics: one that grows with the reward that is learned from, and a
            distance, not part of it, that falls where the samples truly get better.
    """

    spec: EnvSpec

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes."""
        ...

    def step(self, actions: Actions) -> Step:
        """Advance every environment by one step; those that end are reset in the same step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly: nested dicts of arrays, numbers, strings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ReplayMismatch: A replayed environment did not repeat itself; names the environment and the step.
        """
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...
