"""Positive-only drift on Gymnasium's control tasks against clipped ratios and a trust region, ours and SB3's PPO.

Every method of ours has the same frames, networks of two layers of 64, critic, and running normalisation of inputs;
``sb3`` is Stable-Baselines3's PPO with its own defaults and ``VecNormalize``, which has a learning rate that stays.
Nothing of ``podpo`` is clipped: neither ratios (there are none) nor gradients. Ours play one rollout for the inputs'
scale first, which is in the wall time and not in the steps.

    python benchmarks/drifting_control.py --sb3-python PYTHON --jobs 2

keeps a line a finished run in ``runs/drifting_control.jsonl`` and does not run again what is there, so that it may be
stopped and started; after each seed the result is balanced. It writes ``benchmarks/results/drifting_control.json``
(of all lines there) and ``docs/img/drifting_control.png`` (of those in `LINES`). Variants of a method are told
apart by a label:

    python benchmarks/drifting_control.py --only hopper --methods podpo --label kappa --set objective.balance=0.5

Five seeds (three on the slow task) are a look: no ranking follows from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from drifting_runs import HELD_OUT_SEED, RECENT, about, over_seeds, run_all
from flow_runs import HERE, read_rows
from numpy.typing import NDArray

from marl_tr.analysis.plots import save_figure

Array = NDArray[Any]

RESULTS = HERE / "results" / "drifting_control.json"
FIGURE = HERE.parent / "docs" / "img" / "drifting_control.png"
TASKS: dict[str, dict[str, Any]] = {
    # A swing lasts a second or so of 0.05 s steps.
    "pendulum": {"env": "Pendulum-v1", "steps": 100_000, "gamma": 0.9, "seeds": 5},
    "inverted_pendulum": {"env": "InvertedPendulum-v5", "steps": 100_000, "gamma": 0.99, "seeds": 5},
    "hopper": {"env": "Hopper-v5", "steps": 200_000, "gamma": 0.99, "seeds": 3},
}
METHODS = ("podpo", "clip", "trpo", "sb3")
LINES = {
    ("podpo", "often"): ("PODPO, updates of 512", "#D55E00"),
    ("podpo", ""): ("PODPO, updates of 2048", "#E69F00"),
    ("clip", ""): ("PPO", "#0072B2"),
    ("trpo", ""): ("TRPO", "#009E73"),
    ("sb3", ""): ("PPO (SB3)", "#6b6b6b"),
}
"""What the figure shows, by method and label: a name and a colour."""
STOCHASTIC = {"podpo": "sample", "clip": "drawn", "trpo": "drawn", "sb3": "drawn"}
ONE_ACTION = {"podpo": "medoid", "clip": "mode", "trpo": "mode", "sb3": "mode"}
TIMES = {"wall_s": "wall time", "cpu_s": "processor time"}
COPIES, ROLLOUT, EPISODES = 8, 256, 20


def main() -> None:
    arguments = parsed()
    if not arguments.redraw:
        if not arguments.summarise:
            run_all(planned(arguments), arguments.rows, parallel=arguments.jobs)
        rows = read_rows(arguments.rows)
        if not rows:
            raise SystemExit(f"{arguments.rows} holds no runs yet")
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(summary(rows), indent=1) + "\n")
    results = json.loads(arguments.results.read_text())
    show(results)
    draw(results, arguments.figure, time=arguments.time)
    print(f"{arguments.results}\n{arguments.figure}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(TASKS), choices=TASKS, help="tasks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of 1 to 5, or 1 to 3 on the slow task")
    parser.add_argument("--steps", type=int, help="environment steps, in place of each task's own")
    parser.add_argument("--label", default="", help="of a variant, beside the method's name")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the scenario, as in 'marl-tr run'"
    )
    parser.add_argument("--sb3-python", default=sys.executable, help="interpreter that has Stable-Baselines3")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--rows", type=Path, default=Path("runs/drifting_control.jsonl"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--time", default="wall_s", choices=TIMES, help="of the figure's second row")
    parser.add_argument("--summarise", action="store_true", help="run nothing; results of the runs that are there")
    parser.add_argument("--redraw", action="store_true", help="only draw the kept results again")
    arguments = parser.parse_args()
    if arguments.set and (not arguments.label or "sb3" in arguments.methods):
        parser.error("--set needs a --label, and --methods without sb3")
    return arguments


def planned(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, a whole seed first."""
    return [
        job(task, method, seed, arguments)
        for seed in arguments.seeds or range(1, 6)
        for task in arguments.only
        if arguments.seeds or seed <= TASKS[task]["seeds"]
        for method in arguments.methods
    ]


def job(task: str, method: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = TASKS[task]
    steps = arguments.steps or settings["steps"]
    run = {"task": task, "method": method, "label": arguments.label, "seed": seed, "steps": steps}
    if arguments.set:
        run["set"] = arguments.set
    if method == "sb3":
        return {
            **{"run": run, "python": arguments.sb3_python, "script": "drifting_sb3.py", "env": settings["env"]},
            **{"seed": seed, "total_steps": steps, "num_envs": COPIES, "rollout_steps": ROLLOUT},
            **{"gamma": settings["gamma"], "recent": RECENT},
            **{"final_episodes": EPISODES, "held_out_seed": HELD_OUT_SEED},
        }
    ways = ("sample", "medoid", "zero", "explored") if method == "podpo" else ("drawn", "mode")
    return {
        **{"run": run, "scenario": scenario(task, method, seed, steps), "overrides": arguments.set, "ways": ways},
        **{"final_episodes": EPISODES, "keep_returns": True},
    }


def scenario(task: str, method: str, seed: int, steps: int) -> dict[str, Any]:
    adam = {"kind": "adam", "learning_rate": 1e-3, "epochs": 10, "minibatches": COPIES, "value_clip": None}
    found: dict[str, Any] = {
        "name": "drifting_control",
        "seed": seed,
        "env": {"id": f"gymnasium/{TASKS[task]['env']}", "num_envs": COPIES},
        "agents": {"kind": "gaussian", "hidden": [64, 64], "normalise_observation": True},
        "region": {"kind": "measured"},
        "schedule": {"kind": "simultaneous"},
        "critic": {"kind": "mlp", "hidden": [64, 64], "normalise_observation": True, "fit": adam},
        "advantage": {"gamma": TASKS[task]["gamma"], "lam": 0.95},
        "trainer": {"total_steps": steps, "rollout_steps": ROLLOUT, "threads": 1},
    }
    if method == "podpo":
        found["agents"] = {
            **{"kind": "drifting", "hidden": [64], "head": [64], "activation": "tanh", "initial_spread": 0.6},
            **{"exploration": 0.1, "normalise_observation": True},
        }
        found["objective"] = {"kind": "podpo", "temperatures": [0.1, 0.3, 1.0], "samples": 8}
        # Half of 2048 decisions or so are positive: two minibatches of some 512.
        found["optimizer"] = {"epochs": 10, "minibatches": 2, "max_grad_norm": None}
    elif method == "clip":
        found["objective"] = {"kind": "clip", "clip": 0.2, "entropy": 0.0}
        found["optimizer"] = {"epochs": 10, "minibatches": 32, "max_grad_norm": 0.5}
    else:
        found["objective"] = {"kind": "surrogate", "entropy": 0.0}
        found["region"] = {"kind": "trpo", "bound": 0.01}
        found["critic"]["fit"] = {"kind": "trust_region"}
    if "optimizer" in found:
        found["optimizer"] |= {"learning_rate": 3e-4, "anneal": True}
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(
        (task, method, label, steps)
        for task in TASKS
        for method in METHODS
        for label, steps in sorted(
            {(r["run"]["label"], r["run"]["steps"]) for r in rows if _is(r, task=task, method=method)}
        )
    )
    cells = []
    for task, method, label, steps in keys:
        own = [row for row in rows if _is(row, task=task, method=method, label=label, steps=steps)]
        clip = [row for row in rows if _is(row, task=task, method="clip", label="", steps=steps)]
        cells.append(cell(own, clip))
    return {**about(rows), "recent_episodes": RECENT, "held_out_episodes": EPISODES, "cells": cells}


def _is(row: dict[str, Any], **wanted: Any) -> bool:
    return all(row["run"][name] == value for name, value in wanted.items())


def cell(rows: list[dict[str, Any]], clip: list[dict[str, Any]]) -> dict[str, Any]:
    """One method on one task, over seeds; those that diverged are counted and have no score."""
    run = rows[0]["run"]
    found: dict[str, Any] = {name: run[name] for name in ("task", "method", "label", "steps")}
    found |= {"set": run.get("set", []), "diverged": sum(row["diverged"] is not None for row in rows)}
    rows = sorted((row for row in rows if row["diverged"] is None), key=lambda row: row["run"]["seed"])
    found["seeds"] = [row["run"]["seed"] for row in rows]
    if not rows:
        return found
    last = [row["looks"][-1] for row in rows]
    found["evaluation"] = {
        way: over_seeds(look[way]["return"] for look in last) for way in last[0] if isinstance(last[0][way], dict)
    }
    found["training_return"] = over_seeds(row["curve"]["return"][-1] for row in rows)
    divergence = [[x for x in row["training"]["region/divergence"] if x is not None] for row in rows]
    # Of drifting policies a squared step of actions, else nats.
    measure = np.sqrt if run["method"] == "podpo" else np.asarray
    found["divergence"] = {
        "kind": "drift distance" if run["method"] == "podpo" else "KL, nats",
        "largest": float(max(measure(max(x)) for x in divergence)),
        "median": float(np.median([measure(np.median(x)) for x in divergence])),
    }
    found["parameters"] = rows[0]["parameters"]
    found["wall_s"] = [row["wall_s"] for row in rows]
    found["cpu_s"] = [row["cpu_s"] for row in rows]
    paired = {row["run"]["seed"]: row for row in clip}
    for name in ("wall_s", "cpu_s"):
        ratios = [row[name] / paired[row["run"]["seed"]][name] for row in rows if row["run"]["seed"] in paired]
        if ratios:
            found[f"{name[:-2]}_ratio_to_clip"] = {
                "median": float(np.median(ratios)),
                "values": np.round(ratios, 3).tolist(),
            }
    found["curve"] = curve(rows)
    return found


def curve(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Training returns over steps and times: mean and range over seeds; times are means."""
    values = np.array([[np.nan if x is None else x for x in row["curve"]["return"]] for row in rows], np.float64)
    # Until every seed has ended an episode there is no point.
    first = int(np.isnan(values).any(0).sum())
    values = values[:, first:]
    return {
        "step": rows[0]["curve"]["step"][first:],
        **{
            name: np.mean([r["curve"][name][first:] for r in rows], 0).round(2).tolist() for name in ("wall_s", "cpu_s")
        },
        "mean": values.mean(0).round(3).tolist(),
        "low": values.min(0).round(3).tolist(),
        "high": values.max(0).round(3).tolist(),
    }


def show(results: dict[str, Any]) -> None:
    print(
        f"{'task':<18} {'method':<24} {'n':>2} {'stochastic, IQM':<28} {'one action, IQM':<28} {'training':>9} "
        f"{'wall s':>7} {'cpu/clip':>8} {'divergence, largest':>20}"
    )
    for c in results["cells"]:
        name = f"{c['method']} {c['label']}".strip()
        if not c["seeds"]:
            print(f"{c['task']:<18} {name:<24}  0 all {c['diverged']} diverged")
            continue
        ratio = c.get("cpu_ratio_to_clip", {}).get("median", float("nan"))
        divergence = f"{c['divergence']['largest']:>11.4f} {c['divergence']['kind']}"
        print(
            f"{c['task']:<18} {name:<24} {len(c['seeds']):>2} {_told(c, STOCHASTIC[c['method']]):<28} "
            f"{_told(c, ONE_ACTION[c['method']]):<28} {c['training_return']['iqm']['estimate']:>9.1f} "
            f"{np.median(c['wall_s']):>7.0f} {ratio:>8.2f} {divergence}"
            + (f", {c['diverged']} diverged" if c["diverged"] else "")
        )


def _told(c: dict[str, Any], way: str) -> str:
    found = c["evaluation"][way]["iqm"]
    return f"{found['estimate']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


def draw(results: dict[str, Any], path: Path, *, time: str = "wall_s") -> None:
    """A column a task: training returns over steps, and over time."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    cells = [c for c in results["cells"] if c["seeds"] and (c["method"], c["label"]) in LINES]
    tasks = list(dict.fromkeys(c["task"] for c in cells))
    if not tasks:
        return
    figure = Figure(figsize=(4.6 * len(tasks), 6.6), dpi=96, layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False, sharey="col")
    for column, task in enumerate(tasks):
        for c in (c for c in cells if c["task"] == task):
            for axis, name in zip(axes[:, column], ("step", time), strict=True):
                (label, color), line = LINES[c["method"], c["label"]], c["curve"]
                axis.plot(line[name], line["mean"], color=color, linewidth=1.8, label=f"{label}")
                axis.fill_between(line[name], line["low"], line["high"], color=color, alpha=0.15, linewidth=0)
        seeds = sorted({len(c["seeds"]) for c in cells if c["task"] == task})
        count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        axes[0, column].set_title(f"{TASKS[task]['env']}, {count} seed(s)", loc="left", fontsize=11)
        axes[0, column].set_xlabel("environment steps")
        axes[0, column].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[1, column].set_xlabel(f"{TIMES[time]} without evaluations, s, one thread")
    for axis in axes.flat:
        axis.grid(color="#dddddd", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"return, last {results['recent_episodes']} training episodes")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(LINES))
    figure.suptitle("Mean and range over seeds", fontsize=11)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
