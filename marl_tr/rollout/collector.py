"""Plays the policies in the environments and writes down what learning needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.nn.heads import ProductHead, make_head
from marl_tr.rollout.container import Bootstrap, EpisodeStatistics, GroupRollout, PolicyRecord, Rollout
from marl_tr.rollout.lives import Starts, beginnings, everybody
from marl_tr.rollout.team import Team, forget, play
from marl_tr.vector.contract import GroupSpec, GroupStep, Step, VectorEnv

__all__ = ["Collector"]

RewardMode = Literal["own", "mean", "sum"]


@dataclass
class _Books:
    """What is appended at every step of a rollout."""

    steps: list[Step] = field(default_factory=list)
    actions: list[dict[str, dict[str, NDArray[Any]]]] = field(default_factory=list)
    records: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)
    results: list[Step] = field(default_factory=list)
    rewards: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    starts: list[NDArray[np.bool_]] = field(default_factory=list)
    lives: list[Starts] = field(default_factory=list)


@dataclass(frozen=True)
class _Cut:
    """One entry of a `Bootstrap`."""

    time: int
    env: int
    agents: NDArray[np.bool_]
    living: NDArray[np.bool_]
    starts: NDArray[np.bool_]
    acting: NDArray[np.float32]
    observation: Mapping[str, Mapping[str, NDArray[Any]]]
    state: Mapping[str, NDArray[Any]]


class Collector:
    """Plays `teams` in `env` and returns rollouts.

    Args:
        env: The environments.
        teams: Who acts; together they serve every agent.
        reward: Learned from ``own`` reward, or the ``mean`` or ``sum`` over all agents alive at the decision.
        generator: Source of the actions' randomness, on `device`.
        device: Where policies and rollouts live.

    Attributes:
        seconds: Wall time spent in policies (``act``) and in the environment (``env``) so far.
    """

    def __init__(
        self,
        env: VectorEnv,
        teams: Sequence[Team],
        *,
        reward: RewardMode,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.env = env
        self.teams = tuple(teams)
        self.generator = generator
        self.seconds = {"act": 0.0, "env": 0.0}
        self._reward = reward
        self._device = device
        # Encoding needs no law: either law of a Box encodes alike.
        self._encoders = {
            group.name: ProductHead({leaf: make_head(space) for leaf, space in group.action.items()})
            for group in env.spec.groups
        }
        self._step: Step | None = None
        self._memories: dict[str, Tensor | None] = {}
        self._previous = self._no_actions()
        self._starts: NDArray[np.bool_] = np.ones(env.spec.num_envs, np.bool_)
        self._lives: Starts = {}
        self._returns = np.zeros((env.spec.num_envs, len(env.spec.agents)))
        self._lengths = np.zeros(env.spec.num_envs, np.int64)

    def reset(self, seed: int) -> None:
        """Start fresh episodes in every copy."""
        self._step = self.env.reset(seed)
        self._previous = self._no_actions()
        self._starts[:] = True
        self._lives = everybody(self._step)
        self._returns[:] = 0
        self._lengths[:] = 0
        self._memories = {team.name: team.policy.initial_memory(self._trajectories(team)) for team in self.teams}

    def collect(self, steps: int) -> Rollout:
        """Play `steps` steps in every copy."""
        if self._step is None:
            raise RuntimeError("reset the collector before collecting")
        books = _Books()
        first_memories = {name: None if m is None else m.clone() for name, m in self._memories.items()}
        ended: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
        for _ in range(steps):
            started = time.perf_counter()
            with torch.no_grad():
                actions, records, memories = play(
                    self.teams, self._step, self._memories, self.generator, mode=False, device=self._device
                )
            acted = time.perf_counter()
            result = self.env.step(actions)
            self.seconds["act"] += acted - started
            self.seconds["env"] += time.perf_counter() - acted
            books.steps.append(self._step)
            books.actions.append(actions)
            books.records.append(records)
            books.results.append(result)
            books.rewards.append(learned_rewards(self._step, result, self._reward))
            books.starts.append(self._starts.copy())
            books.lives.append(self._lives)
            ended.append(self._count(result))
            self._lives = beginnings(self._step, result)
            self._step, self._starts = result, result.done.copy()
            self._memories = {team.name: forget(team, memories[team.name], self._lives) for team in self.teams}
        return self._assemble(books, first_memories, ended)

    def state_dict(self) -> dict[str, Any]:
        """The environments, the newest observation, memories and running episode returns."""
        step = self._step
        if step is None:
            raise RuntimeError("nothing to save before the first reset")
        groups = {
            name: {
                "observation": dict(part.observation),
                "alive": part.alive,
                "acting": part.acting,
            }
            for name, part in step.groups.items()
        }
        return {
            "env": self.env.state_dict(),
            "groups": groups,
            "state": dict(step.state),
            "cohort": step.cohort,
            "memories": dict(self._memories),
            "previous": dict(self._previous),
            "starts": self._starts.copy(),
            "lives": {name: x.copy() for name, x in self._lives.items()},
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.env.load_state_dict(state["env"])
        groups: dict[str, GroupStep] = {}
        for name, part in state["groups"].items():
            alive = np.asarray(part["alive"])
            groups[name] = GroupStep(
                observation={leaf: np.asarray(x) for leaf, x in part["observation"].items()},
                reward=np.zeros(alive.shape, np.float32),
                terminated=np.zeros(alive.shape, np.bool_),
                truncated=np.zeros(alive.shape, np.bool_),
                alive=alive,
                acting=np.asarray(part["acting"]),
            )
        self._step = Step(
            groups=groups,
            done=np.zeros(self.env.spec.num_envs, np.bool_),
            state={leaf: np.asarray(x) for leaf, x in state["state"].items()},
            cohort=None if state["cohort"] is None else np.asarray(state["cohort"]),
        )
        self._memories = {name: None if m is None else m.to(self._device) for name, m in state["memories"].items()}
        self._previous = {name: x.to(self._device) for name, x in state["previous"].items()}
        self._starts = np.array(state["starts"], np.bool_)
        self._lives = {name: np.array(x, np.bool_) for name, x in state["lives"].items()}
        self._returns = np.array(state["returns"], np.float64)
        self._lengths = np.array(state["lengths"], np.int64)
        self.generator.set_state(state["generator"])

    def _no_actions(self) -> dict[str, Tensor]:
        return {
            group.name: torch.zeros(
                self.env.spec.num_envs,
                len(group.agents),
                self._encoders[group.name].encoded_size,
                device=self._device,
            )
            for group in self.env.spec.groups
        }

    def _trajectories(self, team: Team) -> int:
        copies = self.env.spec.num_envs
        return copies * len(team.index) if team.policy.rows.shared else copies

    def _count(self, result: Step) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        own = np.concatenate([result.groups[group.name].reward for group in self.env.spec.groups], axis=1)
        self._returns += own
        self._lengths += 1
        returns, lengths = self._returns[result.done].copy(), self._lengths[result.done].copy()
        self._returns[result.done] = 0
        self._lengths[result.done] = 0
        return returns, lengths

    def _assemble(
        self,
        books: _Books,
        memories: Mapping[str, Tensor | None],
        ended: list[tuple[NDArray[np.float64], NDArray[np.int64]]],
    ) -> Rollout:
        groups = {group.name: self._group(books, group) for group in self.env.spec.groups}
        records = {
            team.name: PolicyRecord(
                record={
                    leaf: torch.stack([r[team.name][leaf] for r in books.records], dim=1)
                    for leaf in books.records[0][team.name]
                },
                memory=memories[team.name],
            )
            for team in self.teams
        }
        metrics = {
            name: float(np.mean([result.metrics[name] for result in books.results]))
            for name in books.results[0].metrics
        }
        return Rollout(
            groups=groups,
            records=records,
            state={leaf: self._stack([s.state[leaf] for s in books.steps]) for leaf in books.steps[0].state},
            starts=self._stack(books.starts),
            done=self._stack([result.done for result in books.results]),
            bootstrap=self._bootstrap(books),
            cohort=_cohorts(books.steps, self._device),
            metrics={
                name: self._stack([np.asarray(result.metrics[name], np.float32) for result in books.results])
                for name in metrics
            },
            episodes=EpisodeStatistics(
                returns=np.concatenate([r for r, _ in ended]),
                lengths=np.concatenate([n for _, n in ended]),
                metrics=metrics,
            ),
        )

    def _group(self, books: _Books, group: GroupSpec) -> GroupRollout:
        before = [s.groups[group.name] for s in books.steps]
        after = [s.groups[group.name] for s in books.results]
        action = self._encoders[group.name].encode(
            {leaf: self._stack([a[group.name][leaf] for a in books.actions]) for leaf in group.action}
        )
        acting = self._stack([g.acting for g in before])
        # What a policy says for who is not to move, the environment does not take.
        action = action.masked_fill(~acting.unsqueeze(-1), 0)
        starts = self._stack([lives[group.name] for lives in books.lives])
        previous = torch.cat([self._previous[group.name][None], action[:-1]]).masked_fill(starts.unsqueeze(-1), 0)
        self._previous[group.name] = action[-1]
        return GroupRollout(
            observation={leaf: self._stack([g.observation[leaf] for g in before]) for leaf in group.observation},
            action=action,
            previous_action=previous,
            reward=self._stack([r[group.name] for r in books.rewards]),
            terminated=self._stack([g.terminated for g in after]),
            truncated=self._stack([g.truncated for g in after]),
            alive=self._stack([g.alive for g in before]),
            acting=acting,
            starts=starts,
            masks=frozenset(group.masks.values()),
        )

    def _bootstrap(self, books: _Books) -> Bootstrap:
        """What followed each cut: final observations of ended episodes and of agents truncated alone, and the
        newest observation of those that go on."""
        following = [*books.lives[1:], self._lives]
        cuts = [
            cut
            for t, (before, result, starts) in enumerate(zip(books.steps, books.results, following, strict=True))
            for cut in self._cuts(t, before, result, starts)
        ]
        last = books.results[-1]
        newest = {name: part.observation for name, part in last.groups.items()}
        # Who was truncated alone in the last step has an entry of its own already.
        goes_on = ~_beside(last, "truncated")
        alive, starts = _beside(last, "alive"), np.concatenate(list(self._lives.values()), axis=1)
        acting, t = _beside(last, "acting").astype(np.float32), len(books.results) - 1
        for e in np.flatnonzero(~last.done):
            cuts.append(_Cut(t, int(e), goes_on[e], alive[e], starts[e], acting[e], newest, last.state))
        return Bootstrap(
            time=torch.tensor([cut.time for cut in cuts], dtype=torch.int64, device=self._device),
            env=torch.tensor([cut.env for cut in cuts], dtype=torch.int64, device=self._device),
            agents=self._stack([cut.agents for cut in cuts]),
            living=self._stack([cut.living for cut in cuts]),
            starts=self._stack([cut.starts for cut in cuts]),
            acting=self._stack([cut.acting for cut in cuts]),
            observation={
                group.name: {
                    leaf: self._stack([cut.observation[group.name][leaf][cut.env] for cut in cuts])
                    for leaf in group.features
                }
                for group in self.env.spec.groups
            },
            state={leaf: self._stack([cut.state[leaf][cut.env] for cut in cuts]) for leaf in self.env.spec.state},
        )

    def _cuts(self, t: int, before: Step, result: Step, following: Starts) -> list[_Cut]:
        final = {name: part.final_observation for name, part in result.groups.items()}
        observation: dict[str, dict[str, NDArray[Any]]] = {}
        for name, part in result.groups.items():
            ended = final[name]
            if ended is None:
                observation[name] = part.observation
                continue
            # Rows of agents that go on are as they are; of those that were cut, as they were at the cut.
            cut = result.done[:, None] | part.truncated
            observation[name] = {
                leaf: np.where(cut.reshape(*cut.shape, *(1,) * (x.ndim - 2)), x, part.observation[leaf])
                for leaf, x in ended.items()
            }
        truncated = _beside(result, "truncated")
        # Where the next episode has begun, `alive` speaks of that one already.
        lived = _beside(before, "alive") & ~_beside(result, "terminated")
        living = np.where(result.done[:, None], lived, _beside(result, "alive") | truncated)
        # Who came back is another, but for who was cut: what follows its cut is its old life.
        starts = np.concatenate(list(following.values()), axis=1) & ~result.done[:, None] & ~truncated
        shares = living / np.maximum(living.sum(1, keepdims=True), 1)
        unknown = result.done[:, None] | truncated
        acting = np.where(unknown, shares, _beside(result, "acting")).astype(np.float32)
        cuts: list[_Cut] = []
        for e in np.flatnonzero(result.done | truncated.any(1)):
            if result.done[e] and any(leaves is None for leaves in final.values()):
                raise ValueError(f"environment {self.env.spec.id!r} ended an episode without a final observation")
            agents = np.ones_like(truncated[e]) if result.done[e] else truncated[e]
            state = result.final_state if result.done[e] and result.final_state is not None else result.state
            cuts.append(_Cut(t, int(e), agents, living[e], starts[e], acting[e], observation, state))
        return cuts

    def _stack(self, arrays: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self._device)


def _cohorts(steps: Sequence[Step], device: torch.device) -> Tensor | None:
    """``[T, E]``; None where the environment forms none."""
    named = [step.cohort for step in steps if step.cohort is not None]
    return torch.from_numpy(np.stack(named)).to(device) if len(named) == len(steps) else None


def _beside(step: Step, name: str) -> NDArray[np.bool_]:
    """One flag of every group side by side, ``[E, A of all groups]``."""
    return np.concatenate([getattr(part, name) for part in step.groups.values()], axis=1)


def learned_rewards(before: Step, after: Step, mode: RewardMode) -> dict[str, NDArray[Any]]:
    """The reward that is learned from, ``{group: [E, A]}``.

    ``mean`` and ``sum`` run over the agents of all groups that were alive at the decision, and are paid to each of
    them.
    """
    own = {name: part.reward for name, part in after.groups.items()}
    if mode == "own":
        return own
    alive = _beside(before, "alive")
    total = np.concatenate(list(own.values()), axis=1).sum(1, keepdims=True)
    if mode == "mean":
        total = total / np.maximum(alive.sum(1, keepdims=True), 1)
    return {name: (total * part.alive).astype(np.float32) for name, part in before.groups.items()}
