"""Games with several equally good answers: which one was given, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.circle import mode_measures
from marl_tr.envs.games.config import ContextConfig
from marl_tr.envs.games.game import Game, GameVectorEnv
from marl_tr.envs.games.render import Frame, Shown, sheet
from marl_tr.vector.contract import Actions, Leaves, Step, Trajectory

__all__ = ["ModeGame", "ModeGameVectorEnv", "planes"]

Array = NDArray[Any]


class ModeGame(Game, Protocol):
    """A game with actions in ``[-1, 1]^2`` and several equally good answers.

    Its `metrics` are what an episode's end is measured by; `Played.metrics` holds what they are if it ends there.

    Attributes:
        modes: Equally good answers ``M``.
        frame: What pictures show behind the samples.
    """

    modes: int
    frame: Frame

    @property
    def config(self) -> ContextConfig:
        """Settings."""
        ...

    def answers(self, place: Leaves, actions: Array) -> Array:
        """Which mode was chosen, ``[E, A]``, by the place where an episode ended and the actions that ended it."""
        ...

    def show(self, seen: Array, actions: Array) -> Shown:
        """One episode for pictures, from ``[T + 1, D]`` and ``[T, A, 2]``; ``T`` may be 0."""
        ...


def planes(agents: int) -> tuple[spaces.Box, ...]:
    """Actions in ``[-1, 1]^2``, a space for each agent."""
    return tuple(spaces.Box(-1.0, 1.0, (2,), np.float32) for _ in range(agents))


class ModeGameVectorEnv(GameVectorEnv[ModeGame]):
    """``E`` copies of a `ModeGame`, with measures and pictures of its answers.

    Metrics belong to an episode's end. Where it has several steps they are 0 before the last one and as many times
    their value in it, so that the mean over an episode, which is what evaluations report, is the end's.

    Args:
        game: What is played.
        num_envs: ``E``, a multiple of the cohort's size.
        env_offset: Index of the first copy in the random streams.

    Raises:
        UnequalCohorts, ValueError: See `GameVectorEnv`.
    """

    gallery_size = 256
    """Episodes that `gallery` and `before_after` show."""

    def __init__(self, game: ModeGame, *, num_envs: int, env_offset: int = 0) -> None:
        super().__init__(game, num_envs=num_envs, env_offset=env_offset, cohort=game.config.cohort)
        self._ended: Leaves = self._place

    def reset(self, seed: int) -> Step:
        """See `GameVectorEnv.reset`."""
        step = super().reset(seed)
        self._ended, self._last = self._place, None
        return step

    def info(self, step: Step) -> dict[str, float]:
        """The metrics of an episode's end, not weighted for the mean over its steps; before it nothing."""
        if not step.done[0]:
            return {}
        return {name: value / self.game.horizon for name, value in super().info(step).items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything the following steps, and `measures`, depend on."""
        return {**super().state_dict(), "ended": {name: array.copy() for name, array in self._ended.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `GameVectorEnv.load_state_dict`."""
        ended = self._restored(state["ended"])
        super().load_state_dict(state)
        self._ended = ended
        self._seen, self._last = [self._context()[0]], None

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

    _seen: list[Array]
    """Of the first copy's episode, for `render`: what was seen."""
    _chosen: list[Array]
    """And what was done."""
    _last: Shown | None = None
    """The first copy's episode that ended last, for `render`."""

    def _begin(self, seed: int, episode: int) -> None:
        super()._begin(seed, episode)
        self._seen, self._chosen = [self._context()[0]], []

    def _note(self, chosen: Array) -> None:
        self._seen.append(self._context()[0])
        self._chosen.append(chosen[0])

    def _finish(self) -> None:
        self._ended, self._last = self._place, self._first_copy()

    def _measured(self, metrics: Leaves, over: bool) -> Leaves:
        if not over:
            return self._nothing()
        return {name: (values * self.game.horizon).astype(np.float32) for name, values in metrics.items()}

    def _first_copy(self) -> Shown:
        taken = np.array(self._chosen).reshape(-1, self._batch[1], 2)
        return self.game.show(np.stack(self._seen), taken)

    def _shown(self, trajectories: Sequence[Trajectory]) -> list[Shown]:
        return [
            self.game.show(t.state["context"], np.clip(t.actions[self.game.group]["action"], -1.0, 1.0))
            for t in trajectories
        ]
