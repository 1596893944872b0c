"""What the games have in common: episodes, random streams, exact resume, references.

A `Game` says what an episode begins with, what is seen of it and what an action does to it. All copies play in step and
all agents of a game see the same vector. Random numbers follow from (seed, cohort or copy, episode or step), so copy
``j`` of any batch plays what a batch of one plays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.cohorts import copy_indices
from marl_tr.philox import normal, uniform
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Leaves, Reference, Step

__all__ = ["Draw", "Game", "GameVectorEnv", "Played", "Strategy", "native", "uniformly"]

Array = NDArray[Any]

_UNIFORM = 0
"""Purpose of random numbers of the reference that acts at random; games' own begin at `Draw.FIRST_PURPOSE`."""


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step of ``E`` copies.

    Attributes:
        seed: Of the reset.
        copy: ``[E]``, index of each copy.
        cohort: ``[E]``, index of its cohort.
        episode: Episodes since the reset.
        moment: Steps since the reset.
    """

    seed: int
    copy: Array
    cohort: Array
    episode: int
    moment: int

    FIRST_PURPOSE = 8

    def episode_of_cohort(self, purpose: int, count: int) -> Array:
        """Uniform numbers in ``[0, 1)``, ``[E, count]``: equal within a cohort, the same all episode long."""
        return uniform(self.seed, self.cohort, purpose=purpose, step=self.episode, count=count)

    def episode_of_copy(self, purpose: int, count: int) -> Array:
        """Uniform numbers in ``[0, 1)``, ``[E, count]``: a copy's own, the same all episode long."""
        return uniform(self.seed, self.copy, purpose=purpose, step=self.episode, count=count)

    def step_of_copy(self, purpose: int, count: int) -> Array:
        """Uniform numbers in ``[0, 1)``, ``[E, count]``: a copy's own, new in every step."""
        return uniform(self.seed, self.copy, purpose=purpose, step=self.moment, count=count)

    def noise(self, purpose: int) -> Array:
        """Standard normal numbers ``[E]``: a copy's own, new in every step."""
        return normal(self.seed, self.copy, purpose=purpose, step=self.moment, count=1)[:, 0]


@dataclass(frozen=True)
class Played:
    """What a step of ``E`` copies led to.

    Attributes:
        place: Where the copies are now, as in `Game.begin`.
        reward: ``[E]``, the same for every agent, or ``[E, A]``.
        metrics: Named ``[E]`` arrays, those of `Game.metrics`.
    """

    place: Leaves
    reward: Array
    metrics: Leaves


Strategy = Callable[[Leaves, Draw], Array]
"""From the place and the random numbers to actions ``[E, A, *D]``."""


class Game(Protocol):
    """A game of ``A`` agents, with actions ``[*D]`` of one shape and kind.

    Attributes:
        id: The registered name.
        group: Name of the group, where the agents have equal actions; see `GameVectorEnv`.
        agents: Names.
        observation: Space of what every agent sees, ``[F]``.
        horizon: Steps of an episode.
        metrics: Names of what a step is measured by.
    """

    id: str
    group: str
    agents: tuple[str, ...]
    observation: spaces.Box
    horizon: int
    metrics: tuple[str, ...]

    @property
    def actions(self) -> Sequence[spaces.Box] | Sequence[spaces.Discrete]:
        """Space of each agent's actions: all `Box` of one shape, or all `Discrete`."""
        ...

    def begin(self, draw: Draw) -> Leaves:
        """Where an episode begins: named arrays ``[E, ...]`` that hold all that later steps depend on."""
        ...

    def see(self, place: Leaves, slot: int) -> Array:
        """What is seen of a place after `slot` steps, ``[E, F]``."""
        ...

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """Take actions ``[E, A, *D]``, which are within bounds: float64 of a `Box`, int64 of a `Discrete`."""
        ...

    def strategies(self) -> Mapping[str, Strategy]:
        """Policies to compare with, by name."""
        ...


def uniformly(actions: Sequence[spaces.Box] | Sequence[spaces.Discrete]) -> Strategy:
    """Every agent's action drawn uniformly from its space."""
    first = actions[0]
    if isinstance(first, spaces.Box):
        low, high = (np.stack([getattr(space, end) for space in actions]) for end in ("low", "high"))

        def act(place: Leaves, draw: Draw) -> Array:
            drawn = draw.step_of_copy(_UNIFORM, low.size).reshape(-1, *low.shape)
            chosen: Array = low + (high - low) * drawn
            return chosen

    else:
        counts = np.array([getattr(space, "n") for space in actions])  # noqa: B009 - mypy knows two kinds

        def act(place: Leaves, draw: Draw) -> Array:
            index: Array = (draw.step_of_copy(_UNIFORM, len(counts)) * counts).astype(np.int64)
            return index

    return act


G = TypeVar("G", bound=Game)


class GameVectorEnv(Generic[G]):
    """``E`` copies of a game; implements `marl_tr.vector.contract.VectorEnv`.

    Episodes are of one length and end by termination: what is seen tells the time that is left, so nothing is cut off.
    Agents with equal actions are one group; where all are, it is the game's `group`, else the groups are called
    ``actions_<n>`` by the number of choices.

    Args:
        game: What is played.
        num_envs: ``E``.
        env_offset: Index of the first copy in the random streams.
        cohort: Copies that are given the same episode.

    Raises:
        UnequalCohorts: `num_envs` is not a multiple of `cohort`.
        ValueError: `num_envs` is below 1.
    """

    def __init__(self, game: G, *, num_envs: int, env_offset: int = 0, cohort: int = 1) -> None:
        self.game = game
        self._copy, self._cohort = copy_indices(game.id, num_envs=num_envs, env_offset=env_offset, cohort=cohort)
        self._batch = (num_envs, len(game.agents))
        self._columns = _columns(game)
        self.spec = EnvSpec(
            id=game.id,
            num_envs=num_envs,
            groups=tuple(
                GroupSpec(
                    name=name,
                    agents=tuple(game.agents[i] for i in columns),
                    observation={"observation": game.observation},
                    action={"action": game.actions[columns[0]]},
                )
                for name, columns in self._columns.items()
            ),
            # What the agents see, so that a recorded trajectory holds its context.
            state={"context": game.observation},
            horizon=game.horizon,
            own_state=True,
        )
        self._begin(seed=0, episode=0)

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        self._begin(seed, episode=0)
        return self._step(np.zeros(self._batch[0]), self._nothing(), ended=False)

    def step(self, actions: Actions) -> Step:
        """Take every agent's action; coordinates of a `Box` beyond its bounds are cut off.

        Args:
            actions: ``{group: {"action": [E, A, *D]}}``.

        Raises:
            ValueError: A shape is wrong, a number is not finite, or a choice is none of the action's.
        """
        chosen = self._checked(actions)
        played = self.game.play(self._place, chosen, self._draw())
        self._place, self._slot = played.place, self._slot + 1
        self._note(chosen)
        over = self._slot == self.game.horizon
        metrics = self._measured(played.metrics, over)
        if not over:
            return self._step(played.reward, metrics, ended=False)
        final = self._context()
        self._finish()
        self._begin(self._seed, self._episode + 1)
        step = self._step(played.reward, metrics, ended=True)
        for name, columns in self._columns.items():
            step.groups[name].final_observation = {"observation": _repeated(final, len(columns))}
        step.final_state = {"context": final}
        return step

    def next_episode(self) -> Step:
        """Leave the running episode and begin the next one of the same seed."""
        self._begin(self._seed, self._episode + 1)
        return self._step(np.zeros(self._batch[0]), self._nothing(), ended=False)

    def info(self, step: Step) -> dict[str, float]:
        """What the PettingZoo view tells of the first copy's `step`: its metrics."""
        return {name: float(values[0]) for name, values in step.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything the following steps depend on."""
        return {
            "seed": self._seed,
            "episode": self._episode,
            "slot": self._slot,
            "place": {name: array.copy() for name, array in self._place.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: It was taken from another game or another number of copies.
        """
        place = self._restored(state["place"])
        self._begin(int(state["seed"]), int(state["episode"]))
        self._place, self._slot = place, int(state["slot"])

    def references(self) -> Sequence[Reference]:
        """The game's strategies; they know where this object's copies are."""

        def actor(strategy: Strategy) -> Callable[[Step], Actions]:
            def act(step: Step) -> Actions:
                chosen = strategy(self._place, self._draw())
                if chosen.dtype != np.int64:
                    chosen = chosen.astype(np.float32)
                return {name: {"action": chosen[:, columns]} for name, columns in self._columns.items()}

            return act

        return tuple(Reference(name, actor(strategy)) for name, strategy in self.game.strategies().items())

    def close(self) -> None:
        """Nothing is held."""

    _place: Leaves
    """Where every copy is."""
    _slot: int
    """Steps of the episode."""

    def _begin(self, seed: int, episode: int) -> None:
        self._seed, self._episode, self._slot = seed, episode, 0
        self._place = self.game.begin(self._draw())

    def _note(self, chosen: Array) -> None:
        """Actions were taken; for those who keep record."""

    def _finish(self) -> None:
        """The episodes are over; for those who keep record."""

    def _measured(self, metrics: Leaves, over: bool) -> Leaves:
        """What a step reports of the game's metrics."""
        return {name: values.astype(np.float32) for name, values in metrics.items()}

    def _restored(self, saved: Mapping[str, Array]) -> Leaves:
        place = {name: np.array(array, np.float64) for name, array in saved.items()}
        shapes, found = ({name: array.shape for name, array in x.items()} for x in (self._place, place))
        if found != shapes:
            raise ValueError(f"the state's arrays have shapes {found}, expected {shapes}")
        return place

    def _draw(self) -> Draw:
        moment = self._episode * self.game.horizon + self._slot
        return Draw(self._seed, self._copy, self._cohort, self._episode, moment)

    def _context(self) -> Array:
        return np.ascontiguousarray(self.game.see(self._place, self._slot), np.float32)

    def _checked(self, actions: Actions) -> Array:
        """All agents' actions, ``[E, A, *D]``, float64 or int64."""
        parts = []
        for group in self.spec.groups:
            space, given = group.action["action"], np.asarray(actions[group.name]["action"])
            assert space.shape is not None
            expected = (self._batch[0], len(group.agents), *space.shape)
            if given.shape != expected:
                raise ValueError(f"actions of group {group.name!r} have shape {given.shape}, expected {expected}")
            if isinstance(space, spaces.Discrete):
                good, fault = (given == np.floor(given)) & (given >= 0) & (given < space.n), f"none of its {space.n}"
            else:
                given = given.astype(np.float64)
                good, fault = np.isfinite(given).reshape(*expected[:2], -1).all(axis=2), "not finite"
            if not good.all():
                copy, agent = (int(index[0]) for index in np.nonzero(~good))
                raise ValueError(
                    f"action of {group.agents[agent]} in environment {self._copy[copy]} of {self.spec.id!r} is {fault} "
                    f"(step {self._slot + 1} of {self.game.horizon})"
                )
            if isinstance(space, spaces.Discrete):
                parts.append(given.astype(np.int64))
            else:
                assert isinstance(space, spaces.Box)
                parts.append(np.clip(given, space.low, space.high))
        chosen = np.empty((*self._batch, *parts[0].shape[2:]), parts[0].dtype)
        for part, columns in zip(parts, self._columns.values(), strict=True):
            chosen[:, columns] = part
        return chosen

    def _nothing(self) -> Leaves:
        """Metrics where no step was."""
        return {name: np.zeros(self._batch[0], np.float32) for name in self.game.metrics}

    def _step(self, reward: Array, metrics: Leaves, *, ended: bool) -> Step:
        context = self._context()
        paid = np.broadcast_to(reward if reward.ndim == 2 else reward[:, None], self._batch).astype(np.float32)
        groups = {}
        for name, columns in self._columns.items():
            batch = (self._batch[0], len(columns))
            groups[name] = GroupStep(
                observation={"observation": _repeated(context, len(columns))},
                reward=np.ascontiguousarray(paid[:, columns]),
                terminated=np.full(batch, ended),
                truncated=np.zeros(batch, bool),
                alive=np.ones(batch, bool),
                acting=np.ones(batch, bool),
            )
        return Step(
            groups=groups,
            done=np.full(self._batch[0], ended),
            state={"context": context},
            cohort=self._cohort.copy(),
            metrics=metrics,
        )


V = TypeVar("V", bound=GameVectorEnv[Any])


def native(vector: Callable[..., V], game: Callable[[Any], Any], config: Callable[..., Any]) -> Callable[..., V]:
    """The factory of a game: ``make(num_envs=1, env_offset=0, **settings)``, settings being the fields of `config`.

    It raises `pydantic.ValidationError` where a field is unknown or out of range, and what `vector` raises.
    """

    def make(*, num_envs: int = 1, env_offset: int = 0, **settings: Any) -> V:
        return vector(game(config(**settings)), num_envs=num_envs, env_offset=env_offset)

    return make


def _columns(game: Game) -> dict[str, list[int]]:
    """``{group: indices of its agents}``."""
    by_space: dict[str, list[int]] = {}
    for index, space in enumerate(game.actions):
        by_space.setdefault(repr(space), []).append(index)
    if len(by_space) == 1:
        return {game.group: next(iter(by_space.values()))}
    return {f"actions_{getattr(game.actions[columns[0]], 'n')}": columns for columns in by_space.values()}  # noqa: B009


def _repeated(context: Array, agents: int) -> Array:
    """``[E, F]`` to ``[E, A, F]``."""
    return np.repeat(context[:, None], agents, axis=1)
