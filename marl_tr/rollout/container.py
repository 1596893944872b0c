"""What was collected between two updates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Bootstrap", "EpisodeStatistics", "GroupRollout", "PolicyRecord", "Rollout"]


@dataclass(frozen=True)
class GroupRollout:
    """One group's decisions and their consequences, ``[T, E, A, ...]``.

    Attributes:
        observation: ``{leaf: [T, E, A, D]}``, seen before the decision.
        action: ``[T, E, A, D]``, the action that the environment took, encoded as features (one-hot where discrete);
            zero for who was not to move.
        previous_action: ``[T, E, A, D]``, that of the step before; zero where a life begins.
        reward: ``[T, E, A]``, the reward that is learned from.
        terminated: ``[T, E, A]`` bool.
        truncated: ``[T, E, A]`` bool.
        alive: ``[T, E, A]`` bool, at the decision.
        acting: ``[T, E, A]`` bool, at the decision.
        starts: ``[T, E, A]`` bool: the agent's life begins at this step: its episode does (everybody's, the absent
            included), or it is alive now and was not at the step before, or ended with it.
        masks: Names of the observation leaves that are masks.
    """

    observation: dict[str, Tensor]
    action: Tensor
    previous_action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    alive: Tensor
    acting: Tensor
    starts: Tensor
    masks: frozenset[str] = frozenset()

    @property
    def features(self) -> dict[str, Tensor]:
        """The leaves of `observation` that networks see: all but the masks."""
        return {leaf: x for leaf, x in self.observation.items() if leaf not in self.masks}


@dataclass(frozen=True)
class Bootstrap:
    """The ``M`` moments whose value continues a cut-off trajectory: ends by truncation, and the rollout's own end.

    Attributes:
        time: ``[M]`` int64, the step after which the trajectory was cut.
        env: ``[M]`` int64.
        agents: ``[M, A]`` bool over the agents of all groups: whose value continues here. All of them where the
            episode or the rollout was cut; only who was truncated alone while the others play on. An agent has one
            entry at most for a moment of an environment, an environment may have two.
        living: ``[M, A]`` bool over the agents of all groups: who takes part in what followed.
        starts: ``[M, A]`` bool: of them, whose life began there.
        acting: ``[M, A]`` float32: of them, who was to move there: 1, else 0. What would have followed an end does not
            say who would have been: then all who lived have equal shares of 1.
        observation: ``{group: {leaf: [M, A, D]}}``, what followed, without masks.
        state: ``{leaf: [M, ...]}``.
    """

    time: Tensor
    env: Tensor
    agents: Tensor
    living: Tensor
    starts: Tensor
    acting: Tensor
    observation: dict[str, dict[str, Tensor]]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class PolicyRecord:
    """What one policy needs to learn from its own decisions.

    Attributes:
        record: ``{leaf: [L, T, N, ...]}``, raw actions.
        memory: ``[L, N, H]`` at the rollout's first step, or None.
    """

    record: dict[str, Tensor]
    memory: Tensor | None


@dataclass(frozen=True)
class EpisodeStatistics:
    """Episodes that ended during a rollout.

    Attributes:
        returns: ``[n, A]``, undiscounted, each agent's own reward as the environment pays it.
        lengths: ``[n]`` steps.
        metrics: Mean over the rollout's steps of each of the environment's metrics.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Rollout:
    """A rollout of ``T`` steps of ``E`` environments.

    Attributes:
        groups: By group name, in the environment's order.
        records: By policy name.
        state: ``{leaf: [T, E, ...]}``.
        starts: ``[T, E]`` bool, an episode begins at this step.
        done: ``[T, E]`` bool, an episode ends with this step.
        bootstrap: Where values continue cut-off trajectories.
        episodes: What ended meanwhile.
        cohort: ``[T, E]`` int64, which episodes are compared with each other, or None.
        metrics: ``[T, E]`` float32 each, what the environment measured of each step, by name.
    """

    groups: dict[str, GroupRollout]
    records: dict[str, PolicyRecord]
    state: dict[str, Tensor]
    starts: Tensor
    done: Tensor
    bootstrap: Bootstrap
    episodes: EpisodeStatistics
    cohort: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Environment steps ``T E``."""
        return self.starts.numel()

    def without_failed(self) -> tuple[Rollout, int]:
        """The rollout with every episode left out in which a reward is not finite, and how many those are.

        Their agents count as dead throughout: nothing is learned from them, neither by policies nor by the critic.
        """
        bad = torch.zeros_like(self.starts)
        for group in self.groups.values():
            bad |= ~group.reward.isfinite().all(-1)
        episode = self.starts.long().cumsum(0)
        failed = torch.zeros_like(bad)
        for t, e in bad.nonzero().tolist():
            failed[:, e] |= episode[:, e] == episode[t, e]
        if not bool(failed.any()):
            return self, 0
        gone = failed.unsqueeze(-1)
        groups = {
            name: replace(
                group,
                reward=group.reward.masked_fill(gone, 0),
                alive=group.alive & ~gone,
                acting=group.acting & ~gone,
            )
            for name, group in self.groups.items()
        }
        count = sum(len(episode[:, e][failed[:, e]].unique()) for e in range(failed.shape[1]))
        return replace(self, groups=groups), count
