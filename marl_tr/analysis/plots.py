"""Figures: drawn without a display and without pyplot's global state."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "Curve", "figure_pixels", "learning_curve_figure", "save_figure"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart with every common colour blindness. Black is kept for text."""
_GREY = "#6b6b6b"
_FAR = 5.0
"""A reference farther from the curves than this many of their own ranges is named, and not drawn."""


@dataclass(frozen=True)
class Curve:
    """One line of a learning curve.

    Attributes:
        label: What it is called in the figure.
        steps: Environment steps, ``[N]``.
        values: ``[N]``; points that are not finite leave a gap.
        low: Lower end of the confidence band, ``[N]``, or None.
        high: Its upper end.
    """

    label: str
    steps: NDArray[Any]
    values: NDArray[Any]
    low: NDArray[Any] | None = None
    high: NDArray[Any] | None = None


def learning_curve_figure(
    curves: Sequence[Curve],
    *,
    references: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "return",
    xlabel: str = "environment steps",
) -> Figure:
    """Evaluation return over environment steps, with bands and horizontal lines to compare with.

    Args:
        curves: At least one; colours follow their order.
        references: ``{name: return}`` of policies that do not learn, dashed, named at the right edge; those far from
            all curves are only named.
        title: Over the axes, at the left.
        ylabel: Say the convention: ``"return (mean over agents, 100 steps, undiscounted)"``.
        xlabel: Below the axes.

    Raises:
        ValueError: No curve, or arrays of different lengths in one; names the curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if not curves:
        raise ValueError("a learning curve needs at least one curve")
    for curve in curves:
        _check(curve)
    figure = Figure(figsize=(8.0, 4.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        _draw(axes, curve, COLORS[index % len(COLORS)])
    _draw_references(axes, dict(references or {}), _learned(curves))
    axes.set_xlabel(xlabel)
    # The convention of a return makes long labels.
    axes.set_ylabel(fill(ylabel, 48))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1 or curves[0].low is not None:
        # Below: over the axes it would cover curves, or reference lines would strike it through.
        figure.legend(frameon=False, loc="outside lower left", ncols=2, fontsize=9)
    return figure


def figure_pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as ``[H, W, 3]`` uint8, for an image event."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    return np.array(pixels[..., :3], dtype=np.uint8)


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` (PNG, or what its suffix says), all or nothing; makes the folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        figure.savefig(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _draw(axes: Axes, curve: Curve, color: str) -> None:
    label = curve.label
    if curve.low is not None and curve.high is not None and len(curve.steps) == 1:
        axes.vlines(curve.steps, curve.low, curve.high, color=color, linewidth=1.5, clip_on=False)
    elif curve.low is not None and curve.high is not None:
        axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
    # A single point, as in a run's first figure, is no line.
    marker = "o" if len(curve.steps) < 30 else ""
    axes.plot(
        curve.steps,
        curve.values,
        color=color,
        linewidth=2,
        marker=marker,
        markersize=4,
        label=label,
        # The axes end at the last point; its marker is shown whole.
        clip_on=False,
    )


def _draw_references(axes: Axes, references: Mapping[str, float], learned: tuple[float, float]) -> None:
    """Dashed lines with names; what is so far off that the curves would be flat is named at the edge, with an arrow."""
    shown = {name: value for name, value in references.items() if np.isfinite(value)}
    least, most = learned
    reach = _FAR * max(most - least, 0.05 * max(abs(least), abs(most)))
    near = {name: value for name, value in shown.items() if least - reach <= value <= most + reach}
    for value in near.values():
        axes.axhline(value, color=_GREY, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ordered = sorted(shown.items(), key=lambda item: item[1])
    places = _spread([min(max(value, low), high) for _, value in ordered], gap=(high - low) * 0.055)
    for (name, value), place in zip(ordered, places, strict=True):
        arrow = "" if name in near else " ↓" if value < low else " ↑"
        axes.annotate(
            f"{name} {value:.3g}{arrow}",
            xy=(1, value),
            xytext=(1.012, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            ha="left",
            fontsize=9,
            color=_GREY,
            annotation_clip=False,
        )


def _learned(curves: Sequence[Curve]) -> tuple[float, float]:
    """Least and largest number that the curves and their bands show."""
    parts = [part for curve in curves for part in (curve.values, curve.low, curve.high) if part is not None]
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    values = values[np.isfinite(values)]
    # Where nothing is shown nothing would be flattened: every reference is near.
    return (float(values.min()), float(values.max())) if len(values) else (-math.inf, math.inf)


def _spread(values: Sequence[float], *, gap: float) -> list[float]:
    """Places for labels of ascending `values`, at least `gap` apart; only what would overlap is moved."""
    clusters: list[list[float]] = []
    for value in values:
        clusters.append([value])
        # Clusters are centred on their values; two that meet become one.
        while len(clusters) > 1 and _places(clusters[-1], gap)[0] < _places(clusters[-2], gap)[-1] + gap:
            last = clusters.pop()
            clusters[-1] += last
    return [place for cluster in clusters for place in _places(cluster, gap)]


def _places(cluster: Sequence[float], gap: float) -> list[float]:
    first = sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2
    return [first + gap * index for index in range(len(cluster))]


def _check(curve: Curve) -> None:
    lengths = {len(a) for a in (curve.steps, curve.values, curve.low, curve.high) if a is not None}
    if len(lengths) != 1 or (curve.low is None) != (curve.high is None):
        raise ValueError(f"curve {curve.label!r}: steps, values, low and high must have one length")
