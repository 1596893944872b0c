"""The games as PettingZoo environments: thin views on a batch of one copy.

Keyword arguments are the fields of each game's settings, a `cohort` left at 1, and ``render_mode`` (``"rgb_array"``
where a game can be seen). Each agent's info holds the step's metrics; those of games whose metrics are an episode's
end's come with its last step.

Example:
    >>> env = bandit(modes=4)
    >>> observations, infos = env.reset(seed=1)
    >>> actions = {agent: env.action_space(agent).sample() for agent in env.agents}
    >>> observations, rewards, terminations, truncations, infos = env.step(actions)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marl_tr.envs.games import bandit as _bandit
from marl_tr.envs.games import differential as _differential
from marl_tr.envs.games import matrix as _matrix
from marl_tr.envs.games import meeting as _meeting
from marl_tr.envs.games import placement as _placement
from marl_tr.envs.games import reach as _reach
from marl_tr.envs.games.game import GameVectorEnv
from marl_tr.envs.view import BatchParallelEnv

__all__ = ["bandit", "differential", "matrix", "meeting", "reach", "uav_placement"]


def _view(make: Callable[..., GameVectorEnv[Any]], name: str) -> Callable[..., BatchParallelEnv]:
    def view(*, render_mode: str | None = None, **config: Any) -> BatchParallelEnv:
        return BatchParallelEnv(make(**config), name=name, render_mode=render_mode)

    return view


bandit = _view(_bandit.make, "games_bandit_v0")
differential = _view(_differential.make, "games_differential_v0")
matrix = _view(_matrix.make, "games_matrix_v0")
meeting = _view(_meeting.make, "games_meeting_v0")
reach = _view(_reach.make, "games_reach_v0")
uav_placement = _view(_placement.make, "games_uav_placement_v0")
