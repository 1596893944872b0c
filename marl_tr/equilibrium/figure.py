"""The audit as a picture: gaps with their intervals, and what the budget bought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["gap_figure"]

# Okabe and Ito's palette, as in marl_tr.analysis.plots, and two more that are told apart from it.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a7a7a", "#882255")
_GREY = "#6b6b6b"


def gap_figure(audits: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Two panels: each audited agent's gap with its 95 % interval, and the best learned gap over the budget.

    Args:
        audits: As in ``nash_gap.json``: the policy's first, then controls and omniscient responders.
        title: Over both.

    Raises:
        ValueError: No audit.
    """
    from matplotlib.figure import Figure

    if not audits:
        raise ValueError("there is no audit to draw")
    rows = sum(len(audit["agents"]) for audit in audits)
    figure = Figure(figsize=(11.0, 2.4 + 0.42 * max(4, rows)), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_gaps(left, audits)
    _draw_budgets(right, audits)
    for axes in (left, right):
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower left", ncols=min(4, len(labels)), fontsize=8)
    return figure


def _label(audit: Mapping[str, Any]) -> str:
    return f"{audit['subject']} (omniscient)" if audit["omniscient"] else str(audit["subject"])


def _draw_gaps(axes: Axes, audits: Sequence[Mapping[str, Any]]) -> None:
    names: list[str] = []
    exact_named = False
    for index, audit in enumerate(audits):
        for agent, found in audit["agents"].items():
            y, gap = len(names), found["gap"]
            color = _COLORS[index % len(_COLORS)]
            axes.plot([gap["ci_low"], gap["ci_high"]], [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            # Hollow where the search did not converge: the true gap is likely farther right.
            face = color if found["converged"] else "white"
            axes.plot([gap["estimate"]], [y], "o", color=color, markerfacecolor=face, markersize=7)
            if found["exact_gap"] is not None:
                label = None if exact_named else "exact"
                axes.plot([found["exact_gap"]], [y], "|", color="black", markersize=16, markeredgewidth=2, label=label)
                exact_named = True
            names.append(f"{_label(audit)}: {agent}")
    axes.axvline(0, color=_GREY, linewidth=1.0)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_xlabel("gap: gained by deviating alone (return, 95 % interval)\na lower bound; hollow: not converged")
    if exact_named:
        axes.legend(frameon=False, loc="best", fontsize=9)


def _draw_budgets(axes: Axes, audits: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter, NullFormatter

    steps: set[int] = set()
    for index, audit in enumerate(audits):
        for number, found in enumerate(audit["agents"].values()):
            x = [level["steps"] for level in found["levels"]]
            steps.update(x)
            label = _label(audit) if number == 0 else None
            color = _COLORS[index % len(_COLORS)]
            axes.plot(x, [level["gap"] for level in found["levels"]], "o-", color=color, markersize=4, label=label)
    axes.axhline(0, color=_GREY, linewidth=1.0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(steps) if len(steps) <= 6 else sorted(steps)[:: len(steps) // 5])
    axes.xaxis.set_major_formatter(EngFormatter(sep="", places=0))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_xlabel("environment steps of each responder")
    axes.set_ylabel("best learned gap so far\n(validation episodes)")
