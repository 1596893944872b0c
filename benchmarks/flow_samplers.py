"""Samplers x decode modes x noise policies on the video model: what training gains, and at what distance.

Every run starts from the same pretrained model and has the same conditions, noises and network evaluations; what
differs is the sampler of the rollouts (dance, flow, sage, cps, precise), what is decoded (the chain's last state, or
the last estimate of clean data), and how much noise there is: the same ``eta`` for all (0.5, as published), or each
sampler's own ``eta`` at which its total injected variance equals sage's. Held-out samples are measured both ways, ODE
(deployment) and SDE (training), before and after.

    python benchmarks/flow_samplers.py --seeds 1 2 3 --steps 30 --jobs 2

keeps a line a finished run in ``runs/flow_samplers.jsonl`` and does not run again what is there, so that it may be
stopped and started; after the first third (one seed of everything) the result is balanced. It writes
``benchmarks/results/flow_samplers.json``, ``docs/img/flow_samplers.png`` and ``docs/img/flow_samplers_curves.png``
from the runs that are there (``--redraw``: the figures alone). Three seeds are a look: no ranking follows from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from flow_runs import HERE, bootstrap, read_rows, run_all
from flow_samplers_figures import DECODES, POLICIES, SAMPLERS, draw_curves, draw_plane
from numpy.typing import NDArray

from marl_tr.agents.sage.sampler import Kind, Sampler, sigma_grid
from marl_tr.analysis.statistics import iqm
from marl_tr.envs.flow.config import component_weights
from marl_tr.nn.velocity_files import velocity_file_info

Array = NDArray[np.float64]

RESULTS = HERE / "results" / "flow_samplers.json"
FIGURES = HERE.parent / "docs" / "img"
COHORT = 8
NOISELESS = ("cps", "precise")
"""Samplers that end without noise: their decode modes are the same."""
ACCURACIES = ("shape_accuracy", "direction_accuracy", "speed_accuracy")


def main() -> None:
    arguments = parsed()
    if not arguments.redraw:
        jobs = planned(arguments)
        if not arguments.summarise:
            run_all(jobs, arguments.rows, parallel=arguments.jobs)
        wanted = [j["run"] for j in jobs]
        rows = [row for row in read_rows(arguments.rows) if row["run"] in wanted]
        if not rows:
            raise SystemExit(f"{arguments.rows} holds none of these runs yet")
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(summary(rows, arguments), indent=1) + "\n")
    results = json.loads(arguments.results.read_text())
    show(results)
    draw_plane(results, arguments.figures / "flow_samplers.png")
    draw_curves(results, arguments.figures / "flow_samplers_curves.png")
    print(f"{arguments.results}\n{arguments.figures}/flow_samplers*.png")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SAMPLERS), choices=SAMPLERS, help="samplers")
    parser.add_argument("--decodes", nargs="+", default=list(DECODES), choices=DECODES)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES, help="how eta is chosen")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=30, help="iterations (rollouts) of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--model", default="moving_shapes", help="registered name, or a file of 'marl-tr pretrain'")
    parser.add_argument("--weights", default="B", choices=("A", "B"), help="of the reward that is trained on")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the scenario, as in 'marl-tr run'"
    )
    parser.add_argument("--clip", type=float, default=0.002, help="of ratios whose log is a mean over pixels")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--copies", type=int, default=64, help="samples of a rollout, a multiple of 8")
    parser.add_argument("--chain", type=int, default=10, help="denoising steps K")
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=10, help="iterations between evaluations")
    parser.add_argument("--episodes", type=int, default=128, help="held-out samples of an evaluation")
    parser.add_argument("--rows", type=Path, default=Path("runs/flow_samplers.jsonl"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder")
    parser.add_argument("--summarise", action="store_true", help="run nothing; results of the runs that are there")
    parser.add_argument("--redraw", action="store_true", help="only draw the kept results again")
    return parser.parse_args()


def planned(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, a whole seed first; with equal eta sage is its own match and runs once.

    So do samplers whose last step has no noise: their last state is the last clean estimate.
    """
    digest = model_digest(arguments.model)
    return [
        job(sampler, decode, policy, seed, digest, arguments)
        for seed in arguments.seeds
        for policy in arguments.policies
        for decode in arguments.decodes
        for sampler in arguments.only
        if (policy == "same" or sampler != "sage") and (decode == arguments.decodes[0] or sampler not in NOISELESS)
    ]


def job(
    sampler: Kind, decode: str, policy: str, seed: int, digest: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    eta = arguments.eta if policy == "same" else matched_eta(sampler, arguments)["eta"]
    run = {
        **{"sampler": sampler, "decode": decode, "policy": policy, "eta": round(eta, 6), "seed": seed},
        **{name: getattr(arguments, name) for name in ("steps", "weights", "learning_rate", "clip", "epochs")},
        **{name: getattr(arguments, name) for name in ("minibatches", "copies", "chain", "shift")},
        **({"set": arguments.set} if arguments.set else {}),
        "model": digest,
    }
    return {
        "run": run,
        "scenario": scenario(run, arguments.model),
        "overrides": arguments.set,
        "every": arguments.every,
        "drift_every": arguments.every,
        "episodes": arguments.episodes,
        "probes": 64,
    }


def scenario(run: dict[str, Any], model: str) -> dict[str, Any]:
    return {
        "name": "flow_samplers",
        "seed": run["seed"],
        "env": {
            "id": "flow/moving_shapes-v0",
            "num_envs": run["copies"],
            "config": {"cohort": COHORT, "weights": run["weights"]},
        },
        "agents": {
            **{"kind": "flow", "sharing": "all", "steps": run["chain"], "shift": run["shift"]},
            **{"sampler": run["sampler"], "eta": run["eta"], "decode": run["decode"], "equalizer": True},
            "network": {"kind": "transformer", "pretrained": model},
        },
        "objective": {"kind": "clip", "reduction": "mean", "clip": run["clip"], "entropy": 0},
        "region": {"kind": "measured"},
        "schedule": {"kind": "simultaneous"},
        # Advantages are cohort-relative: the critic serves nothing here, so the smallest will do.
        "critic": {"kind": "mlp", "hidden": [8], "fit": {"kind": "adam"}},
        "advantage": {"estimator": "cohort"},
        "optimizer": {
            **{"learning_rate": run["learning_rate"], "epochs": run["epochs"], "minibatches": run["minibatches"]},
            "max_grad_norm": 1.0,
        },
        "trainer": {"total_steps": run["copies"] * run["steps"], "rollout_steps": 1, "threads": 1},
    }


def matched_eta(sampler: Kind, arguments: argparse.Namespace) -> dict[str, Any]:
    """The eta at which the total injected variance is that of sage at ``--eta``, by bisection.

    Returns:
        ``eta``, ``variance``, ``target`` and ``reached``; where the target cannot be reached, of the largest eta.
    """
    sigmas = sigma_grid(arguments.chain, arguments.shift)

    def total(kind: Kind, eta: float) -> float:
        return float(Sampler(kind, eta).coefficients(sigmas).variance.sum())

    target = total("sage", arguments.eta)
    low, high = 0.0, 1.0 if sampler == "cps" else 10.0
    if total(sampler, high) < target:
        return {"eta": high, "variance": total(sampler, high), "target": target, "reached": False}
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if total(sampler, middle) < target else (low, middle)
    return {"eta": high, "variance": total(sampler, high), "target": target, "reached": True}


def model_digest(model: str) -> str:
    """By which runs of one model are told from those of another."""
    path = Path(model)
    if not path.suffix:
        path = Path(str(files("marl_tr.envs.flow") / "pretrained" / f"{model}.safetensors"))
    return str(velocity_file_info(path)["sha256"])[:12]


def summary(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    sampled = arguments.steps * arguments.copies * arguments.chain
    groups = {
        (policy, decode, sampler): [
            row
            for row in rows
            if (row["run"]["policy"], row["run"]["sampler"]) == (policy, sampler)
            and (row["run"]["decode"] == decode or sampler in NOISELESS)
        ]
        for policy in POLICIES
        for decode in arguments.decodes
        for sampler in SAMPLERS
    }
    return {
        "command": "python benchmarks/flow_samplers.py " + " ".join(sys.argv[1:]),
        "commits": sorted({row.get("commit", "unknown") for row in rows}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
        "load": [min(row["load"][0] for row in rows), max(row["load"][1] for row in rows)],
        "core_minutes": round(sum(row["wall_s"] for row in rows) / 60, 1),
        "model": {
            "name": arguments.model if not Path(arguments.model).suffix else "a file",
            "sha256": rows[0]["run"]["model"],
        },
        "settings": {
            name: getattr(arguments, name)
            for name in (
                "steps",
                "weights",
                "learning_rate",
                "clip",
                "epochs",
                "minibatches",
                "copies",
                "chain",
                "shift",
                "set",
            )
        },
        "held_out_samples": arguments.episodes,
        "network_evaluations": {"sampling": sampled, "gradient": sampled * arguments.epochs},
        "matched_eta": {sampler: matched_eta(sampler, arguments) for sampler in SAMPLERS},
        "cells": [{**cell(own, _sage(groups, key)), "decode": key[1]} for key, own in groups.items() if own],
    }


def _sage(groups: dict[tuple[str, str, str], list[dict[str, Any]]], key: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Sage's runs to compare a cell with: those of equal eta are those of equal variance too."""
    return groups["same", key[1], "sage"]


def cell(rows: list[dict[str, Any]], sage: list[dict[str, Any]]) -> dict[str, Any]:
    """One sampler, decode mode and noise policy, over seeds."""
    run = rows[0]["run"]
    found: dict[str, Any] = {name: run[name] for name in ("sampler", "decode", "policy", "eta")}
    found["seeds"] = [row["run"]["seed"] for row in rows]
    for mode, name in (("mode", "ode"), ("sampled", "sde")):
        found[name] = measures(rows, mode)
    # Paired: the same seeds, held-out conditions and start noises.
    common = sorted(set(found["seeds"]) & {row["run"]["seed"] for row in sage})
    if common and run["sampler"] != "sage":
        own, other = ([row for s in common for row in of if row["run"]["seed"] == s] for of in (rows, sage))
        found["minus_sage"] = {
            name: {
                "gain_b": bootstrap(_gain(own, mode, "B") - _gain(other, mode, "B")),
                "manifold_distance": bootstrap(
                    _values(own, "last", mode, "manifold_distance") - _values(other, "last", mode, "manifold_distance")
                ),
            }
            for mode, name in (("mode", "ode"), ("sampled", "sde"))
        }
    found["drift"] = bootstrap(np.array([[row["looks"][-1]["drift"]] for row in rows]))
    found["drift_levels"] = np.mean([row["looks"][-1]["drift_levels"] for row in rows], 0).round(4).tolist()
    found["kl_pretrained"] = bootstrap(np.array([[row["looks"][-1]["kl_pretrained"]] for row in rows]))
    found["update_divergence"] = float(np.mean([row["training"]["region/divergence"] for row in rows]))
    found["curve"] = curve(rows)
    found["wall_s"] = [row["wall_s"] for row in rows]
    return found


def measures(rows: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    """Of one way of sampling, before and after training."""
    found: dict[str, Any] = {}
    for weights in ("A", "B"):
        gain = _gain(rows, mode, weights)
        found[f"gain_{weights.lower()}"] = bootstrap(gain)
        found[f"gain_{weights.lower()}_iqm"] = bootstrap(gain, lambda x: iqm(x.reshape(*x.shape[:-2], -1)))
        found[f"before_{weights.lower()}"] = bootstrap(_reward(rows, "first", mode, weights))
        found[f"after_{weights.lower()}"] = bootstrap(_reward(rows, "last", mode, weights))
    for name in ("manifold_distance", "pairwise", "flicker", "vq", "mq", "ta", *ACCURACIES):
        found[name] = bootstrap(_values(rows, "last", mode, name))
        found[f"{name}_before"] = bootstrap(_values(rows, "first", mode, name))
    distance, start = (_values(rows, when, mode, "manifold_distance") for when in ("last", "first"))
    found["manifold_distance_change"] = bootstrap(distance - start)
    found["entropy"] = bootstrap(np.array([[row["looks"][-1][mode]["entropy"]] for row in rows]))
    found["entropy_before"] = float(np.mean([row["looks"][0][mode]["entropy"] for row in rows]))
    # In deviations over the held-out samples before training: a reward that rose while the distance did not fall.
    scale = _reward(rows, "first", mode, "A").std(), start.std()
    found["hacking_index"] = bootstrap(_gain(rows, mode, "A") / scale[0] + (distance - start) / scale[1])
    return found


def curve(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Held-out means over training, mean and range over seeds."""
    w = component_weights("B")
    found: dict[str, Any] = {"iteration": [look["iteration"] for look in rows[0]["looks"]]}
    for mode, name in (("mode", "ode"), ("sampled", "sde")):
        of = {
            "reward_b": lambda look, mode=mode: float(np.dot(w, [look[mode][part] for part in ("vq", "mq", "ta")])),
            "manifold_distance": lambda look, mode=mode: look[mode]["manifold_distance"],
        }
        for measure, read in of.items():
            values = np.array([[read(look) for look in row["looks"]] for row in rows])
            found[f"{name}_{measure}"] = {
                "mean": values.mean(0).round(5).tolist(),
                "low": values.min(0).round(5).tolist(),
                "high": values.max(0).round(5).tolist(),
            }
    return found


def _values(rows: list[dict[str, Any]], when: str, mode: str, name: str) -> Array:
    """``[seeds, samples]``."""
    return np.array([row[when][mode][name] for row in rows])


def _reward(rows: list[dict[str, Any]], when: str, mode: str, weights: str) -> Array:
    parts = zip(component_weights("A" if weights == "A" else "B"), ("vq", "mq", "ta"), strict=True)
    return sum((w * _values(rows, when, mode, name) for w, name in parts), np.zeros(()))


def _gain(rows: list[dict[str, Any]], mode: str, weights: str) -> Array:
    return _reward(rows, "last", mode, weights) - _reward(rows, "first", mode, weights)


def show(results: dict[str, Any]) -> None:
    print(
        f"{'':<30} {'ODE gain B':<24} {'ODE gain A':>10} {'ODE distance':>22} {'SDE gain B':>24} {'SDE distance':>22} "
        f"{'drift':>7} {'KL':>7}"
    )
    for c in results["cells"]:
        ode, sde = c["ode"], c["sde"]
        name = f"{c['sampler']} {c['decode']} {c['policy']} eta {c['eta']:.3g} ({len(c['seeds'])})"
        print(
            f"{name:<30} {_told(ode['gain_b']):<24} {ode['gain_a']['mean']:>10.3f} "
            f"{ode['manifold_distance_before']['mean']:>8.4f} to {ode['manifold_distance']['mean']:>8.4f} "
            f"{_told(sde['gain_b']):>26} {sde['manifold_distance_before']['mean']:>8.4f} to "
            f"{sde['manifold_distance']['mean']:>8.4f} {c['drift']['mean']:>9.4f} {c['kl_pretrained']['mean']:>7.2f}"
        )
    for c in results["cells"]:
        if "minus_sage" in c:
            ode, sde = c["minus_sage"]["ode"], c["minus_sage"]["sde"]
            print(
                f"{c['sampler']} - sage, {c['decode']}, {c['policy']}: ODE gain B {_told(ode['gain_b'])}, distance "
                f"{_told(ode['manifold_distance'])}; SDE gain B {_told(sde['gain_b'])}, distance "
                f"{_told(sde['manifold_distance'])}"
            )


def _told(interval: dict[str, float]) -> str:
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


if __name__ == "__main__":
    main()
