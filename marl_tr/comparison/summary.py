"""All numbers of a comparison, as plain data: a function of the runs alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.analysis.compare_statistics import (
    Band,
    curve_band,
    first_reached,
    normalise,
    on_common_grid,
    performance_profile,
    probability_of_improvement,
)
from marl_tr.analysis.statistics import ConfidenceInterval, iqm, stratified_bootstrap_ci
from marl_tr.comparison.runs import Found, diverged_because, made_with
from marl_tr.comparison.scores import RunScores, read_scores
from marl_tr.comparison.sweep import Sweep

__all__ = ["FEW", "curve_arrays", "summarise", "tell_few"]

FEW = 5
"""Fewer runs than this of a variant on a task rank nothing."""

_VERSION = 1
_TAUS = 101
_LEARNED = 0.9

_DEFINITIONS = {
    "score": "mean over the final evaluation's held-out episodes, of each run; by default of the return of the "
    "headline policy (the first of evaluation.policies); of the policy at the end, not of the best on the way",
    "interval": "95 % percentile bootstrap over runs, redrawn within task and variant; none of a single run",
    "iqm": "interquartile mean over runs: the middle half, runs at the quartiles in part",
    "normalised": "(score - low) / (high - low) of the task's range, which the bootstrap takes as given",
    "improvement": "P(X > Y): share of pairs of runs in which X is ahead, ties half, averaged over tasks",
    "curve": "interquartile mean over runs at each evaluation, with a pointwise interval",
    "time_curve": "the same over seconds of training; runs are interpolated linearly between their evaluations",
    "seconds": "of training to the last update: evaluations on the way are in it, the final one is not",
    "steps_to_threshold": "first evaluation at or above the threshold; a run that never gets there counts as "
    "infinitely late (null), and medians take it so",
}


def summarise(sweep: Sweep, found: Sequence[Found], out: Path, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``compare.json`` holds.

    Args:
        sweep: What was asked for.
        found: Its runs; those that are not finished are left out of all numbers, and told.
        out: Folder of the comparison.
        attempts: What the runs took, for the record.

    Raises:
        CurveError: A run cannot be read, or lacks the scalar that scores it.
    """
    scores = {
        (run.cell.task, run.cell.variant, run.seed): read_scores(run, sweep.file.score)
        for run in found
        if run.state == "finished"
    }
    runs = {
        cell.label: [s for seed in sweep.seeds if (s := scores.get((cell.task, cell.variant, seed)))]
        for cell in sweep.cells
    }
    tasks = {task: _task(sweep, task, runs) for task in sweep.file.tasks}
    tasks = {task: summary for task, summary in tasks.items() if summary["variants"]}
    least = min((len(own) for own in runs.values() if own), default=0)
    return {
        "version": _VERSION,
        "name": sweep.file.name,
        "description": sweep.file.description,
        "note": tell_few(least),
        "warnings": [*sweep.warnings, *_gaps(found), *_mixed(found)],
        "definitions": _DEFINITIONS,
        "sweep": {
            **sweep.file.model_dump(mode="json"),
            "seeds": list(sweep.seeds),
            "command_line": list(sweep.overrides),
        },
        "fewest_runs": least,
        "tasks": tasks,
        "overall": _overall(sweep, tasks),
        "improvement": _improvement(sweep, tasks),
        "runs": [_run(run, out) for run in found],
        "attempts": [dict(attempt) for attempt in attempts],
    }


def tell_few(runs: int) -> str | None:
    """The warning that goes with every output of few runs."""
    if runs >= FEW:
        return None
    return f"a look: no ranking (a variant has {runs} run{'s' * (runs != 1)} on a task, fewer than {FEW})"


def _task(sweep: Sweep, task: str, runs: Mapping[str, Sequence[RunScores]]) -> dict[str, Any]:
    cells = [cell for cell in sweep.of_task(task) if runs[cell.label]]
    if not cells:
        return {"variants": {}}
    finals = {cell.variant: np.array([run.final for run in runs[cell.label]]) for cell in cells}
    before = float(iqm([run.first for cell in cells for run in runs[cell.label]]))
    best = max(float(iqm(values)) for values in finals.values())
    low, high, how = _range(sweep, task, before, best)
    threshold, told = _threshold(sweep, task, before, best)
    variants: dict[str, Any] = {}
    for cell in cells:
        own = runs[cell.label]
        variants[cell.variant] = {
            "runs": len(own),
            "of": len(sweep.seeds),
            "scores": {str(run.seed): run.final for run in own},
            "iqm": _interval(stratified_bootstrap_ci(finals[cell.variant], seed=0), len(own)),
            "normalised": None if how is None else normalise(finals[cell.variant], low=low, high=high).tolist(),
            **_learning(own, threshold),
            **_curves(own),
        }
    _ratios(variants, sweep.file.baseline)
    return {
        "environment": cells[0].scenario.env.id,
        "score": cells[0].tag(sweep.file.score),
        "total_steps": cells[0].scenario.trainer.total_steps,
        "episodes": cells[0].scenario.evaluation.final_episodes,
        "episodes_on_the_way": cells[0].scenario.evaluation.episodes,
        "before_learning": before,
        "range": None if how is None else {"low": low, "high": high, "how": how},
        "threshold": {"value": threshold, "how": told},
        "variants": variants,
    }


def _range(sweep: Sweep, task: str, before: float, best: float) -> tuple[float, float, str | None]:
    given = sweep.file.range.get(task)
    if given is not None:
        return given[0], given[1], "given"
    how = "0: IQM of all runs before learning; 1: final IQM of the best variant" if best > before else None
    return before, best, how


def _threshold(sweep: Sweep, task: str, before: float, best: float) -> tuple[float | None, str]:
    given = sweep.file.threshold.get(task)
    if given is not None:
        return given, "given"
    if best <= before:
        return None, "no variant became better than before learning"
    return (
        before + _LEARNED * (best - before),
        f"{_LEARNED:.0%} of the way from before learning (IQM of all runs' first evaluations) to the best variant's "
        "final IQM",
    )


def _learning(runs: Sequence[RunScores], threshold: float | None) -> dict[str, Any]:
    """How soon: in steps and in seconds."""
    seconds = np.array([run.training_seconds for run in runs])
    found: dict[str, Any] = {
        "seconds": {str(run.seed): run.training_seconds for run in runs},
        "median_seconds": float(np.median(seconds)),
        "resumed": [run.seed for run in runs if run.processes > 1],
    }
    if threshold is None:
        return found | {"reached": None, "steps_to_threshold": None, "seconds_to_threshold": None}
    steps = [first_reached(run.steps, run.values, threshold) for run in runs]
    walls = [first_reached(run.seconds, run.values, threshold) for run in runs]
    return found | {
        "reached": float(np.isfinite(steps).mean()),
        "steps_to_threshold": {str(run.seed): _plain(x) for run, x in zip(runs, steps, strict=True)},
        "median_steps_to_threshold": _plain(float(np.median(steps))),
        "seconds_to_threshold": {str(run.seed): _plain(x) for run, x in zip(runs, walls, strict=True)},
        "median_seconds_to_threshold": _plain(float(np.median(walls))),
    }


def _curves(runs: Sequence[RunScores]) -> dict[str, Any]:
    common = sorted(set.intersection(*(set(run.steps.tolist()) for run in runs)))
    over_steps = curve_band(np.stack([run.values[np.isin(run.steps, common)] for run in runs]))
    grid, values = on_common_grid([(run.seconds, run.values) for run in runs])
    return {
        "curve": {"steps": common, **_band(over_steps, len(runs))},
        "time_curve": {"seconds": grid.tolist(), **_band(curve_band(values), len(runs))},
    }


def _ratios(variants: Mapping[str, dict[str, Any]], baseline: str | None) -> None:
    """Medians over those of the baseline; below 1 is faster."""
    base = variants.get(baseline or "")
    for own in variants.values():
        for name in ("seconds", "steps_to_threshold", "seconds_to_threshold"):
            ours, theirs = own.get(f"median_{name}"), None if base is None else base.get(f"median_{name}")
            own[f"{name}_ratio"] = ours / theirs if ours is not None and theirs else None


def _overall(sweep: Sweep, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Over all tasks, of the variants that have runs on each; a task that has no range is left out for everybody."""
    names = [task for task, summary in tasks.items() if summary["range"] is not None]
    left_out = [task for task in tasks if task not in names]
    everywhere = [v for v in sweep.file.variants if names and all(v in tasks[task]["variants"] for task in names)]
    rows = {v: [np.array(tasks[task]["variants"][v]["normalised"]) for task in names] for v in everywhere}
    found: dict[str, Any] = {"tasks": names, "tasks_left_out": left_out, "variants": {}, "profiles": None}
    if not rows:
        return found
    every = np.concatenate([row for own in rows.values() for row in own])
    taus = np.linspace(min(0.0, float(every.min())), max(1.0, float(every.max())), _TAUS)
    found["profiles"] = {"thresholds": taus.tolist(), "variants": {}}
    for variant, own in rows.items():
        least = min(len(row) for row in own)
        found["variants"][variant] = {
            "iqm": _interval(stratified_bootstrap_ci(own, seed=0), least),
            "runs": sum(map(len, own)),
        }
        found["profiles"]["variants"][variant] = _band(performance_profile(own, taus), least)
    return found


def _improvement(sweep: Sweep, tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{X: {Y: P(X > Y)}}`` over the tasks that both have."""
    variants = list(sweep.file.variants)
    found: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
    for index, x in enumerate(variants):
        for y in variants[index + 1 :]:
            both = [task for task, summary in tasks.items() if {x, y} <= summary["variants"].keys()]
            if not both:
                continue
            ours, theirs = (
                [np.array(list(tasks[task]["variants"][v]["scores"].values())) for task in both] for v in (x, y)
            )
            least = min(len(row) for row in (*ours, *theirs))
            ahead = _interval(probability_of_improvement(ours, theirs), least)
            found[x][y] = {**ahead, "tasks": both}
            found[y][x] = {**_turned(ahead), "tasks": both}
    return {variant: own for variant, own in found.items() if own}


def _turned(ahead: Mapping[str, float | None]) -> dict[str, float | None]:
    """P(Y > X) of P(X > Y)."""
    low, high = ahead["low"], ahead["high"]
    estimate = ahead["estimate"]
    return {
        "estimate": None if estimate is None else 1 - estimate,
        "low": None if high is None else 1 - high,
        "high": None if low is None else 1 - low,
    }


def _gaps(found: Sequence[Found]) -> list[str]:
    told = []
    for state, what in (("diverged", "diverged"), ("unfinished", "not finished"), ("absent", "not there")):
        labels = [run.label for run in found if run.state == state]
        if labels:
            told.append(f"left out of all numbers, {what}: {_listed(labels)}")
    if any(run.state == "diverged" for run in found):
        told.append("a variant of which runs diverged looks better than it is: only its good runs are counted")
    return told


def _mixed(found: Sequence[Found]) -> list[str]:
    """Runs that were begun with different versions are not compared on the same footing."""
    heads = {made_with(run.folder) for run in found if run.state == "finished" and run.folder is not None}
    return [f"runs were made with different versions: {'; '.join(sorted(heads))}"] if len(heads) > 1 else []


def _run(run: Found, out: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "task": run.cell.task,
        "variant": run.cell.variant,
        "seed": run.seed,
        "state": run.state,
        "folder": None if run.folder is None else run.folder.relative_to(out).as_posix(),
        "made_with": None if run.folder is None else made_with(run.folder),
    }
    if run.state == "diverged" and run.folder is not None:
        entry["cause"] = diverged_because(run.folder)
    return entry


def _interval(interval: ConfidenceInterval, runs: int) -> dict[str, float | None]:
    """Of a single run the bootstrap has nothing to draw: no interval, rather than one of no width."""
    alone = runs < 2
    return {
        "estimate": interval.estimate,
        "low": None if alone else interval.low,
        "high": None if alone else interval.high,
    }


def _band(band: Band, runs: int) -> dict[str, Any]:
    alone = runs < 2
    return {
        "estimate": band.estimate.tolist(),
        "low": None if alone else band.low.tolist(),
        "high": None if alone else band.high.tolist(),
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(labels: Iterable[str]) -> str:
    every = list(labels)
    return ", ".join(every[:6]) + (f" and {len(every) - 6} more" if len(every) > 6 else "")


def curve_arrays(curve: Mapping[str, Any], x: str) -> tuple[NDArray[Any], NDArray[Any], Any, Any]:
    """A curve of the summary as arrays: x, estimate, low and high (None of a single run)."""
    ends = [None if curve[end] is None else np.array(curve[end]) for end in ("low", "high")]
    return np.array(curve[x]), np.array(curve["estimate"]), ends[0], ends[1]
