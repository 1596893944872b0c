"""Positions of users from CSV files with the columns ``t,id,x,y``: reading, replaying, writing."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.uav.draws import unit, words
from marl_tr.envs.uav.mobility_config import TraceConfig
from marl_tr.envs.uav.motion import Moving
from marl_tr.errors import UserError

__all__ = ["COLUMNS", "Trace", "TraceError", "TraceReplay", "read_trace", "write_trace"]

Array = NDArray[Any]

COLUMNS = ("t", "id", "x", "y")
"""Time in s, the user's name, position in m."""

# What a draw is for; part of the random streams' coordinates, so a number here never changes its meaning.
_OFFSET = 29

_SLACK = 1e-6
"""Of the area's side: so far beyond it is a float32 on the border, and is moved to it."""


class TraceError(UserError, ValueError):
    """A trace cannot be used; says which file and line, and why."""


@dataclass(frozen=True)
class Trace:
    """Knots of ``G`` users, each user's in the order of time; straight lines between them.

    Attributes:
        ids: The users' names, in the order in which the file first has them.
        times: All times that occur, ascending, ``[M]``, in s.
        keys: Of every knot ``user M + index of its time``, ascending, ``[K]`` int64.
        when: Of every knot its time, ``[K]``, in s.
        points: ``[K, 2]``, in m.
        first: Index of each user's first knot, ``[G + 1]``, the last entry being ``K``.
    """

    ids: tuple[str, ...]
    times: Array
    keys: Array
    when: Array
    points: Array
    first: Array

    @property
    def duration_s(self) -> float:
        """From the first time of any user to the last."""
        return float(self.times[-1] - self.times[0])

    def at(self, time: Array) -> Array:
        """Where the users are; before a user's first knot and after its last one it stands there.

        Args:
            time: ``[E]``, in s.

        Returns:
            ``[E, G, 2]`` float64, in m.
        """
        users, many = len(self.ids), len(self.times)
        # Ranks instead of times make one ascending table of (user, time), exactly.
        rank = np.searchsorted(self.times, time, side="right") - 1
        wanted = np.arange(users) * many + rank[:, None]
        after = np.searchsorted(self.keys, wanted.ravel(), side="right").reshape(wanted.shape)
        low = np.maximum(after - 1, self.first[:-1])
        high = np.minimum(after, self.first[1:] - 1)
        t_low, t_high = self.when[low], self.when[high]
        # Where both knots are one (before the first, after the last), the share is 0.
        share = (time[:, None] - t_low) / np.where(t_high > t_low, t_high - t_low, np.inf)
        place = np.empty((*share.shape, 2))
        for axis in (0, 1):
            begin = self.points[:, axis][low]
            place[..., axis] = begin + share * (self.points[:, axis][high] - begin)
        return place


def read_trace(path: str | Path, *, num_users: int, area_m: float) -> Trace:
    """Read the first `num_users` users of a trace.

    The file has a header with at least the columns ``t`` (s), ``id`` (any text), ``x`` and ``y`` (m), in any order.
    The times of each id ascend; ids may have different times. Users are numbered in the order in which ids first
    occur; ids beyond `num_users` are checked, and left out.

    Args:
        path: The file.
        num_users: ``G``.
        area_m: Side of the area; positions lie in ``[0, area_m]^2``.

    Raises:
        TraceError: The file cannot be read, lacks a column, has something that is not a finite number, a time that
            does not ascend, a position outside the area, or fewer ids than users.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            knots = _knots(csv.reader(file), path, area_m)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise TraceError(f"{path}: is not a CSV file: {error}") from error
    if len(knots) < num_users:
        raise TraceError(f"{path}: has {len(knots)} ids, fewer than the {num_users} users (num_users)")
    ids = tuple(knots)[:num_users]
    rows = [np.array(knots[name]) for name in ids]
    times = np.unique(np.concatenate([row[:, 0] for row in rows]))
    first = np.cumsum([0, *(len(row) for row in rows)])
    keys = [user * len(times) + np.searchsorted(times, row[:, 0]) for user, row in enumerate(rows)]
    all_rows = np.concatenate(rows)
    return Trace(ids, times, np.concatenate(keys), all_rows[:, 0].copy(), all_rows[:, 1:].copy(), first)


def write_trace(path: str | Path, positions: Array, slot_s: float, *, ids: Sequence[str] | None = None) -> None:
    """Write positions as a trace that `read_trace` reads back exactly.

    Args:
        path: The file; replaced if it exists.
        positions: ``[T, G, 2]``, in m; row ``t`` is at ``t slot_s``.
        slot_s: Time between two rows, in s.
        ids: The users' names, ``G``; empty: ``0`` to ``G - 1``.

    Raises:
        ValueError: `positions` is not of that shape or not finite, `slot_s` is not positive, or `ids` are not ``G``
            different names.
    """
    positions = np.asarray(positions)
    if positions.ndim != 3 or positions.shape[2] != 2:
        raise ValueError(f"positions have shape {positions.shape}, expected [T, G, 2]")
    if not np.isfinite(positions).all():
        raise ValueError("positions are not all finite")
    if not slot_s > 0:
        raise ValueError(f"slot_s must be positive, got {slot_s}")
    slots, users = positions.shape[:2]
    names = [str(user) for user in range(users)] if ids is None else list(ids)
    if len(names) != users or len(set(names)) != users:
        raise ValueError(f"ids must be {users} different names, got {len(names)} with {len(set(names))} different")
    # As text in the array's own precision: the shortest that reads back to the same number.
    x, y = positions[..., 0].astype(str), positions[..., 1].astype(str)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for slot in range(slots):
            time = repr(slot * float(slot_s))
            writer.writerows(zip([time] * users, names, x[slot], y[slot], strict=True))


class TraceReplay(Moving):
    """Users who go where a file says.

    An episode begins `begin_s` after the file's first time, or at a time drawn uniformly for each episode: with
    ``after_end: hold`` from those from which the file lasts for the whole episode (only its first time, if it is
    shorter than that), with ``loop`` from all. The slot in which a loop begins the file again has velocity 0.

    Raises:
        TraceError: See `read_trace`; or `begin_s` is after the file's end.
    """

    def __init__(self, config: TraceConfig, *, horizon: int, **block: Any) -> None:
        super().__init__(**block)
        self.config = config
        self._horizon = horizon
        envs, users = self.position.shape[:2]
        self.trace = _shared(config.path, users, self.area_m)
        if config.begin_s is not None and config.begin_s > self.trace.duration_s:
            raise TraceError(
                f"{config.path}: lasts {self.trace.duration_s:g} s, less than mobility.begin_s, {config.begin_s:g} s"
            )
        self._offset = np.zeros(envs)
        self._slots = np.zeros(envs, np.int64)

    def begin(self, rows: Array, start: Array, *, seed: int, stream: Array, episode: Array) -> None:
        """See `Mobility.begin`; `start` does not count."""
        if self.config.begin_s is None:
            spare = self.trace.duration_s
            if self.config.after_end == "hold":
                spare = max(0.0, spare - self._horizon * self.slot_s)
            self._offset[rows] = spare * unit(words(seed, stream, purpose=_OFFSET, step=episode, count=1))[:, 0]
        else:
            self._offset[rows] = self.config.begin_s
        self._slots[rows] = 0
        self._put(rows, self._replay(rows)[0])

    def move(self, *, seed: int, stream: Array, moment: Array) -> None:
        """See `Mobility.move`."""
        everywhere = np.arange(len(self._slots))
        lap = self._since_first(everywhere)[1]
        self._slots += 1
        place, after = self._replay(everywhere)
        self._go(place)
        self.velocity[after != lap] = 0

    def _since_first(self, rows: Array) -> tuple[Array, Array]:
        """Time since the file's first, in s, and how often it was begun again, ``[n]`` each."""
        time = self._offset[rows] + self._slots[rows] * self.slot_s
        duration = self.trace.duration_s
        if self.config.after_end == "hold" or duration == 0.0:
            return time, np.zeros(len(rows))
        lap = np.floor(time / duration)
        return time - lap * duration, lap

    def _replay(self, rows: Array) -> tuple[Array, Array]:
        time, lap = self._since_first(rows)
        return self.trace.at(self.trace.times[0] + np.clip(time, 0.0, self.trace.duration_s)), lap

    def _arrays(self) -> dict[str, Array]:
        return {**super()._arrays(), "offset": self._offset, "slots": self._slots}


def _knots(lines: Any, path: str | Path, area_m: float) -> dict[str, list[tuple[float, float, float]]]:
    """Every id's knots ``(t, x, y)``."""
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise TraceError(
            f"{path}:1: no column {', '.join(repr(name) for name in missing)}; the first line names the columns, "
            f"and must have {','.join(COLUMNS)}"
        )
    slack = _SLACK * area_m
    places = [header.index(name) for name in COLUMNS]
    knots: dict[str, list[tuple[float, float, float]]] = {}
    for row in lines:
        if not row:
            continue
        where = f"{path}:{lines.line_num}"
        if len(row) != len(header):
            raise TraceError(f"{where}: {len(row)} fields, and the header has {len(header)}")
        texts = [row[place].strip() for place in places]
        time, x, y = (_number(texts[column], COLUMNS[column], where) for column in (0, 2, 3))
        name = texts[1]
        if not name:
            raise TraceError(f"{where}: id is empty")
        for axis, value in (("x", x), ("y", y)):
            if not -slack <= value <= area_m + slack:
                raise TraceError(f"{where}: {axis} = {value} m is outside the area, [0, {area_m:g}] m (area_m)")
        own = knots.setdefault(name, [])
        if own and time <= own[-1][0]:
            raise TraceError(f"{where}: t = {time} s of id {name!r} does not come after its last, {own[-1][0]} s")
        own.append((time, min(max(x, 0.0), area_m), min(max(y, 0.0), area_m)))
    return knots


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise TraceError(f"{where}: {column} is not a number: {text!r}") from None
    if not math.isfinite(value):
        raise TraceError(f"{where}: {column} is not finite: {text!r}")
    return value


def _shared(path: str, num_users: int, area_m: float) -> Trace:
    """The trace, read once for all blocks of a batch unless the file has changed."""
    try:
        stamp = Path(path).stat()
    except OSError as error:
        where = f"mobility.path; relative paths count from the current folder, {Path.cwd()}"
        raise TraceError(f"{path}: cannot be read: {error.strerror} ({where})") from error
    return _read_once(str(Path(path).absolute()), stamp.st_mtime_ns, stamp.st_size, path, num_users, area_m)


@lru_cache(maxsize=4)
def _read_once(file: str, mtime_ns: int, size: int, path: str, num_users: int, area_m: float) -> Trace:
    return read_trace(path, num_users=num_users, area_m=area_m)
