"""A run's scores, back from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marl_tr.analysis.curves import CurveError, read_scalars
from marl_tr.comparison.runs import Found, clock
from marl_tr.events import Phase

__all__ = ["RunScores", "read_scores"]


@dataclass(frozen=True)
class RunScores:
    """One finished run.

    Attributes:
        seed: Of the run.
        steps: Environment steps at its evaluations, ``[N]``; the last one is the final evaluation.
        values: The score at each, ``[N]``: a mean over held-out episodes.
        seconds: Of training before each, ``[N]``; 0 at the first, before anything is learned.
        training_seconds: To the last update.
        processes: How many it took; more than one where it was resumed.
    """

    seed: int
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    seconds: NDArray[np.float64]
    training_seconds: float
    processes: int

    @property
    def first(self) -> float:
        """Before anything was learned."""
        return float(self.values[0])

    @property
    def final(self) -> float:
        """Of the final evaluation."""
        return float(self.values[-1])


def read_scores(found: Found, score: Mapping[str, str]) -> RunScores:
    """Scores of a finished run.

    Args:
        found: The run.
        score: Tags of scalars by task, where it is not the headline's mean return.

    Raises:
        CurveError: It has no such scalar, or cannot be read.
    """
    folder, tag = found.folder, found.cell.tag(score)
    if folder is None:
        raise CurveError(f"{found.label} has no folder")
    steps, values = read_scalars(folder, tag, phase=Phase.EVAL)
    last, final = read_scalars(folder, tag, phase=Phase.FINAL)
    steps, values = np.append(steps, last[-1]), np.append(values, final[-1])
    if not np.isfinite(values).all():
        raise CurveError(f"{folder}: {tag!r} is not finite everywhere")
    spent, processes = clock(folder)
    at, walls = np.array([0, *(step for step, _ in spent)]), np.array([0.0, *(wall for _, wall in spent)])
    seconds = walls[np.searchsorted(at, steps, side="right") - 1]
    return RunScores(found.seed, steps, values, seconds, float(walls[-1]), processes)
