"""Moving shapes on a torus: a video world whose manifold of legal clips is known exactly.

A clip is a soft-edged shape that moves at constant velocity over a square with wrap-around (or, on the hard level,
between walls that it bounces off, at a brightness of its own). Its condition is a set of tokens, as a text encoder
would give: shape, direction, speed, and optionally the place where it starts.

Letters: ``F`` frames, ``S`` pixels of an edge, ``N`` clips, ``D`` features of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CONDITIONS",
    "DIMMEST",
    "DIRECTIONS",
    "FRAMES",
    "SHAPES",
    "SIZE",
    "SPEEDS",
    "TOKENS",
    "TOKEN_FEATURES",
    "WALL",
    "Condition",
    "Level",
    "condition_tokens",
    "decode_condition",
    "positions",
    "render_clips",
    "render_frames",
    "sample_clips",
]

Level = Literal["plain", "hard"]

FRAMES, SIZE = 8, 16
SHAPES = ("disc", "square", "cross")
DIRECTIONS = ("right", "down", "left", "up")
SPEEDS = (1.0, 2.0)
"""Pixels a frame."""
CONDITIONS = len(SHAPES) * len(DIRECTIONS) * len(SPEEDS)
TOKENS, TOKEN_FEATURES = 4, 32
"""Shape, direction, speed, place; a token that says nothing is zero."""

_HEADINGS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
_SHARPNESS = 1.5
"""tanh(1.5 d) is 2 sigmoid(3 d) - 1, at distance d pixels inside the edge."""
WALL = 3.0
"""Pixels that a centre keeps from the walls on the hard level."""
DIMMEST = 0.5
"""Least brightness on the hard level."""


@dataclass(frozen=True)
class Condition:
    """What is asked of ``N`` clips.

    Attributes:
        shape: ``[N]`` int64, into `SHAPES`.
        direction: ``[N]`` int64, into `DIRECTIONS`.
        speed: ``[N]`` int64, into `SPEEDS`.
    """

    shape: Tensor
    direction: Tensor
    speed: Tensor

    @classmethod
    def from_index(cls, index: Tensor) -> Condition:
        """Of the numbers ``[N]`` in ``0 ... 23``."""
        per_shape = len(DIRECTIONS) * len(SPEEDS)
        return cls(shape=index // per_shape, direction=index % per_shape // len(SPEEDS), speed=index % len(SPEEDS))

    @property
    def index(self) -> Tensor:
        """``[N]`` in ``0 ... 23``."""
        return (self.shape * len(DIRECTIONS) + self.direction) * len(SPEEDS) + self.speed

    @property
    def velocity(self) -> Tensor:
        """``[N, 2]`` pixels a frame, (x, y), y downwards."""
        speeds = torch.tensor(SPEEDS, device=self.speed.device)
        return _HEADINGS.to(self.direction.device)[self.direction] * speeds[self.speed].unsqueeze(-1)


def condition_tokens(condition: Condition, place: Tensor | None = None) -> Tensor:
    """Tokens ``[N, 4, 32]`` of a condition; the last one is zero where no `place` ``[N, 2]`` (pixels) is given.

    A word's token is a row of the Hadamard matrix, so that tokens are orthogonal and of norm ``sqrt(32)``; a place's
    token holds the sines and cosines of its first eight harmonics on the torus.
    """
    words = _hadamard(TOKEN_FEATURES).to(condition.shape.device)
    tokens = [
        words[1 + condition.shape],
        words[1 + len(SHAPES) + condition.direction],
        words[1 + len(SHAPES) + len(DIRECTIONS) + condition.speed],
    ]
    tokens.append(torch.zeros_like(tokens[0]) if place is None else _place_token(place))
    return torch.stack(tokens, -2)


def decode_condition(tokens: Tensor) -> Condition:
    """The condition that tokens ``[N, 4, 32]`` say; a dropped (zero) token reads as its first word."""
    words = _hadamard(TOKEN_FEATURES).to(tokens)
    first, said = 1, []
    for position, count in enumerate((len(SHAPES), len(DIRECTIONS), len(SPEEDS))):
        said.append((tokens[:, position] @ words[first : first + count].T).argmax(-1))
        first += count
    return Condition(shape=said[0], direction=said[1], speed=said[2])


def positions(start: Tensor, velocity: Tensor, *, level: Level = "plain", frames: int = FRAMES) -> Tensor:
    """Centres ``[N, F, 2]`` in pixels of shapes that start at ``[N, 2]`` and move at ``[N, 2]`` pixels a frame."""
    time = torch.arange(frames, dtype=start.dtype, device=start.device)
    free = start.unsqueeze(1) + time[:, None] * velocity.unsqueeze(1)
    if level == "plain":
        return free % SIZE
    span = SIZE - 2 * WALL
    folded = (free - WALL) % (2 * span)
    return WALL + torch.minimum(folded, 2 * span - folded)


def render_frames(shape: Tensor, centre: Tensor) -> Tensor:
    """Frames ``[..., S, S]`` in [-1, 1] of shapes ``[...]`` (into `SHAPES`) centred at ``[..., 2]`` pixels."""
    pixel = torch.arange(SIZE, dtype=centre.dtype, device=centre.device)
    half = SIZE / 2
    # The nearest image on the torus, [..., S].
    dx = ((pixel - centre[..., 0:1] + half) % SIZE - half).abs().unsqueeze(-2)
    dy = ((pixel - centre[..., 1:2] + half) % SIZE - half).abs().unsqueeze(-1)
    disc = 3.2 - torch.sqrt(dx.square() + dy.square())
    square = 2.7 - torch.maximum(dx, dy)
    across = torch.minimum(4.2 - dx, 1.2 - dy)
    along = torch.minimum(1.2 - dx, 4.2 - dy)
    inside = torch.stack([disc, square, torch.maximum(across, along)], -3)
    chosen = shape[..., None, None, None].expand(*shape.shape, 1, SIZE, SIZE)
    return torch.tanh(_SHARPNESS * inside.gather(-3, chosen).squeeze(-3))


def render_clips(
    condition: Condition, start: Tensor, *, level: Level = "plain", brightness: Tensor | None = None
) -> Tensor:
    """Clips ``[N, 1, F, S, S]``; `brightness` ``[N]`` in (0, 1] scales the shape over a background of -1."""
    centres = positions(start, condition.velocity.to(start.dtype), level=level)
    clips = render_frames(condition.shape.unsqueeze(1).expand(centres.shape[:2]), centres).unsqueeze(1)
    if brightness is None:
        return clips
    return (clips + 1) * brightness.view(-1, 1, 1, 1, 1).to(clips.dtype) - 1


def sample_clips(count: int, generator: torch.Generator, *, level: Level = "plain") -> tuple[Condition, Tensor, Tensor]:
    """Random legal clips: conditions, starts ``[N, 2]`` and clips ``[N, 1, F, S, S]``, on the generator's device."""
    device = generator.device
    index = torch.randint(CONDITIONS, (count,), generator=generator, device=device)
    start = torch.rand(count, 2, generator=generator, device=device) * SIZE
    condition = Condition.from_index(index)
    if level == "plain":
        return condition, start, render_clips(condition, start)
    start = WALL + start / SIZE * (SIZE - 2 * WALL)
    brightness = DIMMEST + (1 - DIMMEST) * torch.rand(count, generator=generator, device=device)
    return condition, start, render_clips(condition, start, level=level, brightness=brightness)


def _place_token(place: Tensor) -> Tensor:
    harmonics = torch.arange(1, TOKEN_FEATURES // 4 + 1, dtype=place.dtype, device=place.device)
    phase = 2 * np.pi / SIZE * place.unsqueeze(-1) * harmonics  # [N, 2, 8]
    token: Tensor = np.sqrt(2.0) * torch.cat([phase.sin(), phase.cos()], -1).flatten(-2)
    return token


def _hadamard(order: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix
