"""What a comparison leaves: numbers, tables, figures, and the runs in the form of marl-eval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marl_tr.analysis.compare_figures import Panel, panels_figure
from marl_tr.analysis.plots import Curve, save_figure
from marl_tr.comparison.runs import Found
from marl_tr.comparison.scores import read_scores
from marl_tr.comparison.summary import curve_arrays
from marl_tr.comparison.sweep import Sweep

__all__ = ["NUMBERS", "TABLES", "duration", "improvement_table", "markdown", "marl_eval", "task_table", "write_all"]

NUMBERS, TABLES, MARL_EVAL = "compare.json", "compare.md", "marl_eval.json"
CURVES, TIME_CURVES, PROFILES = "compare.png", "compare_time.png", "profiles.png"
_MATRIX = 12
"""Of more variants no matrix is shown; the numbers have it."""

Table = tuple[list[str], list[list[str]]]


def write_all(sweep: Sweep, summary: Mapping[str, Any], found: Sequence[Found], out: Path) -> list[Path]:
    """Write every output to `out`, tables last, numbers first; returns the files."""
    _write_json(out / NUMBERS, summary)
    _write_json(out / MARL_EVAL, marl_eval(sweep, found))
    figures = _figures(sweep, summary, out)
    path = out / TABLES
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(markdown(summary, figures), encoding="utf-8")
    partial.replace(path)
    return [path, out / NUMBERS, out / MARL_EVAL, *figures]


def marl_eval(sweep: Sweep, found: Sequence[Found]) -> dict[str, Any]:
    """The finished runs in the shape that marl-eval reads (Gorsane et al., arXiv 2209.10485).

    ``{environment: {task: {algorithm: {run: {"step_0": {"step_count", "elapsed_time", "return"}, ...,
    "absolute_metrics": {"return"}}}}}}``. Returns are one number an evaluation, its mean over episodes. The absolute
    metric is that of the final policy; the paper's is of the best policy on the way.
    """
    data: dict[str, Any] = {}
    for run in found:
        if run.state != "finished":
            continue
        scores = read_scores(run, sweep.file.score)
        steps: dict[str, Any] = {
            f"step_{index}": {"step_count": int(step), "elapsed_time": float(seconds), "return": [float(value)]}
            for index, (step, seconds, value) in enumerate(
                zip(scores.steps, scores.seconds, scores.values, strict=True)
            )
        }
        steps["absolute_metrics"] = {"return": [scores.final]}
        task = data.setdefault(sweep.of_task(run.cell.task)[0].scenario.env.id, {}).setdefault(run.cell.task, {})
        task.setdefault(run.cell.variant, {})[f"seed_{run.seed}"] = steps
    return data


def markdown(summary: Mapping[str, Any], figures: Sequence[Path] = ()) -> str:
    """``compare.md``."""
    lines = [f"# {summary['name']}", ""]
    if summary["description"]:
        lines += [summary["description"], ""]
    if summary["note"]:
        lines += [f"**{summary['note'][:1].upper()}{summary['note'][1:]}.**", ""]
    lines += [f"- warning: {warning}" for warning in summary["warnings"]]
    lines += [""] if summary["warnings"] else []
    baseline = summary["sweep"]["baseline"]
    for task, own in summary["tasks"].items():
        lines += [f"## {task}", "", *_task_text(own), "", *_table(task_table(own, summary, baseline)), ""]
    lines += _overall_text(summary)
    table = improvement_table(summary)
    if table is not None:
        over = f"{len(summary['tasks'])} tasks" if len(summary["tasks"]) > 1 else "one task"
        lines += [
            "## Probability of improvement",
            "",
            f"P(row > column) over {over}: how often a run of the row's variant beats one of the column's, ties half. "
            "It says how often, not how much.",
            "",
            *_table(table),
            "",
        ]
    lines += [f"![]({figure.name})" for figure in figures]
    lines += ["", "## How to read it", "", *(f"- {name}: {text}." for name, text in summary["definitions"].items())]
    lines += ["", *_time_text(summary)]
    return "\n".join(lines).rstrip() + "\n"


def task_table(task: Mapping[str, Any], summary: Mapping[str, Any], baseline: str | None) -> Table:
    """A row a variant."""
    columns = ["variant", "runs", "score: IQM [95 % CI]", "lowest", "highest"]
    if baseline is not None:
        columns.append(f"P(X > {baseline})")
    columns += ["steps to threshold", "reached", "seconds", "seconds to threshold"]
    if baseline is not None:
        columns += [f"seconds / {baseline}'s", f"steps to threshold / {baseline}'s"]
    rows = []
    for variant, own in task["variants"].items():
        scores = list(own["scores"].values())
        row = [
            variant,
            f"{own['runs']} of {own['of']}",
            _interval(own["iqm"]),
            _number(min(scores)),
            _number(max(scores)),
        ]
        if baseline is not None:
            row.append("–" if variant == baseline else _ahead(task, variant, baseline))
        row += [
            _count(own.get("median_steps_to_threshold")),
            "–" if own["reached"] is None else f"{own['reached']:.0%}",
            _number(own["median_seconds"]),
            _number(own.get("median_seconds_to_threshold")),
        ]
        if baseline is not None:
            row += [_ratio(own["seconds_ratio"]), _ratio(own["steps_to_threshold_ratio"])]
        rows.append(row)
    return columns, rows


def improvement_table(summary: Mapping[str, Any]) -> Table | None:
    """The matrix, or the column against the baseline where there is one; None where it shows nothing."""
    found, baseline = summary["improvement"], summary["sweep"]["baseline"]
    if baseline is not None:
        rows = [
            [x, _interval(own[baseline]), str(len(own[baseline]["tasks"]))]
            for x, own in found.items()
            if baseline in own
        ]
        return (["X", f"P(X > {baseline}) [95 % CI]", "tasks"], rows) if rows else None
    names = list(found)
    if not 2 <= len(names) <= _MATRIX:
        return None
    rows = [[x, *(_interval(found[x][y]) if y in found[x] else "–" for y in names)] for x in names]
    return ["", *names], rows


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _task_text(task: Mapping[str, Any]) -> list[str]:
    threshold, scale = task["threshold"], task["range"]
    shown = "none" if threshold["value"] is None else _number(threshold["value"])
    lines = [
        f"`{task['environment']}`, {task['total_steps']:,} environment steps; score: `{task['score']}`, mean over "
        f"{task['episodes']} held-out episodes of each run. Before learning: {_number(task['before_learning'])}. "
        f"Threshold: {shown} ({threshold['how']})."
    ]
    if task["episodes_on_the_way"] != task["episodes"]:
        lines.append(
            f"Evaluations on the way are over {task['episodes_on_the_way']} episodes, not those of a curve's last "
            "point, which may lie apart for that alone (evaluation.episodes, final_episodes)."
        )
    if scale is not None:
        lines.append(f"Over tasks {_number(scale['low'])} is 0 and {_number(scale['high'])} is 1 ({scale['how']}).")
    return lines


def _overall_text(summary: Mapping[str, Any]) -> list[str]:
    overall = summary["overall"]
    if len(summary["tasks"]) < 2:
        return []
    lines = ["## Over tasks", ""]
    if overall["tasks_left_out"]:
        lines += [f"Left out, for no variant learned: {', '.join(overall['tasks_left_out'])}.", ""]
    if not overall["variants"]:
        return [*lines, "No variant has runs on every task.", ""]
    rows = [[v, str(own["runs"]), _interval(own["iqm"])] for v, own in overall["variants"].items()]
    missing = [v for v in summary["sweep"]["variants"] if v not in overall["variants"]]
    lines += [f"Normalised scores over {', '.join(overall['tasks'])}, which count alike.", ""]
    lines += [*_table((["variant", "runs", "normalised IQM [95 % CI]"], rows)), ""]
    if missing:
        lines += [f"Without runs on every task, and so not here: {', '.join(missing)}.", ""]
    return lines


def _time_text(summary: Mapping[str, Any]) -> list[str]:
    attempts = summary["attempts"]
    if not attempts:
        return ["How the machine was loaded while the runs were made is not known: seconds tell little."]
    loads = [load for attempt in attempts for load in attempt["load"] if load is not None]
    load = f", load average {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    side = max(attempt["at_once"] for attempt in attempts)
    cores = sorted({str(attempt["cores"]) for attempt in attempts})
    return [
        f"Seconds were measured with up to {side} run{'s' * (side != 1)} at once on {' or '.join(cores)} cores{load}. "
        "They compare variants only as far as that was the same for all."
    ]


def _figures(sweep: Sweep, summary: Mapping[str, Any], out: Path) -> list[Path]:
    labels, note, baseline = list(sweep.file.variants), summary["note"], sweep.file.baseline
    written = []
    for kind, x, name, xlabel in (
        ("curve", "steps", CURVES, "environment steps"),
        ("time_curve", "seconds", TIME_CURVES, "seconds of training"),
    ):
        panels = [
            Panel(
                title=task,
                curves=[Curve(v, *curve_arrays(c[kind], x)) for v, c in own["variants"].items()],
                ylabel=f"{own['score']}\n(IQM over runs, 95 % CI)",
                threshold=own["threshold"]["value"],
            )
            for task, own in summary["tasks"].items()
        ]
        figure = panels_figure(
            panels, labels=labels, title=summary["name"], xlabel=xlabel, note=note, reference=baseline
        )
        save_figure(figure, out / name)
        written.append(out / name)
    profiles = summary["overall"]["profiles"]
    if profiles is None:
        (out / PROFILES).unlink(missing_ok=True)
        return written
    taus = np.array(profiles["thresholds"])
    curves = [Curve(v, taus, *curve_arrays(band | {"x": taus}, "x")[1:]) for v, band in profiles["variants"].items()]
    panel = Panel(
        title=f"over {', '.join(summary['overall']['tasks'])}",
        curves=curves,
        ylabel="share of runs above (95 % CI)",
        share=True,
    )
    figure = panels_figure(
        [panel], labels=labels, title=summary["name"], xlabel="normalised score", note=note, reference=baseline
    )
    save_figure(figure, out / PROFILES)
    return [*written, out / PROFILES]


def _ahead(task: Mapping[str, Any], x: str, baseline: str) -> str:
    """P(X > baseline) on this task alone."""
    if baseline not in task["variants"]:
        return "–"
    ours, theirs = (np.array(list(task["variants"][v]["scores"].values())) for v in (x, baseline))
    return f"{((ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)).mean():.2f}"


def _table(table: Table) -> list[str]:
    columns, rows = table
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in cells)]


def _interval(interval: Mapping[str, float | None]) -> str:
    if interval["low"] is None:
        return _number(interval["estimate"])
    return f"{_number(interval['estimate'])} [{_number(interval['low'])}, {_number(interval['high'])}]"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0 or 0.1 <= abs(value) < 1000:
        return f"{value:.{3 if 0 < abs(value) < 1 else 2 if abs(value) < 100 else 1}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
