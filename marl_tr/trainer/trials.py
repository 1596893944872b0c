"""Episodes of joint policies that are not in force, for schedules that look before they leap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray

from marl_tr.rollout.collector import RewardMode, learned_rewards
from marl_tr.schedule.assignment import Profile
from marl_tr.trainer.build import Player
from marl_tr.trainer.evaluation import policy_actor
from marl_tr.vector import VectorEnv

__all__ = ["FreshEpisodes"]


class FreshEpisodes:
    """Plays profiles of parameters in environments of their own; see `marl_tr.schedule.assignment.Trials`.

    What is in force, the training environments, their memories and generators stay as they are: an update with trials
    continues from a checkpoint as any other does.

    Args:
        players: Who acts.
        make_env: Builds the environment in that many copies.
        reward: What is learned from.
        device: Where the policies live.
        max_steps: An episode that is longer is an error.
    """

    def __init__(
        self,
        players: Sequence[Player],
        make_env: Callable[[int], VectorEnv],
        *,
        reward: RewardMode,
        device: torch.device,
        max_steps: int = 100_000,
    ) -> None:
        self._players, self._make_env = tuple(players), make_env
        self._reward, self._device, self._max_steps = reward, device, max_steps

    def returns(self, profiles: Sequence[Profile], *, episodes: int, seed: int) -> list[dict[str, NDArray[np.float64]]]:
        """See `marl_tr.schedule.assignment.Trials`.

        Raises:
            ValueError: An episode did not end within `max_steps`.
        """
        env = self._make_env(episodes)
        try:
            return [self._play(env, profile, seed) for profile in profiles]
        finally:
            env.close()

    def _play(self, env: VectorEnv, profile: Profile, seed: int) -> dict[str, NDArray[np.float64]]:
        teams = [player.team for player in self._players]
        with ExitStack() as stack:
            for player in self._players:
                names = player.learners.names
                rows = {row: profile[name] for row, name in enumerate(names) if name in profile}
                stack.enter_context(player.learners.acting(rows))
            # A new one for every profile: the same draws, and memories that begin at zero.
            act = policy_actor(teams, env, mode=False, seed=seed, device=self._device)
            step = env.reset(seed)
            over = np.zeros(env.spec.num_envs, np.bool_)
            totals = {group.name: np.zeros((env.spec.num_envs, len(group.agents))) for group in env.spec.groups}
            for _ in range(self._max_steps):
                following = env.step(act(step))
                for name, reward in learned_rewards(step, following, self._reward).items():
                    totals[name] += np.where(over[:, None], 0, reward)
                over |= following.done
                step = following
                if over.all():
                    break
            else:
                raise ValueError(f"environment {env.spec.id!r}: an episode did not end within {self._max_steps} steps")
        return {
            name: totals[player.team.group.name][:, list(agents)].mean(1)
            for player in self._players
            for name, agents in _agents_of(player)
        }


def _agents_of(player: Player) -> list[tuple[str, tuple[int, ...]]]:
    """Each learner's name and its agents' positions in their group."""
    index = player.team.index
    if player.team.policy.rows.shared:
        return [(player.learners.names[0], index)]
    return [(name, (position,)) for name, position in zip(player.learners.names, index, strict=True)]
