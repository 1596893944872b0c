"""Trust regions on ``flow/mixture-v0``: six variants x enforced bounds, drift and reward over training.

The variants are those of SAGE-GRPO's ablation (specification 4.6): no KL, a KL to the pretrained policy (fixed), to
the policy one optimizer step before (step-wise), to an anchor that moves every N updates (moving), and both (dual
fixed, dual moving). Each runs without and with enforced bounds: on the divergence of every update (`region.bound`)
and, where there is an anchor, on the divergence to it. The reward pays for leaving the curve (``manifold_weight``
below 0), so that what is limited is a reward being hacked; a weight of 0 asks for the preferred points alone.

    python benchmarks/flow_regions.py --seeds 1 2 3 --steps 60

trains each for 60 iterations (4 optimizer steps an iteration), keeps a line a run in ``runs/flow_regions.jsonl``
(what is there is not run again) and writes ``benchmarks/results/flow_regions.json`` and
``docs/img/flow_regions.png``. Three seeds are a look: no ranking follows from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flow_runs import HERE, bootstrap, read_rows, run_all
from numpy.typing import NDArray

from marl_tr.analysis.plots import save_figure

Array = NDArray[np.float64]

RESULTS = HERE / "results" / "flow_regions.json"
FIGURE = HERE.parent / "docs" / "img" / "flow_regions.png"
VARIANTS = ("none", "fixed", "step-wise", "moving", "dual fixed", "dual moving")
COLORS = dict(zip(VARIANTS, ("#6b6b6b", "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00"), strict=True))
COHORT, COPIES, CHAIN, EPOCHS, MINIBATCHES = 8, 64, 10, 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60, help="iterations (rollouts) of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--manifold-weight", type=float, default=-0.5, help="of the reward; below 0 leaving pays")
    parser.add_argument(
        "--weight", type=float, default=0.1, help="of the KL terms (nats); dual: a tenth for the second"
    )
    parser.add_argument("--velocity-weight", type=float, help="of the velocity term, in place of that share")
    parser.add_argument("--every", type=int, default=10, help="updates between refreshes of the moving anchor")
    parser.add_argument("--update-bound", type=float, default=0.02, help="nats a update, where bounds are enforced")
    parser.add_argument("--anchor-bound", type=float, default=1.0, help="nats to the anchor, where bounds are enforced")
    parser.add_argument("--bounds", nargs="+", default=["off", "on"], choices=("off", "on"))
    parser.add_argument("--levels", nargs="+", type=float, default=[0.9, 0.95, 1.0], help="rewards to compare drift at")
    parser.add_argument("--episodes", type=int, default=256, help="held-out samples of an evaluation")
    parser.add_argument("--rows", type=Path, default=Path("runs/flow_regions.jsonl"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--redraw", action="store_true", help="only draw the kept results again")
    arguments = parser.parse_args()
    if not arguments.redraw:
        jobs = [
            job(variant, bounded, seed, arguments)
            for seed in arguments.seeds
            for bounded in (bounds == "on" for bounds in arguments.bounds)
            for variant in arguments.variants
        ]
        run_all(jobs, arguments.rows, parallel=arguments.jobs)
        wanted = [j["run"] for j in jobs]
        rows = [row for row in read_rows(arguments.rows) if row["run"] in wanted]
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(summary(rows, arguments), indent=1) + "\n")
    results = json.loads(arguments.results.read_text())
    show(results)
    draw(results, arguments.figure)
    print(f"{arguments.results}\n{arguments.figure}")


def job(variant: str, bounded: bool, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    run = {
        **{"variant": variant, "bounded": bounded, "seed": seed, "steps": arguments.steps},
        **{"manifold_weight": arguments.manifold_weight, "weight": arguments.weight, "every": arguments.every},
        **({"velocity_weight": arguments.velocity_weight} if arguments.velocity_weight is not None else {}),
        **({"update_bound": arguments.update_bound, "anchor_bound": arguments.anchor_bound} if bounded else {}),
    }
    return {
        "run": run,
        "scenario": scenario(run),
        "every": 5,
        "drift_every": 1,
        "episodes": arguments.episodes,
        "probes": 256,
    }


def scenario(run: dict[str, Any]) -> dict[str, Any]:
    region: dict[str, Any] = {"kind": "measured"}
    if run["bounded"]:
        region["bound"] = run["update_bound"]
    return {
        "name": "flow_regions",
        "seed": run["seed"],
        "env": {
            "id": "flow/mixture-v0",
            "num_envs": COPIES,
            "config": {"cohort": COHORT, "manifold_weight": run["manifold_weight"]},
        },
        "agents": {
            **{"kind": "flow", "sharing": "all", "steps": CHAIN, "shift": 3, "sampler": "sage", "eta": 0.5},
            "network": {"kind": "residual", "base": "mixture_circle", "hidden": [64, 64]},
        },
        "objective": {"kind": "clip", "clip": 0.2, "entropy": 0},
        "region": region,
        "regularisers": regularisers(run),
        "schedule": {"kind": "simultaneous"},
        # Advantages are cohort-relative: the critic serves nothing here, so the smallest will do.
        "critic": {"kind": "mlp", "hidden": [8], "fit": {"kind": "adam"}},
        "advantage": {"estimator": "cohort"},
        "optimizer": {"learning_rate": 1e-3, "epochs": EPOCHS, "minibatches": MINIBATCHES, "max_grad_norm": 1.0},
        "trainer": {"total_steps": COPIES * run["steps"], "rollout_steps": 1, "threads": 1},
    }


def regularisers(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a variant; the second term of a dual one has a tenth of the weight, as published."""
    variant, weight = run["variant"], run["weight"]
    position: dict[str, Any] = {"kind": "position", "weight": weight, "anchor": {"kind": "frozen"}}
    if variant in ("moving", "dual moving"):
        position["anchor"] = {"kind": "period", "every": run["every"]}
    if run["bounded"]:
        position["bound"] = run["anchor_bound"]
    if variant == "none":
        return []
    share = weight if variant == "step-wise" else weight / 10
    velocity = {"kind": "velocity", "weight": run.get("velocity_weight", share)}
    if variant == "step-wise":
        return [velocity]
    return [position, velocity] if variant.startswith("dual") else [position]


def summary(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": "python benchmarks/flow_regions.py " + " ".join(sys.argv[1:]),
        "commits": sorted({row.get("commit", "unknown") for row in rows}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
        "load": [min(row["load"][0] for row in rows), max(row["load"][1] for row in rows)],
        "seeds": arguments.seeds,
        "iterations": arguments.steps,
        "updates_per_rollout": EPOCHS * MINIBATCHES,
        "network_evaluations": {
            # The same in every run; references of KL terms are evaluated besides, without a gradient.
            "sampling": arguments.steps * COPIES * CHAIN,
            "gradient": arguments.steps * COPIES * CHAIN * EPOCHS,
        },
        "settings": {
            name: getattr(arguments, name)
            for name in (
                "manifold_weight",
                "weight",
                "velocity_weight",
                "every",
                "update_bound",
                "anchor_bound",
                "episodes",
            )
        },
        "cells": [
            cell(
                [row for row in rows if row["run"]["variant"] == variant and row["run"]["bounded"] is bounded],
                arguments,
            )
            for bounded in (bounds == "on" for bounds in arguments.bounds)
            for variant in arguments.variants
        ],
    }


def cell(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """One variant with or without bounds, over seeds."""
    run = rows[0]["run"]
    found: dict[str, Any] = {"variant": run["variant"], "bounded": run["bounded"], "runs": len(rows)}
    for mode, name in (("mode", "ode"), ("sampled", "sde")):
        reward, distance = (_last(rows, mode, metric) for metric in ("reward", "manifold_distance"))
        task = reward + run["manifold_weight"] * np.minimum(distance, 1)
        first_distance = _first(rows, mode, "manifold_distance")
        first = _first(rows, mode, "reward") + run["manifold_weight"] * np.minimum(first_distance, 1)
        found[name] = {
            "reward": bootstrap(reward),
            "reward_gain": bootstrap(reward - _first(rows, mode, "reward")),
            "preference_gain": bootstrap(task - first),
            "manifold_distance": bootstrap(distance),
            "manifold_distance_before": bootstrap(first_distance),
            "pairwise": bootstrap(_last(rows, mode, "pairwise")),
            "entropy": bootstrap(np.array([[row["looks"][-1][mode]["entropy"]] for row in rows])),
        }
    found["drift"] = bootstrap(np.array([[row["looks"][-1]["drift"]] for row in rows]))
    found["drift_levels"] = np.mean([row["looks"][-1]["drift_levels"] for row in rows], 0).round(4).tolist()
    found["kl_pretrained"] = bootstrap(np.array([[row["looks"][-1]["kl_pretrained"]] for row in rows]))
    found["drift_slope"] = bootstrap(np.array([[_slope(row["training"]["drift"])] for row in rows]))
    found["matched"] = [matched(rows, level) for level in arguments.levels]
    found["curve"] = curves(rows)
    found["audit"] = audits(rows)
    found["wall_s"] = [row["wall_s"] for row in rows]
    return found


def matched(rows: list[dict[str, Any]], level: float) -> dict[str, Any]:
    """Drift, divergence and distance where each seed's held-out ODE reward first reaches `level`."""
    reached = []
    for row in rows:
        looks = row["looks"]
        reward = np.array([look["mode"]["reward"] for look in looks])
        above = np.flatnonzero(reward >= level)
        if not len(above):
            continue
        now = int(above[0])
        # A straight line between the two evaluations on either side.
        share = 1.0 if now == 0 else float((level - reward[now - 1]) / (reward[now] - reward[now - 1]))
        before = looks[max(0, now - 1)]

        def between(of: Any, before: Any = before, after: Any = looks[now], share: float = share) -> float:
            return float((1 - share) * of(before) + share * of(after))

        reached.append(
            {
                "seed": row["run"]["seed"],
                "iteration": between(lambda look: look["iteration"]),
                "drift": between(lambda look: look["drift"]),
                "kl_pretrained": between(lambda look: look["kl_pretrained"]),
                "manifold_distance": between(lambda look: look["mode"]["manifold_distance"]),
                "pairwise": between(lambda look: look["mode"]["pairwise"]),
            }
        )
    names = [name for name in reached[0] if name != "seed"] if reached else []
    values: dict[str, Any] = {name: bootstrap(np.array([[each[name]] for each in reached])) for name in names}
    values["drift_by_seed"] = {each["seed"]: each["drift"] for each in reached}
    return {"level": level, "reached": len(reached), "runs": len(rows), **values}


def curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over training: held-out measures with intervals over seeds, and one seed's divergence to the anchor."""
    found: dict[str, Any] = {"iteration": [look["iteration"] for look in rows[0]["looks"]]}
    of = {
        "reward": lambda look: look["mode"]["reward"],
        "manifold_distance": lambda look: look["mode"]["manifold_distance"],
        "kl_pretrained": lambda look: look["kl_pretrained"],
    }
    for name, read in of.items():
        found[name] = _band(np.array([[read(look) for look in row["looks"]] for row in rows]))
    found["drift"] = _band(np.array([[0.0, *row["training"]["drift"]] for row in rows]))
    anchor = rows[0]["training"].get("region/kl_anchor")
    if anchor is not None:
        found["kl_anchor_of_first_seed"] = anchor
    return found


def audits(rows: list[dict[str, Any]]) -> dict[str, Any]:
    lines = [(row["audit"]["ok"], line) for row in rows for line in row["audit"]["rows"]]
    found: dict[str, Any] = {"ok": all(ok for ok, _ in lines)}
    for kind in dict.fromkeys(line["kind"] for _, line in lines):
        own = [line for _, line in lines if line["kind"] == kind]
        ratios = [line["largest_ratio"] for line in own if line["largest_ratio"] is not None]
        outcomes = ("accepted", "interpolated", "rejected", "violations", "began_beyond")
        found[kind] = {"largest_ratio": max(ratios, default=None)} | {
            name: sum(x[name] for x in own) for name in outcomes
        }
    return found


def _last(rows: list[dict[str, Any]], mode: str, metric: str) -> Array:
    return np.array([row["last"][mode][metric] for row in rows])


def _first(rows: list[dict[str, Any]], mode: str, metric: str) -> Array:
    return np.array([row["first"][mode][metric] for row in rows])


def _slope(drift: list[float]) -> float:
    """Growth an iteration over the last third of the run."""
    late = np.array(drift[-max(2, len(drift) // 3) :])
    return float(np.polyfit(np.arange(len(late)), late, 1)[0])


def _band(values: Array) -> dict[str, list[float]]:
    """``[seeds, points]`` as mean and interval at each point."""
    each = [bootstrap(values[:, [point]]) for point in range(values.shape[1])]
    return {name: [round(interval[name], 5) for interval in each] for name in ("mean", "low", "high")}


def show(results: dict[str, Any]) -> None:
    print(
        f"{'variant':<12} {'bounds':<7} {'ODE reward gain':<24} {'SDE gain':<9} {'distance':<24} {'pairwise':<9} "
        "drift / KL"
    )
    for c in results["cells"]:
        print(
            f"{c['variant']:<12} {'on' if c['bounded'] else 'off':<7} {_told(c['ode']['reward_gain']):<24} "
            f"{c['sde']['reward_gain']['mean']:<9.3f} {_told(c['ode']['manifold_distance']):<24} "
            f"{c['ode']['pairwise']['mean']:<9.3f} {_told(c['drift'])} / {c['kl_pretrained']['mean']:.2f}"
        )
    for c in results["cells"]:
        for at in c["matched"]:
            where = f"{c['variant']:<12} {'on' if c['bounded'] else 'off':<4} reward {at['level']:g}: "
            if not at["reached"]:
                print(f"{where}not reached")
                continue
            print(
                f"{where}{at['reached']}/{at['runs']} runs, iteration {at['iteration']['mean']:.0f}, drift "
                f"{_told(at['drift'])}, KL {at['kl_pretrained']['mean']:.2f}, distance "
                f"{at['manifold_distance']['mean']:.3f}"
            )
    for c in results["cells"]:
        print(c["variant"], "on" if c["bounded"] else "off", json.dumps(c["audit"]))


def _told(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def draw(results: dict[str, Any], path: Path) -> None:
    """Rows: without and with bounds; columns: reward, drift, reward against both measures of distance, the sawtooth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.2), dpi=84, layout="constrained")
    axes = figure.subplots(2, 5)
    for row, bounded in enumerate((False, True)):
        for c in (c for c in results["cells"] if c["bounded"] is bounded):
            _draw_cell(axes[row], c)
        axes[row, 0].set_title(f"bounds {'enforced' if bounded else 'off'}", loc="left", fontweight="bold", fontsize=11)
        labels = ("reward, ODE samples", "drift: rms change of v", "reward", "reward", "KL to the anchor, nats")
        for axis, label in zip(axes[row], labels, strict=True):
            axis.set_ylabel(label)
            axis.grid(color="#dddddd", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel("iteration")
        axes[row, 2].set_xlabel("drift")
        axes[row, 3].set_xlabel("KL to the pretrained policy, nats")
        axes[row, 3].set_xscale("log")
        axes[row, 4].set_yscale("log")
        axes[row, 4].set_ylim(bottom=1e-3)
    for column in (0, 1, 2, 3):
        low, high = zip(*(axis.get_ylim() for axis in axes[:, column]), strict=True)
        for axis in axes[:, column]:
            axis.set_ylim(min(low), max(high))
    for column, title in ((2, "drift paid for reward"), (3, "KL paid for reward"), (4, "first seed")):
        axes[0, column].set_title(title, loc="left", fontsize=10)
    handles, names = axes[0, 0].get_legend_handles_labels()
    seeds, pays = len(results["seeds"]), results["settings"]["manifold_weight"] < 0
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=6, fontsize=10)
    task = "flow/mixture-v0, a reward that pays for leaving the curve" if pays else "flow/mixture-v0"
    figure.suptitle(f"Trust regions on {task}: mean of {seeds} seed(s), 95 % bands", fontsize=11)
    save_figure(figure, path)


def _draw_cell(axes: Any, c: dict[str, Any]) -> None:
    """One variant, in the five panels of its row; dual ones dashed, for they may lie on the others."""
    curve = c["curve"]
    style = {"color": COLORS[c["variant"]], "linestyle": "--" if c["variant"].startswith("dual") else "-"}
    _line(axes[0], curve["iteration"], curve["reward"], c["variant"], style)
    _line(axes[1], range(len(curve["drift"]["mean"])), curve["drift"], None, style)
    drift = [curve["drift"]["mean"][i] for i in curve["iteration"]]
    axes[2].plot(drift, curve["reward"]["mean"], marker=".", linewidth=1.5, **style)
    # From the second evaluation on: at the first the divergence is 0.
    axes[3].plot(curve["kl_pretrained"]["mean"][1:], curve["reward"]["mean"][1:], marker=".", linewidth=1.5, **style)
    kl = curve.get("kl_anchor_of_first_seed", [])
    axes[4].plot(range(1, len(kl) + 1), kl, linewidth=1.5, **style)


def _line(axis: Any, x: Any, band: dict[str, list[float]], label: str | None, style: dict[str, Any]) -> None:
    axis.plot(x, band["mean"], linewidth=1.8, label=label, **style)
    axis.fill_between(x, band["low"], band["high"], color=style["color"], alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
