"""A game as one of its agents meets it: an environment with one agent, all others played by a policy that stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.equilibrium.plays import Play
from marl_tr.errors import UserError
from marl_tr.rollout.collector import learned_rewards
from marl_tr.rollout.lives import Starts, beginnings, everybody
from marl_tr.vector.contract import Actions, EnvSpec, GroupSpec, GroupStep, Leaves, Step, VectorEnv

__all__ = ["GLOBAL_STATE", "Payoff", "SoloEnv", "refuse_cohorts"]

Payoff = Literal["own", "mean", "sum"]
"""What an agent is after: its own reward, or the mean or sum over the living; as `EnvSection.reward`."""

GLOBAL_STATE = "global_state"
"""The observation leaf of an omniscient responder: the global state, flat."""


class SoloEnv:
    """A `VectorEnv` of one agent; the others act by `others`, which also acts for it and is not heard there.

    Because `others` decides for everybody and one action is then replaced, its draws do not depend on who replaces it.

    Args:
        env: The whole game. It is closed with this.
        agent: Who is left to act.
        others: Bound to `env`.
        payoff: What the agent is paid.
        omniscient: Also show it the global state (of environments without one, all observations), as `GLOBAL_STATE`.

    Raises:
        UserError: No such agent; at the reset, an environment that compares samples of a cohort.
    """

    def __init__(
        self, env: VectorEnv, agent: str, others: Play, *, payoff: Payoff = "own", omniscient: bool = False
    ) -> None:
        self._env, self._others, self._payoff, self._omniscient = env, others, payoff, omniscient
        self._group, self._at = _place(env.spec, agent)
        seen = dict(self._group.observation)
        if omniscient:
            if GLOBAL_STATE in seen:
                raise UserError(f"environment {env.spec.id!r} already shows a leaf {GLOBAL_STATE!r}")
            seen[GLOBAL_STATE] = spaces.Box(-np.inf, np.inf, (_width(env.spec),), np.float32)
        alone = GroupSpec(self._group.name, (agent,), seen, self._group.action, self._group.masks)
        self.spec = replace(env.spec, groups=(alone,), state={}, horizon=env.spec.horizon)
        self._step: Step | None = None
        self._starts: Starts = {}

    def reset(self, seed: int) -> Step:
        """See `VectorEnv`."""
        self._others.begin()
        self._step = self._env.reset(seed)
        refuse_cohorts(self._env.spec, self._step)
        self._starts = everybody(self._step)
        return self._alone(self._step)

    def step(self, actions: Actions) -> Step:
        """See `VectorEnv`."""
        assert self._step is not None, "reset the environment before a step"
        before = self._step
        everyone = {name: dict(leaves) for name, leaves in self._others.act(before, self._starts).items()}
        for leaf, x in actions[self._group.name].items():
            joint = np.array(everyone[self._group.name][leaf])
            joint[:, self._at] = x[:, 0]
            everyone[self._group.name][leaf] = joint
        after = self._env.step(everyone)
        self._step, self._starts = after, beginnings(before, after)
        paid = learned_rewards(before, after, self._payoff)[self._group.name]
        return self._alone(after, paid)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv`; with what the others remember."""
        assert self._step is not None, "reset the environment before saving it"
        return {
            "env": self._env.state_dict(),
            "others": self._others.state_dict(),
            "groups": {
                name: {"observation": dict(part.observation), "alive": part.alive, "acting": part.acting}
                for name, part in self._step.groups.items()
            },
            "state": dict(self._step.state),
            "starts": dict(self._starts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `VectorEnv`."""
        self._env.load_state_dict(state["env"])
        self._others.load_state_dict(state["others"])
        self._step = Step(
            groups={name: _resting(part) for name, part in state["groups"].items()},
            done=np.zeros(self.spec.num_envs, np.bool_),
            state={leaf: np.asarray(x) for leaf, x in state["state"].items()},
        )
        self._starts = {name: np.array(x, np.bool_) for name, x in state["starts"].items()}

    def close(self) -> None:
        """Close the game."""
        self._env.close()

    def _alone(self, step: Step, paid: NDArray[Any] | None = None) -> Step:
        part, own = step.groups[self._group.name], slice(self._at, self._at + 1)
        final = part.final_observation
        observation = {leaf: x[:, own] for leaf, x in part.observation.items()}
        last = None if final is None else {leaf: x[:, own] for leaf, x in final.items()}
        if self._omniscient:
            observation[GLOBAL_STATE] = self._all_there_is(step, final=False)
            if last is not None:
                last[GLOBAL_STATE] = self._all_there_is(step, final=True)
        alone = GroupStep(
            observation={leaf: np.ascontiguousarray(x) for leaf, x in observation.items()},
            reward=np.ascontiguousarray((part.reward if paid is None else paid)[:, own], dtype=np.float32),
            terminated=part.terminated[:, own].copy(),
            truncated=part.truncated[:, own].copy(),
            alive=part.alive[:, own].copy(),
            acting=part.acting[:, own].copy(),
            final_observation=None if last is None else {leaf: np.ascontiguousarray(x) for leaf, x in last.items()},
        )
        return Step(groups={self._group.name: alone}, done=step.done)

    def _all_there_is(self, step: Step, *, final: bool) -> NDArray[np.float32]:
        """``[E, 1, D]``: the state, or where there is none everybody's observation."""
        spec, copies = self._env.spec, self._env.spec.num_envs
        parts: list[Any] = []
        if spec.state:
            leaves: Leaves = step.state
            if final and step.final_state is not None:
                leaves = step.final_state
            parts = [leaves[leaf] for leaf in spec.state]
        else:
            for group in spec.groups:
                part = step.groups[group.name]
                seen = part.final_observation if final and part.final_observation is not None else part.observation
                parts += [seen[leaf] for leaf in group.features]
        flat = [np.asarray(x, np.float32).reshape(copies, -1) for x in parts]
        return np.nan_to_num(np.concatenate(flat, axis=1))[:, None]


def refuse_cohorts(spec: EnvSpec, step: Step) -> None:
    """Refuse environments whose copies are compared with each other; a cohort of one is none.

    Raises:
        UserError: Two copies are of one cohort.
    """
    if step.cohort is not None and len(np.unique(step.cohort)) < spec.num_envs:
        raise UserError(
            f"environment {spec.id!r} compares samples of a cohort with each other: it is no game between agents, and "
            "has no best responses to look for (where it has a setting 'cohort', 1 makes it one)"
        )


def _place(spec: EnvSpec, agent: str) -> tuple[GroupSpec, int]:
    for group in spec.groups:
        if agent in group.agents:
            return group, group.agents.index(agent)
    raise UserError(f"environment {spec.id!r} has no agent {agent!r}; it has {', '.join(spec.agents)}")


def _width(spec: EnvSpec) -> int:
    if spec.state:
        return sum(int(np.prod(space.shape or ())) for space in spec.state.values())
    return sum(
        len(group.agents) * int(np.prod(space.shape or ()))
        for group in spec.groups
        for space in group.features.values()
    )


def _resting(part: Mapping[str, Any]) -> GroupStep:
    """A group's part of a saved step: what can still be acted on."""
    alive = np.asarray(part["alive"])
    return GroupStep(
        observation={leaf: np.asarray(x) for leaf, x in part["observation"].items()},
        reward=np.zeros(alive.shape, np.float32),
        terminated=np.zeros(alive.shape, np.bool_),
        truncated=np.zeros(alive.shape, np.bool_),
        alive=alive,
        acting=np.asarray(part["acting"]),
    )
