"""The games as PettingZoo environments: one thin view on a batch of one copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from marl_tr.envs.games import bandit as _bandit
from marl_tr.envs.games import meeting as _meeting
from marl_tr.envs.games import reach as _reach
from marl_tr.envs.games.game import GameVectorEnv
from marl_tr.vector.contract import Step

__all__ = ["GameParallelEnv", "bandit", "meeting", "reach"]

Array = NDArray[Any]


def bandit(*, render_mode: str | None = None, **config: Any) -> GameParallelEnv:
    """``games/bandit-v0``; keyword arguments are the fields of `BanditConfig`, `cohort` left at 1.

    Example:
        >>> env = bandit(modes=4)
        >>> observations, infos = env.reset(seed=1)
        >>> actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        >>> observations, rewards, terminations, truncations, infos = env.step(actions)
    """
    return GameParallelEnv(_bandit.make(**config), name="games_bandit_v0", render_mode=render_mode)


def reach(*, render_mode: str | None = None, **config: Any) -> GameParallelEnv:
    """``games/reach-v0``; keyword arguments are the fields of `ReachConfig`, `cohort` left at 1."""
    return GameParallelEnv(_reach.make(**config), name="games_reach_v0", render_mode=render_mode)


def meeting(*, render_mode: str | None = None, **config: Any) -> GameParallelEnv:
    """``games/meeting-v0``; keyword arguments are the fields of `MeetingConfig`, `cohort` left at 1."""
    return GameParallelEnv(_meeting.make(**config), name="games_meeting_v0", render_mode=render_mode)


class GameParallelEnv(ParallelEnv):  # type: ignore[misc]
    """One copy of a game.

    With an episode's last step each agent's info holds the metrics of its end; else infos are empty.

    Args:
        batch: One copy.
        name: For PettingZoo's metadata.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: `render_mode` is not offered, or `batch` has several copies.
    """

    def __init__(self, batch: GameVectorEnv, *, name: str, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is not offered; 'rgb_array' or None")
        if batch.spec.num_envs != 1:
            raise ValueError(f"a view needs one copy, not {batch.spec.num_envs}")
        self.metadata = {"name": name, "render_modes": ["rgb_array"], "is_parallelizable": True, "render_fps": 8}
        self.render_mode = render_mode
        self._batch = batch
        (self._group,) = batch.spec.groups
        self.possible_agents = list(self._group.agents)
        self.agents: list[str] = []
        # One space an agent: a space that is sampled or seeded for one agent must not change another's draws.
        seen, done = self._group.observation["observation"], self._group.action["action"]
        assert isinstance(seen, spaces.Box)
        assert isinstance(done, spaces.Box)
        self.observation_spaces = {a: spaces.Box(seen.low, seen.high) for a in self.possible_agents}
        self.action_spaces = {a: spaces.Box(done.low, done.high) for a in self.possible_agents}
        self._now: Step | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Begin an episode.

        Args:
            seed: Equal seeds give equal episodes. None: the next episode of the seed before, or of one from the
                operating system where there was none.
            options: Ignored: there are none.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        if seed is None and self._now is None:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        if seed is not None:
            self._now = self._batch.reset(seed)
        elif self.agents or self._now is None:
            self._now = self._batch.next_episode()
        # Else the batch has begun the next episode already, in the step that ended the last.
        self.agents = list(self.possible_agents)
        return self._rows(self._now.groups[self._group.name].observation["observation"]), {a: {} for a in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Array], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Take every agent's action; the last step terminates everybody.

        Raises:
            RuntimeError: No episode is under way.
            ValueError: An agent has no action, or one of another shape, or one that is not finite.
        """
        if not self.agents:
            raise RuntimeError("no episode is under way: call reset() first")
        agents = self.agents
        missing = [agent for agent in agents if agent not in actions]
        if missing:
            raise ValueError(f"no action for {', '.join(missing)}")
        chosen = np.stack([np.asarray(actions[agent], np.float32) for agent in agents])
        self._now = step = self._batch.step({self._group.name: {"action": chosen[None]}})
        part, over = step.groups[self._group.name], bool(step.done[0])
        observation = part.final_observation if part.final_observation is not None else part.observation
        rewards = dict(zip(agents, part.reward[0].tolist(), strict=True))
        infos = {agent: self._metrics(step) if over else {} for agent in agents}
        if over:
            self.agents = []
        return (
            self._rows(observation["observation"]),
            rewards,
            dict.fromkeys(agents, over),
            dict.fromkeys(agents, False),
            infos,
        )

    def render(self) -> NDArray[np.uint8] | None:
        """The episode so far, or the whole of one that has just ended, ``[H, W, 3]`` uint8; None without a mode.

        Raises:
            RuntimeError: There was no reset yet.
        """
        if self.render_mode is None:
            return None
        if self._now is None:
            raise RuntimeError("nothing to render: call reset() first")
        return self._batch.render()

    def close(self) -> None:
        """Nothing is held."""

    def _rows(self, seen: Array) -> dict[str, Array]:
        return {agent: seen[0, index] for index, agent in enumerate(self.possible_agents)}

    def _metrics(self, step: Step) -> dict[str, float]:
        """Of the end, not weighted for the mean over an episode's steps."""
        horizon = self._batch.game.config.horizon
        return {name: float(values[0]) / horizon for name, values in step.metrics.items()}
