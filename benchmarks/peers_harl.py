"""HATRPO and HAPPO on continuous MPE Spread at HARL's settings, beside what was recorded of HARL.

    python benchmarks/peers_harl.py
    marl-tr compare benchmarks/sweeps/spread_harl.yaml --jobs 2
    python benchmarks/peers_harl.py --runs runs/compare/spread_harl/runs

The first measures environment steps per CPU-second, in turns with the bare environment's own stepping, in one process
with one thread. HARL is not run here: its figures are of another day and machine, and rates of the two are to be
compared as shares of what the bare environment steps (`HARL`). The last adds what the sweep's finished runs have
learned, as HARL counts returns: summed over the three agents. Both write ``benchmarks/results/peers_harl.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mpe2 import simple_spread_v3  # noqa: E402
from peers_benchmarl import spread  # noqa: E402
from peers_turns import stepping_rate  # noqa: E402

from marl_tr.analysis.statistics import iqm, stratified_bootstrap_ci  # noqa: E402
from marl_tr.comparison.sweep import load_sweep  # noqa: E402
from marl_tr.scenario import Scenario  # noqa: E402
from marl_tr.trainer.loop import Trainer  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "peers_harl.json"
SWEEP = HERE / "sweeps" / "spread_harl.yaml"
HARL: dict[str, dict[str, float]] = {
    "hatrpo_harl": {"rate": 310, "mode": -65.1, "mode_steps": 200_000, "training": -69.2, "training_steps": 200_000},
    "happo_harl": {"rate": 748, "training": -65.6, "training_steps": 80_000},
}
"""Recorded of HARL at these settings: environment steps per CPU-second, and returns, one seed each."""
HARL_STEPPING = 2649
"""Steps per CPU-second of the bare environment, recorded beside them."""
RANDOM = -75.8
AGENTS = 3
WINDOW = 20_000
"""Environment steps of training whose episodes' mean is a return 'in training'."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="counted iterations of each")
    parser.add_argument("--runs", type=Path, help="of the sweep: tell what they learned; measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    record |= {"harl": HARL, "harl_stepping": HARL_STEPPING, "random": RANDOM}
    if arguments.runs:
        record["learning"] = learned(arguments.runs)
        print(learning_table(record["learning"]))
    else:
        record["rates"] = measured(arguments.turns)
        print(rates_table(record["rates"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(arguments.out)


def measured(turns: int) -> dict[str, Any]:
    """Rates of every variant of the sweep and of the bare environment; the first iteration of each is not counted."""
    torch.set_num_threads(1)
    bare = simple_spread_v3.parallel_env(N=AGENTS, max_cycles=25, continuous_actions=True)
    load = os.getloadavg()[0]
    trainers = {cell.variant: trainer(cell.scenario) for cell in load_sweep(SWEEP).cells}
    advance = {name: (lambda one=one: rate(one)) for name, one in trainers.items()}
    subjects: dict[str, Callable[[], float]] = {"bare environment": lambda: stepping_rate(bare, seconds=2.0), **advance}
    rounds = [{name: subject() for name, subject in subjects.items()} for _ in range(turns + 1)][1:]
    found: dict[str, Any] = {
        "unit": "environment steps per second of process CPU time, one thread; construction is not in it",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "turns": turns,
        "rates": {name: spread([one[name] for one in rounds]) for name in subjects},
        "share_of_bare": {name: spread([one[name] / one["bare environment"] for one in rounds]) for name in trainers},
        "seconds": {name: {k: round(v, 2) for k, v in one.seconds.items()} for name, one in trainers.items()},
    }
    for name in HARL:
        share = HARL[name]["rate"] / HARL_STEPPING
        found[f"{name}_times_harl_by_share"] = float(f"{found['share_of_bare'][name]['median'] / share:.3g}")
    return found


def trainer(scenario: Scenario) -> Trainer:
    built = Trainer(scenario)
    built.audit = lambda line: None
    built.start()
    return built


def rate(one: Trainer) -> float:
    before, started = one.step, time.process_time()
    one.iterate()
    return (one.step - before) / (time.process_time() - started)


def rates_table(found: dict[str, Any]) -> str:
    lines = ["| | steps a CPU-second | of the bare environment's | HARL's, recorded | its share | times its share |"]
    lines.append("|---|---|---|---|---|---|")
    for name, own in found["rates"].items():
        told = f"{own['median']:,.0f} ({own['least']:,.0f} to {own['most']:,.0f})"
        share = found["share_of_bare"].get(name)
        recorded = HARL_STEPPING if share is None else HARL.get(name, {}).get("rate")
        lines.append(
            f"| `{name}` | {told} | {_percent(share['median']) if share else ''} | {_number(recorded)} | "
            f"{_percent(recorded / HARL_STEPPING) if share and recorded else ''} | "
            f"{_number(found.get(f'{name}_times_harl_by_share'))} |"
        )
    return "\n".join(lines)


def learned(runs: Path) -> dict[str, Any]:
    """Returns of finished runs, summed over agents, by variant."""
    found: dict[str, Any] = {}
    for cell in load_sweep(SWEEP).cells:
        of_runs = [
            one
            for folder in sorted((runs / cell.task / cell.variant).glob("*"))
            if (one := returns(folder)) is not None
        ]
        if of_runs:
            found[cell.variant] = {
                "runs": len(of_runs),
                **{tag: over([one[tag] for one in of_runs]) for tag in of_runs[0]},
            }
    if not found:
        raise SystemExit(f"{runs} holds no finished run of {SWEEP.name}")
    return found


def returns(folder: Path) -> dict[str, float] | None:
    """Of one run, None if it is not finished: in training up to each recorded step, and at the end."""
    if not (folder / "report.md").is_file():
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [
        (line["step"], line["scalars"]["charts/episodic_return"])
        for line in lines
        if "charts/episodic_return" in line["scalars"]
    ]
    found = {}
    for step in sorted({int(harl["training_steps"]) for harl in HARL.values()}):
        recent = [value for at, value in training if step - WINDOW < at <= step]
        found[f"training at {step}"] = AGENTS * float(np.mean(recent))
    last = lines[-1]["scalars"]
    for way in ("mode", "sampled"):
        found[f"{way} at the end"] = AGENTS * last[f"eval/{way}/mean"]
    return found


def over(values: list[float]) -> dict[str, Any]:
    """IQM over runs with its 95 % bootstrap interval, and the values."""
    scores = np.array(values)
    interval = stratified_bootstrap_ci(scores, iqm, seed=0)
    return {
        **{name: round(getattr(interval, name), 2) for name in ("estimate", "low", "high")},
        "values": scores.round(2).tolist(),
    }


def learning_table(found: dict[str, Any]) -> str:
    tags = [tag for tag in next(iter(found.values())) if tag != "runs"]
    lines = [f"| | seeds | {' | '.join(tags)} |", "|---" * (len(tags) + 2) + "|"]
    for name, row in found.items():
        told = (f"{row[tag]['estimate']:.1f} [{row[tag]['low']:.1f}, {row[tag]['high']:.1f}]" for tag in tags)
        lines.append(f"| `{name}` | {row['runs']} | {' | '.join(told)} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,g}"


if __name__ == "__main__":
    main()
