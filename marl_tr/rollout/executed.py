"""What everybody did, as policies over joint actions learn from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from marl_tr.policy import executed_name
from marl_tr.rollout.container import Rollout
from marl_tr.rollout.team import Team

__all__ = ["executed_by_all"]


def executed_by_all(teams: Sequence[Team], rollout: Rollout, learner: Team) -> dict[str, Tensor]:
    """The raw actions of the agents of all `teams` for the rows of `learner`: see `marl_tr.policy.Policy`.

    Returns:
        ``{agent/leaf: [L, T, E, ...]}``, and ``acting [L, T, E, A]`` over all agents in the order of the environment's
        groups.
    """
    count = learner.policy.rows.learners
    executed: dict[str, Tensor] = {"acting": torch.cat([group.acting for group in rollout.groups.values()], -1)}
    for team in teams:
        for leaf, rows in rollout.records[team.name].record.items():
            decided = team.policy.rows.from_rows(rows)
            executed |= {executed_name(agent, leaf): decided[:, :, k] for k, agent in enumerate(team.agents)}
    return {name: x.unsqueeze(0).expand(count, *x.shape) for name, x in executed.items()}
