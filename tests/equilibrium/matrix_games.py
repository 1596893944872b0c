"""One-shot games of any payoffs as native environments, and play by given probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.equilibrium.plays import Play
from marl_tr.registry import Entry
from marl_tr.rollout.lives import Starts
from marl_tr.rollout.team import Team
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Reference, Step, VectorEnv

Array = NDArray[Any]

PENNIES = [[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]]
DILEMMA = [[[3, 0], [5, 1]], [[3, 5], [0, 1]]]
ROTATION = [[[0, 3], [1, 2]], [[3, 2], [0, 1]]]


class MatrixGame:
    """A game in normal form, played again and again: an episode is one decision of everybody, at once or in turns.

    Every reward carries noise of the episode alone, drawn from (seed, copy, episode): the same whatever is played, so
    that common random numbers can take it out.

    Args:
        num_envs: ``E``.
        payoffs: ``[A, n_1, ..., n_A]``.
        noise: Its standard deviation.
        turns: The players move one after another, and see nothing of each other.
        cohort: Say that all copies are compared with each other.
        forgetful: Draw the noise from nothing that a seed repeats.
    """

    def __init__(
        self,
        *,
        num_envs: int,
        payoffs: Sequence[Any] = PENNIES,
        noise: float = 0.0,
        turns: bool = False,
        cohort: bool = False,
        forgetful: bool = False,
    ) -> None:
        self._payoffs = np.asarray(payoffs, np.float64)
        self._noise, self._turns, self._cohort, self._forgetful = noise, turns, cohort, forgetful
        players = len(self._payoffs)
        sizes = set(self._payoffs.shape[1:])
        assert len(sizes) == 1, "one group: equal numbers of actions"
        self.spec = EnvSpec(
            id="matrix",
            num_envs=num_envs,
            groups=(
                GroupSpec(
                    "player",
                    tuple(f"p{i}" for i in range(players)),
                    {"observation": spaces.Box(-1, 1, (players,), np.float32)},
                    {"action": spaces.Discrete(sizes.pop())},
                ),
            ),
            state={"moved": spaces.Box(-1, 9, (players,), np.float32)},
            horizon=players if turns else 1,
            own_state=True,
            turns=turns,
        )
        self._seed = self._episode = self._turn = 0
        self._moves = np.full((num_envs, players), -1)

    def reset(self, seed: int) -> Step:
        self._seed, self._episode = seed, 0
        self._begin()
        return self._seen(np.zeros(self._moves.shape), ended=False)

    def step(self, actions: Actions) -> Step:
        chosen = actions["player"]["action"]
        if self._turns:
            self._moves[:, self._turn] = chosen[:, self._turn]
            self._turn += 1
        else:
            self._moves[:] = chosen
        ended = not self._turns or self._turn == len(self._payoffs)
        reward = np.zeros(self._moves.shape)
        if ended:
            for i, own in enumerate(self._payoffs):
                reward[:, i] = own[tuple(self._moves.T)]
            drawn = np.random.default_rng(None if self._forgetful else [self._seed, self._episode])
            reward += self._noise * drawn.normal(size=(len(reward), 1))
            self._episode += 1
            self._begin()
        return self._seen(reward, ended=ended)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "episode": self._episode,
            "turn": self._turn,
            "moves": self._moves.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seed, self._episode, self._turn = state["seed"], state["episode"], state["turn"]
        self._moves = np.array(state["moves"])

    def references(self) -> Sequence[Reference]:
        def first(step: Step) -> Actions:
            return {"player": {"action": np.zeros(self._moves.shape, np.int64)}}

        return (Reference("always the first", first),)

    def exact_gaps(self, policy: Callable[[str, Mapping[str, Array]], Array]) -> dict[str, float]:
        seen = np.eye(len(self._payoffs), dtype=np.float32)
        profile = [policy(agent, {"observation": seen})[0].tolist() for agent in self.spec.agents]
        return dict(zip(self.spec.agents, exact(self._payoffs.tolist(), profile), strict=True))

    def close(self) -> None:
        """Nothing is held."""

    def _begin(self) -> None:
        self._turn = 0
        self._moves[:] = -1

    def _seen(self, reward: Array, *, ended: bool) -> Step:
        shape = self._moves.shape
        moving = np.arange(shape[1]) == self._turn if self._turns else np.ones(shape[1], np.bool_)
        # Everybody sees the same: who somebody is, only parameters of its own can tell.
        seen = np.broadcast_to(np.eye(shape[1], dtype=np.float32)[0], (*shape, shape[1])).copy()
        part = GroupStep(
            observation={"observation": seen},
            reward=reward.astype(np.float32),
            terminated=np.full(shape, ended),
            truncated=np.zeros(shape, np.bool_),
            alive=np.ones(shape, np.bool_),
            acting=np.broadcast_to(moving, shape).copy(),
            final_observation={"observation": seen.copy()} if ended else None,
        )
        moved = self._moves.astype(np.float32)
        return Step(
            groups={"player": part},
            done=np.full(shape[0], ended),
            state={"moved": moved},
            final_state={"moved": moved} if ended else None,
            cohort=np.zeros(shape[0], np.int64) if self._cohort else None,
        )


MATRIX = Entry(MatrixGame, native=True)


def exact(payoffs: Sequence[Any], profile: Sequence[Sequence[float]]) -> list[float]:
    """Each player's gap by going through all joint actions, with no array operation of the tests' subjects."""
    game = np.asarray(payoffs, np.float64)
    players = len(game)

    def worth(i: int, mixed: Sequence[Sequence[float]]) -> float:
        return sum(
            float(game[(i, *joint)] * np.prod([mixed[j][joint[j]] for j in range(players)]))
            for joint in np.ndindex(*game.shape[1:])
        )

    found = []
    for i in range(players):
        pure = np.eye(game.shape[1 + i])
        best = max(worth(i, [*profile[:i], action, *profile[i + 1 :]]) for action in pure)
        found.append(best - worth(i, profile))
    return found


@dataclass(frozen=True)
class MixedSubject:
    """Plays by given probabilities, ``[n]`` a player, with draws keyed by (seed, decision)."""

    profile: tuple[tuple[float, ...], ...]
    name: str = "policy"
    resumable: bool = True
    teams: Sequence[Team] = ()

    def bind(self, env: VectorEnv, *, seed: int) -> Play:
        return _Mixed(np.asarray(self.profile), env.spec.num_envs, seed)


class _Mixed:
    def __init__(self, profile: Array, copies: int, seed: int) -> None:
        self._profile, self._copies, self._seed, self._decision = profile, copies, seed, 0

    def begin(self) -> None:
        self._decision = 0

    def act(self, step: Step, starts: Starts) -> Actions:
        u = np.random.default_rng([self._seed, self._decision]).random((self._copies, len(self._profile), 1))
        self._decision += 1
        return {"player": {"action": (u > self._profile.cumsum(1)[None]).sum(-1)}}

    def state_dict(self) -> dict[str, Any]:
        return {"decision": self._decision}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._decision = state["decision"]
