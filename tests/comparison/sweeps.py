"""Small sweeps, and runs of them that nobody trained: their logs are written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from marl_tr.comparison.runs import runs_dir
from marl_tr.comparison.sweep import Cell
from marl_tr.scenario.document import dump_yaml

SCENARIO = """
name: tiny
preset: hatrpo
env: {id: gymnasium/CartPole-v1, num_envs: 3}
schedule: {kind: simultaneous}
agents: {kind: gaussian, hidden: [16]}
trainer: {total_steps: 300, rollout_steps: 10, checkpoint_every: 2}
evaluation: {every: 2, episodes: 2, final_episodes: 2, media: false, references: false}
"""

SWEEP = """
name: small
tasks: {pole: scenario.yaml, stick: scenario.yaml}
seeds: [1, 2]
overrides: [advantage.gamma=0.9]
variants:
  wide: [region.bound=0.02]
  narrow: {overrides: [region.bound=0.001]}
baseline: wide
"""


def write_sweep(folder: Path, text: str = SWEEP, scenario: str = SCENARIO) -> Path:
    """The sweep's file, with its scenario beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenario.yaml").write_text(scenario)
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def write_run(
    cell: Cell,
    seed: int,
    out: Path,
    values: Sequence[float],
    *,
    clock: Sequence[float] | None = None,
    began: Sequence[int] | None = None,
    finished: bool = True,
    head: str = "# marl-tr 0",
) -> Path:
    """A run that scored `values` at evaluations 100 steps apart; `clock` and `began` are the seconds at the end of each
    stretch between them and the step at which its process began."""
    folder = runs_dir(out) / cell.task / cell.variant / f"20260101T000000Z-seed{seed}"
    (folder / "checkpoints").mkdir(parents=True)
    data = cell.run_scenario(runs_dir=runs_dir(out)) | {"seed": seed}
    (folder / "scenario.yaml").write_text(f"{head}\n{dump_yaml(data)}")
    tag, lines = cell.tag({}), []
    for index, value in enumerate(values):
        step, last = 100 * index, finished and index == len(values) - 1
        if index:
            wall = 10.0 * index if clock is None else clock[index - 1]
            scalars = {"perf/wall_clock": wall}
            if began is not None:
                scalars["perf/from_step"] = float(began[index - 1])
            lines.append({"step": step, "phase": "train", "scalars": scalars})
        lines.append({"step": step, "phase": "final" if last else "eval", "scalars": {tag: value}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "checkpoints" / f"step_{100 * (len(values) - 1):012d}.safetensors").touch()
    if finished:
        (folder / "report.md").write_text("done\n")
    return folder
