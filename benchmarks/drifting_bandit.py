"""A contextual bandit with two equally good answers: which policies keep both, and what it costs.

``games/bandit-v0`` with 2048 contexts an iteration. ``balanced`` and ``plain`` are positive-only drift with and without
the density exponent, 20 iterations each; a Gaussian by clipped ratios and in a trust region, and mixtures of four
Gaussians by clipped ratios with and without an entropy bonus, have three times as many. Measured are 64 answers to
each of 1000 held-out contexts, as the policy samples them (drifting ones without exploration noise): the reward without
its noise, the share of answers in a mode, the share of contexts in which every mode has at least a fifth of an even
share (of two modes 10 %), and the entropy of the modes' shares.

    python benchmarks/drifting_bandit.py --jobs 2
    python benchmarks/drifting_bandit.py --jobs 2 --ablations

keep a line a finished run in ``runs/drifting_bandit.jsonl`` and do not run again what is there, so that they may be
stopped and started; after each seed the result is balanced. They write ``benchmarks/results/drifting_bandit.json``,
``docs/img/drifting_bandit.png`` and ``docs/img/drifting_bandit_samples.png`` from all lines there. Ablations change
``balanced`` in one thing and have two seeds. A few seeds are a look: no ranking follows from them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from drifting_bandit_figures import NAMES, draw_samples, draw_scores
from drifting_runs import about, over_seeds, run_all
from flow_runs import HERE, read_rows

RESULTS = HERE / "results" / "drifting_bandit.json"
FIGURES = HERE.parent / "docs" / "img"
METHODS = tuple(NAMES)
ABLATIONS: dict[str, list[str]] = {
    "G 2": ["objective.samples=2"],
    "G 4": ["objective.samples=4"],
    "G 16": ["objective.samples=16"],
    "row": ["objective.field=row"],
    "separate": ["objective.field=separate"],
    "attraction": ["objective.field=attraction"],
    "kappa 0.5": ["objective.balance=0.5"],
    "R 0.02 0.05 0.2": ["objective.temperatures=[0.02, 0.05, 0.2]"],
    "raw drift": ["objective.normalise_drift=false"],
    "4 modes": ["env.config.modes=4"],
    "8 modes": ["env.config.modes=8"],
}
MEASURES = ("value", "in_mode", "all_modes_share", "mode_entropy")
CONTEXTS, COHORT, SHOWN = 2048, 64, 3


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
    draw_scores(results, arguments.figures / "drifting_bandit.png")
    draw_samples(results, arguments.figures / "drifting_bandit_samples.png")
    print(f"{arguments.results}\n{arguments.figures}/drifting_bandit*.png")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--ablations", nargs="*", choices=ABLATIONS, help="these, or all, in place of the methods")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of 1 to 5, of ablations 1 and 2")
    parser.add_argument("--iterations", type=int, default=20, help="of drifting policies; others have three times that")
    parser.add_argument("--bound", type=float, default=0.02, help="of the trust region, nats")
    parser.add_argument("--contexts", type=int, default=1000, help="held-out ones at the end")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--rows", type=Path, default=Path("runs/drifting_bandit.jsonl"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder")
    parser.add_argument("--summarise", action="store_true", help="run nothing; results of the runs that are there")
    parser.add_argument("--redraw", action="store_true", help="only draw the kept results again")
    return parser.parse_args()


def planned(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, a whole seed first."""
    if arguments.ablations is None:
        cases = [(method, "") for method in arguments.methods]
    else:
        cases = [("balanced", name) for name in arguments.ablations or ABLATIONS]
    seeds = arguments.seeds or range(1, 6 if arguments.ablations is None else 3)
    return [job(method, ablation, seed, arguments) for seed in seeds for method, ablation in cases]


def job(method: str, ablation: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    drifting = method in ("balanced", "plain")
    run = {
        "method": method,
        "ablation": ablation,
        "seed": seed,
        "iterations": arguments.iterations * (3 - 2 * drifting),
    }
    if method == "trpo":
        run["bound"] = arguments.bound
    return {
        **{"run": run, "scenario": scenario(run), "overrides": ABLATIONS.get(ablation, [])},
        "ways": ("sample", "medoid", "zero", "explored") if drifting else ("drawn", "mode"),
        **{"every": max(1, run["iterations"] // 4), "episodes": COHORT * max(1, arguments.contexts // 4)},
        **{"final_episodes": COHORT * arguments.contexts, "cohort": COHORT, "contexts": SHOWN},
    }


def scenario(run: dict[str, Any]) -> dict[str, Any]:
    method = run["method"]
    found: dict[str, Any] = {
        "name": "drifting_bandit",
        "seed": run["seed"],
        "env": {"id": "games/bandit-v0", "num_envs": CONTEXTS},
        "agents": {"kind": "gaussian", "sharing": "all", "hidden": [128, 128]},
        "objective": {"kind": "clip", "clip": 0.2, "entropy": 0.01 if method == "mixture_entropy" else 0.0},
        "region": {"kind": "measured"},
        "schedule": {"kind": "simultaneous"},
        "critic": {
            **{"kind": "mlp", "hidden": [128, 128]},
            "fit": {"kind": "adam", "learning_rate": 1e-3, "epochs": 20, "minibatches": 8},
        },
        "optimizer": {"learning_rate": 1e-3, "epochs": 10, "minibatches": 8, "max_grad_norm": 0.5},
        "trainer": {"total_steps": CONTEXTS * run["iterations"], "rollout_steps": 1, "threads": 1},
    }
    if method in ("balanced", "plain"):
        found["agents"] = {"kind": "drifting", "sharing": "all"}
        kind = "podpo_balanced" if method == "balanced" else "podpo"
        found["objective"] = {"kind": kind, "temperatures": [0.1, 0.3]}
        # In standard deviations all the same; what is positive is the critic's to say.
        found["advantage"] = {"normalise": False}
        found["optimizer"] = {"learning_rate": 1e-3, "epochs": 20, "minibatches": 4, "max_grad_norm": None}
    elif method == "trpo":
        found["objective"] = {"kind": "surrogate"}
        found["region"] = {"kind": "trpo", "bound": run["bound"]}
        del found["optimizer"]
    elif method.startswith("mixture"):
        found["agents"] |= {"law": "mixture", "components": 4}
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = [(method, "") for method in METHODS] + [("balanced", name) for name in ABLATIONS]
    cells = []
    for method, ablation in kinds:
        own = [row for row in rows if (row["run"]["method"], row["run"]["ablation"]) == (method, ablation)]
        # Other numbers of iterations, or bounds, are other cells.
        for rest in dict.fromkeys((row["run"]["iterations"], row["run"].get("bound")) for row in own):
            cells.append(cell([r for r in own if (r["run"]["iterations"], r["run"].get("bound")) == rest]))
    return {**about(rows), "cohort": COHORT, "cells": cells}


def cell(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One method, or ablation, over seeds."""
    run = rows[0]["run"]
    found: dict[str, Any] = {name: value for name, value in run.items() if name != "seed"}
    found["interactions"] = run["iterations"] * CONTEXTS
    found["diverged"] = sum(row["diverged"] is not None for row in rows)
    rows = sorted((row for row in rows if row["diverged"] is None), key=lambda row: row["run"]["seed"])
    found["seeds"] = [row["run"]["seed"] for row in rows]
    if not rows:
        return found
    last = [row["looks"][-1] for row in rows]
    ways = [way for way, look in last[0].items() if isinstance(look, dict)]
    for way in ways:
        found[way] = {name: over_seeds(look[way][name] for look in last) for name in MEASURES}
    found["curve"] = {"step": [look["step"] for look in rows[0]["looks"]]} | {
        name: np.mean([[look[ways[0]][name] for look in row["looks"]] for row in rows], 0).round(4).tolist()
        for name in MEASURES
    }
    # Root mean squared step of an answer on the same noise, or nats.
    largest = max(x for row in rows for x in row["training"]["region/divergence"] if x is not None)
    drifting = run["method"] in ("balanced", "plain")
    found["largest_divergence"] = {
        "kind": "drift distance" if drifting else "KL, nats",
        "value": float(np.sqrt(largest)) if drifting else largest,
    }
    found["wall_s"], found["cpu_s"] = ([row[name] for row in rows] for name in ("wall_s", "cpu_s"))
    found["parameters"] = rows[0]["parameters"]
    # Of the first seed alone: a picture, no measure.
    found["samples"] = rows[0]["samples"]
    return found


def show(results: dict[str, Any]) -> None:
    print(f"{'':<26} {'n':>2} " + " ".join(f"{name:<38}" for name in MEASURES) + " one action  cpu s")
    for c in results["cells"]:
        name = f"{NAMES[c['method']]} {c['ablation']}".strip()
        if not c["seeds"]:
            print(f"{name:<26}  0 all {c['diverged']} diverged")
            continue
        own = c.get("sample") or c["drawn"]
        one = (c.get("medoid") or c["mode"])["value"]["mean"]["estimate"]
        told = " ".join(f"{_told(own[measure]):<38}" for measure in MEASURES)
        print(f"{name:<26} {len(c['seeds']):>2} {told} {one:>10.3f} {np.median(c['cpu_s']):>6.0f}")


def _told(found: dict[str, Any]) -> str:
    """Mean, its interval, and the range."""
    mean, (low, high) = found["mean"], found["range"]
    return f"{mean['estimate']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
