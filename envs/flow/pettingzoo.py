"""The generation environments as PettingZoo environments: a thin view on a batch of one copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from marl_tr.envs.flow import mixture as _mixture
from marl_tr.envs.flow import video as _video
from marl_tr.envs.flow.generation import GenerationVectorEnv
from marl_tr.vector.contract import Leaves, Step

__all__ = ["GenerationParallelEnv", "mixture", "moving_shapes"]

Array = NDArray[Any]


def moving_shapes(*, render_mode: str | None = None, **config: Any) -> GenerationParallelEnv:
    """``flow/moving_shapes-v0``; keyword arguments are the fields of `MovingShapesConfig`, `cohort` left at 1.

    Example:
        >>> env = moving_shapes(segments=2)
        >>> observations, infos = env.reset(seed=1)
        >>> actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        >>> observations, rewards, terminations, truncations, infos = env.step(actions)
    """
    return GenerationParallelEnv(_video.make(**config), name="flow_moving_shapes_v0", render_mode=render_mode)


def mixture(*, render_mode: str | None = None, **config: Any) -> GenerationParallelEnv:
    """``flow/mixture-v0``; keyword arguments are the fields of `MixtureConfig`, `cohort` left at 1."""
    return GenerationParallelEnv(_mixture.make(**config), name="flow_mixture_v0", render_mode=render_mode)


class GenerationParallelEnv(ParallelEnv):  # type: ignore[misc]
    """One copy of a generation environment.

    An observation is a ``Dict`` of the group's leaves, or the leaf itself where there is one. With an episode's last
    step each agent's info holds the sample's metrics; else infos are empty.

    Args:
        batch: One copy.
        name: For PettingZoo's metadata.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: `render_mode` is not offered, or `batch` has several copies.
    """

    def __init__(self, batch: GenerationVectorEnv[Any], *, name: str, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is not offered; 'rgb_array' or None")
        if batch.spec.num_envs != 1:
            raise ValueError(f"a view needs one copy, not {batch.spec.num_envs}")
        self.metadata = {"name": name, "render_modes": ["rgb_array"], "is_parallelizable": True, "render_fps": 4}
        self.render_mode = render_mode
        self._batch = batch
        (self._group,) = batch.spec.groups
        self.possible_agents = list(self._group.agents)
        self.agents: list[str] = []
        leaves = dict(self._group.observation)
        seen = spaces.Dict(leaves) if len(leaves) > 1 else next(iter(leaves.values()))
        self.observation_spaces = dict.fromkeys(self.possible_agents, seen)
        box = self._group.action["action"]
        # One space an agent: a space that is sampled or seeded for one agent must not change another's draws.
        self.action_spaces = {
            agent: spaces.Box(-np.inf, np.inf, box.shape, np.float32) for agent in self.possible_agents
        }
        self._seeded = False
        self._told: Leaves = {}
        self._path: list[Array] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The same object in every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode.

        Args:
            seed: Equal seeds give equal episodes. None: the next episode of the seed before, or of one from the
                operating system where there was none.
            options: Ignored: there are none.

        Raises:
            ValueError: `seed` is not in ``[0, 2**64)``.
        """
        if seed is None and not self._seeded:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        # At an episode's end the batch has begun the next one already.
        step = self._begun if seed is None and not self.agents else None
        if step is None:
            step = self._batch.next_episode() if seed is None else self._batch.reset(seed)
        self._seeded = True
        self.agents = list(self.possible_agents)
        seen = step.groups[self._group.name].observation
        self._told = {leaf: seen[leaf][0] for leaf in self._batch.task.condition}
        self._path = [seen["latent"][0]] if "latent" in seen else []
        return self._rows(seen), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Take every agent's sample, or next latent; the last step terminates everybody.

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
        step = self._batch.step({self._group.name: {"action": chosen[None]}})
        self._path.append(chosen)
        part, over = step.groups[self._group.name], bool(step.done[0])
        observation = part.final_observation if part.final_observation is not None else part.observation
        rewards = dict(zip(agents, part.reward[0].tolist(), strict=True))
        infos = {agent: self._metrics(step) if over else {} for agent in agents}
        if over:
            self.agents, self._begun = [], step
        return self._rows(observation), rewards, dict.fromkeys(agents, over), dict.fromkeys(agents, False), infos

    def render(self) -> NDArray[np.uint8] | None:
        """What has been made so far, ``[H, W, 3]`` uint8; None without a render mode.

        Raises:
            RuntimeError: There was no reset yet.
        """
        if self.render_mode is None:
            return None
        if not self._told:
            raise RuntimeError("nothing to render: call reset() first")
        nothing = np.zeros((len(self.possible_agents), *self._batch.task.event), np.float32)
        now = self._path[-1] if self._path else nothing
        picture = next(iter(self._batch.task.pictures(self._told, now[None]).values()))
        return picture() if callable(picture) else picture

    def close(self) -> None:
        """Nothing is held."""

    _begun: Step | None = None
    """The step that ended the last episode, whose observation is the next one's first."""

    def _rows(self, seen: Leaves) -> dict[str, Any]:
        rows = {}
        for index, agent in enumerate(self.possible_agents):
            leaves = {leaf: array[0, index] for leaf, array in seen.items()}
            rows[agent] = leaves if len(leaves) > 1 else next(iter(leaves.values()))
        return rows

    def _metrics(self, step: Step) -> dict[str, float]:
        """A sample's own, not weighted for the mean over an episode's steps."""
        return {name: float(values[0]) / self._batch.config.horizon for name, values in step.metrics.items()}
