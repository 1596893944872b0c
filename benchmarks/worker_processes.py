"""Worker processes beside one process: environment steps per second of wall time, and where it pays.

    python benchmarks/worker_processes.py [--num-envs 16 --seconds 3 --rounds 5]

Both backends step the same copies with the same drawn actions, in turns (so that load from elsewhere meets both alike);
printed and stored are the median round and the range of rounds, and the ratio formed within each round. Stepping alone:
no policy acts, nothing learns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import numpy as np  # noqa: E402

from marl_tr.vector import VectorEnv, make_vector_env  # noqa: E402
from marl_tr.vector.sampling import random_actions  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "worker_processes.json"
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "CartPole": ("gymnasium/CartPole-v1", {}),
    "Hopper": ("gymnasium/Hopper-v5", {}),
    "simple_spread": ("mpe2.simple_spread_v3:parallel_env", {"N": 3, "continuous_actions": True}),
    "connect_four": ("pettingzoo.classic.connect_four_v3:env", {}),
    "knights_archers_zombies": ("pettingzoo.butterfly.knights_archers_zombies_v11:parallel_env", {}),
}


def rate(env: VectorEnv, seconds: float, generator: np.random.Generator) -> float:
    """Environment steps a second."""
    step = env.reset(0)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step = env.step(random_actions(env.spec, generator, step))
        steps += env.spec.num_envs
    return steps / (time.perf_counter() - started)


def measure(task: str, num_envs: int, workers: int, seconds: float, rounds: int) -> dict[str, Any]:
    id, config = TASKS[task]
    here = make_vector_env(id, num_envs=num_envs, config=config)
    there = make_vector_env(id, num_envs=num_envs, config=config, backend="workers", workers=workers)
    try:
        there.reset(0)  # the processes start here
        pairs = [
            (rate(here, seconds, np.random.default_rng(n)), rate(there, seconds, np.random.default_rng(n)))
            for n in range(rounds)
        ]
    finally:
        here.close()
        there.close()
    ratios = [b / a for a, b in pairs]
    return {
        "task": task,
        "in_process": [round(a) for a, _ in pairs],
        "workers": [round(b) for _, b in pairs],
        "ratio": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of stepping, each backend and round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        row = measure(task, arguments.num_envs, arguments.workers, arguments.seconds, arguments.rounds)
        rows.append(row)
        ratio = row["ratio"]
        print(
            f"{task:<24} one process {statistics.median(row['in_process']):>8,.0f}/s   {arguments.workers} workers "
            f"{statistics.median(row['workers']):>8,.0f}/s   {ratio['median']:.2f} times "
            f"({ratio['range'][0]:.2f} to {ratio['range'][1]:.2f})",
            flush=True,
        )
    record = {
        "command": f"python benchmarks/worker_processes.py --num-envs {arguments.num_envs} --workers "
        f"{arguments.workers} --seconds {arguments.seconds:g} --rounds {arguments.rounds}",
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
