"""What updates did to each step of a policy's chain, as one figure of small multiples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from marl_tr.analysis.curves import ChainUpdate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chain_figure"]

_TITLES = {
    "std": "standard deviation of the noise",
    "weight": "weight in the objective",
    "log_ratio_mean": "log-ratio, new to old: mean",
    "log_ratio_std": "log-ratio, new to old: std",
    "clip_fraction": "share of clipped ratios",
    "divergence": "KL(old || new), nats",
}
_NORMS = ("gradient_norm", "gradient_norm_weighted")
_FIXED = ("std", "weight")
"""The same in every update."""
_UPDATES = 4
"""Lines a panel, at most."""
_BLUES = ("#b9d6ea", "#7fb2d6", "#3f8cc0", "#0072B2")
_ORANGE, _GREY = "#D55E00", "#6b6b6b"


def chain_figure(updates: Sequence[ChainUpdate], *, title: str = "") -> Figure:
    """A panel a measure over the chain's steps, from noise (0) to the sample.

    Args:
        updates: Of one learner, in order; a few, spread over all of them, are drawn, the later the darker.
        title: Over the figure.

    Raises:
        ValueError: No update.
    """
    from matplotlib.figure import Figure

    if not updates:
        raise ValueError("a figure of a chain needs at least one update")
    shown = _spread(updates)
    last = updates[-1].measures
    norms = next((u for u in reversed(updates) if _NORMS[0] in u.measures), None)
    names = [*(name for name in _TITLES if name in last), *sorted({*last} - {*_TITLES, *_NORMS})]
    panels = len(names) + (norms is not None)
    columns = min(4, panels)
    rows = -(-panels // columns)
    legend = 0.3 if len(shown) > 1 else 0.0
    width, height = 2.9 * columns + 0.2, 2.3 * rows + 0.55 + legend
    figure = Figure(figsize=(width, height), dpi=110)
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    # Inches; a layout that is computed takes as long as all the rest.
    figure.subplots_adjust(
        left=0.5 / width,
        right=1 - 0.1 / width,
        bottom=(0.5 + legend) / height,
        top=1 - 0.65 / height,
        wspace=0.28,
        hspace=0.38,
    )
    for place, name in zip(axes, names, strict=False):
        _panel(place, name, shown[-1:] if name in _FIXED else shown)
    if norms is not None:
        _norms_panel(axes[len(names)], norms, last_step=updates[-1].step)
    for place in axes[panels:]:
        place.set_visible(False)
    for index in range(panels):
        if index + columns >= panels:
            axes[index].set_xlabel("step of the chain", fontsize=8)
            axes[index].tick_params(labelbottom=True)
    figure.suptitle(title, x=0.1 / width, y=1 - 0.1 / height, va="top", ha="left", fontsize=11, fontweight="bold")
    if len(shown) > 1:
        handles, labels = max(
            (a.get_legend_handles_labels() for a in axes[: len(names)]), key=lambda found: len(found[0])
        )
        figure.legend(handles, labels, frameon=False, loc="lower left", ncols=_UPDATES, fontsize=8)
    return figure


def _spread(updates: Sequence[ChainUpdate]) -> list[ChainUpdate]:
    place = np.linspace(0, len(updates) - 1, min(_UPDATES, len(updates))).round().astype(int)
    return [updates[index] for index in place]


def _panel(axes: Axes, name: str, shown: Sequence[ChainUpdate]) -> None:
    colors = _BLUES[-len(shown) :] if len(shown) > 1 else ("#0072B2",)
    for update, color in zip(shown, colors, strict=True):
        values = update.measures.get(name)
        if values is not None:
            _line(axes, values, color, label=f"update at step {update.step:,}")
    axes.set_title(_title(name), loc="left", fontsize=8.5)
    _tidy(axes)
    if name in ("divergence", "clip_fraction", "std", "weight") or name.startswith("kl_"):
        axes.set_ylim(bottom=0)
    if name == "log_ratio_mean":
        axes.axhline(0, color=_GREY, linewidth=0.8, zorder=1)


def _norms_panel(axes: Axes, update: ChainUpdate, *, last_step: int) -> None:
    for name, color, label in zip(_NORMS, (_GREY, _ORANGE), ("as it is", "weighted"), strict=True):
        values = update.measures.get(name)
        if values is not None:
            # Deterministic steps have none, which a logarithm cannot show.
            _line(axes, np.where(values > 0, values, np.nan), color, label=label)
    when = "" if update.step == last_step else f", step {update.step:,}"
    axes.set_title(f"gradient norm of a log-prob.{when}", loc="left", fontsize=8.5)
    axes.set_yscale("log")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=7.5)


def _line(axes: Axes, values: NDArray[np.float64], color: str, *, label: str) -> None:
    marker = "o" if len(values) <= 30 else ""
    axes.plot(np.arange(len(values)), values, color=color, linewidth=1.6, marker=marker, markersize=3, label=label)


def _tidy(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.tick_params(labelsize=7.5)
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        axes.yaxis.get_offset_text().set_fontsize(7.5)


def _title(name: str) -> str:
    return _TITLES.get(name) or (f"KL({name[3:]} || new), nats" if name.startswith("kl_") else name)
