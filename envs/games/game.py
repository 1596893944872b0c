"""What the games have in common: episodes, cohorts, random streams, exact resume, hooks.

A `Game` says what an episode begins with, what is seen of it, what an action does to it, and which of the equally
good answers was given. All copies play in step and all agents of a game see the same vector. Random numbers follow from
(seed, cohort or copy, episode or step), so copy ``j`` of any batch plays what a batch of one plays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.circle import mode_measures
from marl_tr.envs.games.config import GameConfig
from marl_tr.envs.games.render import Frame, Shown, sheet
from marl_tr.philox import normal, uniform
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Leaves, Reference, Step, Trajectory
from marl_tr.vector.errors import BadEnvironmentConfig

__all__ = ["Draw", "Game", "GameVectorEnv", "Played", "Strategy", "UnequalCohorts", "uniformly"]

Array = NDArray[Any]

_UNIFORM = 0
"""Purpose of random numbers of the reference that acts at random; games' own begin at `Draw.FIRST_PURPOSE`."""


class UnequalCohorts(BadEnvironmentConfig):
    """The number of copies is not a multiple of the cohort's size."""


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
        reward: ``[E]``, the same for every agent.
        metrics: Named ``[E]`` arrays, those of `Game.metrics`: what they are if the episode ends here.
    """

    place: Leaves
    reward: Array
    metrics: Leaves


Strategy = Callable[[Leaves, Draw], Array]
"""From the place and the random numbers to actions ``[E, A, 2]``."""


class Game(Protocol):
    """A game of ``A`` agents with actions in ``[-1, 1]^2``.

    Attributes:
        id: The registered name.
        group: Name of the one group.
        agents: Names of its agents.
        observation: Space of what every agent sees, ``[D]``.
        modes: Equally good answers ``M``.
        metrics: Names of what an episode's end is measured by.
        frame: What pictures show behind the samples.
    """

    id: str
    group: str
    agents: tuple[str, ...]
    observation: spaces.Box
    modes: int
    metrics: tuple[str, ...]
    frame: Frame

    @property
    def config(self) -> GameConfig:
        """Settings."""
        ...

    def begin(self, draw: Draw) -> Leaves:
        """Where an episode begins: named arrays ``[E, ...]`` that hold all that later steps depend on."""
        ...

    def see(self, place: Leaves, slot: int) -> Array:
        """What is seen of a place after `slot` steps, ``[E, D]``."""
        ...

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """Take actions ``[E, A, 2]``, which are within bounds."""
        ...

    def answers(self, place: Leaves, actions: Array) -> Array:
        """Which mode was chosen, ``[E, A]``, by the place where an episode ended and the actions that ended it."""
        ...

    def strategies(self) -> Mapping[str, Strategy]:
        """Policies to compare with, by name."""
        ...

    def show(self, seen: Array, actions: Array) -> Shown:
        """One episode for pictures, from ``[T + 1, D]`` and ``[T, A, 2]``; ``T`` may be 0."""
        ...


def uniformly(agents: int) -> Strategy:
    """Actions drawn uniformly from ``[-1, 1]^2``."""

    def act(place: Leaves, draw: Draw) -> Array:
        return 2 * draw.step_of_copy(_UNIFORM, 2 * agents).reshape(-1, agents, 2) - 1

    return act


class GameVectorEnv:
    """``E`` copies of a game; implements `marl_tr.vector.contract.VectorEnv`.

    Episodes are of one length and end by termination: what is seen tells the time that is left, so nothing is cut off.
    Metrics belong to an episode's end. Where it has several steps they are 0 before the last one and as many times
    their value in it, so that the mean over an episode, which is what evaluations report, is the end's.

    Args:
        game: What is played.
        num_envs: ``E``.
        env_offset: Index of the first copy in the random streams.

    Raises:
        UnequalCohorts: `num_envs` is not a multiple of the cohort's size.
        ValueError: `num_envs` is below 1.
    """

    gallery_size = 256
    """Episodes that `gallery` and `before_after` show."""

    def __init__(self, game: Game, *, num_envs: int, env_offset: int = 0) -> None:
        cohort = game.config.cohort
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if num_envs % cohort:
            raise UnequalCohorts(
                f"environment {game.id!r}: {num_envs} copies cannot be split into cohorts of {cohort}; choose num_envs "
                f"(and the episodes of evaluations) as a multiple of env.config.cohort"
            )
        self.game = game
        self._copy = np.arange(env_offset, env_offset + num_envs, dtype=np.int64)
        self._batch = (num_envs, len(game.agents))
        self.spec = EnvSpec(
            id=game.id,
            num_envs=num_envs,
            groups=(
                GroupSpec(
                    name=game.group,
                    agents=game.agents,
                    observation={"observation": game.observation},
                    action={"action": spaces.Box(-1.0, 1.0, (2,), np.float32)},
                ),
            ),
            # What the agents see, so that a recorded trajectory holds its context.
            state={"context": game.observation},
            horizon=game.config.horizon,
            own_state=True,
        )
        self._begin(seed=0, episode=0)
        self._ended: Leaves = self._place

    def reset(self, seed: int) -> Step:
        """Start ``E`` new episodes; equal seeds give equal episodes.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        self._begin(seed, episode=0)
        self._ended, self._last = self._place, None
        return self._step(np.zeros(self._batch[0]), self._nothing(), ended=False)

    def step(self, actions: Actions) -> Step:
        """Take every agent's action; coordinates beyond [-1, 1] are cut off.

        Args:
            actions: ``{group: {"action": [E, A, 2]}}``.

        Raises:
            ValueError: The shape is wrong, or an action is not finite.
        """
        chosen = self._checked(actions)
        played = self.game.play(self._place, chosen, self._draw())
        self._place, self._slot = played.place, self._slot + 1
        self._seen.append(self._context()[0])
        self._chosen.append(chosen[0])
        horizon = self.game.config.horizon
        if self._slot < horizon:
            return self._step(played.reward, self._nothing(), ended=False)
        final = self._context()
        self._ended, self._last = self._place, self._first_copy()
        self._begin(self._seed, self._episode + 1)
        metrics = {name: (values * horizon).astype(np.float32) for name, values in played.metrics.items()}
        step = self._step(played.reward, metrics, ended=True)
        step.groups[self.game.group].final_observation = {"observation": self._to_all(final)}
        step.final_state = {"context": final}
        return step

    def next_episode(self) -> Step:
        """Leave the running episode and begin the next one of the same seed."""
        self._begin(self._seed, self._episode + 1)
        return self._step(np.zeros(self._batch[0]), self._nothing(), ended=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything the following steps, and `measures`, depend on."""
        return {
            "seed": self._seed,
            "episode": self._episode,
            "slot": self._slot,
            "place": {name: array.copy() for name, array in self._place.items()},
            "ended": {name: array.copy() for name, array in self._ended.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: It was taken from another game or another number of copies.
        """
        place, ended = (
            {name: np.array(array, np.float64) for name, array in state[key].items()} for key in ("place", "ended")
        )
        shapes = {name: array.shape for name, array in self._place.items()}
        for found in (place, ended):
            if {name: array.shape for name, array in found.items()} != shapes:
                found_shapes = {name: array.shape for name, array in found.items()}
                raise ValueError(f"the state's arrays have shapes {found_shapes}, expected {shapes}")
        self._begin(int(state["seed"]), int(state["episode"]))
        self._place, self._ended, self._slot = place, ended, int(state["slot"])
        self._seen, self._last = [self._context()[0]], None

    def references(self) -> Sequence[Reference]:
        """The game's strategies; they know where this object's copies are."""

        def actor(strategy: Strategy) -> Callable[[Step], Actions]:
            def act(step: Step) -> Actions:
                chosen = strategy(self._place, self._draw()).astype(np.float32)
                return {self.game.group: {"action": chosen}}

            return act

        return tuple(Reference(name, actor(strategy)) for name, strategy in self.game.strategies().items())

    def measures(self, actions: Actions, cohort: Array) -> dict[str, float]:
        """How the answers given for one context divide among the modes; see `mode_measures`.

        Args:
            actions: Those that ended each copy's last episode, as an evaluation has them. They are judged by where that
                episode ended (before any has, by where the first begins), which is this object's to know.
            cohort: ``[E]``; copies of one cohort play the same episode, so their answers are samples for one context.

        Returns:
            Empty where no cohort has two copies.
        """
        chosen = np.clip(np.asarray(actions[self.game.group]["action"], np.float64), -1.0, 1.0)
        return mode_measures(self.game.answers(self._ended, chosen), cohort, modes=self.game.modes)

    def gallery(self, trajectories: Sequence[Trajectory]) -> dict[str, Array]:
        """``answers``: all episodes turned so that their modes coincide, and some contexts alone."""
        return {"answers": sheet(self.game.frame, {"": self._shown(trajectories)})}

    def before_after(self, before: Sequence[Trajectory], after: Sequence[Trajectory]) -> dict[str, Array]:
        """``before_after``: the same for both, one below the other."""
        return {
            "before_after": sheet(self.game.frame, {"before: ": self._shown(before), "after: ": self._shown(after)})
        }

    def render(self) -> Array:
        """The first copy's episode so far, before its first step the one that ended, ``[H, W, 3]`` uint8."""
        shown = self._last if self._last is not None and self._slot == 0 else self._first_copy()
        return sheet(self.game.frame, {"": [shown]}, alone=True)

    def close(self) -> None:
        """Nothing is held."""

    def _begin(self, seed: int, episode: int) -> None:
        self._seed, self._episode, self._slot = seed, episode, 0
        self._place = self.game.begin(self._draw())
        self._seen, self._chosen = [self._context()[0]], []

    _place: Leaves
    """Where every copy is; `_ended`: where its last episode ended."""
    _slot: int
    """Steps of the episode."""
    _seen: list[Array]
    """Of the first copy's episode, for `render`: what was seen."""
    _chosen: list[Array]
    """And what was done."""
    _last: Shown | None = None
    """The first copy's episode that ended last, for `render`."""

    def _draw(self) -> Draw:
        moment = self._episode * self.game.config.horizon + self._slot
        return Draw(self._seed, self._copy, self._copy // self.game.config.cohort, self._episode, moment)

    def _context(self) -> Array:
        return np.ascontiguousarray(self.game.see(self._place, self._slot), np.float32)

    def _to_all(self, context: Array) -> Array:
        """``[E, D]`` to ``[E, A, D]``."""
        return np.repeat(context[:, None], self._batch[1], axis=1)

    def _first_copy(self) -> Shown:
        taken = np.array(self._chosen).reshape(-1, self._batch[1], 2)
        return self.game.show(np.stack(self._seen), taken)

    def _shown(self, trajectories: Sequence[Trajectory]) -> list[Shown]:
        return [
            self.game.show(t.state["context"], np.clip(t.actions[self.game.group]["action"], -1.0, 1.0))
            for t in trajectories
        ]

    def _checked(self, actions: Actions) -> Array:
        chosen = np.asarray(actions[self.game.group]["action"], np.float64)
        expected = (*self._batch, 2)
        if chosen.shape != expected:
            raise ValueError(f"actions of group {self.game.group!r} have shape {chosen.shape}, expected {expected}")
        finite = np.isfinite(chosen).all(axis=2)
        if not finite.all():
            copy, agent = (int(index[0]) for index in np.nonzero(~finite))
            raise ValueError(
                f"action of {self.game.agents[agent]} in environment {self._copy[copy]} of {self.game.id!r} is not "
                f"finite (step {self._slot + 1} of {self.game.config.horizon})"
            )
        return np.clip(chosen, -1.0, 1.0)

    def _nothing(self) -> Leaves:
        """Metrics of a step that ends no episode."""
        return {name: np.zeros(self._batch[0], np.float32) for name in self.game.metrics}

    def _step(self, reward: Array, metrics: Leaves, *, ended: bool) -> Step:
        context = self._context()
        group = GroupStep(
            observation={"observation": self._to_all(context)},
            reward=np.repeat(reward.astype(np.float32)[:, None], self._batch[1], axis=1),
            terminated=np.full(self._batch, ended),
            truncated=np.zeros(self._batch, bool),
            alive=np.ones(self._batch, bool),
            acting=np.ones(self._batch, bool),
        )
        return Step(
            groups={self.game.group: group},
            done=np.full(self._batch[0], ended),
            state={"context": context},
            cohort=self._copy // self.game.config.cohort,
            metrics=metrics,
        )
