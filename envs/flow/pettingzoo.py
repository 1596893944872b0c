"""The generation environments as PettingZoo environments: a thin view on a batch of one copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.flow import mixture as _mixture
from marl_tr.envs.flow import video as _video
from marl_tr.envs.flow.generation import GenerationVectorEnv
from marl_tr.envs.view import Batch, BatchParallelEnv
from marl_tr.vector.contract import Leaves

__all__ = ["GenerationParallelEnv", "mixture", "moving_shapes"]

Array = NDArray[Any]


def _view(make: Callable[..., GenerationVectorEnv[Any]], name: str) -> Callable[..., GenerationParallelEnv]:
    def view(*, render_mode: str | None = None, **config: Any) -> GenerationParallelEnv:
        return GenerationParallelEnv(make(**config), name=name, render_mode=render_mode)

    return view


class GenerationParallelEnv(BatchParallelEnv):
    """One copy of a generation environment; see `BatchParallelEnv`.

    With an episode's last step each agent's info holds the sample's metrics; else infos are empty.

    Args:
        batch: One copy.
        name: For PettingZoo's metadata.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ValueError: `render_mode` is not offered, or `batch` has several copies.
    """

    def __init__(self, batch: GenerationVectorEnv[Any], *, name: str, render_mode: str | None = None) -> None:
        super().__init__(batch, name=name, render_mode=render_mode, fps=4)
        self._task = batch.task
        self._told: Leaves = {}
        self._path: list[Array] = []

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """See `BatchParallelEnv.reset`."""
        begun = super().reset(seed, options)
        assert self._now is not None
        seen = self._now.groups[self._task.group].observation
        self._told = {leaf: seen[leaf][0] for leaf in self._task.condition}
        self._path = [seen["latent"][0]] if "latent" in seen else []
        return begun

    def _stacked(self, actions: dict[str, Any]) -> dict[str, Leaves]:
        """And remember what was made, for `render`."""
        stacked = super()._stacked(actions)
        self._path.append(stacked[self._task.group]["action"][0])
        return stacked

    def _renders(self, batch: Batch) -> bool:
        return True

    def _picture(self) -> NDArray[np.uint8]:
        """What has been made so far."""
        nothing = np.zeros((len(self.possible_agents), *self._task.event), np.float32)
        now = self._path[-1] if self._path else nothing
        picture = next(iter(self._task.pictures(self._told, now[None]).values()))
        return picture() if callable(picture) else picture


moving_shapes = _view(_video.make, "flow_moving_shapes_v0")
"""``flow/moving_shapes-v0``; keyword arguments are the fields of `MovingShapesConfig`, `cohort` left at 1.

Example:
    >>> env = moving_shapes(segments=2)
    >>> observations, infos = env.reset(seed=1)
    >>> actions = {agent: env.action_space(agent).sample() for agent in env.agents}
    >>> observations, rewards, terminations, truncations, infos = env.step(actions)
"""

mixture = _view(_mixture.make, "flow_mixture_v0")
"""``flow/mixture-v0``; keyword arguments are the fields of `MixtureConfig`, `cohort` left at 1."""
