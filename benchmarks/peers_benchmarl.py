"""Environment steps per CPU-second of MAPPO on continuous MPE Spread: ours beside BenchMARL's.

    python -m venv elsewhere
    elsewhere/bin/pip install benchmarl torch==2.13.0 "pettingzoo[mpe]==1.25.0" "setuptools<81"
    python benchmarks/peers_benchmarl.py --benchmarl-python elsewhere/bin/python

(one line, so that no other build of torch comes). Both train in processes of their own, one thread each, an iteration
in turn; the first of either is not counted. Equal are the environment (three agents, 25 steps), copies, frames a
rollout, epochs, minibatches, widths, activation, discount, learning rate, and who learns from what (own rewards, shared
parameters, centralized critic). Not equal: BenchMARL squashes its actions where ours are clipped, and its minibatches
are drawn anew of single frames where our critic's are whole copies; ours measures the divergence of every update.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"

from peers_turns import Turns, Worker, stepping_rate  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "peers_benchmarl.json"
COMMON: dict[str, Any] = {
    **{"seed": 1, "max_cycles": 25, "hidden": [256, 256], "gamma": 0.99, "lam": 0.9, "learning_rate": 3e-4}
}
SETTINGS: dict[str, dict[str, Any]] = {
    # BenchMARL's defaults but for the minibatch (400 there): 600 are one copy's steps, of which our critic's are made.
    "defaults, 10 epochs": {"envs": 10, "frames": 6000, "epochs": 10, "minibatch": 600},
    "defaults": {"envs": 10, "frames": 6000, "epochs": 45, "minibatch": 600},
    "60 copies": {"envs": 60, "frames": 12_000, "epochs": 10, "minibatch": 2000},
}
VERSIONS = ("torch", "mpe2", "pettingzoo", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarl-python", default=sys.executable, help="interpreter that has BenchMARL")
    parser.add_argument("--turns", type=int, default=3, help="counted iterations of each")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=SETTINGS, help="settings")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file; settings that it holds are replaced")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    record = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.only:
        row = compared(SETTINGS[name], arguments.benchmarl_python, arguments.turns)
        print(told(name, row), flush=True)
        kept = record.get("settings", {}) | {name: row}
        record = {
            "unit": "environment steps per second of process CPU time, one thread; construction is in neither",
            "command": "python benchmarks/peers_benchmarl.py --benchmarl-python PYTHON",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "common": COMMON,
            "settings": {setting: kept[setting] for setting in SETTINGS if setting in kept},
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(arguments.out)


def compared(setting: dict[str, Any], peer: str, turns: int) -> dict[str, Any]:
    """Rates of both, and the ratio of each turn."""
    job = {**COMMON, **setting, "iterations": turns + 1}
    load = os.getloadavg()[0]
    with (
        Worker([sys.executable, __file__, "--worker"], job) as ours,
        Worker([peer, str(HERE / "peers_benchmarl_run.py")], job) as theirs,
    ):
        rows = [(ours.turn(), theirs.turn()) for _ in range(turns + 1)][1:]
        facts = {"marl-tr": ours.facts, "BenchMARL": theirs.facts}
    found: dict[str, Any] = {
        **setting,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "turns": turns,
        "facts": facts,
    }
    for clock in ("cpu_s", "wall_s"):
        rates = [[row["steps"] / row[clock] for row in pair] for pair in rows]
        found[f"steps per {clock[:-2]}-second"] = {
            "marl-tr": spread([own for own, _ in rates]),
            "BenchMARL": spread([other for _, other in rates]),
            "ratio": spread([own / other for own, other in rates]),
        }
    found["split_of_marl-tr_s"] = [own["split"] for own, _ in rows]
    found["episode_return"] = {
        name: [row["episode_return"] for row in column]
        for name, column in zip(facts, zip(*rows, strict=True), strict=True)
    }
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        name: float(f"{value:.4g}")
        for name, value in (("median", statistics.median(values)), ("least", min(values)), ("most", max(values)))
    }


def told(name: str, row: dict[str, Any]) -> str:
    rates = row["steps per cpu-second"]
    parts = [f"{who} {r['median']:,.4g} ({r['least']:,.4g} to {r['most']:,.4g})" for who, r in rates.items()]
    return f"{name}: " + ", ".join(parts)


def work() -> None:
    """Our side: a setting on standard input, then a row an iteration."""
    import torch
    from mpe2 import simple_spread_v3

    from marl_tr.scenario import load_scenario
    from marl_tr.trainer.loop import Trainer

    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    turns = Turns(sys.stdin, sys.stdout)
    trainer = Trainer(load_scenario(scenario(job)))
    trainer.audit = lambda line: None
    trainer.start()
    bare = simple_spread_v3.parallel_env(N=3, max_cycles=job["max_cycles"], continuous_actions=True)
    turns.ready(
        versions={package: importlib.metadata.version(package) for package in VERSIONS},
        stepping=stepping_rate(bare),
    )
    while True:
        scalars = trainer.iterate().scalars
        mean = scalars.get("charts/episodic_return")
        turns.done(
            steps=job["frames"],
            episode_return=None if mean is None else mean * len(bare.possible_agents),
            split={name: round(scalars[f"perf/{name}_s"], 3) for name in trainer.seconds},
        )


def scenario(job: dict[str, Any]) -> dict[str, Any]:
    """Our MAPPO as `job` has it."""
    minibatches = job["frames"] // job["minibatch"]
    steps = {"learning_rate": job["learning_rate"], "epochs": job["epochs"], "minibatches": minibatches}
    return {
        "name": "peers_benchmarl",
        "preset": "mappo",
        "seed": job["seed"],
        "env": {
            "id": "mpe2.simple_spread_v3:parallel_env",
            "num_envs": job["envs"],
            "config": {"N": 3, "max_cycles": job["max_cycles"], "continuous_actions": True},
        },
        "agents": {"kind": "gaussian", "hidden": job["hidden"]},
        "objective": {"kind": "clip", "entropy": 0.0},
        "critic": {"kind": "mlp", "hidden": job["hidden"], "fit": {"kind": "adam", **steps}},
        "optimizer": steps,
        "advantage": {"gamma": job["gamma"], "lam": job["lam"]},
        "trainer": {
            "total_steps": job["frames"] * job["iterations"],
            "rollout_steps": job["frames"] // job["envs"],
            "threads": 1,
        },
    }


if __name__ == "__main__":
    main()
