"""Pictures of the games: answers over what they are worth, turned onto each other and context by context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

__all__ = ["Frame", "Shown", "sheet"]

Array = NDArray[Any]

_CONTEXTS = 3
"""Contexts that have a picture of their own."""
_EDGE = 1.05
_GRID = 121
_COLORS = ("#D55E00", "#0072B2")
"""Of the agents, from Okabe and Ito's palette, which colour-blind readers can tell apart."""


@dataclass(frozen=True)
class Frame:
    """What is behind the samples, where the rotation is 0.

    Attributes:
        targets: ``[M, 2]``, the modes.
        landscape: Worth ``[N]`` of places ``[N, 2]``; None: not drawn.
        ring: Radius of a circle around each target; None: none.
    """

    targets: Array
    landscape: Callable[[Array], Array] | None = None
    ring: float | None = None


@dataclass(frozen=True)
class Shown:
    """One episode.

    Attributes:
        context: ``[D]``; episodes with equal contexts are shown together.
        angle: Of mode 0, in rad.
        tracks: ``[A, n, 2]``, each agent's way, or one point; ``n`` may be 0.
    """

    context: Array
    angle: float
    tracks: Array


def sheet(frame: Frame, rows: Mapping[str, Sequence[Shown]], *, alone: bool = False) -> NDArray[np.uint8]:
    """A row of pictures for each of `rows`, under titles that begin with its name.

    Args:
        frame: Of the game.
        rows: Episodes by name. A row shows all of them, turned so that their modes coincide, then those of single
            contexts, of which there are most episodes.
        alone: Show the first context only, as it is.

    Returns:
        ``[H, W, 3]`` uint8, both sides even.
    """
    columns = 1 if alone else 1 + _CONTEXTS
    figure = Figure(figsize=(3.2 * columns, 3.4 * len(rows)), dpi=100, facecolor="white")
    canvas = cast(Any, FigureCanvasAgg(figure))  # partly untyped
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, episodes) in zip(grid, rows.items(), strict=True):
        contexts = _by_context(episodes)[:_CONTEXTS]
        panels = [] if alone else [(f"{name}{len(episodes)} episodes, turned", 0.0, [_turned(e) for e in episodes])]
        panels += [(f"{name}{len(c)} of one context" if not alone else "", c[0].angle, c) for c in contexts]
        for axes in line[len(panels) :]:
            axes.axis("off")
        for axes, (title, angle, shown) in zip(line, panels, strict=False):
            _panel(axes, frame, title, angle, shown)
    # A layout that is computed takes as long as all the rest.
    figure.subplots_adjust(left=0.35 / 3.2 / columns, right=1 - 0.02 / columns, bottom=0.08, top=0.92, wspace=0.16)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def _by_context(episodes: Sequence[Shown]) -> list[list[Shown]]:
    """Those of equal contexts together, the most first; of equally many the earlier."""
    together: dict[bytes, list[Shown]] = {}
    for episode in episodes:
        together.setdefault(np.ascontiguousarray(episode.context).tobytes(), []).append(episode)
    return sorted(together.values(), key=len, reverse=True)


def _turned(episode: Shown) -> Shown:
    return Shown(episode.context, 0.0, _rotated(episode.tracks, -episode.angle))


def _rotated(places: Array, angle: float) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Array = places @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _panel(axes: Any, frame: Frame, title: str, angle: float, shown: Sequence[Shown]) -> None:
    targets = _rotated(frame.targets, angle)
    if frame.landscape is not None:
        line = np.linspace(-_EDGE, _EDGE, _GRID)
        places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
        worth = frame.landscape(_rotated(places, -angle)).reshape(_GRID, _GRID)
        extent = (-_EDGE, _EDGE, -_EDGE, _EDGE)
        axes.imshow(worth, origin="lower", extent=extent, cmap="Greys", vmin=0, vmax=1.6 * worth.max(), zorder=0)
    if frame.ring is not None:
        for target in targets:
            axes.add_patch(Circle(tuple(target), frame.ring, facecolor="#e4e8ec", edgecolor="#8a97a6", zorder=1))
    axes.scatter(targets[:, 0], targets[:, 1], marker="x", s=46, color="#1f2933", linewidths=1, zorder=2)
    # One artist for all episodes: hundreds of them would take seconds.
    ends = np.stack([e.tracks[:, -1] for e in shown if e.tracks.shape[1]] or [np.empty((0, 2))])  # [n, A, 2]
    if ends.shape[1] > 1:
        axes.add_collection(LineCollection(list(ends), colors="#8a97a6", linewidths=0.6, alpha=0.4, zorder=2))
    for agent in range(ends.shape[1]):
        ways = [episode.tracks[agent] for episode in shown]
        axes.add_collection(LineCollection(ways, colors=_COLORS[agent], linewidths=0.8, alpha=0.5, zorder=2))
        # The first is larger, so that agents at one place are all seen.
        size = 14 * (ends.shape[1] - agent)
        axes.scatter(*ends[:, agent].T, s=size, color=_COLORS[agent], alpha=0.6, linewidths=0, zorder=3)
    axes.set(xlim=(-_EDGE, _EDGE), ylim=(-_EDGE, _EDGE), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.set_title(title, loc="left", fontsize=9)
    axes.tick_params(labelsize=7)
