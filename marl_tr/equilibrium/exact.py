"""The true gaps of a joint policy, where the environment can compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.equilibrium.game import Game
from marl_tr.equilibrium.plays import RandomSubject, Subject
from marl_tr.policy import PolicyBatch, executed_name
from marl_tr.rollout.team import Team
from marl_tr.vector.contract import EnvSpec, GroupSpec, Leaves

__all__ = ["Probabilities", "exact_gaps", "probabilities"]

Probabilities = Callable[[str, Leaves], NDArray[np.float64]]
"""``(agent, observation {leaf: [N, ...]}) -> [N, C]``: how probable each of the agent's actions is where it sees that;
what an environment's ``exact_gaps`` is given."""


def exact_gaps(game: Game, subject: Subject) -> dict[str, float] | None:
    """Each agent's gap from the environment's hook ``exact_gaps(policy)``; None where it has none.

    None also for subjects whose actions have no probabilities that could be asked for: references, policies with a
    memory or of continuous actions.
    """
    env: Any = game.make(1)
    try:
        if not hasattr(env, "exact_gaps"):
            return None
        policy = probabilities(subject, game.spec)
        if policy is None:
            return None
        found: Mapping[str, float] = env.exact_gaps(policy)
        return {agent: float(found[agent]) for agent in game.spec.agents}
    finally:
        env.close()


def probabilities(subject: Subject, spec: EnvSpec) -> Probabilities | None:
    """What a subject does where an agent sees something, as probabilities; None where they cannot be had."""
    groups = {agent: group for group in spec.groups for agent in group.agents}
    if any(_choices(group) is None for group in spec.groups):
        return None
    if isinstance(subject, RandomSubject):
        return lambda agent, observation: _uniform(groups[agent], observation)
    if not subject.teams or any(team.policy.recurrent for team in subject.teams):
        return None
    teams = {agent: team for team in subject.teams for agent in team.agents}
    if any("log_prob" not in team.policy.capabilities for team in subject.teams):
        return None
    return lambda agent, observation: _asked(teams[agent], agent, observation, spec)


def _choices(group: GroupSpec) -> tuple[str, int] | None:
    """The name and size of a group's only action leaf, if it is one choice."""
    if len(group.action) != 1:
        return None
    ((leaf, space),) = group.action.items()
    return (leaf, int(space.n)) if isinstance(space, spaces.Discrete) else None


def _uniform(group: GroupSpec, observation: Leaves) -> NDArray[np.float64]:
    choices = _choices(group)
    assert choices is not None
    leaf, count = choices
    if leaf not in group.masks:
        return np.full((len(next(iter(observation.values()))), count), 1.0 / count)
    allowed = np.asarray(observation[group.masks[leaf]]) != 0
    allowed = allowed | ~allowed.any(-1, keepdims=True)
    shares: NDArray[np.float64] = allowed / allowed.sum(-1, keepdims=True)
    return shares


def _asked(team: Team, agent: str, observation: Leaves, spec: EnvSpec) -> NDArray[np.float64]:
    """The law of one agent, by the likelihood of every choice in turn."""
    choices = _choices(team.group)
    assert choices is not None
    _, count = choices
    policy = team.policy
    rows = policy.rows
    device = next(policy.module.parameters()).device
    # In the space's own dtype, as when it acts: a sum in another one is another sum.
    seen = {
        name: torch.from_numpy(np.ascontiguousarray(x, dtype=team.group.observation[name].dtype)).to(device)
        for name, x in observation.items()
    }
    number = len(next(iter(seen.values())))
    flags = torch.ones(rows.learners, 1, number, dtype=torch.bool, device=device)
    row = 0 if rows.shared else team.agents.index(agent)
    parameters = {name: p.detach() for name, p in policy.module.named_parameters()}
    columns = []
    for choice in range(count):
        batch = PolicyBatch(
            observation={name: x.expand(rows.learners, 1, *x.shape) for name, x in seen.items()},
            record=_record(team, agent, spec, torch.full_like(flags, choice, dtype=torch.int64)),
            memory=None,
            starts=flags,
            mask=flags,
        )
        with torch.no_grad():
            columns.append(policy.evaluate(parameters, batch).log_prob[row, 0].sum(-1).double().exp())
    found: NDArray[np.float64] = torch.stack(columns, -1).cpu().numpy()
    found /= found.sum(-1, keepdims=True)
    return found


def _record(team: Team, agent: str, spec: EnvSpec, choice: Tensor) -> dict[str, Tensor]:
    """What a batch records where `agent` took `choice` ``[L, 1, N]``.

    A policy over joint actions is asked what everybody did: nobody else was to act, so that the others count nothing.
    """
    choices = _choices(team.group)
    assert choices is not None
    leaf, _ = choices
    if getattr(team.policy, "scope", "own") != "joint":
        return {leaf: choice}
    record = {
        executed_name(name, own): choice if name == agent else torch.zeros_like(choice)
        for group in spec.groups
        for name in group.agents
        for own in group.action
    }
    acting = torch.tensor([name == agent for name in spec.agents], device=choice.device)
    return record | {"acting": acting.expand(*choice.shape, -1)}
