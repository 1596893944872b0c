"""``flow/mixture-v0``: points in the plane whose law is known exactly, for tests and experiments of seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.envs.flow.config import MixtureConfig
from marl_tr.envs.flow.curves import CURVES
from marl_tr.envs.flow.generation import Draw, GenerationVectorEnv, Pictures, Verdict
from marl_tr.envs.flow.measures import pairwise_distance
from marl_tr.envs.flow.mixture_velocity import CONDITION, WIDTH, component_arcs, component_means
from marl_tr.vector.contract import Leaves

__all__ = ["Arc", "Mixture", "make"]

Array = NDArray[Any]

_LIMIT = 1e6
"""Coordinates are cut off there, so that every finite action has a finite reward."""
_TARGET = 0.75
"""Where on its arc the preferred point lies: neither the middle nor an end of the data."""

_BINS = 32
"""Equal parts of the curve for the entropy of samples along it."""

_COMPONENT, _SPREAD, _NOISE = range(Draw.FIRST_PURPOSE, Draw.FIRST_PURPOSE + 3)


def make(*, num_envs: int = 1, env_offset: int = 0, **config: Any) -> GenerationVectorEnv[Arc]:
    """``flow/mixture-v0``, native.

    Args:
        num_envs: ``E``, a multiple of the cohort's size.
        env_offset: Index of the first copy in the random streams.
        **config: Fields of `MixtureConfig`.

    Raises:
        pydantic.ValidationError: A field is unknown or out of range.
        UnequalCohorts: `num_envs` is not a multiple of `cohort`.
        ValueError: `num_envs` is below 1.

    Example:
        >>> env = make(num_envs=8, curve="moons", arcs=2)
        >>> env.reset(seed=1).groups["point"].observation["condition"].shape
        (8, 1, 2)
    """
    return GenerationVectorEnv(Mixture(MixtureConfig(**config)), num_envs=num_envs, env_offset=env_offset)


@dataclass(frozen=True)
class Arc:
    """Of ``E`` copies.

    Attributes:
        index: ``[E]`` int64, the arc asked for.
        target: ``[E]``, arc parameter of the preferred point.
    """

    index: Array
    target: Array


class Mixture:
    """The task; see `marl_tr.envs.flow.generation.Task`.

    The reward is ``exp(-(C du / reach)^2 / 2) - manifold_weight min(distance, 1)``, with ``du`` between the arc
    parameter of the nearest point of the curve and that of the preferred point of the arc asked for.
    """

    id = "flow/mixture-v0"
    group = "point"
    agents: tuple[str, ...] = ("point_0",)
    event: tuple[int, ...] = (2,)
    metrics: tuple[str, ...] = ("reward", "manifold_distance", "arc", "arc_accuracy")
    hacking = ("reward", "manifold_distance")
    gallery_size = 256

    def __init__(self, config: MixtureConfig) -> None:
        self.config = config
        self.curve = CURVES[config.curve]
        self.condition: Mapping[str, spaces.Box] = {CONDITION: spaces.Box(0.0, 1.0, (config.arcs,), np.float32)}
        self._means = component_means(config.curve)
        self._arcs = component_arcs(config.arcs)

    def ask(self, draw: Draw) -> Arc:
        """Arcs spread over the cohorts."""
        index = draw.conditions(self.config.arcs)
        return Arc(index=index, target=(index + _TARGET) / self.config.arcs)

    def told(self, asked: Arc) -> Leaves:
        """One-hot ``[E, 1, C]``."""
        return {CONDITION: np.eye(self.config.arcs, dtype=np.float32)[asked.index][:, None]}

    def judge(self, asked: Arc, samples: Array) -> Verdict:
        """See the class."""
        nearest = self.curve.nearest(np.clip(samples[:, 0].astype(np.float64), -_LIMIT, _LIMIT))
        gap = nearest.u - asked.target
        if self.curve.closed:
            gap = (gap + 0.5) % 1.0 - 0.5
        closeness = np.exp(-0.5 * np.square(self.config.arcs * gap / self.config.reach))
        reward = closeness - self.config.manifold_weight * np.minimum(nearest.distance, 1.0)
        metrics = {
            "reward": reward,
            "manifold_distance": nearest.distance,
            "arc": nearest.u,
            "arc_accuracy": self._arc_of(nearest.u) == asked.index,
        }
        return Verdict(
            reward=reward[:, None], metrics={name: values.astype(np.float32) for name, values in metrics.items()}
        )

    def targets(self) -> Mapping[str, Callable[[Arc, Draw], Array]]:
        """The preferred point, the data as asked, and noise."""
        return {
            "preferred point": lambda asked, draw: self.curve.point(asked.target)[:, None],
            "data as asked": self._data,
            "noise": lambda asked, draw: draw.noise(_NOISE, (1, 2)),
        }

    def pictures(self, told: Leaves, path: Array) -> Pictures:
        """``plane``: the sample (and the way there) beside the curve."""
        from marl_tr.envs.flow.plane import plane

        arc = int(told[CONDITION][0].argmax())
        title = f"arc {arc} of {self.config.arcs}"
        return {
            "plane": plane(self.config.curve, path[-1:, 0], arc=(arc, self.config.arcs), path=path[:, 0], title=title)
        }

    def gallery(self, told: Leaves, samples: Array) -> Pictures:
        """``points``: the samples over the curve, coloured by the arc asked for."""
        return {"points": self._planes(told, {f"{len(samples)} samples": samples})}

    def before_after(self, told: Leaves, before: Array, after: Array) -> Pictures:
        """``before_after``: two pictures of samples over the curve beside each other."""
        return {"before_after": self._planes(told, {"before": before, "after, from the same noise": after})}

    def diversity(self, samples: Array, cohort: Array) -> dict[str, float]:
        """``curve_entropy`` in nats of the nearest points over 32 parts of the curve, and ``pairwise_distance`` within
        cohorts where any has two samples."""
        points = np.clip(samples[:, 0].astype(np.float64), -_LIMIT, _LIMIT)
        bins = np.minimum((self.curve.nearest(points).u * _BINS).astype(np.int64), _BINS - 1)
        share = np.bincount(bins, minlength=_BINS) / len(bins)
        measured = {"curve_entropy": float(-np.sum(share * np.log(np.where(share > 0, share, 1.0))))}
        pairwise = pairwise_distance(torch.from_numpy(points), torch.from_numpy(cohort))
        return measured if pairwise is None else {**measured, "pairwise_distance": pairwise}

    def demonstrations(self, count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Samples ``[B, 2]`` of the mixture, and the arcs that they lie in."""
        device = generator.device
        component = torch.randint(len(self._means), (count,), generator=generator, device=device)
        spread = torch.randn(count, 2, generator=generator, device=device)
        condition = torch.nn.functional.one_hot(self._arcs.to(device)[component], self.config.arcs).float()
        return {CONDITION: condition}, self._means.to(device)[component].float() + WIDTH * spread

    def measure(self, samples: Tensor, observation: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean distance to the curve, and the share that is nearest to the arc asked for."""
        nearest = self.curve.nearest(samples.detach().cpu().double().clamp(-_LIMIT, _LIMIT).numpy())
        asked = observation[CONDITION].cpu().argmax(1).numpy()
        return {
            "manifold_distance": float(nearest.distance.mean()),
            "arc_accuracy": float((self._arc_of(nearest.u) == asked).mean()),
        }

    def _planes(self, told: Leaves, samples: Mapping[str, Array]) -> Array:
        from marl_tr.envs.flow.plane import planes

        return planes(
            self.config.curve,
            [points[:, 0] for points in samples.values()],
            told[CONDITION][:, 0].argmax(1),
            (np.arange(self.config.arcs) + _TARGET) / self.config.arcs,
            titles=list(samples),
        )

    def _arc_of(self, u: Array) -> Array:
        index: Array = np.minimum((u * self.config.arcs).astype(np.int64), self.config.arcs - 1)
        return index

    def _data(self, asked: Arc, draw: Draw) -> Array:
        # Components of an arc are neighbours: the first, and how many.
        arcs = self._arcs.numpy()
        first, last = np.searchsorted(arcs, asked.index), np.searchsorted(arcs, asked.index, side="right")
        component = first + (draw.per_copy(_COMPONENT, 1)[:, 0] * (last - first)).astype(np.int64)
        points: Array = self._means.numpy()[component][:, None] + WIDTH * draw.noise(_SPREAD, (1, 2))
        return points
