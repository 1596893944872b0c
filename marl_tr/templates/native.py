"""Robots that should meet, all copies at once: a native ``VectorEnv``, for simulators that must be fast.

Arrays ``[E, ...]`` in and out and no loop over copies; random numbers keyed by (seed, copy, purpose, step), so that a
copy plays the same in a batch of any size; episodes that start anew in the step that ends them; a state that can be
saved. The contract is written down in ``marl_tr.vector.contract``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from marl_tr.philox import uniform
from marl_tr.vector import Actions, EnvSpec, GroupSpec, GroupStep, Reference, Step, Trajectory

__all__ = ["NewEnvironment"]

Array = NDArray[Any]

GROUP = "robot"
_START = 0
"""Purpose of random numbers; draws for different purposes never overlap."""


class NewEnvironment:
    """``E`` planes with robots.

    **Action**, ``Box(-1, 1, (2,))``: a tenth of it is how far the robot moves.

    **Observation**, ``Box(-inf, inf, (5,))``: my place (2), the middle of all (2), share of the time that is left.

    **Reward**, the same for all: minus their mean distance to the middle.

    **State**: all places.

    Args:
        num_envs: ``E``.
        robots: Number of agents.
        horizon: Steps of an episode.
    """

    def __init__(self, num_envs: int = 1, *, robots: int = 2, horizon: int = 25) -> None:
        self._copies = np.arange(num_envs)
        self._robots, self._horizon = robots, horizon
        self.spec = EnvSpec(
            id="new_environment/new_environment-v0",
            num_envs=num_envs,
            groups=(
                GroupSpec(
                    name=GROUP,
                    agents=tuple(f"robot_{index}" for index in range(robots)),
                    observation={"observation": Box(-np.inf, np.inf, (5,), np.float32)},
                    action={"action": Box(-1.0, 1.0, (2,), np.float32)},
                ),
            ),
            state={"places": Box(-np.inf, np.inf, (robots, 2), np.float32)},
            horizon=horizon,
            own_state=True,
        )
        self._places: Array = np.zeros((num_envs, robots, 2))
        self._begin(seed=0, episode=0)

    def reset(self, seed: int) -> Step:
        """``E`` new episodes."""
        self._begin(seed, episode=0)
        return self._step(np.zeros(len(self._copies)))

    def step(self, actions: Actions) -> Step:
        """Move everybody; ``{"robot": {"action": [E, robots, 2]}}``."""
        self._places = self._places + 0.1 * np.clip(np.asarray(actions[GROUP]["action"], np.float64), -1.0, 1.0)
        self._slot += 1
        reward = -self._apart()
        if self._slot < self._horizon:
            return self._step(reward)
        # The episode's last observation and state, then the first of the next: auto-reset in the same step.
        final_observation, final_state, apart = self._observation(), self._state(), self._apart()
        self._begin(self._seed, self._episode + 1)
        step = self._step(reward, ended=True)
        step.groups[GROUP].final_observation = {"observation": final_observation}
        step.final_state = {"places": final_state}
        step.metrics["apart"] = apart.astype(np.float32)
        return step

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {"seed": self._seed, "episode": self._episode, "slot": self._slot, "places": self._places.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._begin(int(state["seed"]), int(state["episode"]))
        self._slot = int(state["slot"])
        self._places = np.array(state["places"], dtype=np.float64)

    def close(self) -> None:
        """Nothing is held."""

    def references(self) -> Sequence[Reference]:
        """Policies that learned ones are compared with."""

        def to_the_middle(step: Step) -> Actions:
            wanted = 10 * (self._places.mean(axis=1, keepdims=True) - self._places)
            return {GROUP: {"action": np.clip(wanted, -1.0, 1.0).astype(np.float32)}}

        return [Reference("to the middle", to_the_middle)]

    def media(self, trajectory: Trajectory) -> dict[str, Array]:
        """``tracks``: where the robots were in one episode, ``[96, 96, 3]`` uint8."""
        picture = np.full((96, 96, 3), 255, dtype=np.uint8)
        x, y = np.moveaxis(np.clip(48 + 24 * trajectory.state["places"], 0, 95).astype(int), -1, 0)
        picture[y, x] = (30, 70, 150)
        return {"tracks": picture}

    def _begin(self, seed: int, episode: int) -> None:
        self._seed, self._episode, self._slot = seed, episode, 0
        drawn = uniform(seed, self._copies, purpose=_START, step=episode, count=2 * self._robots)
        self._places = 2 * drawn.reshape(-1, self._robots, 2) - 1

    def _apart(self) -> Array:
        middle = self._places.mean(axis=1, keepdims=True)
        apart: Array = np.linalg.norm(self._places - middle, axis=2).mean(axis=1)
        return apart

    def _observation(self) -> Array:
        middle = np.broadcast_to(self._places.mean(axis=1, keepdims=True), self._places.shape)
        left = np.full((*self._places.shape[:2], 1), 1 - self._slot / self._horizon)
        return np.concatenate([self._places, middle, left], axis=2).astype(np.float32)

    def _state(self) -> Array:
        return np.asarray(self._places, dtype=np.float32)

    def _step(self, reward: Array, *, ended: bool = False) -> Step:
        batch = (len(self._copies), self._robots)
        group = GroupStep(
            observation={"observation": self._observation()},
            reward=np.ascontiguousarray(np.broadcast_to(reward[:, None], batch), dtype=np.float32),
            terminated=np.zeros(batch, dtype=bool),
            truncated=np.full(batch, ended),
            alive=np.ones(batch, dtype=bool),
            acting=np.ones(batch, dtype=bool),
        )
        return Step(
            groups={GROUP: group},
            done=np.full(len(self._copies), ended),
            state={"places": self._state()},
            metrics={"apart": self._apart().astype(np.float32)},
        )
