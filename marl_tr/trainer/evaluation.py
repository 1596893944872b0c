"""Held-out episodes: what a policy earns on seeds that it never learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from marl_tr.analysis.statistics import iqm, stratified_bootstrap_ci
from marl_tr.rollout.lives import beginnings
from marl_tr.rollout.team import Team, forget, play
from marl_tr.trainer.seeding import make_generator
from marl_tr.vector.contract import Actions, Leaves, Step, Trajectory, VectorEnv

__all__ = ["GALLERY", "Episodes", "Summary", "evaluate_act", "evaluate_policies", "policy_actor", "summarise"]

Act = Callable[[Step], Actions]

GALLERY = 16
"""Episodes that are recorded for an environment's gallery where it does not say how many it shows."""


@dataclass(frozen=True)
class Episodes:
    """``n`` held-out episodes of one way of acting.

    Attributes:
        returns: ``[n]``: mean over agents of the undiscounted sum of each agent's own reward.
        lengths: ``[n]`` steps.
        window: ``[n]``: mean over agents and over the last `window` steps of the reward a step, or None.
        metrics: ``{name: [n]}``: mean over an episode's steps (last `window` steps where there is one).
        trajectories: Of the first environment; where the environment shows several (hook ``gallery``) of `GALLERY`,
            two of each cohort before more of any.
        measures: Numbers of all episodes together, from the environment's hook ``measures``.
        recorded: Of the first environments, as many as were asked for.
        failed: Episodes that were played and are left out of the arrays, because their reward is not finite.
        by_agent: ``{agent: [n]}``: the undiscounted sum of its own reward, all its lives together.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    window: NDArray[np.float64] | None
    metrics: dict[str, NDArray[np.float64]]
    trajectories: tuple[Trajectory, ...]
    measures: dict[str, float] = field(default_factory=dict)
    recorded: tuple[Trajectory, ...] = ()
    failed: int = 0
    by_agent: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def played(self) -> int:
        """How many episodes there were."""
        return len(self.returns) + self.failed

    def without_failed(self) -> Episodes:
        """Those whose return is finite; `trajectories`, `recorded` and `measures` stay as they are."""
        kept = np.isfinite(self.returns)
        if kept.all():
            return self
        return replace(
            self,
            returns=self.returns[kept],
            lengths=self.lengths[kept],
            window=None if self.window is None else self.window[kept],
            metrics={name: values[kept] for name, values in self.metrics.items()},
            by_agent={name: values[kept] for name, values in self.by_agent.items()},
            failed=self.failed + int((~kept).sum()),
        )

    @property
    def trajectory(self) -> Trajectory:
        """Of the first environment."""
        return self.trajectories[0]


@dataclass(frozen=True)
class Summary:
    """A statistic with its interval.

    Attributes:
        iqm: Interquartile mean over episodes.
        mean: Plain mean over episodes.
        ci_low: Lower end of the 95 % bootstrap interval of the IQM.
        ci_high: Upper end.
        count: Episodes.
    """

    iqm: float
    mean: float
    ci_low: float
    ci_high: float
    count: int


def summarise(scores: NDArray[np.float64], *, seed: int = 0) -> Summary:
    """IQM and 95 % bootstrap interval over the episodes ``[n]`` of one run."""
    interval = stratified_bootstrap_ci(scores, iqm, seed=seed)
    return Summary(
        iqm=interval.estimate,
        mean=float(scores.mean()),
        ci_low=interval.low,
        ci_high=interval.high,
        count=len(scores),
    )


def policy_actor(teams: Sequence[Team], env: VectorEnv, *, mode: bool, seed: int, device: torch.device) -> Act:
    """A way of acting that keeps the policies' memories and draws from a generator of its own."""
    generator = make_generator(seed, "evaluation/act", device)
    before: Step | None = None
    copies = env.spec.num_envs
    memories: dict[str, torch.Tensor | None] = {
        team.name: team.policy.initial_memory(copies * len(team.index) if team.policy.rows.shared else copies)
        for team in teams
    }

    def act(step: Step) -> Actions:
        nonlocal memories, before
        if before is not None:
            starts = beginnings(before, step)
            memories = {team.name: forget(team, memories[team.name], starts) for team in teams}
        before = step
        with torch.no_grad():
            actions, _, memories = play(teams, step, memories, generator, mode=mode, device=device)
        return actions

    return act


def evaluate_policies(
    teams: Sequence[Team],
    make_env: Callable[[int], VectorEnv],
    *,
    episodes: int,
    seed: int,
    mode: bool,
    window: int | None,
    device: torch.device,
    recorded: int = 0,
) -> Episodes:
    """Play `episodes` held-out episodes with the policies as they are.

    Args:
        teams: Who acts.
        make_env: Builds the environment in that many copies.
        episodes: ``n``.
        seed: Of the episodes and of the sampled actions: the same numbers at every evaluation.
        mode: Take the laws' modes in place of samples.
        window: Also average the reward of the last `window` steps.
        device: Where the policies live.
        recorded: Episodes to keep whole.
    """
    env = make_env(episodes)
    try:
        return evaluate_act(
            env,
            policy_actor(teams, env, mode=mode, seed=seed, device=device),
            seed=seed,
            window=window,
            recorded=recorded,
        )
    finally:
        env.close()


def evaluate_act(
    env: VectorEnv, act: Act, *, seed: int, window: int | None, recorded: int = 0, max_steps: int = 100_000
) -> Episodes:
    """The first episode of each of ``env``'s copies under `act`; those of the first `recorded` are kept whole.

    Raises:
        ValueError: An episode did not end within `max_steps`.
    """
    step = env.reset(seed)
    kept = _Recorder(env, step, recorded=recorded)
    while not kept.over.all():
        if kept.steps >= max_steps:
            raise ValueError(f"environment {env.spec.id!r}: an episode did not end within {max_steps} steps")
        actions = act(step)
        step = env.step(actions)
        kept.add(actions, step)
    return kept.episodes(window)


@dataclass
class _Track:
    """One copy's first episode."""

    copy: int
    states: list[Leaves] = field(default_factory=list)
    actions: list[dict[str, Leaves]] = field(default_factory=list)
    rewards: list[Leaves] = field(default_factory=list)
    metrics: list[Leaves] = field(default_factory=list)

    def see(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.states.append(self._own(state))

    def add(self, actions: Actions, step: Step) -> None:
        self.actions.append({group: self._own(leaves) for group, leaves in actions.items()})
        self.rewards.append(self._own({name: part.reward for name, part in step.groups.items()}))
        self.metrics.append(self._own(step.metrics))
        self.see((step.final_state or {}) if step.done[self.copy] else step.state)

    def trajectory(self) -> Trajectory:
        return Trajectory(
            state=_stacked(self.states),
            actions={group: _stacked([a[group] for a in self.actions]) for group in self.actions[0]},
            reward=_stacked(self.rewards),
            metrics=_stacked(self.metrics),
        )

    def _own(self, leaves: Mapping[str, NDArray[Any]]) -> Leaves:
        # Copies: a view would keep what all the others did.
        return {leaf: np.array(x[self.copy]) for leaf, x in leaves.items()}


def _chosen(cohort: NDArray[np.int64], count: int) -> list[int]:
    """Copies to show, the first among them: pairs of as many cohorts ``[E]`` as there is room for."""
    order = np.argsort(cohort, kind="stable")
    _, first = np.unique(cohort[order], return_index=True)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    chosen = np.lexsort((np.arange(len(cohort)), rank // 2))[:count]
    return sorted(chosen.tolist())


def _stacked(steps: Sequence[Leaves]) -> Leaves:
    return {leaf: np.stack([step[leaf] for step in steps]) for leaf in steps[0]}


class _Recorder:
    """What is kept of every copy's first episode.

    Args:
        env: Whose hooks say what is wanted.
        first: From the reset.
        recorded: Copies to keep whole beside those that are shown.
    """

    def __init__(self, env: VectorEnv, first: Step, *, recorded: int) -> None:
        self._env: Any = env
        copies = env.spec.num_envs
        self._names = env.spec.agents
        self._cohort = np.arange(copies) if first.cohort is None else np.array(first.cohort)
        self.over = np.zeros(copies, np.bool_)
        self.steps = 0
        self._rewards: list[NDArray[np.float64]] = []
        self._own = np.zeros((copies, len(env.spec.agents)))
        self._playing: list[NDArray[np.bool_]] = []
        self._metrics: dict[str, list[NDArray[np.float64]]] = {}
        shown = getattr(env, "gallery_size", GALLERY) if hasattr(env, "gallery") else 1
        self._shown, self._kept = _chosen(self._cohort, shown), range(min(recorded, copies))
        self._tracks = {copy: _Track(copy) for copy in sorted({*self._shown, *self._kept})}
        self._final: dict[str, Leaves] = {}
        for track in self._tracks.values():
            track.see(first.state)

    def add(self, actions: Actions, step: Step) -> None:
        self.steps += 1
        paid = sum(part.reward.sum(1, dtype=np.float64) for part in step.groups.values())
        self._rewards.append(np.asarray(paid) / len(self._names))
        self._playing.append(~self.over)
        own = np.concatenate([step.groups[group.name].reward for group in self._env.spec.groups], axis=1)
        self._own += np.where(self.over[:, None], 0, own)
        for name, values in step.metrics.items():
            self._metrics.setdefault(name, []).append(np.asarray(values, np.float64))
        for track in self._tracks.values():
            if not self.over[track.copy]:
                track.add(actions, step)
        if hasattr(self._env, "measures"):
            self._keep_final(actions, step.done & ~self.over)
        self.over |= step.done

    def episodes(self, window: int | None) -> Episodes:
        rewards, playing = np.stack(self._rewards), np.stack(self._playing)
        lengths = playing.sum(0)
        # Steps that count for the window: the last `window` of each episode.
        remaining = lengths[None] - np.cumsum(playing, 0)
        last = playing & (remaining < (window or len(rewards)))
        counts = last.sum(0)
        measured = self._env.measures(self._final, self._cohort) if hasattr(self._env, "measures") else {}
        whole = {copy: track.trajectory() for copy, track in self._tracks.items()}
        return Episodes(
            # Not a product: what is paid after an episode's end may be NaN.
            returns=np.where(playing, rewards, 0).sum(0),
            lengths=lengths,
            window=None if window is None else np.where(last, rewards, 0).sum(0) / counts,
            metrics={
                name: np.where(last, np.stack(values), 0).sum(0) / counts for name, values in self._metrics.items()
            },
            trajectories=tuple(whole[copy] for copy in self._shown),
            measures={name: float(value) for name, value in measured.items()},
            by_agent={name: self._own[:, position].copy() for position, name in enumerate(self._names)},
            recorded=tuple(whole[copy] for copy in self._kept),
        )

    def _keep_final(self, actions: Actions, ended: NDArray[np.bool_]) -> None:
        for group, leaves in actions.items():
            kept = self._final.setdefault(group, {leaf: np.zeros_like(x) for leaf, x in leaves.items()})
            for leaf, x in leaves.items():
                kept[leaf][ended] = x[ended]
