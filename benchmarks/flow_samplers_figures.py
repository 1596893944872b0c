"""Figures of `flow_samplers.py`, from its kept results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marl_tr.agents.sage.sampler import Kind
from marl_tr.analysis.plots import save_figure

__all__ = ["COLORS", "DECODES", "POLICIES", "SAMPLERS", "draw_curves", "draw_plane"]

SAMPLERS: tuple[Kind, ...] = ("dance", "flow", "sage", "cps", "precise")
COLORS = dict(zip(SAMPLERS, ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00"), strict=True))
DECODES = ("latent", "clean")
POLICIES = ("same", "matched")


def draw_plane(results: dict[str, Any], path: Path) -> None:
    """Reward gain against manifold distance (of ODE samples: its change), a panel a decode mode and way of sampling."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 7.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for row, way in enumerate(("ode", "sde")):
        for column, decode in enumerate(DECODES):
            axis = axes[row, column]
            for c in (c for c in results["cells"] if c["decode"] == decode):
                _cross(axis, c, way)
            axis.axhline(0, color="#bbbbbb", linewidth=1)
            if way == "ode":
                axis.axvline(0, color="#bbbbbb", linewidth=1)
            samples = "ODE samples" if way == "ode" else "SDE rollouts"
            decoded = "last state" if decode == "latent" else "last clean estimate"
            axis.set_title(f"{samples}; rollouts decode the {decoded}", loc="left", fontsize=10)
            distance = "distance to the nearest legal clip"
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlabel(f"change of the {distance}" if way == "ode" else f"{distance} after training")
            axis.set_ylabel("gain in reward B")
            axis.grid(color="#eeeeee", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=COLORS[s], marker="o", linestyle="", label=s) for s in SAMPLERS]
    style = {"color": "#333333", "linestyle": ""}
    handles.append(Line2D([], [], marker="o", label="eta 0.5", **style))
    handles.append(Line2D([], [], marker="o", markerfacecolor="white", label="eta of equal total variance", **style))
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=7, fontsize=9.5)
    save_figure(figure, path)


def _cross(axis: Any, c: dict[str, Any], way: str) -> None:
    x, y = c[way]["manifold_distance_change" if way == "ode" else "manifold_distance"], c[way]["gain_b"]
    axis.errorbar(
        x["mean"],
        y["mean"],
        xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
        yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
        color=COLORS[c["sampler"]],
        marker="o",
        markersize=8,
        markerfacecolor=COLORS[c["sampler"]] if c["policy"] == "same" else "white",
        markeredgewidth=1.6,
        elinewidth=1.1,
        alpha=0.95,
    )


def draw_curves(results: dict[str, Any], path: Path) -> None:
    """Held-out reward and distance over training; columns: decode mode and noise policy."""
    from matplotlib.figure import Figure

    columns = [
        (decode, policy)
        for policy in POLICIES
        for decode in DECODES
        if any(c["decode"] == decode and c["policy"] == policy for c in results["cells"])
    ]
    rows = (
        ("ode_reward_b", "reward B, ODE samples"),
        ("sde_reward_b", "reward B, SDE rollouts"),
        ("ode_manifold_distance", "manifold distance, ODE"),
    )
    figure = Figure(figsize=(3.3 * len(columns) + 0.8, 7.6), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    for column, (decode, policy) in enumerate(columns):
        for c in results["cells"]:
            # With equal eta sage has the variance that the others are matched to.
            if c["decode"] != decode or (c["policy"] != policy and c["sampler"] != "sage"):
                continue
            for row, (name, _) in enumerate(rows):
                band, x = c["curve"][name], c["curve"]["iteration"]
                axis, color = axes[row, column], COLORS[c["sampler"]]
                axis.plot(x, band["mean"], color=color, marker="o", markersize=3.5, linewidth=1.7, label=c["sampler"])
                axis.fill_between(x, band["low"], band["high"], color=color, alpha=0.12, linewidth=0)
        eta = "eta 0.5" if policy == "same" else "equal total variance"
        axes[0, column].set_title(f"decode {decode}, {eta}", loc="left", fontsize=10)
        axes[-1, column].set_xlabel("iteration")
    for row, (_, label) in enumerate(rows):
        axes[row, 0].set_ylabel(label)
    for axis in axes.flat:
        axis.grid(color="#eeeeee", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    seeds = max(len(c["seeds"]) for c in results["cells"])
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=5, fontsize=10)
    figure.suptitle(f"Held-out means over training, mean and range of up to {seeds} seeds", fontsize=10)
    save_figure(figure, path)
