"""Small real environments: one that is right, and ones that are each wrong in one way."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Walkers(ParallelEnv):
    """Agents on a line; each may die at any step, and all are cut off at the horizon."""

    metadata = {"name": "walkers_v0", "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, walkers: int = 3, horizon: int = 12, death: float = 0.0, render_mode: str | None = None) -> None:
        self.possible_agents = [f"walker_{index}" for index in range(walkers)]
        self.agents: list[str] = []
        self.horizon = horizon
        self.death = death
        self.render_mode = render_mode
        self.np_random = np.random.default_rng()
        self.observation_spaces = {agent: spaces.Box(-100, 100, (2,), np.float32) for agent in self.possible_agents}
        self.action_spaces = {agent: spaces.Box(-1, 1, (1,), np.float32) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def seed(self, seed: int | None) -> None:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seed(seed)
        self.agents = self.possible_agents[:]
        self.t = 0
        self.position = {agent: self.draw() for agent in self.agents}
        return self.observe(self.agents), {agent: {} for agent in self.agents}

    def draw(self) -> float:
        return float(self.np_random.uniform(-1, 1))

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {agent: np.array([self.position[agent], self.t], dtype=np.float32) for agent in agents}

    def reward(self, agent: str) -> Any:
        return float(-abs(self.position[agent]))

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents), "actions for exactly the living"
        self.t += 1
        moved = self.agents
        for agent in moved:
            assert self.action_space(agent).contains(actions[agent])
            self.position[agent] += float(actions[agent][0]) + 0.1 * self.draw()
        dead = {agent: self.np_random.random() < self.death for agent in moved}
        late = {agent: self.t >= self.horizon and not dead[agent] for agent in moved}
        observations = self.observe(moved)
        rewards = {agent: self.reward(agent) for agent in moved}
        self.agents = [agent for agent in moved if not (dead[agent] or late[agent])]
        return observations, rewards, dead, late, {agent: {} for agent in moved}

    def state(self) -> Any:
        return np.array([self.position[agent] for agent in self.possible_agents] + [self.t])

    def render(self) -> Any:
        return np.full((4, 6, 3), self.t, dtype=np.uint8)


class UsesGlobalRandom(Walkers):
    def draw(self) -> float:
        return float(np.random.uniform(-1, 1))  # noqa: NPY002


class SeedsGlobalRandom(UsesGlobalRandom):
    def seed(self, seed: int | None) -> None:
        np.random.seed(seed)  # noqa: NPY002


class IgnoresSeedZero(Walkers):
    def seed(self, seed: int | None) -> None:
        if seed:
            self.np_random = np.random.default_rng(seed)


class SeedOrDefault(Walkers):
    def seed(self, seed: int | None) -> None:
        self.np_random = np.random.default_rng(seed or 42)


class NanLater(Walkers):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        observations = super().observe(agents)
        if self.t == 5:
            observations["walker_1"][0] = np.nan
        return observations


class InfiniteReward(Walkers):
    def reward(self, agent: str) -> Any:
        return -np.inf if self.t == 3 else super().reward(agent)


class LeavesItsSpace(Walkers):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {agent: value + np.float32(100 * (self.t > 6)) for agent, value in super().observe(agents).items()}


class WrongDtype(Walkers):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {agent: value.astype(np.float64) for agent, value in super().observe(agents).items()}


class NewSpaces(Walkers):
    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1, 1, (1,), np.float32)


class StateOfTheLiving(Walkers):
    def __init__(self, death: float = 0.2, **kwargs: Any) -> None:
        super().__init__(death=death, **kwargs)

    def state(self) -> Any:
        return np.array([self.position[agent] for agent in self.agents])


class Revives(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        answer = super().step(actions)
        if self.t == 3:
            answer[2]["walker_1"] = True
            self.agents = [agent for agent in self.agents if agent != "walker_1"]
        if self.t == 5:
            self.agents = self.possible_agents[:]
        return answer


class Vanishes(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        answer = super().step(actions)
        if self.t == 3:
            self.agents = self.agents[:-1]
        return answer


class HashOrder(Walkers):
    def draw(self) -> float:
        return super().draw() + (hash("walker") % 1000) / 1000


class ArrayReward(Walkers):
    def reward(self, agent: str) -> Any:
        return np.array([super().reward(agent)])


class ForgetsInfos(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, dead, late, _ = super().step(actions)
        return observations, rewards, dead, late, {}


class ForgetsAReward(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        answer = super().step(actions)
        answer[1].pop("walker_2", None)
        return answer


class RejectsBounds(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        if any(abs(float(action[0])) >= 1 for action in actions.values()):
            raise ValueError("too far")
        return super().step(actions)


class OutlivesReset(Walkers):
    total = 0.0

    def draw(self) -> float:
        self.total += 0.01
        return super().draw() + self.total


class Crashes(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        if self.t == 4:
            raise ZeroDivisionError("division by zero")
        return super().step(actions)


class NeverEnds(Walkers):
    def __init__(self) -> None:
        super().__init__(horizon=10**9)

    def draw(self) -> float:
        return 0.01 * super().draw()

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {agent: np.clip(value, -100, 100) for agent, value in super().observe(agents).items()}


class AlwaysTheSame(Walkers):
    def draw(self) -> float:
        return 0.5


class TruncatesOne(Walkers):
    """``walker_0`` is cut off at step 4, the others go on."""

    def step(self, actions: dict[str, Any]) -> Any:
        answer = super().step(actions)
        if self.t == 4:
            answer[3]["walker_0"] = True
            self.agents = [agent for agent in self.agents if agent != "walker_0"]
        return answer


class Mixed(ParallelEnv):
    """Agents with every supported space; remembers the actions that it was given."""

    metadata = {"name": "mixed_v0"}  # noqa: RUF012

    def __init__(self, pairs: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] | None = None) -> None:
        tables = spaces.Discrete(4, start=2), spaces.Discrete(3, start=-1)
        boxes = spaces.Box(0, 255, (2, 3), np.uint8), spaces.Box(-0.1, 0.1, (2, 2), np.float64)
        counts = spaces.Box(-1, 1, (1,), np.float32), spaces.MultiDiscrete([3, 5])
        self.pairs = pairs or {"seller_0": tables, "buyer_0": boxes, "seller_1": tables, "judge": counts}
        self.possible_agents = list(self.pairs)
        self.agents: list[str] = []
        self.given: list[dict[str, Any]] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.pairs[agent][0]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.pairs[agent][1]

    def _observe(self) -> dict[str, Any]:
        return {
            agent: pair[0].sample() if not isinstance(pair[0], spaces.Discrete) else 4
            for agent, pair in self.pairs.items()
        }

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.agents = self.possible_agents[:]
        for index, agent in enumerate(self.agents):
            self.observation_space(agent).seed((seed or 0) + index)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.given.append(actions)
        no = dict.fromkeys(self.agents, False)
        return self._observe(), dict.fromkeys(self.agents, 1.0), no, no, {agent: {} for agent in self.agents}


class Counter(gymnasium.Env):
    """A single agent that counts; its config has a default."""

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit
        self.observation_space = spaces.Discrete(limit + 1)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.count += int(action)
        return self.count, float(action), self.count == self.limit, False, {}
