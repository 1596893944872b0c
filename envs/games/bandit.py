"""``games/bandit-v0``: a contextual bandit with modes of equal worth that turn with the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.circle import nearest, points, squared_distances
from marl_tr.envs.games.config import BanditConfig
from marl_tr.envs.games.game import Draw, Played, Strategy, native, uniformly
from marl_tr.envs.games.modes import ModeGameVectorEnv, planes
from marl_tr.envs.games.render import Frame, Shown
from marl_tr.vector.contract import Leaves

__all__ = ["IN_MODE", "Bandit", "make"]

Array = NDArray[Any]

IN_MODE = 3.0
"""A choice counts as in its mode up to so many widths from it."""

_CONTEXT, _NOISE, _PICK = range(Draw.FIRST_PURPOSE, Draw.FIRST_PURPOSE + 3)


class Bandit:
    """The game; see `marl_tr.envs.games.modes.ModeGame`.

    The context ``s`` is uniform in ``[-1, 1]^2``, and mode ``k`` of ``M`` is ``m_k(s) = radius (cos, sin)(th(s) + 2 pi
    k / M)`` with ``th(s) = rotation (pi/2 s_1 + pi/4 s_2) / 2``. The action ``a`` earns

        max_k h_k exp(-|a - m_k(s)|^2 / (2 width^2)) + noise xi,    xi ~ N(0, 1).

    For two modes they are ``+-0.7 (cos th, sin th)``. The task and its constants are ours (that a bump is a Gaussian of
    height 1 at its top among them), as is what counts as in a mode (`IN_MODE`) and as keeping one
    (`circle.EVEN_SHARE`): values can be compared with each other, not with a publication's.
    """

    id = "games/bandit-v0"
    group = "player"
    agents: tuple[str, ...] = ("player_0",)
    metrics: tuple[str, ...] = ("value", "in_mode")

    def __init__(self, config: BanditConfig) -> None:
        self.config = config
        self.modes, self.horizon = config.modes, config.horizon
        self.actions = planes(len(self.agents))
        self.observation: spaces.Box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.frame = Frame(
            targets=self._points(np.zeros(1))[0],
            landscape=lambda places: self._worth(np.zeros(1), places[None])[0],
        )

    def begin(self, draw: Draw) -> Leaves:
        """A context."""
        return {"context": 2 * draw.episode_of_cohort(_CONTEXT, 2) - 1}

    def see(self, place: Leaves, slot: int) -> Array:
        """The context."""
        return place["context"]

    def angle(self, context: Array) -> Array:
        """Of mode 0 in rad, ``[...]`` for contexts ``[..., 2]``."""
        turned: Array = self.config.rotation * (np.pi / 2 * context[..., 0] + np.pi / 4 * context[..., 1]) / 2
        return turned

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """``value``: the reward without its noise; ``in_mode``: whether a mode is within `IN_MODE` widths."""
        angle = self.angle(place["context"])
        value = self._worth(angle, actions)[:, 0]
        distance_sq = squared_distances(actions, self._points(angle)).min(axis=2)[:, 0]
        metrics = {"value": value, "in_mode": distance_sq <= (IN_MODE * self.config.width) ** 2}
        return Played(place, value + self.config.noise * draw.noise(_NOISE), metrics)

    def answers(self, place: Leaves, actions: Array) -> Array:
        """The nearest mode, however far."""
        return nearest(actions, self._points(self.angle(place["context"])))

    def strategies(self) -> Mapping[str, Strategy]:
        """Two optimal policies (where modes are of equal height), one with all modes, one with one; and chance."""

        def any_mode(place: Leaves, draw: Draw) -> Array:
            chosen = (draw.episode_of_copy(_PICK, 1) * self.modes).astype(np.int64)
            return np.take_along_axis(self._points(self.angle(place["context"])), chosen[..., None], axis=1)

        def first_mode(place: Leaves, draw: Draw) -> Array:
            return self._points(self.angle(place["context"]))[:, :1]

        return {"a random mode": any_mode, "always mode 0": first_mode, "uniform": uniformly(self.actions)}

    def show(self, seen: Array, actions: Array) -> Shown:
        """A point."""
        return Shown(context=seen[0], angle=float(self.angle(seen[0])), tracks=actions.transpose(1, 0, 2))

    def _points(self, angle: Array) -> Array:
        return points(angle, modes=self.modes, radius=self.config.radius)

    def _worth(self, angle: Array, actions: Array) -> Array:
        """Without noise: ``[E, n]`` of actions ``[E, n, 2]``."""
        bumps = np.exp(-squared_distances(actions, self._points(angle)) / (2 * self.config.width**2))
        worth: Array = (np.asarray(self.config.worth) * bumps).max(axis=2)
        return worth


make = native(ModeGameVectorEnv, Bandit, BanditConfig)
"""``games/bandit-v0``, native; see `marl_tr.envs.games.game.native`."""
