"""Episodes in pairs: the same seeds with and without a deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.equilibrium.plays import Play, Subject
from marl_tr.equilibrium.solo import Payoff, SoloEnv
from marl_tr.errors import UserError
from marl_tr.rollout.collector import learned_rewards
from marl_tr.rollout.lives import Starts, beginnings, everybody
from marl_tr.trainer.seeding import derive_seed
from marl_tr.vector.contract import Actions, EnvSpec, Step, VectorEnv

__all__ = ["MakeEnv", "check_repeatable", "crossed_returns", "deviation_returns", "joint_returns"]

MakeEnv = Callable[[int], VectorEnv]
"""Builds the game in that many copies."""

_MOST_STEPS = 100_000
_PROBED_STEPS = 30


def joint_returns(make_env: MakeEnv, subject: Subject, *, episodes: int, seed: int, payoff: Payoff) -> dict[str, Any]:
    """What each agent is paid, ``{agent: [n]}`` undiscounted sums, where all act by `subject`."""
    env = make_env(episodes)
    try:
        return _returns(env, subject.bind(env, seed=_others(seed)), seed=seed, payoff=payoff)
    finally:
        env.close()


def deviation_returns(
    make_env: MakeEnv,
    subject: Subject,
    responder: Subject,
    agent: str,
    *,
    episodes: int,
    seed: int,
    payoff: Payoff,
    omniscient: bool = False,
) -> NDArray[np.float64]:
    """What `agent` is paid, ``[n]``, where it acts by `responder` and all others by `subject`.

    Episode ``e`` has the environment seed and the others' draws of episode ``e`` of `joint_returns` with the same
    `seed`. They see the same as there until the deviation has changed what they see.

    Args:
        make_env: Builds the game.
        subject: Everybody else; bound, it decides for the agent as well, and is not heard there.
        responder: Plays `SoloEnv`, with draws of its own.
        agent: Who deviates.
        episodes: ``n``.
        seed: Of the episodes.
        payoff: What is counted.
        omniscient: Whether the responder sees the global state.
    """
    whole = make_env(episodes)
    try:
        others = subject.bind(whole, seed=_others(seed))
        solo = SoloEnv(whole, agent, others, payoff=payoff, omniscient=omniscient)
        own = responder.bind(solo, seed=derive_seed(seed, "nash_gap/responder"))
        found = _returns(solo, own, seed=seed, payoff="own")
        return found[agent]
    finally:
        whole.close()


def crossed_returns(
    make_env: MakeEnv, others: Subject, own: Subject, agent: str, *, episodes: int, seed: int, payoff: Payoff
) -> NDArray[np.float64]:
    """What `agent` is paid, ``[n]``, where it acts as it does in `own` and all others as they do in `others`.

    Both decide at every step with draws of the same key, so that `own` is `others` where both are one.
    """
    env = make_env(episodes)
    try:
        plays = others.bind(env, seed=_others(seed)), own.bind(env, seed=_others(seed))
        return _returns(env, _Crossed(*plays, env.spec, agent), seed=seed, payoff=payoff)[agent]
    finally:
        env.close()


def check_repeatable(make_env: MakeEnv, subject: Subject, *, payoff: Payoff) -> None:
    """Refuse a game in which equal seeds and equal actions lead to different episodes: no pairs could be made of it.

    Raises:
        UserError: It does not repeat itself; says at which step.
    """
    told: list[list[NDArray[Any]]] = []
    for _ in range(2):
        env = make_env(2)
        try:
            told.append(_probe(env, subject, payoff))
        finally:
            env.close()
    for t, (first, second) in enumerate(zip(*told, strict=False)):
        if not np.array_equal(first, second, equal_nan=True):
            raise UserError(
                f"environment does not repeat itself: equal seeds and equal actions gave other rewards or observations "
                f"at step {t}, so that no episode can be played twice; 'marl-tr check-env' says more"
            )


def _probe(env: VectorEnv, subject: Subject, payoff: Payoff) -> list[NDArray[Any]]:
    play, step = subject.bind(env, seed=1), env.reset(1)
    play.begin()
    starts, told = everybody(step), [_seen(step)]
    for _ in range(_PROBED_STEPS):
        following = env.step(play.act(step, starts))
        step, starts = following, beginnings(step, following)
        told.append(_seen(step))
    return told


def _seen(step: Step) -> NDArray[Any]:
    parts = [
        np.asarray(x, np.float64).ravel()
        for part in step.groups.values()
        for x in (part.reward, part.alive, *part.observation.values())
    ]
    return np.concatenate(parts)


def _others(seed: int) -> int:
    return derive_seed(seed, "nash_gap/others")


def _returns(env: VectorEnv, play: Play, *, seed: int, payoff: Payoff) -> dict[str, NDArray[np.float64]]:
    """The first episode of every copy: ``{agent: [n]}``.

    Raises:
        UserError: A reward is not finite, or an episode did not end.
    """
    step = env.reset(seed)
    play.begin()
    starts = everybody(step)
    total = np.zeros((env.spec.num_envs, len(env.spec.agents)))
    over = np.zeros(env.spec.num_envs, np.bool_)
    for _ in range(_MOST_STEPS):
        following = env.step(play.act(step, starts))
        paid = learned_rewards(step, following, payoff)
        side = np.concatenate([paid[group.name] for group in env.spec.groups], axis=1, dtype=np.float64)
        total += np.where(over[:, None], 0.0, side)
        over |= following.done
        if over.all():
            break
        step, starts = following, beginnings(step, following)
    else:
        raise UserError(f"environment {env.spec.id!r}: an episode did not end within {_MOST_STEPS} steps")
    if not np.isfinite(total).all():
        raise UserError(f"environment {env.spec.id!r}: a reward is not finite ('marl-tr check-env' says where)")
    return {agent: total[:, position].copy() for position, agent in enumerate(env.spec.agents)}


class _Crossed:
    """One agent's actions by one play, all others' by another; both see every step."""

    def __init__(self, others: Play, own: Play, spec: EnvSpec, agent: str) -> None:
        self._others, self._own = others, own
        (self._group,) = (group for group in spec.groups if agent in group.agents)
        self._at = self._group.agents.index(agent)

    def begin(self) -> None:
        self._others.begin()
        self._own.begin()

    def act(self, step: Step, starts: Starts) -> Actions:
        joint = {name: dict(leaves) for name, leaves in self._others.act(step, starts).items()}
        for leaf, x in self._own.act(step, starts)[self._group.name].items():
            merged = np.array(joint[self._group.name][leaf])
            merged[:, self._at] = x[:, self._at]
            joint[self._group.name][leaf] = merged
        return joint

    def state_dict(self) -> dict[str, Any]:
        return {"others": self._others.state_dict(), "own": self._own.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._others.load_state_dict(state["others"])
        self._own.load_state_dict(state["own"])
