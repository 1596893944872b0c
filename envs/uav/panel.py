"""What stands beside the map: a row a UAV with live numbers, totals over the users, and keys of sizes and colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray

from marl_tr.envs.uav.config import DownlinkConfig

__all__ = ["ColourKey", "Panel", "quadcopter", "tick"]

Array = NDArray[Any]

INK, FAINT = "#1f2933", "#8a97a6"
_ROOMY, _MOST = 7, 20
"""UAVs with two lines each; with one line each. Others are counted."""


class ColourKey:
    """A named colour scale for the panel's foot.

    Args:
        label: With its unit.
        cmap: The colours.
        norm: From values to the scale.
        ticks: Values to write.
    """

    def __init__(self, label: str, cmap: Colormap, norm: Normalize, ticks: Sequence[float]) -> None:
        self.label, self.cmap, self.norm, self.ticks = label, cmap, norm, ticks


class Panel:
    """The axes right of the map.

    Args:
        axes: Empty; its unit square is drawn on.
        config: Numbers and units.
        colours: Of the UAVs.
        dots: Rates in Mb/s with the areas of their dots in points^2, for the key of sizes; empty where dots do not
            show rates.
        key: Colour scale, or None.
    """

    def __init__(
        self,
        axes: Axes,
        config: DownlinkConfig,
        colours: Sequence[str],
        *,
        dots: Sequence[tuple[float, float]],
        key: ColourKey | None,
    ) -> None:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.axis("off")
        self._axes, self._config = axes, config
        roomy = config.num_uavs <= _ROOMY
        self._rows: list[tuple[Any, Rectangle]] = []
        pitch = 0.088 if roomy else min(0.6 / min(config.num_uavs, _MOST), 0.06)
        axes.text(0.62, 0.985, "transmit power", fontsize=7.5, color=FAINT, va="bottom")
        if not roomy:
            axes.text(0.19, 0.985, "users, rate", fontsize=7.5, color=FAINT, va="bottom")
        for u in range(min(config.num_uavs, _MOST)):
            self._rows.append(self._row(u, colours[u], 0.955 - pitch * u, roomy=roomy))
        bottom = 0.955 - pitch * len(self._rows)
        if config.num_uavs > _MOST:
            axes.text(0.16, bottom, f"and {config.num_uavs - _MOST} more", fontsize=7.5, color=FAINT, va="center")
            bottom -= pitch
        size = 9.5 if roomy else 8.0
        top = min(bottom + (0.0 if roomy else 0.005), 0.52)
        self._totals = axes.text(0.02, top, "", fontsize=size, color=INK, va="top", linespacing=1.5 if roomy else 1.35)
        if key:
            self._colour_bar(key, 0.18 if dots else 0.055)
        if dots:
            self._size_key(dots)

    @property
    def artists(self) -> list[Artist]:
        """What changes from scene to scene."""
        return [*(artist for row in self._rows for artist in row), self._totals]

    def update(self, *, serving: Array, rates_mbps: Array, power_w: Array, height_m: Array | None) -> None:
        """Show other numbers; arguments as in `marl_tr.envs.uav.render.Scene`, `height_m` ``[U]`` or None."""
        roomy = self._config.num_uavs <= _ROOMY
        for u, (numbers, bar) in enumerate(self._rows):
            mine = serving == u
            rate, count = rates_mbps[mine].sum(), int(mine.sum())
            height = "" if height_m is None else f", {height_m[u]:.0f} m"
            if roomy:
                numbers.set_text(f"{count} user{'' if count == 1 else 's'}, {rate:.2f} Mb/s{height}")
            else:
                numbers.set_text(f"{count}, {rate:.2f} Mb/s{height}")
            bar.set_width(0.36 * float(power_w[u]) / self._config.p_max_w)
        square = float(np.square(rates_mbps).sum())
        jain = float(rates_mbps.sum()) ** 2 / (len(rates_mbps) * square) if square > 0 else 0.0
        unserved = int((serving < 0).sum())
        self._totals.set_text(
            "users' rates, Mb/s\n"
            f"sum   {rates_mbps.sum():.2f}\n"
            f"mean ± std   {rates_mbps.mean():.2g} ± {rates_mbps.std():.2g}\n"
            f"5th percentile   {np.percentile(rates_mbps, 5):.2g}\n"
            f"Jain's index   {jain:.2f}" + (f"\nnot served   {unserved} of {len(serving)}" if unserved else "")
        )

    def _row(self, u: int, colour: str, y: float, *, roomy: bool) -> tuple[Any, Rectangle]:
        axes = self._axes
        if roomy:
            axes.scatter([0.06], [y - 0.012], s=110, marker=quadcopter(), color=colour)
            axes.text(0.16, y, f"uav_{u}", fontsize=9.5, color=INK, weight="bold", va="center")
            numbers = axes.text(0.16, y - 0.033, "", fontsize=8.5, color=INK, va="center")
        else:
            axes.scatter([0.04], [y], s=30, marker=quadcopter(), color=colour)
            axes.text(0.1, y, f"{u}", fontsize=7.5, color=INK, weight="bold", va="center")
            numbers = axes.text(0.19, y, "", fontsize=7, color=INK, va="center")
        left, width, thick = (0.62, 0.36, 0.009) if roomy else (0.72, 0.26, 0.006)
        axes.add_patch(Rectangle((left, y - thick), width, 2 * thick, facecolor="#e4e8ec"))
        bar = Rectangle((left, y - thick), 0.0, 2 * thick, facecolor=colour)
        axes.add_patch(bar)
        return numbers, bar

    def _size_key(self, dots: Sequence[tuple[float, float]]) -> None:
        self._axes.text(0.02, 0.09, "user's rate, Mb/s", fontsize=8, color=FAINT)
        for x, (rate, area) in zip((0.07, 0.32, 0.6, 0.86), dots, strict=True):
            self._axes.scatter([x], [0.055], s=area, color=FAINT, edgecolors="white")
            self._axes.text(x, 0.005, f"{rate:g}", fontsize=8, color=FAINT, ha="center")

    def _colour_bar(self, key: ColourKey, y: float) -> None:
        axes = self._axes
        ramp = np.linspace(0.0, 1.0, 128)[None]
        axes.imshow(ramp, extent=(0.02, 0.98, y, y + 0.025), cmap=key.cmap, aspect="auto", vmin=0, vmax=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.text(0.02, y + 0.035, key.label, fontsize=8, color=FAINT)
        for value in key.ticks:
            x = 0.02 + 0.96 * float(key.norm(value))
            axes.text(x, y - 0.035, f"{value:g}", fontsize=8, color=FAINT, ha="center")


def quadcopter() -> Path:
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


def tick(value: float) -> float:
    """`value` to one significant digit."""
    return round(value, -math.floor(math.log10(value)))
