"""A native batch of one copy as a PettingZoo environment."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from marl_tr.vector.contract import Actions, EnvSpec, Leaves, Step

__all__ = ["Batch", "BatchParallelEnv"]

Array = NDArray[Any]


class Batch(Protocol):
    """A native `VectorEnv` whose agents all live until the episode's end.

    Its ``render()``, where it has one, shows the first copy, ``[H, W, 3]`` uint8.
    """

    spec: EnvSpec

    def reset(self, seed: int) -> Step:
        """See `VectorEnv.reset`."""
        ...

    def next_episode(self) -> Step:
        """Leave the running episode and begin the next one of the same seed."""
        ...

    def step(self, actions: Actions) -> Step:
        """See `VectorEnv.step`."""
        ...

    def info(self, step: Step) -> dict[str, float]:
        """What each agent's info holds after the first copy's `step`."""
        ...


class BatchParallelEnv(ParallelEnv):  # type: ignore[misc]
    """One copy of a native environment.

    An observation is a ``Dict`` of the group's leaves, or the leaf itself where there is one; the same for actions.

    Args:
        batch: One copy.
        name: For PettingZoo's metadata.
        render_mode: ``"rgb_array"``, where the batch can be seen, or None.
        fps: Frames a second of a video.

    Raises:
        ValueError: `render_mode` is not offered, or `batch` has several copies.
    """

    def __init__(self, batch: Batch, *, name: str, render_mode: str | None = None, fps: int = 8) -> None:
        modes = ["rgb_array"] if self._renders(batch) else []
        if render_mode not in (None, *modes):
            raise ValueError(f"render_mode {render_mode!r} is not offered; {' or '.join(map(repr, (*modes, None)))}")
        if batch.spec.num_envs != 1:
            raise ValueError(f"a view needs one copy, not {batch.spec.num_envs}")
        self.metadata = {"name": name, "render_modes": modes, "is_parallelizable": True, "render_fps": fps}
        self.render_mode = render_mode
        self._batch = batch
        groups = batch.spec.groups
        self.possible_agents = list(batch.spec.agents)
        self.agents: list[str] = []
        # One space an agent: a space that is sampled or seeded for one agent must not change another's draws.
        self.observation_spaces = {agent: _space(group.observation) for group in groups for agent in group.agents}
        self.action_spaces = {agent: _space(group.action) for group in groups for agent in group.agents}
        self._now: Step | None = None

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
        if seed is None and self._now is None:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        if seed is not None:
            self._now = self._batch.reset(seed)
        elif self.agents or self._now is None:
            self._now = self._batch.next_episode()
        # Else the batch has begun the next episode already, in the step that ended the last.
        self.agents = list(self.possible_agents)
        seen = {name: part.observation for name, part in self._now.groups.items()}
        return self._rows(seen), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Take every agent's action; the last step ends everybody.

        Raises:
            RuntimeError: No episode is under way.
            ValueError: An agent has no action, or one that the batch refuses.
        """
        if not self.agents:
            raise RuntimeError("no episode is under way: call reset() first")
        agents = self.agents
        missing = [agent for agent in agents if agent not in actions]
        if missing:
            raise ValueError(f"no action for {', '.join(missing)}")
        self._now = step = self._batch.step(self._stacked(actions))
        rewards: dict[str, float] = {}
        terminations: dict[str, bool] = {}
        truncations: dict[str, bool] = {}
        seen: dict[str, Leaves] = {}
        for group in self._batch.spec.groups:
            part = step.groups[group.name]
            rewards |= zip(group.agents, part.reward[0].tolist(), strict=True)
            terminations |= zip(group.agents, part.terminated[0].tolist(), strict=True)
            truncations |= zip(group.agents, part.truncated[0].tolist(), strict=True)
            seen[group.name] = part.final_observation if part.final_observation is not None else part.observation
        if step.done[0]:
            self.agents = []
        infos = {agent: self._batch.info(step) for agent in agents}
        return self._rows(seen), rewards, terminations, truncations, infos

    def render(self) -> NDArray[np.uint8] | None:
        """The episode so far, or the whole of one that has just ended, ``[H, W, 3]`` uint8; None without a mode.

        Raises:
            RuntimeError: There was no reset yet.
        """
        if self.render_mode is None:
            return None
        if self._now is None:
            raise RuntimeError("nothing to render: call reset() first")
        return self._picture()

    def close(self) -> None:
        """Nothing is held."""

    def _renders(self, batch: Batch) -> bool:
        return hasattr(batch, "render")

    def _picture(self) -> NDArray[np.uint8]:
        picture: NDArray[np.uint8] = self._batch.render()  # type: ignore[attr-defined]
        return picture

    def _stacked(self, actions: dict[str, Any]) -> dict[str, Leaves]:
        stacked: dict[str, Leaves] = {}
        for group in self._batch.spec.groups:
            alone = len(group.action) == 1
            stacked[group.name] = {
                leaf: np.stack(
                    [
                        np.asarray(actions[agent] if alone else actions[agent][leaf], space.dtype)
                        for agent in group.agents
                    ]
                )[None]
                for leaf, space in group.action.items()
            }
        return stacked

    def _rows(self, seen: dict[str, Leaves]) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for group in self._batch.spec.groups:
            for index, agent in enumerate(group.agents):
                leaves = {leaf: array[0, index] for leaf, array in seen[group.name].items()}
                rows[agent] = leaves if len(leaves) > 1 else next(iter(leaves.values()))
        return rows


def _space(leaves: Any) -> spaces.Space[Any]:
    spaces_of = {leaf: copy.deepcopy(space) for leaf, space in leaves.items()}
    return spaces.Dict(spaces_of) if len(spaces_of) > 1 else next(iter(spaces_of.values()))
