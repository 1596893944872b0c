"""How the cost of ``uav/downlink-v0`` grows with UAVs, users and environments, and how much memory it takes.

Every point runs in a process of its own on one thread: it makes a batch, steps it with random actions, and reports CPU
time for a step of one environment (observations, state, rewards and metrics included) and the peak of its resident
memory. Along each axis the time is fitted by ``time = c size^exponent``, by least squares of logarithms; where the fit
is poor (R^2), the growth has no one exponent: small sizes cost NumPy's calls, large ones the arrays. Results are
written to ``benchmarks/results/uav_scale.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"

import numpy as np  # noqa: E402
from growth import in_subprocess, peak_mib, power_law  # noqa: E402

from marl_tr.envs.uav.vector import make  # noqa: E402
from marl_tr.vector.sampling import random_actions  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "uav_scale.json"
NEAREST = {"nearest_users": 32, "observation": "entities"}

Point = dict[str, Any]
"""``uavs``, ``users``, ``envs``, and further ``settings``."""


def sweeps() -> dict[str, tuple[str, list[Point]]]:
    """Named lists of points, each with the size that grows along it."""

    def points(**sizes: Any) -> list[Point]:
        (axis,) = (name for name, value in sizes.items() if isinstance(value, list))
        return [{**sizes, axis: size, "settings": {}} for size in sizes[axis]]

    by_users = points(uavs=4, users=[20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000], envs=16)
    return {
        "UAVs, all users seen": ("uavs", points(uavs=[1, 2, 4, 8, 16, 32, 64], users=100, envs=64)),
        "users, all seen": ("users", by_users),
        "users, nearest 32 seen": ("users", [{**p, "settings": NEAREST} for p in by_users if p["users"] >= 50]),
        "environments": ("envs", points(uavs=4, users=20, envs=[1, 4, 16, 64, 256, 1024, 4096])),
    }


NAMED: dict[str, Point] = {
    "1,000 users x 5 UAVs x 64, all seen": {"uavs": 5, "users": 1000, "envs": 64, "settings": {}},
    "1,000 users x 5 UAVs x 64, nearest 32 seen": {"uavs": 5, "users": 1000, "envs": 64, "settings": NEAREST},
    "5,000 users x 32 UAVs x 16, all seen": {"uavs": 32, "users": 5000, "envs": 16, "settings": {}},
    "5,000 users x 32 UAVs x 16, nearest 32 seen": {"uavs": 32, "users": 5000, "envs": 16, "settings": NEAREST},
    "1,000 x 5 x 64, sampled channel, users walk": {
        "uavs": 5,
        "users": 1000,
        "envs": 64,
        "settings": {
            **NEAREST,
            "channel": {"kind": "al_hourani", "averaging": "sampled"},
            "mobility": {"kind": "random_walk"},
        },
    },
}


def measure(point: Point, *, seconds: float, repeats: int) -> dict[str, Any]:
    """One point, in this process."""
    before = peak_mib()
    env = make(
        num_envs=point["envs"], num_uavs=point["uavs"], num_users=point["users"], horizon=1000, **point["settings"]
    )
    rng = np.random.default_rng(0)
    actions = [random_actions(env.spec, rng) for _ in range(4)]
    env.reset(0)
    env.step(actions[0])
    times = []
    for _ in range(repeats):
        steps, start = 0, time.process_time()
        while (elapsed := time.process_time() - start) < seconds:
            env.step(actions[steps % 4])
            steps += 1
        times.append(elapsed / (steps * point["envs"]))
    best = min(times)
    links = point["uavs"] * point["users"]
    return {
        "us_per_environment_step": 1e6 * best,
        "us_median": 1e6 * statistics.median(times),
        "environment_steps_per_s": 1 / best,
        "ns_per_link": 1e9 * best / links,
        "peak_rss_mib": peak_mib(),
        "rss_before_mib": before,
    }


def fit(sizes: list[float], times: list[float]) -> dict[str, float]:
    """``time = c size^exponent`` by least squares of logarithms, and how much of their variance it explains."""
    law = power_law(sizes, times)
    return {"exponent": law.exponent, "us_at_size_1": law.coefficient, "r_squared": law.r_squared}


def run(*, seconds: float, repeats: int) -> dict[str, Any]:
    """All points, one subprocess after the other."""
    found: dict[str, Any] = {"sweeps": {}, "named": {}}
    for name, (axis, points) in sweeps().items():
        rows = [{**point, **_in_subprocess(point, seconds, repeats)} for point in points]
        sizes, times = [row[axis] for row in rows], [row["us_per_environment_step"] for row in rows]
        upper = len(rows) // 2
        found["sweeps"][name] = {
            "axis": axis,
            "points": rows,
            "fit": fit(sizes, times),
            "fit_of_the_larger_half": fit(sizes[upper:], times[upper:]),
        }
        print(table(name, found["sweeps"][name]), flush=True)
    for name, point in NAMED.items():
        found["named"][name] = {**point, **_in_subprocess(point, seconds, repeats)}
        row = found["named"][name]
        print(f"{name:46}{row['environment_steps_per_s']:>12,.0f} steps/s {row['peak_rss_mib']:>8,.0f} MiB", flush=True)
    return found


def table(name: str, sweep: dict[str, Any]) -> str:
    lines = [f"{name}", f"{sweep['axis']:>8}{'us/env step':>14}{'env steps/s':>14}{'ns/link':>10}{'peak MiB':>10}"]
    for row in sweep["points"]:
        lines.append(
            f"{row[sweep['axis']]:>8}{row['us_per_environment_step']:>14.2f}{row['environment_steps_per_s']:>14,.0f}"
            f"{row['ns_per_link']:>10.1f}{row['peak_rss_mib']:>10.0f}"
        )
    for what, key in (("all points", "fit"), ("larger half", "fit_of_the_larger_half")):
        lines.append(f"  {what}: exponent {sweep[key]['exponent']:.2f}, R^2 {sweep[key]['r_squared']:.3f}")
    return "\n".join(lines)


def _in_subprocess(point: Point, seconds: float, repeats: int) -> dict[str, Any]:
    return in_subprocess(__file__, point, "--seconds", str(seconds), "--repeats", str(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time of one measurement, in s")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each point; the fastest counts")
    parser.add_argument("--point", help="measure this point alone (JSON) and print its numbers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(json.loads(arguments.point), seconds=arguments.seconds, repeats=arguments.repeats)))
        return
    load_before = os.getloadavg()
    found = run(seconds=arguments.seconds, repeats=arguments.repeats)
    record = {
        "command": shlex.join(["python", "benchmarks/uav_scale.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "CPU time of one thread for a step of one environment; peak resident memory of the whole process",
        "repeats": arguments.repeats,
        "seconds_each": arguments.seconds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": {"before": load_before, "after": os.getloadavg()},
        **found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
