"""Berths that share the ships of several lanes: a native batch, which simulates all copies at once.

An environment is native where the speed of copies stepped one by one is not enough. It implements
`marl_tr.vector.VectorEnv`: arrays ``[E, ...]`` in and out, no loop over copies, random numbers keyed by (seed, copy,
purpose, step), episodes that start anew in the step that ends them, and a state that can be saved. In return it can
show reference policies, metrics and pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from marl_tr.philox import uniform
from marl_tr.vector import Actions, EnvSpec, GroupSpec, GroupStep, Reference, Step, Trajectory

__all__ = ["Berths", "BerthsConfig", "make"]

Array = NDArray[Any]

GROUP = "berth"
_RATES, _START, _ARRIVALS, _RANDOM = range(4)
"""Purposes of random numbers: draws for different purposes never overlap."""


class BerthsConfig(BaseModel):
    """Settings; scenarios are checked against them when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    berths: int = Field(2, ge=1, le=16, description="agents")
    lanes: int = Field(4, ge=2, le=64, description="lanes in which ships wait")
    places: int = Field(10, ge=1, description="ships that a lane holds; more are turned away")
    load: float = Field(0.9, gt=0, le=2, description="ships that arrive in a slot, as a share of what berths can serve")
    horizon: int = Field(50, ge=1, description="slots of an episode")


def make(*, num_envs: int = 1, **config: Any) -> Berths:
    """`Berths` from single settings, the form in which marl-tr calls a native factory."""
    return Berths(BerthsConfig(**config), num_envs)


class Berths:
    """``E`` harbours.

    In every slot each berth serves the first ship of one lane; two berths at one lane serve two ships, if there are
    two. Then at most one ship arrives in every lane. How likely that is differs between lanes and episodes, and nobody
    is told. At an episode's beginning each lane holds up to half of what it can.

    **Action**, ``Discrete(lanes)``: the lane to serve.

    **Observation**, ``[lanes + berths + 1]``: ships in each lane / `places`, which berth I am (one-hot), share of the
    slots that are left.

    **Reward**, the same for all: minus the share of all places that are taken, minus the ships turned away now.

    **State**: ``lanes`` ``[lanes]``, ships / `places`.

    All episodes have `horizon` slots and are truncated: ships go on arriving.

    Args:
        config: Settings.
        num_envs: ``E``.
    """

    def __init__(self, config: BerthsConfig, num_envs: int) -> None:
        self.config = config
        self._copies = np.arange(num_envs)
        features = config.lanes + config.berths + 1
        self.spec = EnvSpec(
            id="harbour/berths-v0",
            num_envs=num_envs,
            groups=(
                GroupSpec(
                    name=GROUP,
                    agents=tuple(f"berth_{index}" for index in range(config.berths)),
                    observation={"observation": Box(0.0, 1.0, (features,), np.float32)},
                    action={"action": Discrete(config.lanes)},
                ),
            ),
            state={"lanes": Box(0.0, 1.0, (config.lanes,), np.float32)},
            horizon=config.horizon,
            own_state=True,
        )
        self._ships: Array = np.zeros((num_envs, config.lanes), dtype=np.int64)
        self._begin(seed=0, episode=0)

    def reset(self, seed: int) -> Step:
        """``E`` new episodes."""
        self._begin(seed, episode=0)
        nothing = np.zeros(len(self._copies))
        return self._step(reward=nothing, turned_away=nothing)

    def step(self, actions: Actions) -> Step:
        """One slot of every harbour.

        Args:
            actions: ``{"berth": {"action": [E, berths]}}``, lanes.
        """
        chosen = np.asarray(actions[GROUP]["action"])
        wanted = (chosen[:, :, None] == np.arange(self.config.lanes)).sum(axis=1)
        ships = np.maximum(self._ships - wanted, 0) + self._arrivals()
        turned_away = np.maximum(ships - self.config.places, 0).sum(axis=1)
        self._ships = np.minimum(ships, self.config.places)
        self._slot += 1
        reward = -self._ships.mean(axis=1) / self.config.places - turned_away
        if self._slot < self.config.horizon:
            return self._step(reward=reward, turned_away=turned_away)
        # The episode's last observation and state, then the first of the next: auto-reset in the same step.
        final_observation, final_state, waiting = self._observation(), self._state(), self._waiting()
        self._begin(self._seed, self._episode + 1)
        step = self._step(reward=reward, turned_away=turned_away, ended=True)
        step.groups[GROUP].final_observation = {"observation": final_observation}
        step.final_state = {"lanes": final_state}
        step.metrics["waiting"] = waiting
        return step

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on; random numbers are keyed by it, and need no state."""
        return {"seed": self._seed, "episode": self._episode, "slot": self._slot, "ships": self._ships.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._begin(int(state["seed"]), int(state["episode"]))
        self._slot = int(state["slot"])
        self._ships = np.array(state["ships"], dtype=np.int64)

    def close(self) -> None:
        """Nothing is held."""

    def references(self) -> Sequence[Reference]:
        """Policies that learned ones are compared with: the longest lanes first, each berth its own, and any lane."""

        def longest(step: Step) -> Actions:
            ranked = np.argsort(-self._ships, axis=1, kind="stable")
            return {GROUP: {"action": ranked[:, np.arange(self.config.berths) % self.config.lanes]}}

        def random(step: Step) -> Actions:
            drawn = self._drawn(_RANDOM, self._moment(), self.config.berths)
            return {GROUP: {"action": (drawn * self.config.lanes).astype(np.int64)}}

        return [Reference("longest lanes", longest), Reference("random lanes", random)]

    def media(self, trajectory: Trajectory) -> dict[str, Array]:
        """``lanes``: how full each lane (a row) was in each slot (a column), white to blue, ``[H, W, 3]`` uint8."""
        full = trajectory.state["lanes"].T[:, :, None]
        picture = 255 - full * (255 - np.array([20.0, 60.0, 140.0]))
        return {"lanes": np.kron(picture, np.ones((16, 8, 1))).astype(np.uint8)}

    def _begin(self, seed: int, episode: int) -> None:
        self._seed, self._episode, self._slot = seed, episode, 0
        share = 0.5 + uniform(seed, self._copies, purpose=_RATES, step=episode, count=self.config.lanes)
        share /= share.sum(axis=1, keepdims=True)
        self._rates = np.minimum(share * self.config.load * self.config.berths, 1.0)
        start = uniform(seed, self._copies, purpose=_START, step=episode, count=self.config.lanes)
        self._ships = (start * (self.config.places // 2 + 1)).astype(np.int64)

    def _moment(self) -> int:
        """Slots since the reset, over all episodes."""
        return self._episode * self.config.horizon + self._slot

    def _drawn(self, purpose: int, step: int, count: int) -> Array:
        return uniform(self._seed, self._copies, purpose=purpose, step=step, count=count)

    def _arrivals(self) -> Array:
        return (self._drawn(_ARRIVALS, self._moment(), self.config.lanes) < self._rates).astype(np.int64)

    def _observation(self) -> Array:
        copies, berths = len(self._copies), self.config.berths
        seen = np.zeros((copies, berths, self.config.lanes + berths + 1), dtype=np.float32)
        seen[:, :, : self.config.lanes] = self._state()[:, None]
        seen[:, :, self.config.lanes : -1] = np.eye(berths)
        seen[:, :, -1] = 1 - self._slot / self.config.horizon
        return seen

    def _state(self) -> Array:
        return np.asarray(self._ships / self.config.places, dtype=np.float32)

    def _waiting(self) -> Array:
        return np.asarray(self._ships.sum(axis=1), dtype=np.float32)

    def _step(self, *, reward: Array, turned_away: Array, ended: bool = False) -> Step:
        batch = (len(self._copies), self.config.berths)
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
            state={"lanes": self._state()},
            metrics={"waiting": self._waiting(), "turned_away": turned_away.astype(np.float32)},
        )
