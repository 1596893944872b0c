"""Frames to GIF and MP4."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.errors import UserError

__all__ = ["VideoError", "encode_gif", "save_video", "write_video"]


class VideoError(UserError):
    """These frames cannot become that file; says why and what to do."""


def encode_gif(frames: NDArray[Any], fps: float = 10.0) -> bytes:
    """An endlessly repeating GIF.

    Args:
        frames: ``[T, H, W, 3]`` uint8.
        fps: Frames a second, at most 50: the format counts hundredths of a second, and viewers slow down
            delays below two of them.

    Raises:
        VideoError: `frames` has another shape or dtype, or no frame, or `fps` is out of range.
    """
    from PIL import Image

    _check(frames, fps, highest=50.0)
    # One palette for all frames, from a sample of them: with one palette each, still areas flicker.
    sample = frames[np.linspace(0, len(frames) - 1, num=min(len(frames), 16)).astype(int)]
    strip = Image.fromarray(np.ascontiguousarray(sample.reshape(-1, *frames.shape[2:])))
    palette = strip.quantize(colors=255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    images = [
        Image.fromarray(np.ascontiguousarray(frame)).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(100 / fps) * 10, loop=0
    )
    return buffer.getvalue()


def save_video(frames: NDArray[Any] | Sequence[NDArray[Any]], path: Path | str, fps: float = 10.0) -> None:
    """Write what an environment's ``render()`` gave, frame after frame, as a GIF or an MP4 by the path's suffix.

    Args:
        frames: ``[T, H, W, 3]`` uint8, or ``T`` of ``[H, W, 3]``.
        path: See `write_video`.
        fps: Frames a second.

    Raises:
        VideoError: The frames differ in shape, or see `write_video`.

    Example:
        >>> import numpy as np, tempfile
        >>> save_video([np.full((32, 48, 3), 25 * t, np.uint8) for t in range(10)], tempfile.mkdtemp() + "/grey.gif")
    """
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) > 1:
        raise VideoError(f"{path}: the frames of a video have one shape, not {sorted(shapes)}")
    write_video(Path(path), np.asarray(frames), fps)


def write_video(path: Path, frames: NDArray[Any], fps: float = 10.0) -> None:
    """Write `frames` to `path`, a GIF or an MP4 (H.264, plays in browsers) by its suffix, all or nothing.

    Args:
        path: Ends in ``.gif`` or ``.mp4``; its folder is made where it is missing.
        frames: ``[T, H, W, 3]`` uint8; `H` and `W` even for an MP4.
        fps: Frames a second.

    Raises:
        VideoError: Another suffix, shape or dtype, no frame, an odd size for an MP4, or the disk or encoder
            refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise VideoError(f"{path}: the name must end in .gif or .mp4")
    _check(frames, fps, highest=50.0 if suffix == ".gif" else 240.0)
    height, width = frames.shape[1:3]
    if suffix == ".mp4" and (height % 2 or width % 2):
        raise VideoError(
            f"{path}: frames of {width} x {height} pixels; MP4 needs an even width and height "
            "(H.264 stores colour at half resolution). Render one pixel more or less, or write a .gif."
        )
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".gif":
            partial.write_bytes(encode_gif(frames, fps))
        else:
            _encode_mp4(partial, frames, fps)
        os.replace(partial, path)
    except OSError as error:
        raise VideoError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _encode_mp4(path: Path, frames: NDArray[Any], fps: float) -> None:
    import imageio_ffmpeg  # type: ignore[import-untyped]

    # macro_block_size 2: the default of 16 would stretch the picture to a multiple of 16.
    writer = imageio_ffmpeg.write_frames(
        str(path), (frames.shape[2], frames.shape[1]), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def _check(frames: NDArray[Any], fps: float, *, highest: float) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise VideoError(
            f"a video needs frames of shape [T, H, W, 3] and dtype uint8, not {list(frames.shape)} {frames.dtype}"
        )
    if not 0 < fps <= highest:
        raise VideoError(f"{fps} frames a second; it must be above 0 and at most {highest:g}")
