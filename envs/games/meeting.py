"""``games/meeting-v0``: two agents, several meeting points, one choice each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.bandit import IN_MODE
from marl_tr.envs.games.circle import nearest, points, squared_distances
from marl_tr.envs.games.config import MeetingConfig
from marl_tr.envs.games.game import Draw, Played, Strategy, native, uniformly
from marl_tr.envs.games.modes import ModeGameVectorEnv, planes
from marl_tr.envs.games.render import Frame, Shown
from marl_tr.vector.contract import Leaves

__all__ = ["Meeting", "make"]

Array = NDArray[Any]

_ANGLE, _NOISE, _PICK = range(Draw.FIRST_PURPOSE, Draw.FIRST_PURPOSE + 3)


class Meeting:
    """The game; see `marl_tr.envs.games.modes.ModeGame`.

    Both see ``(cos phi, sin phi)`` with ``phi`` uniform in ``[0, 2 pi)`` and choose a place at once; the points lie at
    ``phi + 2 pi k / M``. Both earn

        max_k exp(-(|a_1 - m_k|^2 + |a_2 - m_k|^2) / (2 width^2)) + noise xi,    xi ~ N(0, 1).

    Each point is an equilibrium worth 1. Nothing that both see tells them which one to take but the rotation itself:
    agents that keep all modes, each for itself, meet in one of ``M`` episodes and earn about ``1 / M``. To keep several
    modes is a fault here, unless the agents' choices depend on each other.
    """

    id = "games/meeting-v0"
    group = "guest"
    agents: tuple[str, ...] = ("guest_0", "guest_1")
    metrics: tuple[str, ...] = ("value", "met")

    def __init__(self, config: MeetingConfig) -> None:
        self.config = config
        self.modes, self.horizon = config.modes, config.horizon
        self.actions = planes(len(self.agents))
        self.observation: spaces.Box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.frame = Frame(
            targets=self._points(np.zeros(1))[0],
            # What a place is worth if the other agent chose it too.
            landscape=lambda places: self._value(2 * squared_distances(places[None], self._points(np.zeros(1)))[0]),
        )

    def begin(self, draw: Draw) -> Leaves:
        """A rotation."""
        return {"angle": 2 * np.pi * draw.episode_of_cohort(_ANGLE, 1)[:, 0]}

    def see(self, place: Leaves, slot: int) -> Array:
        """Its cosine and sine."""
        return np.column_stack((np.cos(place["angle"]), np.sin(place["angle"])))

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """``value``: the reward without its noise; ``met``: both are nearest to one point, and within `IN_MODE` widths
        of it."""
        distance_sq = squared_distances(actions, self._points(place["angle"]))
        value = self._value(distance_sq.sum(axis=1))
        same = distance_sq.argmin(axis=2)
        close = distance_sq.min(axis=2) <= (IN_MODE * self.config.width) ** 2
        metrics = {"value": value, "met": (same[:, 0] == same[:, 1]) & close.all(axis=1)}
        return Played(place, value + self.config.noise * draw.noise(_NOISE), metrics)

    def answers(self, place: Leaves, actions: Array) -> Array:
        """The point nearest to each agent, however far."""
        return nearest(actions, self._points(place["angle"]))

    def strategies(self) -> Mapping[str, Strategy]:
        """An equilibrium, what keeping all modes without coordination earns, and chance."""

        def first_point(place: Leaves, draw: Draw) -> Array:
            return np.repeat(self._points(place["angle"])[:, :1], 2, axis=1)

        def any_points(place: Leaves, draw: Draw) -> Array:
            chosen = (draw.episode_of_copy(_PICK, 2) * self.modes).astype(np.int64)
            return np.take_along_axis(self._points(place["angle"]), chosen[..., None], axis=1)

        return {
            "always point 0": first_point,
            "independent random points": any_points,
            "uniform": uniformly(self.actions),
        }

    def show(self, seen: Array, actions: Array) -> Shown:
        """Two points."""
        angle = float(np.arctan2(seen[0, 1], seen[0, 0]))
        return Shown(context=seen[0], angle=angle, tracks=actions.transpose(1, 0, 2))

    def _points(self, angle: Array) -> Array:
        return points(angle, modes=self.modes, radius=self.config.radius)

    def _value(self, distance_sq: Array) -> Array:
        """``[E]``, from the sum over agents of squared distances to each point, ``[E, M]``."""
        value: Array = np.exp(-distance_sq / (2 * self.config.width**2)).max(axis=1)
        return value


make = native(ModeGameVectorEnv, Meeting, MeetingConfig)
"""``games/meeting-v0``, native; see `marl_tr.envs.games.game.native`."""
