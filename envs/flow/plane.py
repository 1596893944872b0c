"""Points of ``flow/mixture-v0`` beside the curve that their data lie on."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from marl_tr.envs.flow.curves import CURVES

__all__ = ["plane"]

Array = NDArray[Any]

_EDGE = 2.0


def plane(
    curve: str,
    points: Array,
    *,
    arc: tuple[int, int] | None = None,
    path: Array | None = None,
    title: str = "",
) -> NDArray[np.uint8]:
    """A picture.

    Args:
        curve: Name in `CURVES`.
        points: ``[N, 2]``.
        arc: Which of how many arcs is drawn strongly, or None.
        path: ``[K, 2]``, a way to draw, or None.
        title: Over the picture.

    Returns:
        ``[400, 400, 3]`` uint8.
    """
    figure = Figure(figsize=(4, 4), dpi=100, facecolor="white", layout="constrained")
    canvas = cast(Any, FigureCanvasAgg(figure))  # partly untyped
    axes = figure.add_subplot()
    u = np.linspace(0, 1, 2001)
    pieces = len(CURVES[curve].pieces)
    for part in np.array_split(u[:-1], pieces):
        axes.plot(*CURVES[curve].point(part).T, color="#c3ccd5", linewidth=2, zorder=1)
    if arc is not None:
        here = CURVES[curve].point(np.linspace(arc[0] / arc[1], (arc[0] + 1) / arc[1], 400, endpoint=False))
        axes.plot(*here.T, color="#0072B2", linewidth=3, zorder=2)
    if path is not None and len(path) > 1:
        axes.plot(*path.T, color="#8a97a6", linewidth=1, marker=".", zorder=3)
    axes.scatter(*points.T, s=18, color="#D55E00", zorder=4)
    axes.set(xlim=(-_EDGE, _EDGE), ylim=(-_EDGE, _EDGE), aspect="equal", title=title)
    axes.tick_params(labelsize=8)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
