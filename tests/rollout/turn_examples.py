"""Small native environments with what real ones bring: masks, turns, lives that end and begin anew, several leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Step

Array = NDArray[Any]
PICK, ARMS = 4, (3, 2)


class Crowd:
    """Two groups whose agents die, come back, join late and take turns at random; episodes of `horizon` steps.

    Everything is drawn from a generator of each copy, so that equal seeds and actions repeat. A forbidden choice of who
    is to move raises.

    Args:
        copies: ``E``.
        turns: Agents that are alive are to move at random, else always.
    """

    def __init__(self, copies: int = 4, *, horizon: int = 11, turns: bool = True) -> None:
        self._horizon, self._turns = horizon, turns
        plain = {
            "near": spaces.Box(-9, 9, (3,)),
            "map": spaces.Box(-9, 9, (2, 2)),
            "pixels": spaces.Box(0, 255, (2, 2, 1), np.uint8),
        }
        masks = {"may_pick": spaces.MultiBinary(PICK), "may_arm": spaces.MultiBinary(sum(ARMS))}
        self.spec = EnvSpec(
            id="crowd",
            num_envs=copies,
            groups=(
                GroupSpec(
                    "mixed",
                    ("m0", "m1", "m2"),
                    {**plain, **masks},
                    {
                        "move": spaces.Box(-1, 1, (2,)),
                        "pick": spaces.Discrete(PICK, start=5),
                        "arms": spaces.MultiDiscrete(ARMS),
                    },
                    masks={"pick": "may_pick", "arms": "may_arm"},
                ),
                GroupSpec(
                    "plain", ("p0", "p1"), {"near": spaces.Box(-9, 9, (4,))}, {"action": spaces.Box(-1, 1, (1,))}
                ),
            ),
            state={"clock": spaces.Box(0, 99, (2,))},
            own_state=True,
            turns=turns,
        )
        self._random = [np.random.default_rng() for _ in range(copies)]
        self._time = np.zeros(copies, np.int64)
        self._step: Step

    def reset(self, seed: int) -> Step:
        self._random = [np.random.default_rng([seed, copy]) for copy in range(self.spec.num_envs)]
        self._time[:] = 0
        self._step = self._seen(None)
        return self._step

    def step(self, actions: Actions) -> Step:
        self._refuse_forbidden(actions)
        self._time += 1
        self._step = self._seen(self._step, actions)
        return self._step

    def state_dict(self) -> dict[str, Any]:
        states = [random.bit_generator.state for random in self._random]
        parts = {
            name: {"observation": dict(part.observation), "alive": part.alive, "acting": part.acting}
            for name, part in self._step.groups.items()
        }
        return {"random": states, "time": self._time.copy(), "parts": parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for random, saved in zip(self._random, state["random"], strict=True):
            random.bit_generator.state = saved
        self._time = np.array(state["time"])
        none = {name: np.zeros(part["alive"].shape, np.bool_) for name, part in state["parts"].items()}
        self._step = Step(
            groups={
                name: GroupStep(
                    observation={leaf: np.array(x) for leaf, x in part["observation"].items()},
                    reward=none[name].astype(np.float32),
                    terminated=none[name],
                    truncated=none[name],
                    alive=np.array(part["alive"]),
                    acting=np.array(part["acting"]),
                )
                for name, part in state["parts"].items()
            },
            done=np.zeros(self.spec.num_envs, np.bool_),
        )

    def close(self) -> None:
        """Nothing is held."""

    def _seen(self, before: Step | None, actions: Actions | None = None) -> Step:
        copies = self.spec.num_envs
        done = self._time >= self._horizon
        groups = {}
        for group in self.spec.groups:
            agents = len(group.agents)
            draws = np.stack([random.random((4, agents)) for random in self._random], axis=1)
            lived = np.zeros((copies, agents), np.bool_) if before is None else before.groups[group.name].alive
            terminated = lived & (draws[0] < 0.15)
            truncated = lived & ~terminated & ((draws[0] < 0.25) | done[:, None])
            ended = terminated | truncated
            # Some of the dead, and some of who ended in this very step, live on or anew.
            alive = np.where(lived, ~ended | (draws[1] < 0.3), draws[1] < 0.4)
            fresh = np.zeros_like(done) if before is not None else np.ones_like(done)
            alive = np.where((done | fresh)[:, None], draws[1] < 0.8, alive)
            acting = alive & ((draws[2] < 0.6) if self._turns else True)
            final, now = self._observed(group), self._observed(group)
            if actions is not None and group.name == "mixed":
                now["near"][..., :2] = actions["mixed"]["move"]
            groups[group.name] = GroupStep(
                observation={leaf: x * _like(alive, x) for leaf, x in now.items()},
                reward=np.where(lived, draws[3] - 0.5, 0).astype(np.float32),
                terminated=terminated,
                truncated=truncated,
                alive=alive,
                acting=acting,
                final_observation=final if ended.any() or done.any() else None,
            )
        if any(part.final_observation is not None for part in groups.values()):
            for group in self.spec.groups:
                part = groups[group.name]
                part.final_observation = part.final_observation or self._observed(group)
        clock = np.stack([self._time, self._time**2], 1).astype(np.float32)
        self._time[done] = 0
        first = np.stack([self._time, self._time**2], 1).astype(np.float32)
        return Step(groups=groups, done=done, state={"clock": first}, final_state={"clock": clock})

    def _observed(self, group: GroupSpec) -> dict[str, Array]:
        copies, agents = self.spec.num_envs, len(group.agents)
        found: dict[str, Array] = {}
        for leaf, space in group.observation.items():
            shape = (agents, *(space.shape or ()))
            x = np.stack([random.random(shape) for random in self._random])
            if leaf in group.masks.values():
                found[leaf] = (x < 0.5).astype(np.int8)
            else:
                found[leaf] = (x * 255).astype(np.uint8) if space.dtype == np.uint8 else (4 * x - 2).astype(np.float32)
        assert all(x.shape[:2] == (copies, agents) for x in found.values())
        return found

    def _refuse_forbidden(self, actions: Actions) -> None:
        part = self._step.groups["mixed"]
        for leaf, sizes, start in (("pick", (PICK,), 5), ("arms", ARMS, 0)):
            mask = part.observation["may_" + leaf.removesuffix("s")] != 0
            chosen = actions["mixed"][leaf].reshape(*part.alive.shape, len(sizes)) - start
            for k, allowed in enumerate(np.split(mask, np.cumsum(sizes)[:-1], -1)):
                free = np.take_along_axis(allowed, chosen[..., k : k + 1], -1)[..., 0] | ~allowed.any(-1)
                if not free[part.acting].all():
                    raise ValueError(f"forbidden {leaf}")


def make_crowd(num_envs: int) -> Crowd:
    """For scenarios."""
    return Crowd(num_envs)


def _like(mask: Array, x: Array) -> Array:
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)).astype(x.dtype)


class Nim:
    """Two players take 1 to 3 matches in turn from a heap; who takes the last one wins 1, and the other loses 1.

    The heap's size is shown as a one-hot leaf, and choices that take more than there is are masked. Player 0 begins;
    who faces a multiple of four loses against perfect play.
    """

    TAKE = 3

    def __init__(self, copies: int, *, matches: int = 7) -> None:
        self._matches = matches
        observation: dict[str, spaces.Space[Any]] = {
            "heap": spaces.Box(0, 1, (matches + 1,)),
            "allowed": spaces.MultiBinary(self.TAKE),
        }
        group = GroupSpec(
            "player",
            ("player_0", "player_1"),
            observation,
            {"take": spaces.Discrete(self.TAKE, start=1)},
            masks={"take": "allowed"},
        )
        self.spec = EnvSpec(id="nim", num_envs=copies, groups=(group,), own_state=True, turns=True)
        self._heap = np.zeros(copies, np.int64)
        self._turn = np.zeros(copies, np.int64)

    def reset(self, seed: int) -> Step:
        # Heaps differ from copy to copy, or all episodes of a deterministic policy would be one.
        self._heap = self._matches - np.arange(self.spec.num_envs) % 3
        self._turn[:] = 0
        copies = self.spec.num_envs
        return self._seen(np.zeros((copies, 2), np.float32), np.zeros(copies, np.bool_), None)

    def step(self, actions: Actions) -> Step:
        copies = np.arange(self.spec.num_envs)
        taken = actions["player"]["take"][copies, self._turn]
        if (taken > self._heap).any() or (taken < 1).any():
            raise ValueError(f"{taken} taken from {self._heap}")
        self._heap = self._heap - taken
        done = self._heap == 0
        reward = np.zeros((len(copies), 2), np.float32)
        reward[copies[done], self._turn[done]] = 1
        reward[copies[done], 1 - self._turn[done]] = -1
        final = self._observed() if done.any() else None
        self._heap = np.where(done, self._matches - copies % 3, self._heap)
        self._turn = np.where(done, 0, 1 - self._turn)
        return self._seen(reward, done, final)

    def state_dict(self) -> dict[str, Any]:
        return {"heap": self._heap.copy(), "turn": self._turn.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._heap, self._turn = np.array(state["heap"]), np.array(state["turn"])

    def close(self) -> None:
        """Nothing is held."""

    def _observed(self) -> dict[str, Array]:
        heap = np.eye(self._matches + 1, dtype=np.float32)[self._heap]
        mine = self._turn[:, None] == np.arange(2)
        allowed = (np.arange(1, self.TAKE + 1) <= self._heap[:, None])[:, None] & mine[..., None]
        return {"heap": np.repeat(heap[:, None], 2, axis=1), "allowed": allowed.astype(np.int8)}

    def _seen(self, reward: Array, done: Array, final: dict[str, Array] | None) -> Step:
        shape = (self.spec.num_envs, 2)
        part = GroupStep(
            observation=self._observed(),
            reward=reward,
            terminated=np.repeat(done[:, None], 2, axis=1),
            truncated=np.zeros(shape, np.bool_),
            alive=np.ones(shape, np.bool_),
            acting=self._turn[:, None] == np.arange(2),
            final_observation=final,
        )
        return Step(groups={"player": part}, done=done)


def make_nim(num_envs: int) -> Nim:
    """For scenarios."""
    return Nim(num_envs)
