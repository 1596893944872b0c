"""``flow/moving_shapes-v0``: clips of a moving shape, made to order by one agent or segment by segment by several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.envs.flow.config import MovingShapesConfig
from marl_tr.envs.flow.generation import Draw, GenerationVectorEnv, Pictures, Verdict
from marl_tr.envs.flow.measures import pairwise_distance, start_entropy, torus_distance
from marl_tr.envs.flow.render import contact_sheet, describe, film, grid_film, side_by_side
from marl_tr.envs.flow.rewards import Judge, Scores
from marl_tr.envs.flow.shapes import (
    CONDITIONS,
    DIMMEST,
    DIRECTIONS,
    FRAMES,
    SHAPES,
    SIZE,
    SPEEDS,
    TOKEN_FEATURES,
    TOKENS,
    WALL,
    Condition,
    condition_tokens,
    decode_condition,
    positions,
    render_clips,
    sample_clips,
)
from marl_tr.vector.contract import Leaves

__all__ = ["CELL", "PLACE_KEPT", "Asked", "MovingShapes", "make"]

Array = NDArray[Any]

CELL = 4.0
"""Pixels of an edge of the cells that places are told in."""
PLACE_KEPT = 0.3
"""Share of demonstrations with a place token."""

_START, _OWN_START, _BRIGHTNESS, _NOISE = range(Draw.FIRST_PURPOSE, Draw.FIRST_PURPOSE + 4)


def make(*, num_envs: int = 1, env_offset: int = 0, **config: Any) -> GenerationVectorEnv[Asked]:
    """``flow/moving_shapes-v0``, native.

    Args:
        num_envs: ``E``, a multiple of the cohort's size.
        env_offset: Index of the first copy in the random streams.
        **config: Fields of `MovingShapesConfig`.

    Raises:
        pydantic.ValidationError: A field is unknown or out of range.
        UnequalCohorts: `num_envs` is not a multiple of `cohort`.
        ValueError: `num_envs` is below 1.

    Example:
        >>> env = make(num_envs=8, cohort=4)
        >>> env.reset(seed=1).groups["segment"].observation["tokens"].shape
        (8, 1, 4, 32)
    """
    return GenerationVectorEnv(MovingShapes(MovingShapesConfig(**config)), num_envs=num_envs, env_offset=env_offset)


@dataclass(frozen=True)
class Asked:
    """Of ``E`` copies with ``A`` segments.

    Attributes:
        condition: ``[E]`` each.
        start: ``[E, A, 2]`` pixels, where each segment starts in the ideal motion.
        place: ``[E, A, 2]``, centre of the cell told, or None where no place is told.
    """

    condition: Condition
    start: Tensor
    place: Tensor | None


class MovingShapes:
    """The task; see `marl_tr.envs.flow.generation.Task`."""

    id = "flow/moving_shapes-v0"
    group = "segment"
    event: tuple[int, ...] = (1, FRAMES, SIZE, SIZE)
    hacking = ("overall", "manifold_distance")
    gallery_size = 16

    def __init__(self, config: MovingShapesConfig) -> None:
        self.config = config
        self.agents = tuple(f"segment_{k}" for k in range(config.segments))
        self.condition: Mapping[str, spaces.Box] = {
            "tokens": spaces.Box(-np.inf, np.inf, (TOKENS, TOKEN_FEATURES), np.float32)
        }
        self.metrics: tuple[str, ...] = (
            *("vq", "mq", "ta", "overall", "manifold_distance"),
            *("shape_accuracy", "direction_accuracy", "speed_accuracy", "flicker", "fit_x", "fit_y"),
            *(("place_distance",) if config.told_place else ()),
            *(("consistency",) if config.segments > 1 else ()),
        )
        self.judge_clips = Judge(config.level, weights=config.weights, tau=config.tau)

    def ask(self, draw: Draw) -> Asked:
        """Conditions spread over the cohorts, starts uniform."""
        condition = Condition.from_index(torch.from_numpy(draw.conditions(CONDITIONS)))
        first = self._within(torch.from_numpy(draw.per_cohort(_START, 2)).float())
        frames = FRAMES * self.config.segments
        track = positions(first, condition.velocity, level=self.config.level, frames=frames)
        start = track[:, ::FRAMES]
        place = None
        if self.config.told_place:
            place = torch.floor(start / CELL) * CELL + CELL / 2
            if self.config.level == "hard":
                place = place.clamp(WALL, SIZE - WALL)
        return Asked(condition, start, place)

    def told(self, asked: Asked) -> Leaves:
        """Tokens ``[E, A, 4, 32]``."""
        copies, segments = asked.start.shape[:2]
        place = None if asked.place is None else asked.place.flatten(0, 1)
        tokens = condition_tokens(self._each(asked.condition), place)
        return {"tokens": tokens.view(copies, segments, TOKENS, TOKEN_FEATURES).float().numpy()}

    def judge(self, asked: Asked, samples: Array) -> Verdict:
        """Mean worth of the segments, plus how well they continue each other; the same for every agent."""
        copies, segments = asked.start.shape[:2]
        scores = self.judge_clips(torch.from_numpy(samples).flatten(0, 1), self._each(asked.condition))

        def per_copy(values: Tensor) -> Tensor:
            return values.view(copies, segments).mean(1)

        start = scores.fit.start.view(copies, segments, 2)
        measured = {name: per_copy(values) for name, values in self.judge_clips.standardised(scores).items()}
        measured |= {
            "overall": per_copy(scores.overall),
            "manifold_distance": per_copy(scores.fit.distance),
            "shape_accuracy": per_copy(scores.shape),
            "direction_accuracy": per_copy(scores.direction),
            "speed_accuracy": per_copy(scores.speed),
            "flicker": per_copy(scores.flicker),
            "fit_x": start[:, 0, 0],
            "fit_y": start[:, 0, 1],
        }
        if asked.place is not None:
            measured["place_distance"] = torus_distance(start, asked.place).mean(1)
        reward = measured["overall"]
        if segments > 1:
            measured["consistency"] = self._consistency(scores, copies)
            reward = reward + self.config.consistency * measured["consistency"]
        return Verdict(
            reward=reward[:, None].expand(-1, segments).numpy(),
            metrics={name: measured[name].numpy().astype(np.float32) for name in self.metrics},
        )

    def targets(self) -> Mapping[str, Callable[[Asked, Draw], Array]]:
        """Legal clips as asked (an oracle), legal clips wrong in all three words, and noise."""
        return {
            "legal clips as asked": self._legal,
            "legal clips of another condition": self._other,
            "noise": lambda asked, draw: draw.noise(_NOISE, (len(self.agents), *self.event)),
        }

    def pictures(self, told: Leaves, path: Array) -> Pictures:
        """``clip``: the frames side by side, a row a segment; ``denoising``: the way there (view ``steps``);
        ``motion``: a video."""
        tokens = torch.from_numpy(told["tokens"])
        captions = [describe(decode_condition(tokens), row) for row in range(len(tokens))]
        pictures: dict[str, Array | Callable[[], Array]] = {"clip": contact_sheet(path[-1], captions)}
        if len(path) > 1:
            levels = [f"noise level {sigma:.2f}" for sigma in self.config.sigmas]
            pictures["denoising"] = contact_sheet(path[:, 0], levels)
        # Segments one after the other: one long clip.
        pictures["motion"] = lambda: film(np.concatenate(list(path[-1, :, 0])))
        return pictures

    def gallery(self, told: Leaves, samples: Array) -> Pictures:
        """``clips``: a row a sample, with what was asked and what is nearest; ``motion``: a video of all."""
        asked, found = self._captions(told, samples)
        captions = [f"asked: {said}\n{seen}" for said, seen in zip(asked, found, strict=True)]
        return {
            "clips": contact_sheet(_long(samples), captions, scale=self._scale),
            "motion": lambda: self._film(samples, asked),
        }

    def before_after(self, told: Leaves, before: Array, after: Array) -> Pictures:
        """``before_after``: pairs of rows; ``before_after_motion``: two videos beside each other."""
        asked, was = self._captions(told, before)
        _, became = self._captions(told, after)
        rows = np.stack([_long(before), _long(after)], 1).reshape(-1, *_long(before).shape[1:])
        captions = [
            caption
            for said, old, new in zip(asked, was, became, strict=True)
            for caption in (f"asked: {said}\nbefore: {old}", f"after: {new}")
        ]
        return {
            "before_after": contact_sheet(rows, captions, scale=min(4, self._scale), group=2),
            "before_after_motion": lambda: side_by_side(
                [self._film(before, asked), self._film(after, asked)], ["before", "after, from the same noise"]
            ),
        }

    def diversity(self, samples: Array, cohort: Array) -> dict[str, float]:
        """``start_entropy`` of the nearest legal clips (their first segments), and ``pairwise_distance`` within cohorts
        where any has two samples."""
        clips = torch.from_numpy(samples)
        nowhere = Condition.from_index(torch.zeros(len(clips), dtype=torch.int64))
        measured = {"start_entropy": start_entropy(self.judge_clips(clips[:, 0], nowhere).fit.start)}
        pairwise = pairwise_distance(clips, torch.from_numpy(cohort))
        return measured if pairwise is None else {**measured, "pairwise_distance": pairwise}

    def demonstrations(self, count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Legal clips ``[B, 1, 8, 16, 16]`` with their tokens; the place (exact) is told for a share of them."""
        condition, start, clips = sample_clips(count, generator, level=self.config.level)
        tokens = condition_tokens(condition, start)
        kept = torch.rand(count, generator=generator, device=generator.device) < PLACE_KEPT
        tokens[:, -1] *= kept[:, None]
        return {"tokens": tokens}, clips

    def measure(self, samples: Tensor, observation: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the samples: raw reward components, manifold distance, accuracies, flicker."""
        scores = self.judge_clips(samples.detach().cpu(), decode_condition(observation["tokens"].cpu().float()))
        measured = {"manifold_distance": scores.fit.distance}
        measured |= {f"{name}_accuracy": getattr(scores, name) for name in ("shape", "direction", "speed")}
        measured |= {name: getattr(scores, name) for name in ("flicker", "vq", "mq", "ta", "overall")}
        return {name: float(values.mean()) for name, values in measured.items()}

    @property
    def _scale(self) -> int:
        """Edge of a pixel of contact sheets: long clips are drawn smaller."""
        return max(2, 5 - self.config.segments // 2)

    def _film(self, samples: Array, asked: list[str]) -> Array:
        return grid_film(_long(samples), asked, repeats=1 if self.config.segments > 2 else 3)

    def _captions(self, told: Leaves, samples: Array) -> tuple[list[str], list[str]]:
        """What was asked of each of ``[n, A, *event]`` samples, and what legal clips are nearest, how far away."""
        copies, segments = samples.shape[:2]
        asked = decode_condition(torch.from_numpy(told["tokens"]).flatten(0, 1))
        fit = self.judge_clips(torch.from_numpy(samples).flatten(0, 1), asked).fit
        said, found = [], []
        for copy in range(copies):
            rows = range(copy * segments, (copy + 1) * segments)
            said.append(describe(asked, rows[0]))
            seen = list(dict.fromkeys(describe(fit.condition, row) for row in rows))
            distance = float(fit.distance[rows[0] : rows[-1] + 1].mean())
            text = "as asked" if seen == [said[-1]] else "is " + " and ".join(seen)
            found.append(f"{text}; off by {distance:.2f}")
        return said, found

    def _each(self, condition: Condition) -> Condition:
        """Of each segment of each copy, ``[E A]``."""
        return Condition.from_index(condition.index.repeat_interleave(self.config.segments))

    def _within(self, unit: Tensor) -> Tensor:
        """Numbers in [0, 1) as starts in pixels."""
        return unit * SIZE if self.config.level == "plain" else WALL + unit * (SIZE - 2 * WALL)

    def _consistency(self, scores: Scores, copies: int) -> Tensor:
        """``[E]``, mean over joints: 1 where the next segment shows the same shape, less the distance in cells from
        where the fitted motion would go on to where the next segment starts."""
        segments = self.config.segments
        start = scores.fit.start.view(copies, segments, 2)
        velocity = scores.fit.condition.velocity
        ahead = positions(scores.fit.start, velocity, frames=FRAMES + 1)[:, -1].view(copies, segments, 2)
        shape = scores.fit.condition.shape.view(copies, segments)
        gap = torus_distance(ahead[:, :-1], start[:, 1:]) / CELL
        return ((shape[:, :-1] == shape[:, 1:]).float() - gap).mean(1)

    def _legal(self, asked: Asked, draw: Draw) -> Array:
        return self._render(asked.condition.index, asked, draw)

    def _other(self, asked: Asked, draw: Draw) -> Array:
        wrong = Condition(
            shape=(asked.condition.shape + 1) % len(SHAPES),
            direction=(asked.condition.direction + 1) % len(DIRECTIONS),
            speed=(asked.condition.speed + 1) % len(SPEEDS),
        )
        return self._render(wrong.index, asked, draw)

    def _render(self, index: Tensor, asked: Asked, draw: Draw) -> Array:
        """Legal clips ``[E, A, 1, 8, 16, 16]`` that start where asked, or where no place is told, anywhere."""
        copies, segments = asked.start.shape[:2]
        start = asked.start
        if asked.place is None:
            start = self._within(torch.from_numpy(draw.per_copy(_OWN_START, 2)).float()).unsqueeze(1)
        brightness = None
        if self.config.level == "hard":
            unit = torch.from_numpy(draw.per_copy(_BRIGHTNESS, 1)).float()
            brightness = (DIMMEST + (1 - DIMMEST) * unit).expand(-1, segments).flatten()
        condition = Condition.from_index(index.repeat_interleave(segments))
        clips = render_clips(condition, start.flatten(0, 1), level=self.config.level, brightness=brightness)
        legal: Array = clips.view(copies, segments, *self.event).numpy()
        return legal


def _long(samples: Array) -> Array:
    """Segments ``[n, A, 1, F, S, S]`` one after the other, ``[n, 1, A F, S, S]``."""
    return np.concatenate(list(samples.swapaxes(0, 1)), axis=2)
