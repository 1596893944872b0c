"""The manifold of legal clips, searched: which legal clip is nearest, and how far away is it?

A clip of the bank is a trajectory through a bank of frames (3 shapes x half-pixel positions). The squared distance of
a clip to it is the sum of its frames' squared distances, so one product with the frame bank (``[N F, S S] x [S S, 3 P
P]``) and sums along the known trajectories give what a product with all 24 P P clips would, thousands of times cheaper.
Everything is computed on *lifted* values ``x + 1``, where the background is 0 and brightness is a factor.

Letters: ``N`` clips, ``F`` frames, ``S`` pixels of an edge, ``P`` half-pixel positions an axis.

Source: the environment of the SAGE-GRPO study, reconstructed; the factorisation is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_tr.envs.flow.shapes import (
    CONDITIONS,
    DIMMEST,
    FRAMES,
    SHAPES,
    SIZE,
    SPEEDS,
    WALL,
    Condition,
    Level,
    positions,
    render_clips,
    render_frames,
)

__all__ = ["Bank", "Fit", "FrameMatch"]

PIXELS = SIZE * SIZE
_SIGNED = (SPEEDS[0], SPEEDS[1], -SPEEDS[0], -SPEEDS[1])
"""Velocities along an axis."""
_GAP = 0.02
"""Pixels between the two ends of a difference."""


@dataclass(frozen=True)
class Fit:
    """The nearest legal clips to ``N`` clips.

    Attributes:
        condition: What they show.
        start: ``[N, 2]`` pixels (x, y) of the first frame.
        brightness: ``[N]``; 1 on the plain level.
        distance: ``[N]``, root mean squared difference a pixel, on values from -1 to 1.
    """

    condition: Condition
    start: Tensor
    brightness: Tensor
    distance: Tensor


@dataclass(frozen=True)
class FrameMatch:
    """Every frame against every frame of the bank.

    Attributes:
        energy: ``[N, F]``, sum of squared lifted pixels.
        overlap: ``[N, F, 3, P, P]``, inner products with the bank's lifted frames; axes shape, x, y.
    """

    energy: Tensor
    overlap: Tensor


class Bank:
    """Legal frames and clips of a level on half-pixel positions.

    Attributes:
        level: Which.
        grid: ``[P]`` positions in pixels: 32 on the torus, 21 between the walls of the hard level.
    """

    def __init__(self, level: Level = "plain") -> None:
        self.level: Level = level
        low, high = (0.0, SIZE - 0.5) if level == "plain" else (WALL, SIZE - WALL)
        self.grid = torch.arange(low, high + 0.25, 0.5)
        size = len(self.grid)
        shape, x, y = torch.meshgrid(torch.arange(float(len(SHAPES))), self.grid, self.grid, indexing="ij")
        lifted = render_frames(shape.long(), torch.stack([x, y], -1)).flatten(3) + 1  # [3, P, P, S S]
        self._frames = lifted.flatten(0, 2).T.contiguous()
        self._norms = lifted.square().sum(-1)  # [3, P, P]
        self._rows = torch.stack([self._row_index(speed, size) for speed in _SIGNED])
        self._clip_norms = self._along(self._norms.expand(1, FRAMES, -1, -1, -1))  # [1, 24, P, P]

    def match(self, clips: Tensor) -> FrameMatch:
        """Compare the frames of clips ``[N, 1, F, S, S]`` with the frame bank: one matrix product."""
        lifted = clips.flatten(3).squeeze(1) + 1  # [N, F, S S]
        overlap = (lifted.flatten(0, 1) @ self._frames).view(len(clips), FRAMES, *self._norms.shape)
        return FrameMatch(energy=lifted.square().sum(-1), overlap=overlap)

    def frame_distances(self, match: FrameMatch) -> Tensor:
        """Squared distance of each frame to each of the bank, ``[N, F, 3, P, P]``; on the hard level at its own
        best brightness."""
        return self._squared(match.energy[..., None, None, None], match.overlap, self._norms)

    def clip_distances(self, match: FrameMatch) -> Tensor:
        """Squared distance to each clip of the bank, ``[N, 24, P, P]``: condition, x and y of the start; on the hard
        level at the clip's best brightness."""
        energy = match.energy.sum(1)[:, None, None, None]
        return self._squared(energy, self._along(match.overlap), self._clip_norms)

    def fit(self, clips: Tensor, distances: Tensor, *, iterations: int = 4) -> Fit:
        """The nearest legal clips: the bank's nearest, moved to a continuous start.

        Gauss-Newton steps on the start with the condition held, brightness in closed form; a step that does not lower
        the distance is taken back and the next is half as long, so the result is never worse than the bank's.

        Args:
            clips: ``[N, 1, F, S, S]``.
            distances: Theirs, from `clip_distances`.
            iterations: Gauss-Newton steps.
        """
        size = len(self.grid)
        nearest = distances.flatten(2).min(2)  # [N, 24]
        # A clip that starts at a wall is the same clip to the bank whether it moves towards the wall or away from it.
        rivals = nearest.values.topk(1 if self.level == "plain" else 2, largest=False).indices
        lifted = clips.flatten(1) + 1
        fits = []
        for index in rivals.unbind(1):
            cell = nearest.indices.gather(1, index[:, None]).squeeze(1)
            start = torch.stack([self.grid[cell // size], self.grid[cell % size]], -1)
            fits.append(self._refine(lifted, Condition.from_index(index), start, iterations))
        return fits[0] if len(fits) == 1 else _nearer(*fits)

    def trajectories(self) -> Tensor:
        """Positions along one axis of a shape that moves along it, ``[4 P, F]`` pixels: right and left at each
        speed, from every start of the grid."""
        frames = torch.arange(FRAMES) * len(self.grid)
        index = self._rows.view(len(_SIGNED), len(self.grid), FRAMES) - frames
        return self.grid[index].flatten(0, 1)

    def _squared(self, energy: Tensor, overlap: Tensor, norms: Tensor) -> Tensor:
        """``min_b ||X - b Y||^2`` over the legal brightnesses b."""
        if self.level == "plain":
            return (energy - 2 * overlap + norms).clamp_min(0)
        brightness = (overlap / norms).clamp(DIMMEST, 1)
        return (energy - brightness * (2 * overlap - brightness * norms)).clamp_min(0)

    def _row_index(self, speed: float, size: int) -> Tensor:
        """``[P F]``: of each start and frame, its row among the ``F P`` (frame, position) rows."""
        start = self.grid[:, None].expand(-1, 2)
        velocity = torch.tensor([speed, 0.0]).expand(size, 2)
        centre = positions(start, velocity, level=self.level)[..., 0]  # [P, F]
        index = (2 * (centre - self.grid[0])).round().long() % size
        return (index + torch.arange(FRAMES) * size).flatten()

    def _along(self, maps: Tensor) -> Tensor:
        """Sums of ``[N, F, 3, P, P]`` along the trajectories, ``[N, 24, P, P]``."""
        size = len(self.grid)
        by_axis = []
        for axis_last in (maps.permute(0, 2, 1, 3, 4), maps.permute(0, 2, 1, 4, 3)):
            rows = axis_last.reshape(len(maps), len(SHAPES), FRAMES * size, size)
            sums = [rows.index_select(2, index).unflatten(2, (size, FRAMES)).sum(3) for index in self._rows]
            by_axis.append(torch.stack(sums, 2).unflatten(2, (2, len(SPEEDS))))  # [N, 3, sign, speed, P, P]
        across, along = by_axis[0], by_axis[1].transpose(-1, -2)
        turns = torch.stack([across, along], 3)  # [N, 3, sign, axis, speed, P, P]: right, down, left, up
        return turns.reshape(len(maps), CONDITIONS, size, size)

    def _compare(self, lifted: Tensor, condition: Condition, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances ``[N]``, brightnesses ``[N]`` and lifted legal clips ``[N, F S S]``."""
        legal = render_clips(condition, start, level=self.level).flatten(1) + 1
        brightness = torch.ones(len(start))
        if self.level == "hard":
            brightness = ((lifted * legal).sum(1) / legal.square().sum(1)).clamp(DIMMEST, 1)
        return (lifted - brightness[:, None] * legal).square().sum(1), brightness, legal

    def _refine(self, lifted: Tensor, condition: Condition, start: Tensor, iterations: int) -> Fit:
        squared, brightness, legal = self._compare(lifted, condition, start)
        length = torch.ones_like(squared)
        for _ in range(iterations):
            move = length[:, None] * self._newton(lifted, condition, start, brightness, legal)
            there = self._legal(start + move.clamp(-0.5, 0.5))
            new_squared, new_brightness, new_legal = self._compare(lifted, condition, there)
            better = new_squared < squared
            start = torch.where(better[:, None], there, start)
            squared = torch.where(better, new_squared, squared)
            brightness = torch.where(better, new_brightness, brightness)
            legal = torch.where(better[:, None], new_legal, legal)
            length = torch.where(better, length, length / 2)
        return Fit(condition, start, brightness, (squared / (FRAMES * PIXELS)).sqrt())

    def _newton(self, lifted: Tensor, condition: Condition, start: Tensor, brightness: Tensor, legal: Tensor) -> Tensor:
        """The Gauss-Newton step of the start, ``[N, 2]``, by differences of one side (away from a near wall)."""
        residual = lifted - brightness[:, None] * legal
        gap = torch.full_like(start, _GAP)
        if self.level == "hard":
            gap = torch.where(start < SIZE / 2, _GAP, -_GAP)
        slopes = []
        for axis in torch.eye(2):
            _, _, beside = self._compare(lifted, condition, start + gap * axis)
            slopes.append((brightness / (gap @ axis))[:, None] * (beside - legal))
        a, b = slopes
        aa, ab, bb = a.square().sum(1), (a * b).sum(1), b.square().sum(1)
        ra, rb = (a * residual).sum(1), (b * residual).sum(1)
        determinant = (aa * bb - ab.square()).clamp_min(1e-6)
        step: Tensor = torch.stack([bb * ra - ab * rb, aa * rb - ab * ra], -1) / determinant[:, None]
        return step

    def _legal(self, start: Tensor) -> Tensor:
        legal: Tensor = start % SIZE if self.level == "plain" else start.clamp(WALL, SIZE - WALL)
        return legal


def _nearer(first: Fit, second: Fit) -> Fit:
    """Of two fits of each clip the nearer."""
    other = second.distance < first.distance
    index = torch.where(other, second.condition.index, first.condition.index)
    return Fit(
        condition=Condition.from_index(index),
        start=torch.where(other[:, None], second.start, first.start),
        brightness=torch.where(other, second.brightness, first.brightness),
        distance=torch.where(other, second.distance, first.distance),
    )
