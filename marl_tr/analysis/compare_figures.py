"""Figures of a comparison: curves of several variants on several tasks, and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marl_tr.analysis.plots import COLORS, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["MOST", "Panel", "panels_figure"]

# Beyond the palette lines change their dashes, so that no two look alike.
_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)))
_COLUMNS = 3
MOST = 8
"""Curves in one panel at most; of more, each has axes of its own."""
_SMALL_COLUMNS = 5


@dataclass(frozen=True)
class Panel:
    """The axes of one task.

    Attributes:
        title: Over the axes.
        curves: One a variant; variants are known by their labels across panels.
        ylabel: At the left.
        threshold: A horizontal line, or None.
        share: Values are shares of runs: from 0 to 1, in steps.
    """

    title: str
    curves: Sequence[Curve]
    ylabel: str
    threshold: float | None = None
    share: bool = False


def panels_figure(
    panels: Sequence[Panel],
    *,
    labels: Sequence[str],
    title: str,
    xlabel: str,
    note: str | None = None,
    reference: str | None = None,
) -> Figure:
    """A panel a task, with one legend for all of them; of more than `MOST` variants a panel for each, task by task.

    Args:
        panels: At least one.
        labels: All variants, in the order of their colours: a variant looks alike in every figure.
        title: Over the figure.
        xlabel: Below every panel.
        note: A warning that goes with the figure wherever it is shown.
        reference: The variant that is black behind each of many, where each has a panel.

    Raises:
        ValueError: No panel, or a curve whose label is not in `labels`.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("a figure needs at least one panel")
    for curve in (curve for panel in panels for curve in panel.curves):
        if curve.label not in labels:
            raise ValueError(f"curve {curve.label!r} is not one of {', '.join(labels)}")
    heading = title if note is None else f"{title}\n{note}"
    if max(len(panel.curves) for panel in panels) > MOST:
        return _small_multiples(panels, labels=labels, heading=heading, xlabel=xlabel, reference=reference)
    columns = 2 if len(panels) == 4 else min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = 8.0 if columns == 1 else 4.6 * columns
    # The legend has two to four columns; its rows are below the panels.
    per_row = min(len(labels), max(1, int(width / 3.0)))
    legend = 0.22 * -(-len(labels) // per_row)
    figure = Figure(figsize=(width, 3.9 * rows + 0.5 + legend), dpi=130, layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles: dict[str, Line2D] = {}
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        for curve in panel.curves:
            handles[curve.label] = _draw(axes, curve, labels.index(curve.label), steps=panel.share)
        axes.set_title(panel.title, loc="left", fontsize=10)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(panel.ylabel)
        _finish(axes, panel)
    shown = [label for label in labels if label in handles]
    figure.legend(
        [handles[label] for label in shown],
        shown,
        frameon=False,
        loc="outside lower left",
        ncols=per_row,
        fontsize=9,
    )
    return figure


def _small_multiples(
    panels: Sequence[Panel], *, labels: Sequence[str], heading: str, xlabel: str, reference: str | None
) -> Figure:
    """Of each task a grid of its variants, in the order of `labels`: each beside all others, which are pale."""
    from matplotlib.figure import Figure

    rows = [-(-len(panel.curves) // _SMALL_COLUMNS) for panel in panels]
    heights = [0.4 + 1.7 * count for count in rows]
    figure = Figure(figsize=(13.0, 0.6 + sum(heights)), dpi=110, layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    blocks = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, panel, count in zip(blocks, panels, rows, strict=True):
        shown = any(curve.label == reference for curve in panel.curves)
        block.suptitle(f"{panel.title} (black: {reference})" if shown else panel.title, x=0.01, ha="left", fontsize=10)
        block.supylabel(panel.ylabel, fontsize=9)
        block.supxlabel(xlabel, fontsize=9)
        grid = block.subplots(count, _SMALL_COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
        curves = sorted(panel.curves, key=lambda curve: labels.index(curve.label))
        for axes, curve in zip(grid, curves, strict=False):
            _draw_beside(axes, curve, curves, reference=reference, steps=panel.share)
            _finish(axes, panel)
        for axes in grid[len(curves) :]:
            axes.set_visible(False)
        # Shared axes have their numbers in the last row only, which may be a hidden one's.
        for axes in grid[max(0, len(curves) - _SMALL_COLUMNS) : len(curves)]:
            axes.tick_params(labelbottom=True)
    return figure


def _finish(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    if panel.threshold is not None:
        axes.axhline(panel.threshold, color="#6b6b6b", linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
    if panel.share:
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_beside(axes: Axes, curve: Curve, others: Sequence[Curve], *, reference: str | None, steps: bool) -> None:
    style = "steps-post" if steps else "default"
    for other in others:
        if other is not curve:
            black = other.label == reference
            axes.plot(
                other.steps,
                other.values,
                color="black" if black else "#d4d4d4",
                linewidth=1.1 if black else 0.7,
                zorder=2 if black else 1,
                drawstyle=style,
            )
    line = _draw(axes, curve, 0, steps=steps)
    line.set_zorder(3)
    axes.set_title(curve.label, loc="left", fontsize=9)


def _draw(axes: Axes, curve: Curve, number: int, *, steps: bool) -> Line2D:
    # A share of runs falls where a run's score lies, and is flat between.
    style = "steps-post" if steps else "default"
    color, dashes = COLORS[number % len(COLORS)], _DASHES[number // len(COLORS) % len(_DASHES)]
    if curve.low is not None and curve.high is not None:
        axes.fill_between(
            curve.steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0, step="post" if steps else None
        )
    (line,) = axes.plot(curve.steps, curve.values, color=color, linestyle=dashes, linewidth=1.8, drawstyle=style)
    return line
