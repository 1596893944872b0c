"""More small environments, masked and turn-based: two that are right, and ones that are each wrong in one way."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv
from vector_examples import Walkers


class Choosers(Walkers):
    """Walkers that choose among four moves, of which infos allow some: at the third step not the last."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.action_spaces = {agent: spaces.Discrete(4) for agent in self.possible_agents}

    def mask(self, agent: str) -> Any:
        return np.array([1, 1, 1, self.t % 3 != 2], dtype=np.int8)

    def infos(self, agents: list[str]) -> dict[str, Any]:
        return {agent: {"action_mask": self.mask(agent)} for agent in agents}

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observations, _ = super().reset(seed=seed)
        return observations, self.infos(self.agents)

    def step(self, actions: dict[str, Any]) -> Any:
        allowed = np.array([1, 1, 1, self.t % 3 != 2])
        for action in actions.values():
            if not allowed[action]:
                raise ValueError(f"move {action} is forbidden")
        moved = list(self.agents)
        self.action_spaces, kept = {a: spaces.Box(-1, 1, (1,), np.float32) for a in moved}, self.action_spaces
        answer = super().step({a: np.array([0.1 * action], np.float32) for a, action in actions.items()})
        self.action_spaces = kept
        return *answer[:4], self.infos(moved)


class MaskLies(Choosers):
    """The mask allows what ``step`` refuses."""

    def mask(self, agent: str) -> Any:
        return np.ones(4, dtype=np.int8)


class MaskVanishes(Choosers):
    def infos(self, agents: list[str]) -> dict[str, Any]:
        return super().infos(agents) if self.t < 5 else {agent: {} for agent in agents}


class MaskAllowsNothing(Choosers):
    def mask(self, agent: str) -> Any:
        return super().mask(agent) * (self.t != 4)


class MaskTooShort(Choosers):
    def mask(self, agent: str) -> Any:
        return super().mask(agent)[: 4 if self.t < 3 else 3]


class MaskOfShares(Choosers):
    def mask(self, agent: str) -> Any:
        return super().mask(agent) / 2 if self.t == 2 else super().mask(agent)


class WantsFloat64(Walkers):
    """Its space is of float32."""

    def step(self, actions: dict[str, Any]) -> Any:
        for action in actions.values():
            assert action.dtype == np.float64, f"need float64, got {action.dtype}"
        return super().step(actions)


class Seers(Walkers):
    """Walkers with a Dict observation."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        parts = {"place": spaces.Box(-100, 100, (1,), np.float32), "clock": spaces.Discrete(100)}
        self.observation_spaces = {agent: spaces.Dict(parts) for agent in self.possible_agents}

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {agent: {"place": np.float32([self.position[agent]]), "clock": self.t} for agent in agents}


class LacksAKey(Seers):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        observations = super().observe(agents)
        if self.t == 3:
            del observations["walker_1"]["clock"]
        return observations


class LeafLeavesItsSpace(Seers):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        observations = super().observe(agents)
        if self.t == 4:
            observations["walker_0"]["clock"] = 100
        return observations


class ReusesItsBuffer(Walkers):
    """Gives out one array and writes into it again."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.buffers = {agent: np.zeros(2, dtype=np.float32) for agent in self.possible_agents}

    def observe(self, agents: list[str]) -> dict[str, Any]:
        for agent, seen in super().observe(agents).items():
            self.buffers[agent][:] = seen
        return {agent: self.buffers[agent] for agent in agents}


class NanReward(Walkers):
    def reward(self, agent: str) -> Any:
        return float("nan") if self.t == 3 else super().reward(agent)


class RewardsAreAList(Walkers):
    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, list(rewards.values()), *rest


class ObservesNothing(Walkers):
    def observe(self, agents: list[str]) -> dict[str, Any]:
        return super().observe(agents) | ({"walker_1": None} if self.t == 2 else {})


class NothingAllowedAtFirst(Choosers):
    """The first mask allows nothing."""

    def mask(self, agent: str) -> Any:
        return super().mask(agent) * (self.t > 0)


class SetOrder(Walkers):
    """Draws in the order of a set, which another process has otherwise."""

    def __init__(self, walkers: int = 8, **config: Any) -> None:
        super().__init__(walkers=walkers, **config)

    def observe(self, agents: list[str]) -> dict[str, Any]:
        observations = super().observe(agents)
        for agent in set(agents):
            observations[agent][0] += np.float32(0.1 * self.draw())
        return observations


class OldStep(Walkers):
    """The API of before 2022."""

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, dead, late, infos = super().step(actions)
        return observations, rewards, {agent: dead[agent] or late[agent] for agent in dead}, infos


class OldReset(Walkers):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class Takers(AECEnv):
    """Three players take 1 to 3 of a heap in turn; each take pays a share to all, and some drop out."""

    metadata = {"name": "takers_v0", "render_modes": []}  # noqa: RUF012

    def __init__(self, heap: int = 30, dropping: float = 0.1) -> None:
        super().__init__()
        self.heap_of_start, self.dropping = heap, dropping
        self.possible_agents = [f"taker_{index}" for index in range(3)]
        self.np_random = np.random.default_rng()
        parts = {"observation": spaces.Box(0, 100, (2,), np.float32), "action_mask": spaces.MultiBinary(3)}
        self.observation_spaces = {agent: spaces.Dict(parts) for agent in self.possible_agents}
        self.action_spaces = {agent: spaces.Discrete(3) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Any:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.heap = self.heap_of_start + int(self.np_random.integers(5))
        self.luck = float(self.np_random.random())
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def observe(self, agent: str) -> Any:
        seen = np.array([self.heap, self.luck], dtype=np.float32)
        allowed = (np.arange(1, 4) <= self.heap) & (agent == self.agent_selection)
        return {"observation": seen, "action_mask": allowed.astype(np.int8)}

    def step(self, action: Any) -> None:
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self.bury(action)
            return
        if action >= self.heap:
            raise ValueError(f"cannot take {action + 1} of {self.heap}")
        self.start()
        self.heap -= int(action) + 1
        self.luck = float(self.np_random.random())
        self.pay(mover, int(action) + 1)
        if self.heap == 0:
            self.terminations = dict.fromkeys(self.agents, True)
        elif self.luck < self.dropping:
            self.terminations[mover] = True
        self.settle()
        self.select(mover)

    def bury(self, action: Any) -> None:
        after = self.next_of(self.agent_selection)
        self._was_dead_step(action)
        if self.agents:
            self.agent_selection = next((a for a in self.agents if self.terminations[a]), after)

    def start(self) -> None:
        self._cumulative_rewards[self.agent_selection] = 0.0
        self._clear_rewards()

    def pay(self, mover: str, taken: int) -> None:
        self.rewards = {agent: taken / 3 + (agent == mover) for agent in self.agents}

    def settle(self) -> None:
        self._accumulate_rewards()

    def next_of(self, agent: str) -> str:
        return self.agents[(self.agents.index(agent) + 1) % len(self.agents)]

    def select(self, mover: str) -> None:
        ended = [agent for agent in self.agents if self.terminations[agent]]
        self.agent_selection = ended[0] if ended else self.next_of(mover)

    def render(self) -> None:
        return None

    def close(self) -> None:
        pass


class NoDeadStep(Takers):
    """Treats None as a move."""

    def bury(self, action: Any) -> None:
        self.heap -= action + 1


class StaysDead(Takers):
    def bury(self, action: Any) -> None:
        self.agent_selection = self.next_of(self.agent_selection)


class LeavesWithoutATurn(Takers):
    """Deletes who drops out at once, with all that was known about it."""

    def select(self, mover: str) -> None:
        after = self.next_of(mover)
        if self.terminations[mover] and self.heap:
            for table in (self.rewards, self._cumulative_rewards, self.terminations, self.truncations, self.infos):
                del table[mover]
            self.agents = [agent for agent in self.agents if agent != mover]
            self.agent_selection = after
        else:
            super().select(mover)


class SelectsTheGone(Takers):
    def bury(self, action: Any) -> None:
        gone = self.agent_selection
        super().bury(action)
        self.agent_selection = gone


class NotAccumulated(Takers):
    def settle(self) -> None:
        pass


class PaidTwice(Takers):
    """Does not begin anew for the agent that moves."""

    def start(self) -> None:
        self._clear_rewards()


class LyingMaskInTurn(Takers):
    def observe(self, agent: str) -> Any:
        seen = super().observe(agent)
        if agent == self.agent_selection:
            seen["action_mask"] = np.ones(3, dtype=np.int8)
        return seen


class ObservesAndDraws(Takers):
    def observe(self, agent: str) -> Any:
        self.luck = float(self.np_random.random())
        return super().observe(agent)


class SeesInTurnOnly(Takers):
    def observe(self, agent: str) -> Any:
        if agent != self.agent_selection:
            raise RuntimeError("not your turn")
        return super().observe(agent)


class KeepsItsHeap(Takers):
    """Something outlives the reset."""

    played = 0

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        super().reset(seed=seed)
        self.heap += self.played
        self.played += 1
