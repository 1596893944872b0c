"""Pictures: the area from above, who serves whom, and how well.

Matplotlib draws the unchanging parts once; a frame restores them and draws only what moves: a video of a
hundred frames takes a few seconds. No display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.vector.contract import Leaves, Trajectory

__all__ = ["Scene", "TopView", "flight", "scene"]

Array = NDArray[Any]

_SIZE_IN = (8.0, 6.0)
_INK, _FAINT, _GROUND = "#1f2933", "#8a97a6", "#f4f6f8"
# Okabe and Ito's palette, which colour-blind readers can tell apart, some more, then Matplotlib's.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6B4C9A",
    "#4D4D4D",
    "#C9B800",
    "#8C510A",
)


@dataclass(frozen=True)
class Scene:
    """One moment, and the way that led there.

    Attributes:
        track: ``[n, U, 2]``, UAV positions from the episode's start to now, in m.
        users: ``[G, 2]``, in m.
        serving: ``[G]`` int, -1 where nobody serves.
        rates_mbps: ``[G]``.
        power_w: ``[U]``.
        title: Over the map.
    """

    track: Array
    users: Array
    serving: Array
    rates_mbps: Array
    power_w: Array
    title: str


def scene(config: DownlinkConfig, state: Leaves, track: Array, *, title: str) -> Scene:
    """A scene from one environment's state.

    Args:
        config: Units of the state.
        state: Leaves of one environment at one time, without ``E``.
        track: ``[n, U, 2]``, positions so far over the area's side.
        title: Over the map.
    """
    users, served = state["users"], state["users"][:, 5:]
    return Scene(
        track=track * config.area_m,
        users=users[:, :2] * config.area_m,
        serving=np.where(served.any(axis=1), served.argmax(axis=1), -1),
        rates_mbps=users[:, 2] * (config.rate_ref / 1e6),
        power_w=state["uavs"][:, 4] * config.p_max_w,
        title=title,
    )


def flight(config: DownlinkConfig, trajectory: Trajectory, *, group: str) -> list[Scene]:
    """A recorded episode as one scene a slot, from the start to the end.

    The title's return is the sum so far of the mean reward over agents, undiscounted.
    """
    track = trajectory.state["uavs"][..., :2]
    earned = np.concatenate(([0.0], trajectory.reward[group].mean(axis=1).cumsum()))
    slots = len(track) - 1
    return [
        scene(
            config,
            {name: leaf[t] for name, leaf in trajectory.state.items()},
            track[: t + 1],
            title=f"slot {t} of {slots}   return {earned[t]:.1f} (mean over agents, undiscounted)",
        )
        for t in range(slots + 1)
    ]


class TopView:
    """Draws scenes of one configuration.

    Args:
        config: Area, numbers and units.
        dpi: 80 gives 640 x 480 pixels.
    """

    def __init__(self, config: DownlinkConfig, *, dpi: int = 80) -> None:
        self.config = config
        self._figure = Figure(figsize=_SIZE_IN, dpi=dpi, facecolor="white")
        self._canvas = cast(Any, FigureCanvasAgg(self._figure))  # partly untyped
        self._map = self._figure.add_axes((0.06, 0.07, 0.645, 0.86))
        self._panel = self._figure.add_axes((0.735, 0.07, 0.25, 0.86))
        self._colours = [_colour(u) for u in range(config.num_uavs)]
        self._draw_ground()
        self._moving = self._add_map_artists() + self._add_panel_artists()
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self._figure.bbox)

    def draw(self, scene: Scene) -> NDArray[np.uint8]:
        """``[H, W, 3]`` uint8."""
        self._update_map(scene)
        self._update_panel(scene)
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            self._figure.draw_artist(artist)
        return np.array(self._canvas.buffer_rgba())[..., :3]

    def video(self, scenes: Sequence[Scene]) -> NDArray[np.uint8]:
        """``[T, H, W, 3]`` uint8."""
        return np.stack([self.draw(moment) for moment in scenes])

    def _draw_ground(self) -> None:
        side, axes = self.config.area_m, self._map
        axes.set(xlim=(-0.03 * side, 1.03 * side), ylim=(-0.06 * side, side), aspect="equal")
        axes.axis("off")
        axes.add_patch(Rectangle((0, 0), side, side, facecolor=_GROUND, edgecolor=_FAINT, clip_on=False, zorder=0))
        for line in np.linspace(0, side, 6)[1:-1]:
            axes.plot([line, line], [0, side], color="white", linewidth=1.2, zorder=0)
            axes.plot([0, side], [line, line], color="white", linewidth=1.2, zorder=0)
        length = _round_length(side / 5)
        axes.plot([0, length], [-0.035 * side] * 2, color=_INK, linewidth=2.5, solid_capstyle="butt")
        label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
        axes.text(length + 0.015 * side, -0.035 * side, label, va="center", color=_INK, fontsize=9)
        self._panel.set(xlim=(0, 1), ylim=(0, 1))
        self._panel.axis("off")

    def _add_map_artists(self) -> list[Artist]:
        axes = self._map
        self._title = axes.set_title("", fontsize=11, color=_INK, loc="left")
        self._links = LineCollection([], linewidths=1.0, alpha=0.35, zorder=2)
        self._tracks = LineCollection([], linewidths=2.0, zorder=3, capstyle="butt")
        axes.add_collection(self._links)
        axes.add_collection(self._tracks)
        faces = self._colours
        self._starts = axes.scatter([], [], s=34, clip_on=False, facecolors="white", linewidths=1.6, zorder=4)
        self._users = axes.scatter([], [], clip_on=False, edgecolors="white", linewidths=0.7, zorder=5)
        self._halo = axes.scatter([], [], s=420, clip_on=False, facecolors="white", linewidths=1.8, zorder=6)
        self._uavs = axes.scatter([], [], s=230, clip_on=False, marker=_quadcopter(), zorder=7)
        self._starts.set_edgecolor(faces)
        self._halo.set_edgecolor(faces)
        self._uavs.set(facecolors=faces, edgecolors=faces)
        return [
            self._title,
            self._links,
            self._tracks,
            self._starts,
            self._users,
            self._halo,
            self._uavs,
        ]

    def _add_panel_artists(self) -> list[Artist]:
        """Legend with live numbers: a row a UAV, then the users' totals and the key of the dots' sizes."""
        panel, moving = self._panel, []
        shown = min(self.config.num_uavs, 7)
        self._rows: list[tuple[Any, Any]] = []
        for u in range(shown):
            y = 0.955 - 0.088 * u
            panel.scatter([0.06], [y - 0.012], s=110, marker=_quadcopter(), color=self._colours[u])
            panel.text(0.16, y, f"uav_{u}", fontsize=9.5, color=_INK, weight="bold", va="center")
            numbers = panel.text(0.16, y - 0.033, "", fontsize=8.5, color=_INK, va="center")
            panel.add_patch(Rectangle((0.62, y - 0.009), 0.36, 0.018, facecolor="#e4e8ec"))
            bar = panel.add_patch(Rectangle((0.62, y - 0.009), 0.0, 0.018, facecolor=self._colours[u]))
            self._rows.append((numbers, bar))
            moving += [numbers, bar]
        bottom = 0.955 - 0.088 * shown
        if shown < self.config.num_uavs:
            panel.text(0.16, bottom + 0.02, f"and {self.config.num_uavs - shown} more", fontsize=8.5, color=_FAINT)
        panel.text(0.62, 0.985, "transmit power", fontsize=7.5, color=_FAINT, va="bottom")
        self._totals = panel.text(0.02, min(bottom, 0.52), "", fontsize=9.5, color=_INK, va="top", linespacing=1.55)
        panel.text(0.02, 0.09, "user's rate, Mb/s", fontsize=8, color=_FAINT)
        for x, rate in zip((0.07, 0.32, 0.6, 0.86), (0.1, 0.3, 1.0, 3.0), strict=True):
            panel.scatter([x], [0.055], s=_dot_size(np.array([rate])), color=_FAINT, edgecolors="white")
            panel.text(x, 0.005, f"{rate:g}", fontsize=8, color=_FAINT, ha="center")
        return [*moving, self._totals]

    def _update_map(self, scene: Scene) -> None:
        now, served = scene.track[-1], scene.serving >= 0
        self._title.set_text(scene.title)
        owner = scene.serving[served]
        self._links.set_segments(list(np.stack((now[owner], scene.users[served]), axis=1)))
        self._links.set_colors([self._colours[u] for u in owner])
        steps = np.stack((scene.track[:-1], scene.track[1:]), axis=2)  # [n - 1, U, 2 ends, 2]
        self._tracks.set_segments(list(steps.reshape(-1, 2, 2)))
        # The further back, the fainter: direction shows without arrows.
        strength = np.linspace(0.25, 1.0, len(steps)) if len(steps) else np.empty(0)
        rgb = np.array([to_rgb(colour) for colour in self._colours])
        rgba = np.empty((len(steps), len(rgb), 4))
        rgba[..., :3], rgba[..., 3] = rgb, strength[:, None]
        self._tracks.set_colors([(r, g, b, a) for r, g, b, a in rgba.reshape(-1, 4).tolist()])
        self._starts.set_offsets(scene.track[0])
        self._halo.set_offsets(now)
        self._uavs.set_offsets(now)
        self._users.set_offsets(scene.users)
        self._users.set_sizes(_dot_size(scene.rates_mbps))
        self._users.set_facecolor([self._colours[u] if u >= 0 else _FAINT for u in scene.serving])

    def _update_panel(self, scene: Scene) -> None:
        for u, (numbers, bar) in enumerate(self._rows):
            mine = scene.serving == u
            rate, count = scene.rates_mbps[mine].sum(), int(mine.sum())
            numbers.set_text(f"{count} user{'' if count == 1 else 's'}, {rate:.2f} Mb/s")
            bar.set_width(0.36 * float(scene.power_w[u]) / self.config.p_max_w)
        rates = scene.rates_mbps
        square = float(np.square(rates).sum())
        jain = float(rates.sum()) ** 2 / (len(rates) * square) if square > 0 else 0.0
        self._totals.set_text(
            "users' rates, Mb/s\n"
            f"sum   {rates.sum():.2f}\n"
            f"mean ± std   {rates.mean():.2f} ± {rates.std():.2f}\n"
            f"5th percentile   {np.percentile(rates, 5):.2f}\n"
            f"Jain's index   {jain:.2f}"
        )


def _dot_size(rates_mbps: Array) -> Array:
    """Marker area in points^2; grows with the square root, so that starved users stay visible."""
    size: Array = 22.0 + 95.0 * np.sqrt(np.clip(rates_mbps, 0.0, 4.0))
    return size


def _quadcopter() -> Path:
    """Four rotors on crossed arms."""
    rotor = Path.circle(radius=0.34)
    rim = np.asarray(rotor.vertices, dtype=float)
    rotors = [Path(rim + np.array((x, y)), rotor.codes) for x in (-0.62, 0.62) for y in (-0.62, 0.62)]
    near, far = 0.62 - 0.12, 0.62 + 0.12
    arm = np.array([(-far, -near), (-near, -far), (far, near), (near, far)])
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    # The mirrored arm is listed backwards: equal turning keeps the overlaps filled.
    arms = [Path(np.vstack((shape, shape[:1])), codes) for shape in (arm, (arm * (1, -1))[::-1])]
    return Path.make_compound_path(*rotors, *arms)


def _colour(u: int) -> str:
    if u < len(_COLOURS):
        return _COLOURS[u]
    return matplotlib.colors.to_hex(matplotlib.colormaps["tab20"]((u - len(_COLOURS)) % 20))


def _round_length(limit: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `limit`."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= limit)
