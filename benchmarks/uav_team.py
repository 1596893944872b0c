"""GA-MATR-style agents and MAPPO on `uav_team`: learning curves over seeds, beside the reference placements.

Runs ``marl-tr run`` once a scenario and seed, one thread each, and keeps what the runs logged:

    python benchmarks/uav_team.py --seeds 1 2 3 --steps 1600000 --jobs 2

Results go to ``benchmarks/results/uav_team.json`` (from which ``--redraw`` draws the figure again) and
``docs/img/uav_team_curve.png``. Fewer than five seeds are a look: no ranking follows from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from marl_tr.analysis.audit import audit
from marl_tr.analysis.curves import read_scalars
from marl_tr.analysis.plots import Curve, learning_curve_figure, save_figure

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "uav_team.json"
FIGURE = HERE.parent / "docs" / "img" / "uav_team_curve.png"
LABELS = {"uav_team": "GA-MATR-style", "uav_team_mappo": "MAPPO"}
THRESHOLD = 0.718
"""k-means at full power, the specification's table 1.12 for U = 3."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", default=list(LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1_600_000, help="environment steps of each run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--redraw", action="store_true", help="only draw the kept results again")
    arguments = parser.parse_args()
    if not arguments.redraw:
        measure(arguments)
    draw(json.loads(RESULTS.read_text()))


def measure(arguments: argparse.Namespace) -> None:
    jobs = [(scenario, seed) for seed in arguments.seeds for scenario in arguments.scenarios]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(lambda job: run(*job, arguments), jobs))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    RESULTS.write_text(
        json.dumps(
            {
                "command": "python benchmarks/uav_team.py " + " ".join(sys.argv[1:]),
                "commit": commit.stdout.strip(),
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
                "runs": runs,
            },
            indent=1,
        )
        + "\n"
    )


def run(scenario: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own; its evaluations with the wall time at which they came."""
    command = [sys.executable, "-m", "marl_tr", "run", scenario, f"seed={seed}"]
    command += [f"trainer.total_steps={arguments.steps}", f"trainer.runs_dir={arguments.runs_dir}"]
    load = os.getloadavg()[0]
    started = time.time()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    folder = max((arguments.runs_dir / scenario).glob(f"*-seed{seed}"), key=lambda path: path.stat().st_mtime)
    steps, window = read_scalars(folder, "eval/sampled/window_mean")
    _, mode = read_scalars(folder, "eval/mode/window_mean")
    _, wall = read_scalars(folder, "perf/wall_clock")
    wall_steps, _ = read_scalars(folder, "perf/wall_clock")
    elapsed = np.interp(steps, wall_steps, wall)
    report = audit([folder])
    crossed = np.flatnonzero(window > THRESHOLD)
    return {
        "scenario": scenario,
        "seed": seed,
        "steps": steps.tolist(),
        "sampled_window_mean": window.tolist(),
        "mode_window_mean": mode.tolist(),
        "wall_s": elapsed.tolist(),
        "total_wall_s": time.time() - started,
        "crossed_0.718_at_s": None if not len(crossed) else float(elapsed[crossed[0]]),
        "crossed_0.718_at_step": None if not len(crossed) else int(steps[crossed[0]]),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "audit_ok": report.ok,
        "report": (folder / "report.md").read_text(),
    }


def draw(results: dict[str, Any]) -> None:
    curves = []
    for scenario in dict.fromkeys(run["scenario"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["scenario"] == scenario]
        values = np.array([run["sampled_window_mean"] for run in runs])
        curves.append(
            Curve(
                label=f"{LABELS.get(scenario, scenario)}: mean and range of {len(runs)} seeds",
                steps=np.array(runs[0]["steps"]),
                values=values.mean(0),
                low=values.min(0),
                high=values.max(0),
            )
        )
        final = values[:, -1]
        print(f"{scenario}: final {final.mean():.3f} (range {final.min():.3f} to {final.max():.3f}),", end=" ")
        print("crossed 0.718 after", [round(run["crossed_0.718_at_s"] or np.nan) for run in runs], "s")
    figure = learning_curve_figure(
        curves,
        references={
            "k-means, full power": THRESHOLD,
            "random, full power": 0.331,
            "+ position search": 0.953,
            # Measured on the same 256 held-out episodes; the others are the specification's table.
            "one UAV for all, others silent": 0.839,
        },
        title="uav_team: 3 UAVs, 20 users, shared reward",
        ylabel="reward a slot, last 20 of 100 slots, held-out episodes, sampled actions (mean over 3 agents)",
    )
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, FIGURE)
    print(f"{RESULTS}\n{FIGURE}")


if __name__ == "__main__":
    main()
