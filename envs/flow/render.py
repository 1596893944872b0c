"""Clips as pictures and videos: grey values, nearest-neighbour enlargement, captions at the side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.flow.shapes import DIRECTIONS, SHAPES, SPEEDS, Condition

__all__ = ["contact_sheet", "describe", "film", "grey"]

Array = NDArray[Any]

_INK, _PAPER, _LINE = (31, 41, 51), 255, (190, 198, 206)
_GAP = 2


def grey(values: Array) -> NDArray[np.uint8]:
    """Values in [-1, 1] (others cut off) as ``[..., 3]`` uint8."""
    level = np.rint((np.clip(values, -1.0, 1.0) + 1) * 127.5).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=-1)


def describe(condition: Condition, row: int) -> str:
    """A condition in words, such as ``disc, left, 2 px``."""
    speed = SPEEDS[int(condition.speed[row])]
    return f"{SHAPES[int(condition.shape[row])]}, {DIRECTIONS[int(condition.direction[row])]}, {speed:g} px"


def contact_sheet(clips: Array, captions: Sequence[str] = (), *, scale: int = 5) -> NDArray[np.uint8]:
    """A row a clip, its frames side by side.

    Args:
        clips: ``[N, 1, F, S, S]`` in [-1, 1].
        captions: One a clip, at its left; or none.
        scale: Edge of a pixel.

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
        width = max(_text_width(caption) for caption in captions) + 12
        rows = [np.concatenate([_label(c, width, len(r)), r], axis=1) for c, r in zip(captions, rows, strict=True)]
    sheet = np.concatenate(rows, axis=0)
    even = np.pad(sheet, ((0, len(sheet) % 2), (0, sheet.shape[1] % 2), (0, 0)), constant_values=_PAPER)
    return np.ascontiguousarray(even)


def film(frames: Array, *, scale: int = 12, repeats: int = 3) -> NDArray[np.uint8]:
    """Frames ``[F, S, S]`` enlarged and played `repeats` times, ``[repeats F, S scale, S scale, 3]`` uint8."""
    return np.tile(_enlarged(grey(frames), scale), (repeats, 1, 1, 1))


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
    return int(np.ceil(_font().getlength(text)))


def _label(text: str, width: int, height: int) -> Array:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), (_PAPER,) * 3)
    ImageDraw.Draw(image).text((6, height / 2), text, fill=_INK, font=_font(), anchor="lm")
    return np.asarray(image)
