"""Environments of others, unchanged: what the shipped scenarios of them reach, and that their runs resume.

Every run is ``marl-tr run SCENARIO seed=N`` in a process of its own with one thread; what it logged is kept:

    python benchmarks/third_party.py --seeds 1 2 3 --jobs 2

Then, for each scenario with recurrent policies and little else, one run is interrupted (SIGINT) and resumed beside one
that is not, and their last checkpoints are compared byte by byte:

    python benchmarks/third_party.py --resume --jobs 2

Both add to ``benchmarks/results/third_party.json``; runs that it holds already are skipped. Three seeds are a look: no
ranking follows from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import dropwhile, takewhile
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "third_party.json"
SCENARIOS = ("cartpole", "pendulum", "hopper", "simple_spread", "reference", "world_comm", "zombies", "connect_four")
SHORT = {
    "trainer.total_steps": 768,
    "trainer.rollout_steps": 16,
    "env.num_envs": 4,
    "trainer.checkpoint_every": 1,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "evaluation.every": 0,
    "evaluation.media": "false",
    "evaluation.references": "false",
}
"""A run to be interrupted: 12 iterations, a checkpoint after each."""


__all__ = ["Book", "table", "trained"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/third_party"))
    parser.add_argument("--resume", action="store_true", help="check that interrupted runs resume; nothing else")
    parser.add_argument("--table", action="store_true", help="only print what is kept as a table")
    arguments = parser.parse_args()
    book = Book(RESULTS)
    if arguments.resume:
        book.fill("resumed", arguments.scenarios, resumed, jobs=arguments.jobs)
    elif not arguments.table:
        names = [f"{scenario} seed={seed}" for seed in arguments.seeds for scenario in arguments.scenarios]
        book.fill("runs", names, lambda name: trained(name, arguments.runs_dir), jobs=arguments.jobs)
    print(table(book.kept["runs"]))


class Book:
    """The file of results: rows by name, in sections, written whenever one is added."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self.kept = self._read()

    def fill(self, section: str, names: Sequence[str], measure: Callable[[str], dict[str, Any]], *, jobs: int) -> None:
        """Measure what is missing."""

        def one(name: str) -> None:
            if name in self._read()[section]:
                return
            load = os.getloadavg()[0]
            row = measure(name)
            row |= {"load": [round(load, 1), round(os.getloadavg()[0], 1)], "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            row |= {"commit": _commit(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
            with self._lock:
                # Another process may have added to the file.
                self.kept = self._read()
                self.kept[section][name] = row
                ordered = {part: dict(sorted(rows.items())) for part, rows in self.kept.items()}
                self._path.write_text(json.dumps(ordered, indent=1) + "\n")
            print(f"{section} {name}: {row['wall_s']:.0f} s, {row['cpu_s']:.0f} CPU s", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, names))

    def _read(self) -> dict[str, dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = {"runs": {}, "resumed": {}}
        return kept | (json.loads(self._path.read_text()) if self._path.is_file() else {})


def trained(name: str, runs: Path) -> dict[str, Any]:
    """One whole run: its first and last evaluation, the random reference on the last's episodes, and its audit."""
    scenario, seed = name.split()
    with tempfile.TemporaryDirectory(dir=_made(runs), prefix=f"{scenario}-") as folder:
        command = ["run", scenario, seed, f"trainer.runs_dir={folder}", "evaluation.media=false"]
        spent = _command(command)
        (run,) = Path(folder).glob("*/*")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        audited = subprocess.run(_marl_tr("audit", str(run)), capture_output=True, text=True, check=True)
        report = (run / "report.md").read_text()
    evaluations = [line for line in lines if line["phase"] in ("eval", "final")]
    return {
        **spent,
        "steps": lines[-1]["step"],
        "before": _scores(evaluations[0]["scalars"]),
        "after": _scores(evaluations[-1]["scalars"]),
        "curve": [[line["step"], line["scalars"]["eval/iqm"]] for line in evaluations],
        "random": _references(report).get("random"),
        "references": _references(report),
        "audit": audited.stdout.splitlines()[-1],
    }


def resumed(scenario: str) -> dict[str, Any]:
    """A short run with recurrent policies, and the same interrupted once and resumed."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"{key}={value}" for key, value in SHORT.items()] + _recurrent(scenario)
        began = time.perf_counter()
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        spent = _command(["run", scenario, *overrides, f"trainer.runs_dir={whole}"])
        process = subprocess.Popen(
            _marl_tr("run", scenario, *overrides, f"trainer.runs_dir={broken}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        while process.poll() is None and len(list(broken.glob("*/*/checkpoints/step_*"))) < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate()
        (run,) = broken.glob("*/*")
        stopped = len((run / "metrics.jsonl").read_text().splitlines())
        finished = (run / "report.md").is_file()
        again = subprocess.run(
            _marl_tr("resume", str(run)), capture_output=True, text=True, env=_environment(), check=False
        )
        (reference,) = whole.glob("*/*")
        checkpoints = [sorted(path.glob("checkpoints/step_*"))[-1] for path in (reference, run)]
        return {
            "overrides": overrides,
            "interrupted_after_lines": stopped,
            "interrupted": process.returncode == 130 and not finished,
            "resumed": again.returncode == 0,
            "error": again.stderr.strip()[-500:],
            "identical": checkpoints[0].name == checkpoints[1].name
            and checkpoints[0].read_bytes() == checkpoints[1].read_bytes(),
            "cpu_s": spent["cpu_s"],
            "wall_s": round(time.perf_counter() - began, 1),
        }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Means over seeds and the range of each scenario's scores, before and after."""
    by_scenario: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in rows.items():
        by_scenario.setdefault(name.split()[0], []).append(row)
    lines = []
    for scenario, found in by_scenario.items():
        known = [row["cpu_s"] for row in found if row["cpu_s"] is not None]
        cpu = f"{np.mean(known):.0f} CPU s" if known else "CPU time not kept"
        load, random = [row["load"] for row in found], found[0]["random"]
        lines.append(
            f"{scenario}: {len(found)} seeds, {found[0]['steps']:,} steps, {cpu}, load {np.min(load)} to "
            f"{np.max(load)}, random {random}"
        )
        for tag in found[0]["after"]:
            if all(tag in row["before"] and tag in row["after"] for row in found):
                before, after = ([row[when][tag] for row in found] for when in ("before", "after"))
                lines.append(f"  {tag}: {_spread(before)} -> {_spread(after)}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _scores(scalars: Mapping[str, float]) -> dict[str, float]:
    wanted = re.compile(r"eval/((sampled|mode)/.*|vs_random/.*)")
    return {tag: round(value, 4) for tag, value in scalars.items() if wanted.fullmatch(tag)}


def _references(report: str) -> dict[str, float]:
    """Mean return of each reference, from the report's first table."""
    lines = dropwhile(lambda line: not line.startswith("| "), report.splitlines())
    rows = [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("|"), lines)]
    # Its header, and the line below it.
    return {cells[0]: float(cells[1]) for cells in rows[2:] if not cells[0].startswith("learned")}


def _recurrent(scenario: str) -> list[str]:
    entries = 2 if scenario == "zombies" else 1
    return [f"agents.{entry}.network=gru" for entry in range(entries)]


def _command(arguments: Sequence[str]) -> dict[str, Any]:
    began = time.perf_counter()
    process = subprocess.Popen(
        _marl_tr(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment()
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {said[-2000:]}")
    return {
        "command": "marl-tr " + " ".join(a for a in arguments if not a.startswith("trainer.runs_dir")),
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
    }


def _marl_tr(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "marl_tr", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
