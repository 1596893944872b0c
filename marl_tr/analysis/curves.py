"""The numbers of a run, back from its metrics.jsonl."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.errors import UserError
from marl_tr.events.chain_log import CHAIN_FILE
from marl_tr.events.jsonl import METRICS_FILE
from marl_tr.events.stream import Phase
from marl_tr.events.strict_json import number

__all__ = ["ChainUpdate", "CurveError", "read_chains", "read_scalars", "read_tags"]


class CurveError(UserError):
    """A run has no such curve, or its metrics.jsonl or chain.jsonl cannot be read; says where."""


@dataclass(frozen=True)
class ChainUpdate:
    """What one update did to each step of a policy's chain.

    Attributes:
        step: Environment steps so far.
        learner: Whose update.
        measures: ``[K]`` each, by name: those of `marl_tr.region.chain.chain_measures`, and at evaluations the
            gradient norms of `marl_tr.region.chain_gradients`.
    """

    step: int
    learner: str
    measures: dict[str, NDArray[np.float64]]


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


def read_chains(run_dir: Path) -> tuple[ChainUpdate, ...]:
    """Every update of a policy with a chain of steps, in the order in which they were written; none without a chain.

    Raises:
        CurveError: A line is no such update, or the file cannot be read.
    """
    if not (run_dir / CHAIN_FILE).exists():
        return ()
    updates = []
    for where, line in _lines(run_dir / CHAIN_FILE):
        try:
            measures = {
                name: np.array([number(value) for value in values], np.float64)
                for name, values in line["measures"].items()
            }
            updates.append(ChainUpdate(step=int(line["step"]), learner=str(line["learner"]), measures=measures))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CurveError(f"{where}: not an update ({error!r})") from error
    return tuple(updates)


def _events(run_dir: Path) -> Iterator[tuple[int, str, dict[str, float]]]:
    for where, event in _lines(run_dir / METRICS_FILE):
        try:
            scalars = {tag: number(value) for tag, value in event["scalars"].items()}
            yield int(event["step"]), str(event["phase"]), scalars
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CurveError(f"{where}: not an event ({error!r})") from error


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Every line of a log with where it stands."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CurveError(f"cannot read {path}: {error.strerror or error}") from error
    # What follows the last line break is empty, or a line that a running trainer is about to finish.
    for row, line in enumerate(lines[:-1], start=1):
        try:
            yield f"{path}:{row}", json.loads(line)
        except ValueError as error:
            raise CurveError(f"{path}:{row}: not an event ({error!r})") from error
