"""Channels from a file: gains over a grid of UAV positions and a grid of user positions.

The file is an ``.npz`` of NumPy arrays; docs/uav-channels.md describes it exactly. A ray tracer that is run with one
transmitter a UAV grid point and a receiver plane over the users gives such a map.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["GainMap", "GainMapError", "load_gain_map", "save_gain_map"]

Array = NDArray[Any]

_REQUIRED = ("gain_db", "uav_x", "uav_y", "user_x", "user_y")
_OPTIONAL = ("uav_z", "carrier_hz")
_TOLERANCE_M = 1e-3
"""How far off the grid a position may be by rounding; to this comes a millionth of the coordinate."""


class GainMapError(ValueError):
    """A gain map cannot be read, written, or used where it was asked for."""


@dataclass(frozen=True)
class GainMap:
    """Gains between UAV positions and user positions.

    Attributes:
        uav: Axes of the UAV grid, ``(x, y)`` or ``(x, y, z)``, ascending, in m. Without ``z`` the map holds at
            any height.
        user: Axes of the user grid, ``(x, y)``.
        gain_db: ``[X, Y, Z, V, W]``, with ``Z = 1`` where there is no height axis; float32 or float64.
        carrier_hz: Of the file, if it says.
        name: Of the file, for errors.
    """

    uav: tuple[Array, ...]
    user: tuple[Array, Array]
    gain_db: Array
    carrier_hz: float | None = None
    name: str = "gain map"

    def decibels(
        self, position: Array, users: Array, *, interpolation: Literal["nearest", "linear"] = "linear"
    ) -> Array:
        """Gains in dB; positions off the grid count as the nearest point of its border.

        Args:
            position: ``[E, U, 3]``, in m.
            users: ``[E, G, 2]``, in m.
            interpolation: Nearest grid point (the lower one of two equally near), or linear along every axis.

        Returns:
            ``[E, U, G]`` in the dtype of `gain_db`.
        """
        table = self.gain_db.reshape(-1)
        width = self.user[0].size * self.user[1].size
        uav_corners = _corners(self.uav, position, interpolation)
        user_corners = _corners(self.user, users, interpolation)
        shape = np.broadcast_shapes((*position.shape[:2], 1), (users.shape[0], 1, users.shape[1]))
        total = np.zeros(shape, self.gain_db.dtype)
        for (row, row_share), (column, column_share) in product(uav_corners, user_corners):
            at = (row * width)[:, :, None] + column[:, None, :]
            part = table.take(at)
            part *= row_share.astype(part.dtype)[:, :, None]
            part *= column_share.astype(part.dtype)[:, None, :]
            total += part
        return total

    def covered(self, position: Array, users: Array) -> tuple[Array, Array]:
        """Which UAVs ``[E, U]`` and users ``[E, G]`` are over the grid."""
        return _inside(self.uav, position), _inside(self.user, users)

    def check_covers(self, position: Array, users: Array) -> None:
        """Raise `GainMapError` unless all UAVs ``[E, U, 3]`` and users ``[E, G, 2]`` are over the grid."""
        for what, axes, points in (("UAV", self.uav, position), ("user", self.user, users)):
            outside = ~_inside(axes, points)
            if outside.any():
                place = ", ".join(f"{float(c):g}" for c in points[outside][0][: len(axes)])
                ranges = ", ".join(f"{n} {a[0]:g} to {a[-1]:g}" for n, a in zip("xyz", axes, strict=False))
                raise GainMapError(
                    f"{self.name}: a {what} at ({place}) m is off the map, whose {what} grid covers {ranges} m; "
                    "make the map larger or the area smaller, or set 'outside' to 'edge' or 'silent'"
                )


def load_gain_map(file: str | os.PathLike[str]) -> GainMap:
    """Read a map. A file that has not changed is read once a process, and its arrays, read-only, are shared.

    Args:
        file: Path of the ``.npz`` file; a relative one counts from the current folder.

    Raises:
        GainMapError: There is no such file, it is not an ``.npz`` of plain arrays, or an array is missing,
            unknown, misshapen, not ascending, not finite, or above 0 dB.
    """
    path = Path(file)
    try:
        stat = path.stat()
    except OSError as error:
        raise GainMapError(
            f"gain map {str(path)!r}: {error.strerror or error}; paths count from the current folder, {Path.cwd()}"
        ) from error
    return _read(str(path.resolve()), str(path), stat.st_mtime_ns, stat.st_size)


def save_gain_map(
    file: str | os.PathLike[str],
    *,
    gain_db: ArrayLike,
    uav_x: ArrayLike,
    uav_y: ArrayLike,
    user_x: ArrayLike,
    user_y: ArrayLike,
    uav_z: ArrayLike | None = None,
    carrier_hz: float | None = None,
) -> Path:
    """Write a map that `load_gain_map` reads; float64 gains are kept, all others become float32.

    Args:
        file: Where to; must end in ``.npz``.
        gain_db: ``[X, Y, V, W]``, or ``[X, Y, Z, V, W]`` with `uav_z`: power gain in dB between a UAV at
            ``(uav_x[i], uav_y[j], uav_z[k])`` and a user at ``(user_x[v], user_y[w])``. A loss is negative.
        uav_x: ``[X]``, ascending, in m.
        uav_y: ``[Y]``.
        user_x: ``[V]``.
        user_y: ``[W]``.
        uav_z: ``[Z]``, heights over the ground. Empty: the map holds at any height.
        carrier_hz: What it was made at; a scenario with another carrier is then refused.

    Returns:
        The path.

    Raises:
        GainMapError: As in `load_gain_map`; nothing is written then.
    """
    path = Path(file)
    if path.suffix != ".npz":
        raise GainMapError(f"gain map {str(path)!r}: the name must end in .npz")
    arrays = {"gain_db": gain_db, "uav_x": uav_x, "uav_y": uav_y, "user_x": user_x, "user_y": user_y}
    arrays |= {} if uav_z is None else {"uav_z": uav_z}
    arrays |= {} if carrier_hz is None else {"carrier_hz": carrier_hz}
    checked = {name: np.asarray(value) for name, value in arrays.items()}
    made = _made(checked, str(path))
    stored: dict[str, Any] = {**checked, "gain_db": made.gain_db.reshape(checked["gain_db"].shape)}
    np.savez(path, **stored)
    return path


@lru_cache(maxsize=4)
def _read(resolved: str, shown: str, modified_ns: int, size: int) -> GainMap:
    """Read and check; time and size are there so that a file written anew is read anew."""
    try:
        stored = np.load(resolved, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise GainMapError(f"gain map {shown!r}: one bare array; write it with save_gain_map")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except GainMapError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # A pickled array is among them: nothing that can run code is loaded.
        # NumPy's words about that would advise to load it all the same.
        objects = "no zip archive, or pickled objects; write it with save_gain_map"
        why = objects if isinstance(error, ValueError) else error
        raise GainMapError(f"gain map {shown!r}: not an .npz file of plain arrays ({why})") from error
    return _made(arrays, shown)


def _made(arrays: dict[str, Array], shown: str) -> GainMap:
    """A map of the arrays of a file, checked."""

    def refuse(what: str) -> GainMapError:
        return GainMapError(f"gain map {shown!r}: {what}")

    missing = [name for name in _REQUIRED if name not in arrays]
    unknown = sorted(set(arrays) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        problems = [f"no {', '.join(missing)}"] if missing else []
        problems += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise refuse(f"{'; '.join(problems)} (it has {', '.join(_REQUIRED)} and may have {', '.join(_OPTIONAL)})")
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise refuse(f"{name} holds {array.dtype}, not real numbers")
        if not np.isfinite(array).all():
            cure = "; give links without any path a floor such as -200 dB" if name == "gain_db" else ""
            raise refuse(f"{name} is not finite at {tuple(map(int, np.argwhere(~np.isfinite(array))[0]))}{cure}")
    names = [name for name in ("uav_x", "uav_y", "uav_z", "user_x", "user_y") if name in arrays]
    for name in names:
        if arrays[name].ndim != 1 or not arrays[name].size:
            raise refuse(f"{name} must be one axis of ascending coordinates, not of shape {arrays[name].shape}")
        back = np.diff(arrays[name].astype(float)) <= 0
        if back.any():
            raise refuse(f"{name} must ascend, and does not at entry {int(back.argmax()) + 1}")
    gain, expected = arrays["gain_db"], tuple(arrays[name].size for name in names)
    if gain.shape != expected:
        raise refuse(f"gain_db has shape {gain.shape}, where {', '.join(names)} make it {expected}")
    if gain.max() > 0:
        raise refuse(f"gain_db goes up to {gain.max():g} dB; a loss of 90 dB is a gain of -90 dB")
    if "carrier_hz" in arrays and (arrays["carrier_hz"].shape != () or arrays["carrier_hz"] <= 0):
        raise refuse("carrier_hz must be one positive number, in Hz")
    axes = {name: _frozen(arrays[name].astype(np.float64)) for name in names}
    kept = gain if gain.dtype == np.float64 else gain.astype(np.float32)
    if "uav_z" not in axes:
        kept = kept[:, :, None]
    return GainMap(
        uav=tuple(axes[name] for name in names[:-2]),
        user=(axes["user_x"], axes["user_y"]),
        gain_db=_frozen(np.ascontiguousarray(kept)),
        carrier_hz=float(arrays["carrier_hz"]) if "carrier_hz" in arrays else None,
        name=f"gain map {shown!r}",
    )


def _frozen(array: Array) -> Array:
    array = array.view()
    array.flags.writeable = False
    return array


def _corners(axes: tuple[Array, ...], points: Array, interpolation: str) -> list[tuple[Array, Array]]:
    """Flat grid indices and shares of the grid points round each point, shares adding to 1."""
    corners = [(np.zeros(points.shape[:2], np.intp), np.ones(points.shape[:2]))]
    for axis, coordinate in zip(axes, np.moveaxis(np.asarray(points, float), 2, 0), strict=False):
        lower, share = _locate(axis, coordinate)
        steps: list[tuple[Array, Array]]
        if interpolation == "nearest":
            steps = [(lower + (share > 0.5), np.ones_like(share))]
        elif axis.size == 1:
            steps = [(lower, np.ones_like(share))]
        else:
            steps = [(lower, 1.0 - share), (lower + 1, share)]
        corners = [(flat * axis.size + index, weight * part) for flat, weight in corners for index, part in steps]
    return corners


def _locate(axis: Array, coordinate: Array) -> tuple[Array, Array]:
    """Index of the grid point below each coordinate, and how far it is to the next one, in ``[0, 1]``."""
    if axis.size == 1:
        return np.zeros(coordinate.shape, np.intp), np.zeros(coordinate.shape)
    lower = np.clip(np.searchsorted(axis, coordinate, side="right") - 1, 0, axis.size - 2)
    share = (coordinate - axis[lower]) / (axis[lower + 1] - axis[lower])
    return lower, np.clip(share, 0.0, 1.0)


def _inside(axes: tuple[Array, ...], points: Array) -> Array:
    """Whether points ``[E, N, D]`` lie over the grid of the first ``D`` axes, ``[E, N]``."""
    inside = np.ones(points.shape[:2], bool)
    for axis, coordinate in zip(axes, np.moveaxis(np.asarray(points, float), 2, 0), strict=False):
        slack = _TOLERANCE_M + 1e-6 * np.abs(coordinate)
        inside &= (coordinate >= axis[0] - slack) & (coordinate <= axis[-1] + slack)
    return inside
