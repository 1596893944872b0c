"""``games/reach-v0``: a point mass between several goals, any of which will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.envs.games.circle import nearest, points, squared_distances
from marl_tr.envs.games.config import ReachConfig
from marl_tr.envs.games.game import Draw, Played, Strategy, native, uniformly
from marl_tr.envs.games.modes import ModeGameVectorEnv, planes
from marl_tr.envs.games.render import Frame, Shown
from marl_tr.vector.contract import Leaves

__all__ = ["Reach", "make"]

Array = NDArray[Any]

_START, _ANGLE, _PICK = range(Draw.FIRST_PURPOSE, Draw.FIRST_PURPOSE + 3)


class Reach:
    """The game; see `marl_tr.envs.games.modes.ModeGame`.

    Goals lie on a circle at ``phi + 2 pi k / M`` with ``phi`` uniform in ``[0, 2 pi)``, the start is near the middle.
    An action ``a`` moves the mass by ``speed a / max(1, |a|)``, the same in all directions, so that no goal is nearer
    in time for lying in a corner; it stays in ``[-1, 1]^2``. A step that ends at the distance ``d`` from the nearest
    goal earns ``(bonus [d <= arrival] - d / radius) / steps``: an episode that never leaves the middle -1 (its goals
    being out of sight), one that was at a goal all along `bonus`.

    Flying straight to the nearest goal is optimal. With a `spread` above 0 the goals differ a little: choosing any
    other costs the extra way.
    """

    id = "games/reach-v0"
    group = "walker"
    agents: tuple[str, ...] = ("walker_0",)
    metrics: tuple[str, ...] = ("final_distance", "reached")

    def __init__(self, config: ReachConfig) -> None:
        self.config = config
        self.modes, self.horizon = config.modes, config.horizon
        self.actions = planes(len(self.agents))
        self.observation: spaces.Box = spaces.Box(-1.0, 1.0, (5,), np.float32)
        self.frame = Frame(targets=self._goals(np.zeros(1))[0], ring=config.arrival)

    def begin(self, draw: Draw) -> Leaves:
        """Start and rotation."""
        return {
            "position": self.config.spread * (2 * draw.episode_of_cohort(_START, 2) - 1),
            "angle": 2 * np.pi * draw.episode_of_cohort(_ANGLE, 1)[:, 0],
        }

    def see(self, place: Leaves, slot: int) -> Array:
        """Position (2), cosine and sine of the rotation, share of the time that is left."""
        left = np.full(len(place["angle"]), 1 - slot / self.config.steps)
        return np.column_stack((place["position"], np.cos(place["angle"]), np.sin(place["angle"]), left))

    def play(self, place: Leaves, actions: Array, draw: Draw) -> Played:
        """``final_distance`` to the nearest goal, and whether it is ``reached``."""
        velocity = actions[:, 0] / np.maximum(np.linalg.norm(actions[:, 0], axis=1, keepdims=True), 1.0)
        position = np.clip(place["position"] + self.config.speed * velocity, -1.0, 1.0)
        distance_sq = squared_distances(position[:, None], self._goals(place["angle"])).min(axis=2)[:, 0]
        distance = np.sqrt(distance_sq)
        reached = distance <= self.config.arrival
        reward = (self.config.bonus * reached - distance / self.config.radius) / self.config.steps
        return Played({**place, "position": position}, reward, {"final_distance": distance, "reached": reached})

    def answers(self, place: Leaves, actions: Array) -> Array:
        """The goal nearest to where the episode ended; `actions` say less."""
        return nearest(place["position"][:, None], self._goals(place["angle"]))

    def strategies(self) -> Mapping[str, Strategy]:
        """The optimum, a policy with all modes, and chance."""

        def to_nearest(place: Leaves, draw: Draw) -> Array:
            goals = self._goals(place["angle"])
            return self._towards(place, goals, nearest(place["position"][:, None], goals))

        def to_any(place: Leaves, draw: Draw) -> Array:
            chosen = (draw.episode_of_copy(_PICK, 1) * self.modes).astype(np.int64)
            return self._towards(place, self._goals(place["angle"]), chosen)

        return {"nearest goal": to_nearest, "a random goal": to_any, "uniform": uniformly(self.actions)}

    def show(self, seen: Array, actions: Array) -> Shown:
        """The way."""
        angle = float(np.arctan2(seen[0, 3], seen[0, 2]))
        return Shown(context=seen[0], angle=angle, tracks=seen[None, :, :2])

    def _goals(self, angle: Array) -> Array:
        return points(angle, modes=self.modes, radius=self.config.radius)

    def _towards(self, place: Leaves, goals: Array, chosen: Array) -> Array:
        """Straight to the goals ``[E, 1]``, as fast as it goes without passing them; ``[E, 1, 2]``."""
        way = np.take_along_axis(goals, chosen[..., None], axis=1) - place["position"][:, None]
        velocity: Array = way / np.maximum(np.linalg.norm(way, axis=2, keepdims=True), self.config.speed)
        return velocity


make = native(ModeGameVectorEnv, Reach, ReachConfig)
"""``games/reach-v0``, native; see `marl_tr.envs.games.game.native`."""
