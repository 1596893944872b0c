"""What clips of moving shapes are worth: visual quality, motion quality and text alignment, and what they really are.

The three components stand in for VideoAlign's: each sees one side of a clip and is blind to the others, so that a
policy can raise one at the cost of what none of them measures. The held-out measures (nearest legal clip, its distance
and its condition) are never part of the reward.

Letters: ``N`` clips, ``F`` frames, ``S`` pixels of an edge, ``P`` half-pixel positions an axis.

Source: the environment of the SAGE-GRPO study, reconstructed; formulas are ours, none is the publication's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from marl_tr.envs.flow.bank import PIXELS, Bank, Fit
from marl_tr.envs.flow.config import Weights, component_weights
from marl_tr.envs.flow.shapes import SIZE, SPEEDS, Condition, Level
from marl_tr.envs.flow.standardisation import COMPONENTS, STANDARDISATION

__all__ = ["CHUNK", "LIMIT", "Judge", "Scores", "flicker", "motion_quality", "shifted", "text_alignment"]

CHUNK = 16
"""Clips judged at a time, the last time filled up with empty ones: a matrix product may round otherwise for another
number of rows, and a clip's reward must not depend on how many others are judged."""

LIMIT = 4.0
"""Pixels are cut off at +-4 (legal ones lie within +-1): rewards stay finite for every finite clip."""

_STILL = 0.5
"""Mean speed in pixels a frame below which a clip counts as standing still."""


@dataclass(frozen=True)
class Scores:
    """Of ``N`` clips; every field is ``[N]`` but for `fit`.

    Attributes:
        vq: Raw visual quality, 0 at best.
        mq: Raw motion quality, 0 at best.
        ta: Raw text alignment, a log-probability.
        overall: Weighted sum of the standardised three.
        flicker: Mean absolute change between frames that the mean motion does not explain (held out).
        shape: Whether the nearest legal clip's is the one asked for, 0 or 1 (held out).
        direction: The same of its direction.
        speed: The same of its speed.
        fit: The nearest legal clip (held out).
    """

    vq: Tensor
    mq: Tensor
    ta: Tensor
    overall: Tensor
    flicker: Tensor
    shape: Tensor
    direction: Tensor
    speed: Tensor
    fit: Fit


class Judge:
    """Scores clips against what was asked.

    Args:
        level: Of the world.
        weights: Of the three components in `Scores.overall`.
        tau: Width of text alignment's kernel.
    """

    def __init__(self, level: Level = "plain", *, weights: Weights = "A", tau: float = 4.0) -> None:
        self.bank = Bank(level)
        self._weights = component_weights(weights)
        self._tau = tau
        self._constants = STANDARDISATION[level]

    def __call__(self, clips: Tensor, asked: Condition) -> Scores:
        """Scores of finite clips ``[N, 1, F, S, S]``; a clip's do not depend on the others."""
        parts = []
        with torch.no_grad():
            for first in range(0, len(clips), CHUNK):
                part = clips[first : first + CHUNK].float().clamp(-LIMIT, LIMIT)
                empty = (0, 0) * 4 + (0, CHUNK - len(part))
                index = pad(asked.index[first : first + CHUNK], (0, CHUNK - len(part)))
                judged = self._judge(pad(part, empty).contiguous(), Condition.from_index(index))
                parts.append(_rows(judged, slice(len(part))))
        scores: Scores = _joined(parts)
        return scores

    def standardised(self, scores: Scores) -> dict[str, Tensor]:
        """The components ``vq``, ``mq``, ``ta``, each with the mean and std of the pretrained model's samples."""
        return {
            name: (getattr(scores, name) - self._constants[name].mean) / self._constants[name].std
            for name in COMPONENTS
        }

    def _judge(self, clips: Tensor, asked: Condition) -> Scores:
        bank = self.bank
        match = bank.match(clips)
        distances = bank.clip_distances(match)
        fit = bank.fit(clips, distances)
        nearest = bank.frame_distances(match).flatten(2).min(2)  # [N, F]
        size = len(bank.grid)
        place = torch.stack([bank.grid[nearest.indices % size**2 // size], bank.grid[nearest.indices % size]], -1)
        mq, unexplained = motion_quality(clips, place, bank)
        raw = {
            "vq": -(nearest.values / PIXELS).sqrt().mean(1),
            "mq": mq,
            "ta": text_alignment(distances, asked, tau=self._tau),
        }
        parts = zip(self._weights, COMPONENTS, strict=True)
        overall = sum(w * (raw[name] - self._constants[name].mean) / self._constants[name].std for w, name in parts)
        assert isinstance(overall, Tensor)
        return Scores(
            **raw,
            overall=overall,
            flicker=unexplained,
            shape=(fit.condition.shape == asked.shape).float(),
            direction=(fit.condition.direction == asked.direction).float(),
            speed=(fit.condition.speed == asked.speed).float(),
            fit=fit,
        )


def motion_quality(clips: Tensor, place: Tensor, bank: Bank) -> tuple[Tensor, Tensor]:
    """How evenly and how legally fast the fitted position moves, and how much of the change that explains.

    Plain level: ``-std(d) - | |mean d| - nearest legal speed | - flicker / 2 - 2 max(0, 1/2 - |mean d|)`` with the
    wrapped displacements ``d`` between frames. On the hard level a bounce is no unevenness: the first two terms are the
    root mean squared difference to the displacements of the nearest legal trajectory, and the rest uses that one's.

    Args:
        clips: ``[N, 1, F, S, S]``.
        place: ``[N, F, 2]`` pixels, position of the legal frame nearest to each frame.
        bank: Of the level.

    Returns:
        Motion quality and flicker, ``[N]`` each.
    """
    moved = place[:, 1:] - place[:, :-1]  # [N, F - 1, 2]
    if bank.level == "plain":
        moved = (moved + SIZE / 2) % SIZE - SIZE / 2
        mean = moved.mean(1, keepdim=True)
        speed = mean.squeeze(1).norm(dim=-1)
        uneven = (moved - mean).square().sum(-1).mean(1).sqrt()
        illegal = (speed[:, None] - torch.tensor(SPEEDS)).abs().amin(1)
        unexplained = flicker(clips, mean.expand_as(moved))
    else:
        legal = _legal_displacements(bank)
        gaps = (moved[:, None] - legal).square().sum(-1).mean(2)  # [N, 8 P]
        nearest = gaps.min(1)
        speed = moved.norm(dim=-1).mean(1)
        uneven, illegal = nearest.values.sqrt(), torch.zeros_like(speed)
        unexplained = flicker(clips, legal[nearest.indices])
    still = 2 * (_STILL - speed).clamp_min(0)
    return -uneven - illegal - still - unexplained / 2, unexplained


def text_alignment(distances: Tensor, asked: Condition, *, tau: float) -> Tensor:
    """``log sum exp(-|x - y|^2 / (2 tau^2))`` over legal clips y as asked, less the same over all: ``[N]``.

    It is the log-probability of the condition asked for, under equal odds of all clips of the bank and Gaussian noise
    of standard deviation `tau` a pixel.

    Args:
        distances: Squared distances to the bank, ``[N, 24, P, P]``.
        asked: Of the ``N`` clips.
        tau: Width of the kernel.
    """
    by_condition = torch.logsumexp(-distances.flatten(2) / (2 * tau**2), 2)  # [N, 24]
    return by_condition.gather(1, asked.index[:, None]).squeeze(1) - torch.logsumexp(by_condition, 1)


def flicker(clips: Tensor, moved: Tensor) -> Tensor:
    """Mean ``|frame_{t+1} - frame_t shifted by its displacement|``, ``[N]``; `moved` ``[N, F - 1, 2]`` pixels."""
    frames = clips.squeeze(1)
    return (frames[:, 1:] - shifted(frames[:, :-1], moved)).abs().mean((1, 2, 3))


def shifted(frames: Tensor, by: Tensor) -> Tensor:
    """Frames ``[..., S, S]`` moved by ``[..., 2]`` pixels (x, y) on the torus, linear between pixels."""
    pixel = torch.arange(SIZE, dtype=frames.dtype)
    # Row: where to; column: where from; the weight falls linearly to 0 at one pixel.
    gap = (pixel[:, None] - pixel - by[..., None, None] + SIZE / 2) % SIZE - SIZE / 2  # [..., 2, S, S]
    weights = (1 - gap.abs()).clamp_min(0)
    return weights[..., 1, :, :] @ frames @ weights[..., 0, :, :].mT


def _legal_displacements(bank: Bank) -> Tensor:
    """``[8 P, F - 1, 2]``: of trajectories along x, then along y."""
    steps = bank.trajectories().diff(dim=1)
    still = torch.zeros_like(steps)
    return torch.cat([torch.stack([steps, still], -1), torch.stack([still, steps], -1)])


def _rows(scores: Any, rows: slice) -> Any:
    """The rows of a (nested) dataclass of tensors."""
    cut = {f.name: getattr(scores, f.name) for f in fields(scores)}
    return type(scores)(**{k: v[rows] if isinstance(v, Tensor) else _rows(v, rows) for k, v in cut.items()})


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    joined = {}
    for name in (f.name for f in fields(first)):
        values = [getattr(part, name) for part in parts]
        joined[name] = torch.cat(values) if isinstance(values[0], Tensor) else _joined(values)
    return type(first)(**joined)
