"""Held-out episodes: what a policy earns on seeds that it never learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from marl_tr.analysis.statistics import iqm, stratified_bootstrap_ci
from marl_tr.rollout.team import Team, play
from marl_tr.trainer.seeding import make_generator
from marl_tr.vector.contract import Actions, Leaves, Step, Trajectory, VectorEnv

__all__ = ["Episodes", "Summary", "evaluate_act", "evaluate_policies", "policy_actor", "summarise"]

Act = Callable[[Step], Actions]


@dataclass(frozen=True)
class Episodes:
    """``n`` held-out episodes of one way of acting.

    Attributes:
        returns: ``[n]``: mean over agents of the undiscounted sum of each agent's own reward.
        lengths: ``[n]`` steps.
        window: ``[n]``: mean over agents and over the last `window` steps of the reward a step, or None.
        metrics: ``{name: [n]}``: mean over an episode's steps (last `window` steps where there is one).
        trajectory: Of the first environment.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    window: NDArray[np.float64] | None
    metrics: dict[str, NDArray[np.float64]]
    trajectory: Trajectory


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
    copies = env.spec.num_envs
    memories: dict[str, torch.Tensor | None] = {
        team.name: team.policy.initial_memory(copies * len(team.index) if team.policy.rows.shared else copies)
        for team in teams
    }

    def act(step: Step) -> Actions:
        nonlocal memories
        for team in teams:
            memory = memories[team.name]
            if memory is not None and step.done.any():
                ended = torch.from_numpy(step.done).to(device)
                if team.policy.rows.shared:
                    ended = ended.repeat_interleave(len(team.index))
                memories[team.name] = torch.where(ended[None, :, None], torch.zeros_like(memory), memory)
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
    """
    env = make_env(episodes)
    try:
        return evaluate_act(
            env, policy_actor(teams, env, mode=mode, seed=seed, device=device), seed=seed, window=window
        )
    finally:
        env.close()


@dataclass
class _Recorder:
    """What is kept of every copy's first episode."""

    rewards: list[NDArray[np.float64]] = field(default_factory=list)
    playing: list[NDArray[np.bool_]] = field(default_factory=list)
    metrics: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    states: list[Leaves] = field(default_factory=list)
    actions: list[dict[str, Leaves]] = field(default_factory=list)
    own: list[Leaves] = field(default_factory=list)
    first: list[Leaves] = field(default_factory=list)


def evaluate_act(env: VectorEnv, act: Act, *, seed: int, window: int | None, max_steps: int = 100_000) -> Episodes:
    """The first episode of each of ``env``'s copies under `act`.

    Raises:
        ValueError: An episode did not end within `max_steps`.
    """
    step = env.reset(seed)
    agents = len(env.spec.agents)
    over = np.zeros(env.spec.num_envs, np.bool_)
    kept = _Recorder()
    _record_state(kept, step.state)
    while not over.all():
        if len(kept.rewards) >= max_steps:
            raise ValueError(f"environment {env.spec.id!r}: an episode did not end within {max_steps} steps")
        actions = act(step)
        step = env.step(actions)
        kept.rewards.append(sum(part.reward.sum(1, dtype=np.float64) for part in step.groups.values()) / agents)
        kept.playing.append(~over)
        for name, values in step.metrics.items():
            kept.metrics.setdefault(name, []).append(np.asarray(values, np.float64))
        if not over[0]:
            kept.actions.append({g: {leaf: x[0] for leaf, x in leaves.items()} for g, leaves in actions.items()})
            kept.own.append({name: part.reward[0] for name, part in step.groups.items()})
            kept.first.append({name: values[0] for name, values in step.metrics.items()})
            _record_state(kept, (step.final_state or {}) if step.done[0] else step.state)
        over |= step.done
    return _episodes(kept, window)


def _record_state(kept: _Recorder, state: Mapping[str, NDArray[Any]]) -> None:
    kept.states.append({leaf: np.array(x[0]) for leaf, x in state.items()})


def _episodes(kept: _Recorder, window: int | None) -> Episodes:
    rewards, playing = np.stack(kept.rewards), np.stack(kept.playing)
    lengths = playing.sum(0)
    # Steps that count for the window: the last `window` of each episode.
    remaining = lengths[None] - np.cumsum(playing, 0)
    last = playing & (remaining < (window or len(rewards)))
    counts = last.sum(0)
    metrics = {name: (np.stack(values) * last).sum(0) / counts for name, values in kept.metrics.items()}
    return Episodes(
        returns=(rewards * playing).sum(0),
        lengths=lengths,
        window=None if window is None else (rewards * last).sum(0) / counts,
        metrics=metrics,
        trajectory=Trajectory(
            state={leaf: np.stack([s[leaf] for s in kept.states]) for leaf in kept.states[0]},
            actions={
                group: {leaf: np.stack([a[group][leaf] for a in kept.actions]) for leaf in leaves}
                for group, leaves in kept.actions[0].items()
            },
            reward={name: np.stack([r[name] for r in kept.own]) for name in kept.own[0]},
            metrics={name: np.stack([m[name] for m in kept.first]) for name in kept.first[0]},
        ),
    )
