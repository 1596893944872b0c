"""Points of ``flow/mixture-v0`` beside the curve that their data lie on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from marl_tr.envs.flow.curves import CURVES

__all__ = ["plane", "planes"]

Array = NDArray[Any]

_EDGE = 2.0
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, told apart with every common colour blindness."""


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
    axes.scatter(points[:, 0], points[:, 1], s=18, color="#D55E00", zorder=4)
    axes.set(xlim=(-_EDGE, _EDGE), ylim=(-_EDGE, _EDGE), aspect="equal", title=title)
    axes.tick_params(labelsize=8)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def planes(
    curve: str,
    points: Sequence[Array],
    asked: Array,
    targets: Array,
    *,
    titles: Sequence[str],
) -> NDArray[np.uint8]:
    """Many samples over the curve, one picture beside the other, coloured by the arc that was asked for.

    Args:
        curve: Name in `CURVES`.
        points: ``[N, 2]`` a picture; those beyond the axes are drawn as crosses at their edge.
        asked: ``[N]``, the arc of each point.
        targets: ``[C]``, arc parameter of the preferred point of each arc.
        titles: One a picture.

    Returns:
        ``[420, 400 a picture, 3]`` uint8.
    """
    width = 4 * len(points)
    figure = Figure(figsize=(width, 4.2), dpi=100, facecolor="white")
    canvas = cast(Any, FigureCanvasAgg(figure))  # partly untyped
    count = len(targets)
    colors = [_COLORS[arc % len(_COLORS)] for arc in range(count)]
    for axes, here, title in zip(figure.subplots(1, len(points), squeeze=False)[0], points, titles, strict=True):
        for arc in range(count):
            part = CURVES[curve].point(np.linspace(arc / count, (arc + 1) / count, 400, endpoint=False))
            # Points and no line: an arc may lie on two pieces.
            axes.plot(*part.T, ".", markersize=1.8, color=colors[arc], zorder=1)
        outside = (np.abs(here) > _EDGE).any(1)
        drawn = np.array(colors)[asked]
        axes.scatter(*here[~outside].T, s=9, c=drawn[~outside], alpha=0.75, linewidths=0, zorder=3)
        axes.scatter(*np.clip(here[outside], -_EDGE, _EDGE).T, s=22, c=drawn[outside], marker="x", zorder=3)
        axes.scatter(
            *CURVES[curve].point(targets).T, s=110, c=colors, marker="*", edgecolors="black", linewidths=0.8, zorder=4
        )
        axes.set(xlim=(-_EDGE, _EDGE), ylim=(-_EDGE, _EDGE), aspect="equal")
        axes.set_title(title, loc="left", fontsize=10)
        axes.tick_params(labelsize=8)
    # Inches; a layout that is computed takes as long as all the rest.
    figure.subplots_adjust(left=0.4 / width, right=1 - 0.1 / width, bottom=0.13, top=0.93, wspace=0.14)
    figure.text(0.1 / width, 0.02, "star: the preferred point of the arc of its colour", fontsize=8)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
