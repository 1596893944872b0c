"""Who acts with which policy, and one decision of everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.errors import Diverged
from marl_tr.policy import Policy
from marl_tr.rollout.lives import Starts
from marl_tr.vector.contract import GroupSpec, Step

__all__ = ["Team", "forget", "play"]


@dataclass(frozen=True)
class Team:
    """The agents of one group that one policy serves.

    Attributes:
        name: Unique; names the learners in logs.
        group: The environment's group.
        index: Which of the group's agents, as positions along the axis ``A``.
        agents: Their names.
        policy: Their policy.
    """

    name: str
    group: GroupSpec
    index: tuple[int, ...]
    agents: tuple[str, ...]
    policy: Policy

    @property
    def learners(self) -> tuple[str, ...]:
        """A name for every learner (row) of the policy."""
        return (self.name,) if self.policy.rows.shared else self.agents

    def select(self, x: Tensor, *, axis: int) -> Tensor:
        """The team's agents out of a group's tensor; no copy where the team is the whole group."""
        if len(self.index) == len(self.group.agents):
            return x
        return x.index_select(axis, torch.tensor(self.index, device=x.device))

    def rows_of(self, x: NDArray[Any], device: torch.device) -> Tensor:
        """The team's part of what a group has at one moment, ``[E, A, ...]``, in the learners' rows ``[L, N, ...]``."""
        return self.policy.rows.to_rows(self.select(torch.from_numpy(x)[None], axis=2).to(device))[:, 0]


def play(
    teams: Sequence[Team],
    step: Step,
    memories: Mapping[str, Tensor | None],
    generator: torch.Generator,
    *,
    mode: bool,
    device: torch.device,
) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, dict[str, Tensor]], dict[str, Tensor | None]]:
    """One decision of every team: actions for the environment, raw records, and the next memories."""
    actions: dict[str, dict[str, NDArray[Any]]] = {}
    records: dict[str, dict[str, Tensor]] = {}
    following: dict[str, Tensor | None] = {}
    for team in teams:
        observation = {leaf: team.rows_of(x, device) for leaf, x in step.groups[team.group.name].observation.items()}
        action = team.policy.act(observation, memories[team.name], generator, mode=mode)
        records[team.name] = action.record
        following[team.name] = action.memory
        group = actions.setdefault(team.group.name, {})
        for leaf, rows in action.env.items():
            part = team.policy.rows.from_rows(rows[:, None])[0].cpu().numpy()
            _check_action(team, part, team.group.action[leaf])
            if len(team.index) == len(team.group.agents):
                group[leaf] = np.ascontiguousarray(part)
                continue
            shape = (part.shape[0], len(team.group.agents), *part.shape[2:])
            group.setdefault(leaf, np.zeros(shape, part.dtype))[:, list(team.index)] = part
    return actions, records, following


def forget(team: Team, memory: Tensor | None, starts: Starts) -> Tensor | None:
    """A team's memory ``[L, N, H]`` with zeros for whose life begins.

    An agent's memory takes in what it sees at every step of its life, those included in which it is not to move.
    """
    own = starts[team.group.name]
    if memory is None or not own.any():
        return memory
    begins = team.rows_of(own, memory.device).unsqueeze(-1)
    return torch.where(begins, torch.zeros_like(memory), memory)


def _check_action(team: Team, action: NDArray[Any], space: spaces.Space[Any]) -> None:
    """A network that gives NaN must not reach the environment, which would fail in a way of its own.

    Raises:
        Diverged: NaN in a Box, or the choice beyond the last that a categorical law of NaN gives.
    """
    if isinstance(space, spaces.Discrete):
        bad = bool((action >= space.start + space.n).any())
    elif isinstance(space, spaces.MultiDiscrete):
        bad = bool((action >= space.start + space.nvec).any())
    else:
        bad = not bool(np.isfinite(action).all())
    if bad:
        raise Diverged(
            f"policy {team.name!r}: its network's output is not finite; likely causes: observations of a very large "
            "scale (agents.normalise_observation), or a learning rate that is too high"
        )
