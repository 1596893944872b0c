"""PPO and TRPO on Pendulum and HalfCheetah: ours beside Stable-Baselines3's and sb3-contrib's.

    python -m venv elsewhere
    elsewhere/bin/pip install stable-baselines3 sb3-contrib torch==2.13.0 "gymnasium[mujoco]"
    python benchmarks/peers_sb3.py --sb3-python elsewhere/bin/python --jobs 2

Ours are the variants of ``sweeps/pendulum_sb3.yaml`` and ``sweeps/halfcheetah_sb3.yaml``, which ``marl-tr compare``
takes too; theirs have the values that rl-baselines3-zoo has tuned for the task (`ZOO`). All have the same number of
environment steps and one thread, and at the end play the same held-out episodes. A line a finished run is kept in
``runs/peers_sb3.jsonl`` and not run again, so that it may be stopped and started; it writes
``benchmarks/results/peers_sb3.json``. Times are of building and learning, without evaluations.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from drifting_runs import HELD_OUT_SEED, about, over_seeds, run_all
from flow_runs import HERE, read_rows

from marl_tr.comparison.sweep import load_sweep
from marl_tr.vector.episode import episode_seed

RESULTS = HERE / "results" / "peers_sb3.json"
EPISODES = 30
TASKS = {"pendulum": "Pendulum-v1", "halfcheetah": "HalfCheetah-v5"}
ZOO_SOURCE = "DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml at 208b6fd and trpo.yml at 13a3fe7 (HalfCheetah as of v4)"
_GSDE = {"use_sde": True, "sde_sample_freq": 4}
ZOO: dict[str, dict[str, dict[str, Any]]] = {
    "pendulum": {
        "sb3_ppo": {
            **{"algorithm": "ppo", "num_envs": 4, "normalize": False, "network": {}},
            "settings": {
                **{"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0},
                **{"learning_rate": 1e-3, "clip_range": 0.2, **_GSDE},
            },
        },
        "sb3_trpo": {
            **{"algorithm": "trpo", "num_envs": 2, "normalize": False, "network": {}},
            "settings": {"n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, **_GSDE},
        },
    },
    "halfcheetah": {
        # Tuned for a million steps, which its small learning rate shows.
        "sb3_ppo": {
            **{"algorithm": "ppo", "num_envs": 1, "normalize": True},
            "network": {
                **{"log_std_init": -2, "ortho_init": False, "activation_fn": "relu"},
                "net_arch": {"pi": [256, 256], "vf": [256, 256]},
            },
            "settings": {
                **{"batch_size": 64, "n_steps": 512, "gamma": 0.98, "learning_rate": 2.0633e-05},
                **{"ent_coef": 0.000401762, "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.92},
                **{"max_grad_norm": 0.8, "vf_coef": 0.58096},
            },
        },
        # The library's own defaults, with the zoo's scaling of observations and rewards.
        "sb3_ppo_default": {"algorithm": "ppo", "num_envs": 1, "normalize": True, "network": {}, "settings": {}},
        "sb3_trpo": {
            **{"algorithm": "trpo", "num_envs": 2, "normalize": True, "network": {}},
            "settings": {
                **{"batch_size": 128, "n_steps": 1024, "gamma": 0.99, "gae_lambda": 0.95, "sub_sampling_factor": 1},
                **{"cg_max_steps": 25, "cg_damping": 0.1, "n_critic_updates": 20, "learning_rate": 1e-3},
                **{"target_kl": 0.04},
            },
        },
    },
}


def main() -> None:
    arguments = parsed()
    if not arguments.summarise:
        run_all(planned(arguments), arguments.rows, parallel=arguments.jobs)
    rows = read_rows(arguments.rows)
    if not rows:
        raise SystemExit(f"{arguments.rows} holds no runs yet")
    results = summary(rows)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(arguments.results)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(TASKS), choices=TASKS, help="tasks")
    parser.add_argument("--methods", nargs="+", help="variants of the sweeps and sb3_...; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the sweep's")
    parser.add_argument("--steps", type=int, help="environment steps, in place of the sweep's")
    parser.add_argument("--label", default="", help="of a variant of ours, beside the method's name")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of our scenario, as in 'marl-tr run'"
    )
    parser.add_argument("--sb3-python", default=sys.executable, help="interpreter that has Stable-Baselines3")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--rows", type=Path, default=Path("runs/peers_sb3.jsonl"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summarise", action="store_true", help="run nothing; results of the runs that are there")
    arguments = parser.parse_args()
    if bool(arguments.set) != bool(arguments.label):
        parser.error("--set and --label go together")
    return arguments


def planned(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, a whole seed of a task first."""
    jobs = []
    for task in arguments.only:
        overrides = [*arguments.set, *([f"trainer.total_steps={arguments.steps}"] if arguments.steps else [])]
        sweep = load_sweep(HERE / "sweeps" / f"{task}_sb3.yaml", overrides, seeds=arguments.seeds)
        for seed in sweep.seeds:
            for cell in sweep.cells:
                scenario = cell.run_scenario(runs_dir=Path("runs")) | {"seed": seed}
                run = {"task": task, "method": cell.variant, "label": arguments.label, "seed": seed}
                run["steps"] = scenario["trainer"]["total_steps"]
                jobs.append({"run": run, "scenario": scenario, "ways": ("mode", "drawn"), "keep_returns": True})
                jobs[-1]["final_episodes"] = EPISODES
            if not arguments.set:
                steps = sweep.cells[0].scenario.trainer.total_steps
                jobs += [theirs(task, method, seed, steps, arguments.sb3_python) for method in ZOO[task]]
    wanted = arguments.methods
    return [job for job in jobs if wanted is None or job["run"]["method"] in wanted]


def theirs(task: str, method: str, seed: int, steps: int, python: str) -> dict[str, Any]:
    return {
        **{"python": python, "script": "peers_sb3_run.py", **ZOO[task][method]},
        **{"run": {"task": task, "method": method, "label": "", "seed": seed, "steps": steps}},
        **{"env": TASKS[task], "seed": seed, "total_steps": steps},
        # Those of our held-out evaluations.
        "episode_seeds": [episode_seed(HELD_OUT_SEED, copy, 0) for copy in range(EPISODES)],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(tuple(row["run"][name] for name in ("task", "method", "label", "steps")) for row in rows)
    cells = []
    for task, method, label, steps in sorted(keys, key=lambda key: (list(TASKS).index(key[0]), key[3], key[1:3])):
        own = [
            r
            for r in rows
            if [r["run"][k] for k in ("task", "method", "label", "steps")] == [task, method, label, steps]
        ]
        cells.append(cell(own))
    return {**about(rows), "episodes": EPISODES, "zoo": {"source": ZOO_SOURCE, "settings": ZOO}, "cells": cells}


def cell(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One method on one task, over seeds; runs of ours that diverged are counted and have no score."""
    found: dict[str, Any] = {name: rows[0]["run"][name] for name in ("task", "method", "label", "steps")}
    found["diverged"] = sum(row.get("diverged") is not None for row in rows)
    rows = sorted((row for row in rows if row.get("diverged") is None), key=lambda row: row["run"]["seed"])
    found["seeds"] = [row["run"]["seed"] for row in rows]
    if not rows:
        return found
    # Rows of ours have a list of looks, of which the last is at the end.
    ends = [row["looks"][-1] if "looks" in row else row for row in rows]
    for way in ("mode", "drawn"):
        found[way] = over_seeds(end[way]["return"] for end in ends)
    # Whole rollouts: a few more than were asked for.
    found["played"] = [row["curve"]["step"][-1] if "curve" in row else row["steps"] for row in rows]
    for clock in ("wall_s", "cpu_s"):
        found[clock] = [row[clock] for row in rows]
        found[f"steps_per_{clock}"] = [
            round(played / row[clock], 1) for played, row in zip(found["played"], rows, strict=True)
        ]
    found["versions"] = rows[0].get("versions", "this package's constraints.txt")
    return found


def table(results: dict[str, Any]) -> str:
    lines = [
        "| task | method | steps | seeds | mode, IQM | per seed | drawn, IQM | wall s | CPU s | steps a CPU-second |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in results["cells"]:
        name = f"`{c['method']}` {c['label']}".strip()
        if not c["seeds"]:
            lines.append(f"| {c['task']} | {name} | {c['steps']:,} | all {c['diverged']} diverged |||||||")
            continue
        mode, drawn = c["mode"], c["drawn"]
        each = ", ".join(f"{value:.0f}" for value in mode["values"])
        lines.append(
            f"| {c['task']} | {name} | {c['steps']:,} | {len(c['seeds'])} | {_told(mode)} | {each} | {_told(drawn)} | "
            f"{_mean(c['wall_s']):.0f} | {_mean(c['cpu_s']):.0f} | {_mean(c['steps_per_cpu_s']):,.0f} |"
            + (f" {c['diverged']} diverged" if c["diverged"] else "")
        )
    return "\n".join(lines)


def _told(over: dict[str, Any]) -> str:
    found = over["iqm"]
    return f"{found['estimate']:.0f} [{found['low']:.0f}, {found['high']:.0f}]"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
