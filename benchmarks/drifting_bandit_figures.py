"""Figures of `drifting_bandit.py`: scores a method, and answers on the reward's landscape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.analysis.plots import save_figure
from marl_tr.envs.games.bandit import Bandit
from marl_tr.envs.games.circle import points, squared_distances
from marl_tr.envs.games.config import BanditConfig

__all__ = ["COLORS", "NAMES", "draw_samples", "draw_scores"]

Array = NDArray[Any]

NAMES = {
    "balanced": "PODPO-balanced",
    "plain": "PODPO",
    "gaussian": "Gaussian, PPO",
    "trpo": "Gaussian, TRPO",
    "mixture": "mixture, PPO",
    "mixture_entropy": "mixture, PPO, entropy",
}
COLORS = dict(zip(NAMES, ("#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9"), strict=True))
_PANELS = {
    "value": "reward without its noise",
    "all_modes_share": "contexts that keep every mode",
    "in_mode": "answers in a mode",
}


def draw_scores(results: dict[str, Any], path: Path) -> None:
    """A dot a seed and a bar at their mean, methods above ablations; and reward over interactions."""
    from matplotlib.figure import Figure

    cells = [c for c in results["cells"] if c["seeds"]]
    names = [c["ablation"] or NAMES[c["method"]] for c in cells]
    figure = Figure(figsize=(13.5, 1.7 + 0.3 * max(6, len(cells))), dpi=96, layout="constrained")
    axes = figure.subplots(1, len(_PANELS) + 1)
    height = -np.arange(len(cells))
    for axis, (measure, label) in zip(axes, _PANELS.items(), strict=False):
        for y, c in zip(height, cells, strict=True):
            found = _own(c)[measure]
            axis.barh(y, found["mean"]["estimate"], color=COLORS[c["method"]], alpha=0.35, height=0.7)
            axis.plot(found["values"], np.full(len(found["values"]), y), ".", color=COLORS[c["method"]], markersize=7)
        axis.set_yticks(height, names if measure == "value" else [])
        axis.set_xlim(0, 1.02)
        axis.set_xlabel(label)
    for c in (c for c in cells if not c["ablation"]):
        curve = c["curve"]
        axes[-1].plot(curve["step"], curve["value"], color=COLORS[c["method"]], linewidth=1.8, marker=".")
        axes[-1].plot(curve["step"], curve["all_modes_share"], color=COLORS[c["method"]], linewidth=1.2, linestyle=":")
    axes[-1].set_xlabel("interactions")
    axes[-1].set_xticks([0, 50_000, 100_000], ["0", "50k", "100k"])
    axes[-1].set_title("reward, and dotted: contexts\nthat keep every mode", loc="left", fontsize=10)
    for axis in axes:
        axis.grid(color="#dddddd", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    figure.suptitle("games/bandit-v0: a dot a seed, bars and lines are means", fontsize=11)
    save_figure(figure, path)


def draw_samples(results: dict[str, Any], path: Path) -> None:
    """Answers of each method's first seed (columns) in some contexts (rows) on the reward."""
    from matplotlib.figure import Figure

    cells = [c for c in results["cells"] if c["seeds"] and not c["ablation"]]
    if not cells:
        return
    contexts = len(cells[0]["samples"]["context"])
    figure = Figure(figsize=(2.3 * len(cells), 2.3 * contexts + 0.4), dpi=96, layout="constrained")
    axes = figure.subplots(contexts, len(cells), squeeze=False)
    line = np.linspace(-1, 1, 121)
    places = np.stack(np.meshgrid(line, line), -1).reshape(1, -1, 2)
    for column, c in enumerate(cells):
        axes[0, column].set_title(NAMES[c["method"]], fontsize=10)
        for axis, context, actions in zip(axes[:, column], *_samples(c), strict=True):
            axis.imshow(
                _reward(context, places).reshape(121, 121),
                **{"extent": (-1, 1, -1, 1), "origin": "lower", "cmap": "Greys", "vmin": 0, "vmax": 1.6},
            )
            axis.scatter(*actions.T, s=9, color=COLORS[c["method"]], edgecolors="white", linewidths=0.3)
            axis.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[])
            if not column:
                axis.set_ylabel(f"context ({context[0]:.2f}, {context[1]:.2f})", fontsize=9)
    save_figure(figure, path)


def _own(c: dict[str, Any]) -> dict[str, Any]:
    """Measures of answers as the policy samples them."""
    found: dict[str, Any] = c.get("sample") or c["drawn"]
    return found


def _samples(c: dict[str, Any]) -> tuple[Array, Array]:
    return np.array(c["samples"]["context"]), np.array(c["samples"]["action"])


def _reward(context: Array, places: Array) -> Array:
    """Without noise, ``[n]`` of ``[1, n, 2]``, under the environment's defaults."""
    config = BanditConfig()
    modes = points(Bandit(config).angle(context[None]), modes=config.modes, radius=config.radius)
    reward: Array = np.exp(-squared_distances(places, modes) / (2 * config.width**2)).max(-1)[0]
    return reward
