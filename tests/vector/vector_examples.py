"""Small real environments: one that is right, and ones that are each wrong in one way."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


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
            self.position[agent] += self.push(actions[agent]) + 0.1 * self.draw()
        dead = {agent: self.np_random.random() < self.death for agent in moved}
        late = {agent: self.t >= self.horizon and not dead[agent] for agent in moved}
        observations = self.observe(moved)
        rewards = {agent: self.reward(agent) for agent in moved}
        self.agents = [agent for agent in moved if not (dead[agent] or late[agent])]
        return observations, rewards, dead, late, {agent: {} for agent in moved}

    def push(self, action: Any) -> float:
        return float(action[0])

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


class NeverRemoved(Walkers):
    """``walker_1`` ends at step 3, and stays in ``agents``."""

    def step(self, actions: dict[str, Any]) -> Any:
        answer = super().step(actions)
        if self.t == 3:
            answer[2]["walker_1"] = True
        return answer


class Respawns(Walkers):
    """Every walker may die at any step, and comes back two steps later at a place of its own; somebody always lives."""

    def __init__(self, walkers: int = 3, horizon: int = 25) -> None:
        super().__init__(walkers=walkers, horizon=horizon, death=0.3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.back: dict[str, int] = {}
        return super().reset(seed, options)

    def step(self, actions: dict[str, Any]) -> Any:
        before = self.agents
        observations, rewards, dead, late, infos = super().step(actions)
        if not self.agents and not any(late.values()):  # spare one
            spared = min(before)
            dead[spared], self.agents = False, [spared]
        if not any(late.values()):
            self.back |= {agent: self.t + 2 for agent in before if dead[agent]}
            for agent in [name for name, when in self.back.items() if when == self.t]:
                del self.back[agent]
                self.position[agent] = 50 + self.draw()
                self.agents = [*self.agents, agent]
                observations |= self.observe([agent])
                infos[agent] = {}
        return observations, rewards, dead, late, infos


class Clerk(gymnasium.Env):
    """Dict observations of every kind, an action of every kind; remembers what it was given."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (2, 4, 3), np.uint8),
                "desk": spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiBinary(4))),
                "pos": spaces.Dict({"x": spaces.Box(-9, 9, (), np.float64), "grid": spaces.MultiDiscrete([2, 3])}),
                "table": spaces.Box(-1, 1, (5, 2), np.float32),
                "doors": spaces.Box(0, 1, (2,), np.bool_),
            }
        )
        self.action_space = spaces.Tuple(
            (
                spaces.Box(-1, 1, (2,), np.float64),
                spaces.Dict({"stamp": spaces.Discrete(3, start=-1), "lamps": spaces.MultiBinary((2, 2))}),
                spaces.Box(-2, 3, (2,), np.int8),
            )
        )
        self.given: list[Any] = []
        self.seen: list[Any] = []

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.seen.append(self.observation_space.sample())
        return self.seen[-1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.given.append(action)
        self.t += 1
        return self._observe(), float(action[0][0] + action[1]["stamp"]), False, self.t == 9, {}


class NeverLeaves(Walkers):
    """All end at the horizon, and nobody leaves ``agents``."""

    def step(self, actions: dict[str, Any]) -> Any:
        agents = self.agents
        answer = super().step(actions)
        self.agents = agents
        return answer


class Unborn(Walkers):
    """Cannot be reset: it reads what was never set."""

    def draw(self) -> float:
        return self.nothing  # type: ignore[attr-defined, no-any-return]


class Joins(Walkers):
    """The last walker joins at step 2; in that step it has an observation and, but for `flags`, nothing else."""

    def __init__(self, walkers: int = 3, horizon: int = 12, flags: bool = False) -> None:
        super().__init__(walkers=walkers, horizon=horizon)
        self.flags = flags

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observations, infos = super().reset(seed, options)
        late = self.agents.pop()
        del observations[late], infos[late]
        return observations, infos

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, dead, late, infos = super().step(actions)
        if self.t == 2:
            new = self.possible_agents[-1]
            self.agents = [*self.agents, new]
            observations |= self.observe([new])
            infos[new] = {}
            if self.flags:
                rewards[new], dead[new], late[new] = 0.0, False, False
        return observations, rewards, dead, late, infos


class Hybrid(Walkers):
    """An action with a continuous and a discrete part; the observation's mask is of the one that has choices."""

    def __init__(self, walkers: int = 2, horizon: int = 12) -> None:
        super().__init__(walkers=walkers, horizon=horizon)
        seen = {"place": spaces.Box(-100, 100, (2,), np.float32)}
        mask = spaces.Dict(gear=spaces.MultiBinary(3))
        self.observation_spaces = {agent: spaces.Dict(seen, action_mask=mask) for agent in self.possible_agents}
        push = spaces.Box(-1, 1, (1,), np.float32)
        self.action_spaces = {agent: spaces.Dict(push=push, gear=spaces.Discrete(3)) for agent in self.possible_agents}

    def observe(self, agents: list[str]) -> dict[str, Any]:
        gears = np.array([1, self.t % 2, 1], dtype=np.int8)
        return {agent: {"place": own, "action_mask": {"gear": gears}} for agent, own in super().observe(agents).items()}

    def push(self, action: Any) -> float:
        assert action["gear"] != 1 or self.t % 2 == 0, "a gear that is not allowed"  # of what was seen one step before
        return float(action["push"][0])


class Vault(ParallelEnv):
    """Masks in infos for two kinds of agents with different spaces; asserts that only allowed choices are made.

    The dialler turns two wheels, each blocked at one place drawn anew each step; the lookouts choose one of four doors,
    of which a random set is open. Observations carry no mask.
    """

    metadata = {"name": "vault_v0"}  # noqa: RUF012

    def __init__(self, horizon: int = 15, tuples: bool = True) -> None:
        self.possible_agents = ["dialler", "lookout_0", "lookout_1"]
        self.agents: list[str] = []
        self.horizon = horizon
        self.tuples = tuples
        self.np_random = np.random.default_rng()
        self.observation_spaces = {agent: spaces.Box(0, 99, (1,), np.float32) for agent in self.possible_agents}
        doors = spaces.Discrete(4, start=10)
        self.action_spaces = {"dialler": spaces.MultiDiscrete([3, 5]), "lookout_0": doors, "lookout_1": doors}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents, self.t = self.possible_agents[:], 0
        return self._observe(), self._infos()

    def _observe(self) -> dict[str, Any]:
        return {agent: np.float32([self.t]) for agent in self.possible_agents}

    def _infos(self) -> dict[str, Any]:
        wheels = tuple(np.ones(n, np.int8) for n in (3, 5))
        for wheel in wheels:
            wheel[self.np_random.integers(wheel.size)] = 0
        self.masks: dict[str, Any] = {"dialler": wheels}
        for agent in ("lookout_0", "lookout_1"):
            doors = (self.np_random.random(4) < 0.5).astype(np.int8)
            doors[self.np_random.integers(4)] = 1
            self.masks[agent] = doors
        given = {agent: {"action_mask": self.mask_given(agent)} for agent in self.possible_agents}
        return given

    def mask_given(self, agent: str) -> Any:
        mask = self.masks[agent]
        return np.concatenate(mask) if isinstance(mask, tuple) and not self.tuples else mask

    def step(self, actions: dict[str, Any]) -> Any:
        for wheel, choice in zip(self.masks["dialler"], actions["dialler"], strict=True):
            assert wheel[choice], "a blocked place"
        for agent in ("lookout_0", "lookout_1"):
            assert self.masks[agent][actions[agent] - 10], "a closed door"
        self.t += 1
        late = dict.fromkeys(self.possible_agents, self.t >= self.horizon)
        rewards = {agent: float(self.np_random.random()) for agent in self.possible_agents}
        self.agents = [] if self.t >= self.horizon else self.agents
        return self._observe(), rewards, dict.fromkeys(self.possible_agents, False), late, self._infos()


class Auction(AECEnv):
    """Turns with spaces of their own: a seller names a price, then bidders answer in turn; some leave, late ones join.

    Everybody is paid at the end of a round, and a bidder at its own move too. A bidder that passes twice in a row
    leaves; ``bidder_2`` joins in the third round. A `blind` auction cannot be observed out of turn.
    """

    metadata = {"name": "auction_v0"}  # noqa: RUF012

    def __init__(self, rounds: int = 7, blind: bool = False) -> None:
        super().__init__()
        self.possible_agents = ["seller", "bidder_0", "bidder_1", "bidder_2"]
        self.rounds = rounds
        self.blind = blind
        self.spaces = {
            "seller": (spaces.Box(0, 9, (2,), np.float32), spaces.Box(0, 1, (1,), np.float32)),
            "bidder": (spaces.MultiDiscrete([9, 4]), spaces.Discrete(2)),
        }

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.spaces[agent.split("_")[0]][0]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.spaces[agent.split("_")[0]][1]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.np_random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:3]
        self.round, self.price, self.pot = 0, 0.0, 0.0
        self.passes = dict.fromkeys(self.possible_agents, 0)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.queue = self.agents[1:]
        self.agent_selection = "seller"

    def observe(self, agent: str) -> Any:
        if self.blind and agent != self.agent_selection:
            raise KeyError(agent)
        if agent == "seller":
            return np.float32([self.price, self.round])
        return np.array([self.round, self.passes[agent]])

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            return self._was_dead_step(action)
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        if agent == "seller":
            self.price = float(action[0])
        else:
            self.passes[agent] = 0 if action else self.passes[agent] + 1
            self.rewards[agent] = (1 - self.price) * action + float(self.np_random.normal())
            self.pot += self.price * action
        if self.queue:
            self.agent_selection = self.queue.pop(0)
        else:
            self._end_round()
        self._accumulate_rewards()
        self._deads_step_first()
        return None

    def _end_round(self) -> None:
        self.round += 1
        for agent in self.agents:
            self.rewards[agent] += self.pot if agent == "seller" else 0.25 * self.pot
        self.pot = 0.0
        for agent in self.agents[1:]:
            self.terminations[agent] = self.passes[agent] >= 2
        if self.round == 3:
            self.agents.append("bidder_2")
            for book, start in ((self.rewards, 0.0), (self._cumulative_rewards, 0.0), (self.infos, {})):
                book["bidder_2"] = start
            self.terminations["bidder_2"] = self.truncations["bidder_2"] = False
        if self.round == self.rounds:
            self.truncations = dict.fromkeys(self.agents, True)
        self.queue = [agent for agent in self.agents[1:] if not self.terminations[agent]]
        self.agent_selection = "seller"


class KeepsNoCount(Auction):
    """Replaces what ``last()`` reports at the end of a round and never sets it to zero, as ``parallel_to_aec`` does."""

    def _accumulate_rewards(self) -> None:
        if self.agent_selection == "seller":
            self._cumulative_rewards = {agent: self.rewards[agent] for agent in self.agents}

    def step(self, action: Any) -> None:
        agent, kept, before = self.agent_selection, self._cumulative_rewards[self.agent_selection], self.round
        super().step(action)
        if action is not None and self.round == before:
            self._cumulative_rewards[agent] = kept
