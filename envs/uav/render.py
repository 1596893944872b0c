"""Pictures: the area from above, who serves whom, and how well.

Matplotlib draws the unchanging parts once; a frame restores them and draws only what moves: a video of a
hundred frames takes a few seconds. No display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.coverage import Gain, ground_sinr_db, mean_gain
from marl_tr.envs.uav.panel import FAINT, INK, ColourKey, Panel, quadcopter, tick
from marl_tr.envs.uav.recording import GROUP, Moment, read_state
from marl_tr.vector.contract import Leaves, Trajectory

__all__ = ["Scene", "TopView", "flight", "pictures", "scene"]

Array = NDArray[Any]

_SIZE_IN = (8.0, 6.0)
_GROUND = "#f4f6f8"
_MANY_USERS = 150
"""Above, users are small dots of one size, and no lines lead to them."""
_MANY_UAVS = 7
"""Above, UAVs are smaller and wear their numbers."""
_MOST_FRAMES = 101
_SINR_DB = (-10.0, 30.0)
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
        track: ``[n, U, 2 or 3]``, UAV positions from the episode's start to now, in m.
        users: ``[G, 2 or 3]``, in m.
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
        track: ``[n, U, 2 or 3]``, positions so far, in m.
        title: Over the map.
    """
    return _scene(read_state(config, state), track, title)


def flight(config: DownlinkConfig, trajectory: Trajectory) -> list[Scene]:
    """A recorded episode as one scene a slot, from the start to the end.

    The title's return is the sum so far of the mean reward over agents, undiscounted.
    """
    track = read_state(config, trajectory.state).position
    earned = np.concatenate(([0.0], trajectory.reward[GROUP].mean(axis=1).cumsum()))
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


def pictures(
    config: DownlinkConfig, trajectory: Trajectory, *, gain: Gain | None = None
) -> dict[str, NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]]:
    """What an episode looked like.

    Args:
        config: The environment's.
        trajectory: The episode.
        gain: Mean channel of the SINR map; the configuration's where left out.

    Returns:
        ``tracks``: the whole episode, ``[H, W, 3]``. ``sinr``: its end over a map of the SINR. ``flight``: makes a
        video ``[T, H, W, 3]`` of at most 101 frames (seconds).
    """
    scenes = flight(config, trajectory)
    stride = math.ceil(len(scenes) / _MOST_FRAMES)
    return {
        "tracks": TopView(config, dpi=120).draw(scenes[-1]),
        "sinr": TopView(config, dpi=120, sinr_map=gain or mean_gain(config)).draw(scenes[-1]),
        "flight": lambda: TopView(config).video(scenes[::-stride][::-1]),
    }


class TopView:
    """Draws scenes of one configuration.

    A user's dot grows with its rate and has the colour of the UAV that serves it, to which a line leads; users whom
    nobody serves are crosses. Above 150 users dots are small and lines are left out. Heights are written beside UAVs
    that have them.

    Args:
        config: Area, numbers and units.
        dpi: 80 gives 640 x 480 pixels.
        sinr_map: Mean channel by which the ground is coloured: the SINR that a user would have there from its best
            server. None: no map.
        colour: What colours a user: the ``"server"``, or its ``"rate"``.
    """

    def __init__(
        self,
        config: DownlinkConfig,
        *,
        dpi: int = 80,
        sinr_map: Gain | None = None,
        colour: Literal["server", "rate"] = "server",
    ) -> None:
        self.config = config
        self._gain, self._by_rate = sinr_map, colour == "rate"
        self._crowd = config.num_users > _MANY_USERS
        self._rate_unit = config.rate_ref / 1e6
        self._figure = Figure(figsize=_SIZE_IN, dpi=dpi, facecolor="white")
        self._canvas = cast(Any, FigureCanvasAgg(self._figure))  # partly untyped
        self._map = self._figure.add_axes((0.06, 0.07, 0.645, 0.86))
        self._colours = [_colour(u) for u in range(config.num_uavs)]
        self._sinr_colours = matplotlib.colormaps["viridis"]
        self._rate_colours = matplotlib.colormaps["plasma_r"]
        self._rate_norm = LogNorm(0.05 * self._rate_unit, 5.0 * self._rate_unit, clip=True)
        self._draw_ground()
        self._moving = self._add_map_artists()
        rates = [tick(share * self._rate_unit) for share in (0.15, 0.45, 1.5, 4.5)]
        self._panel = Panel(
            self._figure.add_axes((0.735, 0.07, 0.25, 0.86)),
            config,
            self._colours,
            dots=[] if self._crowd else list(zip(rates, self._dot_sizes(np.array(rates)).tolist(), strict=True)),
            key=self._colour_key(rates),
        )
        self._moving += self._panel.artists
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self._figure.bbox)

    def draw(self, scene: Scene) -> NDArray[np.uint8]:
        """``[H, W, 3]`` uint8."""
        now = scene.track[-1]
        heights = now[:, 2] if now.shape[1] == 3 else None
        self._update_ground(scene)
        self._update_uavs(scene, heights)
        self._update_users(scene)
        self._panel.update(serving=scene.serving, rates_mbps=scene.rates_mbps, power_w=scene.power_w, height_m=heights)
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
        axes.add_patch(Rectangle((0, 0), side, side, facecolor=_GROUND, edgecolor=FAINT, clip_on=False, zorder=0))
        for line in np.linspace(0, side, 6)[1:-1]:
            axes.plot([line, line], [0, side], color="white", linewidth=1.2, zorder=0)
            axes.plot([0, side], [line, line], color="white", linewidth=1.2, zorder=0)
        length = _round_length(side / 5)
        axes.plot([0, length], [-0.035 * side] * 2, color=INK, linewidth=2.5, solid_capstyle="butt")
        label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
        axes.text(length + 0.015 * side, -0.035 * side, label, va="center", color=INK, fontsize=9)

    def _add_map_artists(self) -> list[Artist]:
        axes, faces, side = self._map, self._colours, self.config.area_m
        few = self.config.num_uavs <= _MANY_UAVS
        moving: list[Artist] = [axes.set_title("", fontsize=11, color=INK, loc="left")]
        self._title = cast(Any, moving[0])
        if self._gain is not None:
            self._heat = axes.imshow(
                np.zeros((2, 2)),
                extent=(0, side, 0, side),
                origin="lower",
                cmap=self._sinr_colours,
                norm=Normalize(*_SINR_DB, clip=True),
                interpolation="bilinear",
                zorder=1,
            )
            axes.set(xlim=(-0.03 * side, 1.03 * side), ylim=(-0.06 * side, side))
            moving.append(self._heat)
        self._links = LineCollection([], linewidths=1.0, alpha=0.35, zorder=2)
        self._tracks = LineCollection([], linewidths=2.0 if few else 1.4, zorder=3, capstyle="butt")
        axes.add_collection(self._links)
        axes.add_collection(self._tracks)
        # Over a map, which shows by itself who is served by whom, only what is white reads well.
        rim = "white" if self._gain is None else INK
        edge: dict[str, Any] = {"edgecolors": rim, "linewidths": 0.25 if self._crowd else 0.7}
        self._starts = axes.scatter([], [], s=34 if few else 14, clip_on=False, facecolors="white", linewidths=1.6)
        self._users = axes.scatter([], [], clip_on=False, zorder=5, **edge)
        self._unserved = axes.scatter(
            [],
            [],
            s=12 if self._crowd else 38,
            clip_on=False,
            marker="x",
            color=INK if self._gain is None else "white",
            linewidths=1.2 if self._crowd else 1.8,
            zorder=5,
        )
        self._halo = axes.scatter(
            [], [], s=420 if few else 210, clip_on=False, facecolors="white", linewidths=1.8, zorder=6
        )
        self._uavs = axes.scatter([], [], s=230 if few else 100, clip_on=False, marker=quadcopter(), zorder=7)
        self._starts.set(edgecolor=faces, zorder=4)
        self._halo.set_edgecolor(faces)
        self._uavs.set(facecolors=faces, edgecolors=faces)
        plate = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8}
        self._labels = [
            axes.text(0, 0, "", color=INK, weight="bold", ha="center", va="top", zorder=8, bbox=plate) for _ in faces
        ]
        for label in self._labels:
            label.set_fontsize(8.5 if few else 7.5)
        return [
            *moving,
            self._links,
            self._tracks,
            self._starts,
            self._users,
            self._unserved,
            self._halo,
            self._uavs,
            *self._labels,
        ]

    def _update_ground(self, scene: Scene) -> None:
        self._title.set_text(scene.title)
        if self._gain is not None:
            self._heat.set_data(ground_sinr_db(self.config, self._gain, scene.track[-1], scene.power_w))

    def _update_uavs(self, scene: Scene, heights: Array | None) -> None:
        path = scene.track[..., :2]
        steps = np.stack((path[:-1], path[1:]), axis=2)  # [n - 1, U, 2 ends, 2]
        self._tracks.set_segments(list(steps.reshape(-1, 2, 2)))
        # The further back, the fainter: direction shows without arrows.
        strength = np.linspace(0.25, 1.0, len(steps)) if len(steps) else np.empty(0)
        rgb = np.array([to_rgb(colour if self._gain is None else "white") for colour in self._colours])
        rgba = np.empty((len(steps), len(rgb), 4))
        rgba[..., :3], rgba[..., 3] = rgb, strength[:, None]
        self._tracks.set_colors([(r, g, b, a) for r, g, b, a in rgba.reshape(-1, 4).tolist()])
        self._starts.set_offsets(path[0])
        self._halo.set_offsets(path[-1])
        self._uavs.set_offsets(path[-1])
        numbered = self.config.num_uavs > _MANY_UAVS
        for u, label in enumerate(self._labels):
            words = [str(u)] if numbered else []
            words += [f"{heights[u]:.0f} m"] if heights is not None else []
            label.set_text(", ".join(words))
            label.set_position((path[-1, u, 0], path[-1, u, 1] - (0.028 if numbered else 0.04) * self.config.area_m))

    def _update_users(self, scene: Scene) -> None:
        served = scene.serving >= 0
        owner, users, rates = scene.serving[served], scene.users[served, :2], scene.rates_mbps[served]
        if not self._crowd:
            self._links.set_segments(list(np.stack((scene.track[-1][owner, :2], users), axis=1)))
            self._links.set_colors([self._colours[u] for u in owner] if self._gain is None else "white")
        self._users.set_offsets(users.reshape(-1, 2))
        self._users.set_sizes(self._dot_sizes(rates))
        if self._by_rate:
            self._users.set_facecolor(self._rate_colours(self._rate_norm(rates)))
        elif self._gain is not None:
            self._users.set_facecolor("white")
        else:
            self._users.set_facecolor([self._colours[u] for u in owner])
        self._unserved.set_offsets(scene.users[~served, :2].reshape(-1, 2))

    def _dot_sizes(self, rates_mbps: Array) -> Array:
        """Marker areas in points^2; grow with the square root, so that starved users stay visible."""
        if self._crowd:
            return np.full(rates_mbps.shape, 13.0)
        size: Array = 22.0 + 80.0 * np.sqrt(np.clip(rates_mbps / self._rate_unit, 0.0, 6.0))
        return size

    def _colour_key(self, rates: Sequence[float]) -> ColourKey | None:
        if self._by_rate:
            return ColourKey("user's rate, Mb/s", self._rate_colours, self._rate_norm, rates)
        if self._gain is not None:
            return ColourKey(
                "SINR from the best UAV, dB", self._sinr_colours, Normalize(*_SINR_DB), (-10, 0, 10, 20, 30)
            )
        return None


def _scene(moment: Moment, track: Array, title: str) -> Scene:
    return Scene(
        track=track,
        users=moment.users,
        serving=moment.serving,
        rates_mbps=moment.rates_bps / 1e6,
        power_w=moment.power_w,
        title=title,
    )


def _colour(u: int) -> str:
    if u < len(_COLOURS):
        return _COLOURS[u]
    return to_hex(matplotlib.colormaps["tab20"]((u - len(_COLOURS)) % 20))


def _round_length(limit: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `limit`."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= limit)
