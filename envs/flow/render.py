"""Clips as pictures and videos: grey values, nearest-neighbour enlargement, captions at the side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.flow.shapes import DIRECTIONS, SHAPES, SPEEDS, Condition

__all__ = ["contact_sheet", "describe", "film", "grey", "grid_film", "side_by_side"]

Array = NDArray[Any]

_INK, _PAPER, _LINE = (31, 41, 51), 255, (190, 198, 206)
_GAP = 2
_GROUP_GAP = 10


def grey(values: Array) -> NDArray[np.uint8]:
    """Values in [-1, 1] (others cut off) as ``[..., 3]`` uint8."""
    level = np.rint((np.clip(values, -1.0, 1.0) + 1) * 127.5).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=-1)


def describe(condition: Condition, row: int) -> str:
    """A condition in words, such as ``disc, left, 2 px``."""
    speed = SPEEDS[int(condition.speed[row])]
    return f"{SHAPES[int(condition.shape[row])]}, {DIRECTIONS[int(condition.direction[row])]}, {speed:g} px"


def contact_sheet(
    clips: Array, captions: Sequence[str] = (), *, scale: int = 5, group: int | None = None
) -> NDArray[np.uint8]:
    """A row a clip, its frames side by side.

    Args:
        clips: ``[N, 1, F, S, S]`` in [-1, 1].
        captions: One a clip, at its left; or none. They may have several lines.
        scale: Edge of a pixel.
        group: Rows that belong together: there is room between groups. None: no groups.

    Returns:
        ``[H, W, 3]`` uint8, both sides even (a video's frames must be).

    Raises:
        ValueError: There are captions, but not one a clip.
    """
    if captions and len(captions) != len(clips):
        raise ValueError(f"{len(captions)} captions for {len(clips)} clips")
    rows = []
    for clip in clips:
        frames = _enlarged(grey(clip[0]), scale)
        rows.append(np.concatenate([_framed(frame) for frame in frames], axis=1))
    if captions:
        width = max(_text_width(caption) for caption in captions) // 2 * 2 + 14
        rows = [np.concatenate([_label(c, width, len(r)), r], axis=1) for c, r in zip(captions, rows, strict=True)]
    if group is not None:
        # From below, so that the places above stay where they are; none under the last group.
        for place in range((len(rows) - 1) // group * group, 0, -group):
            rows.insert(place, np.full((_GROUP_GAP, rows[0].shape[1], 3), _PAPER, np.uint8))
    return _even(np.concatenate(rows, axis=0))


def film(frames: Array, *, scale: int = 12, repeats: int = 3) -> NDArray[np.uint8]:
    """Frames ``[F, S, S]`` enlarged and played `repeats` times, ``[repeats F, S scale, S scale, 3]`` uint8."""
    return np.tile(_enlarged(grey(frames), scale), (repeats, 1, 1, 1))


def grid_film(
    clips: Array, captions: Sequence[str], *, columns: int = 4, scale: int = 7, repeats: int = 3
) -> NDArray[np.uint8]:
    """Clips that play beside each other, with their captions below.

    Args:
        clips: ``[N, 1, F, S, S]`` in [-1, 1].
        captions: One a clip.
        columns: Clips in a row.
        scale: Edge of a pixel.
        repeats: How often they are played.

    Returns:
        ``[repeats F, H, W, 3]`` uint8, `H` and `W` even.
    """
    tiles = []
    for clip, caption in zip(clips, captions, strict=True):
        frames = np.stack([_framed(frame) for frame in _enlarged(grey(clip[0]), scale)])
        below = _label(caption, max(frames.shape[2], _text_width(caption) + 12), 22)
        left = (below.shape[1] - frames.shape[2]) // 2
        sides = (left, below.shape[1] - frames.shape[2] - left)
        frames = np.pad(frames, ((0, 0), (4, 0), sides, (0, 0)), constant_values=_PAPER)
        tiles.append(np.concatenate([frames, np.broadcast_to(below, (len(frames), *below.shape))], axis=1))
    width = max(tile.shape[2] for tile in tiles) + 6
    tiles = [np.pad(t, ((0, 0), (0, 0), (0, width - t.shape[2]), (0, 0)), constant_values=_PAPER) for t in tiles]
    tiles += [np.full_like(tiles[0], _PAPER)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[first : first + columns], axis=2) for first in range(0, len(tiles), columns)]
    return np.tile(_even(np.concatenate(rows, axis=1)), (repeats, 1, 1, 1))


def side_by_side(films: Sequence[Array], titles: Sequence[str]) -> NDArray[np.uint8]:
    """Films ``[T, H, W, 3]`` of equal length and height beside each other, each under its title."""
    parts = []
    for film_, title in zip(films, titles, strict=True):
        head = _label(title, film_.shape[2], 30)
        titled = np.concatenate([np.broadcast_to(head, (len(film_), *head.shape)), film_], axis=1)
        parts.append(np.pad(titled, ((0, 0), (0, 0), (0, 20), (0, 0)), constant_values=_PAPER))
    return _even(np.concatenate(parts, axis=2)[:, :, :-20])


def _even(pictures: Array) -> NDArray[np.uint8]:
    """``[..., H, W, 3]`` with a white line more where a side is odd."""
    height, width = pictures.shape[-3:-1]
    room = [(0, 0)] * (pictures.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)]
    return np.ascontiguousarray(np.pad(pictures, room, constant_values=_PAPER))


def _enlarged(frames: Array, scale: int) -> Array:
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _framed(frame: Array) -> Array:
    framed = np.empty((frame.shape[0] + 2 * _GAP, frame.shape[1] + 2 * _GAP, 3), np.uint8)
    framed[:] = _LINE
    framed[_GAP:-_GAP, _GAP:-_GAP] = frame
    return framed


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=13)


def _text_width(text: str) -> int:
    return int(np.ceil(max(_font().getlength(line) for line in text.split("\n"))))


def _label(text: str, width: int, height: int) -> Array:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), (_PAPER,) * 3)
    ImageDraw.Draw(image).text((6, height / 2), text, fill=_INK, font=_font(), anchor="lm")
    return np.asarray(image)
