"""Environment steps per core-second of ``uav/downlink-v0``, beside mobile-env where it is installed.

One run measures everything on one thread, in turns (so that a change of the machine's load touches all alike),
several times, and writes ``benchmarks/results/uav_throughput.json``. A step is one slot of one environment with
observations, state, rewards and metrics; time is the process's CPU time. mobile-env (MIT) is optional:
``pip install mobile-env==2.1.0``, in this environment or in a folder on ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for name in THREADS:  # before numpy loads its linear algebra
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from marl_tr.envs.uav.pettingzoo import parallel_env  # noqa: E402
from marl_tr.envs.uav.vector import make  # noqa: E402

UAVS, USERS = 4, 20
RESULTS = Path(__file__).parent / "results" / "uav_throughput.json"
MOBILE_SCENARIOS = ("mobile-small-central-v0", "mobile-medium-central-v0")

Advance = Callable[[int], int]
"""Run about so many environment steps; returns how many it was."""


def simulator(envs: int) -> Advance:
    env = make(num_envs=envs, num_uavs=UAVS, num_users=USERS)
    env.reset(0)
    rng = np.random.default_rng(0)
    batches = [{"uav": {"action": rng.uniform(-1, 1, (envs, UAVS, 3)).astype(np.float32)}} for _ in range(16)]

    def advance(steps: int) -> int:
        rounds = max(1, steps // envs)
        for index in range(rounds):
            env.step(batches[index % 16])
        return rounds * envs

    return advance


def pettingzoo_view() -> Advance:
    env = parallel_env(num_uavs=UAVS, num_users=USERS)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    rows = [rng.uniform(-1, 1, (UAVS, 3)).astype(np.float32) for _ in range(16)]
    batches = [dict(zip(env.possible_agents, row, strict=True)) for row in rows]

    def advance(steps: int) -> int:
        for index in range(steps):
            if not env.agents:
                env.reset()
            env.step(batches[index % 16])
        return steps

    return advance


def mobile_env(scenario: str) -> Advance:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import gymnasium
    import mobile_env as _registers_its_scenarios

    assert _registers_its_scenarios
    env = gymnasium.make(scenario, disable_env_checker=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(16)]

    def advance(steps: int) -> int:
        for index in range(steps):
            *_, terminated, truncated, _ = env.step(actions[index % 16])
            if terminated or truncated:
                env.reset()
        return steps

    return advance


def measure(advance: Advance, *, seconds: float) -> float:
    """Steps per CPU-second, over at least `seconds` of CPU time."""
    steps, chunk = 0, 1
    start = time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        steps += advance(chunk)
        chunk = min(2 * chunk, 65_536)
    return steps / elapsed


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("numpy", "gymnasium", "pettingzoo", "mobile-env"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def run(*, repeats: int, seconds: float) -> dict[str, Any]:
    subjects = {f"simulator, E={envs}": simulator(envs) for envs in (1, 64, 1024)}
    subjects["PettingZoo view"] = pettingzoo_view()
    if importlib.util.find_spec("mobile_env"):
        subjects |= {scenario: mobile_env(scenario) for scenario in MOBILE_SCENARIOS}
    for advance in subjects.values():
        measure(advance, seconds=0.2)
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, advance in subjects.items():
            rates[name].append(measure(advance, seconds=seconds))
    rows: dict[str, Any] = {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in rates.items()
    }
    peer = rows.get(MOBILE_SCENARIOS[1])
    for row in rows.values():
        row["times_mobile_env_medium"] = row["median"] / peer["median"] if peer else None
    return rows


def table(rows: dict[str, Any]) -> str:
    lines = [f"{'':28}{'steps / core-second':>20}{'spread':>22}{'x mobile-env medium':>22}"]
    for name, row in rows.items():
        spread = f"{row['least']:,.0f} - {row['most']:,.0f}"
        ratio = row["times_mobile_env_medium"]
        lines.append(f"{name:28}{row['median']:>20,.0f}{spread:>22}{f'{ratio:,.1f}' if ratio else '-':>22}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each subject")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time of one measurement, in s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    arguments = parser.parse_args()
    load_before = os.getloadavg()
    rows = run(repeats=arguments.repeats, seconds=arguments.seconds)
    print(table(rows))
    if MOBILE_SCENARIOS[1] not in rows:
        print("mobile-env is not installed, so there is nothing to compare with: pip install mobile-env==2.1.0")
    record = {
        "command": shlex.join(["python", "benchmarks/uav_throughput.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "environment steps per second of process CPU time, one thread",
        "sizes": {"uavs": UAVS, "users": USERS},
        "repeats": arguments.repeats,
        "seconds_each": arguments.seconds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "versions": versions(),
        "results": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
