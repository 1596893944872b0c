"""The numbers of a run, back from its metrics.jsonl."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.errors import UserError
from marl_tr.events.jsonl import METRICS_FILE
from marl_tr.events.stream import Phase
from marl_tr.events.strict_json import number

__all__ = ["CurveError", "read_scalars", "read_tags"]


class CurveError(UserError):
    """A run has no such curve, or its metrics.jsonl cannot be read; says where."""


def read_scalars(
    run_dir: Path, tag: str, *, phase: Phase | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One scalar of a run over environment steps, in the order in which it was written.

    Args:
        run_dir: The run's folder. The run may still go on.
        tag: Such as ``"eval/iqm"``.
        phase: Only events of this phase; by default of any.

    Returns:
        Steps ``[N]`` int64 and values ``[N]`` float64.

    Raises:
        CurveError: No such file or tag (the nearest is suggested), or a line that is no event.
    """
    steps: list[int] = []
    values: list[float] = []
    seen: set[str] = set()
    for step, line_phase, scalars in _events(run_dir):
        seen.update(scalars)
        if tag in scalars and (phase is None or line_phase == phase):
            steps.append(step)
            values.append(scalars[tag])
    if not steps:
        near = difflib.get_close_matches(tag, seen, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != tag else ""
        where = f" in phase {phase!s}" if phase is not None else ""
        raise CurveError(f"{run_dir / METRICS_FILE} holds no {tag!r}{where}{hint}")
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def read_tags(run_dir: Path) -> tuple[str, ...]:
    """Every tag that a run has written, sorted.

    Raises:
        CurveError: No such file, or a line that is no event.
    """
    return tuple(sorted({tag for _, _, scalars in _events(run_dir) for tag in scalars}))


def _events(run_dir: Path) -> Iterator[tuple[int, str, dict[str, float]]]:
    path = run_dir / METRICS_FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CurveError(f"cannot read {path}: {error.strerror or error}") from error
    # What follows the last line break is empty, or a line that a running trainer is about to finish.
    for row, line in enumerate(lines[:-1], start=1):
        try:
            event: Any = json.loads(line)
            scalars = {tag: number(value) for tag, value in event["scalars"].items()}
            yield int(event["step"]), str(event["phase"]), scalars
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CurveError(f"{path}:{row}: not an event ({error!r})") from error
