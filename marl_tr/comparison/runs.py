"""A sweep's runs on disk: which are finished, which can go on, and which are of other settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from marl_tr.analysis.curves import read_scalars, read_tags
from marl_tr.comparison.sweep import Cell, Sweep, flat
from marl_tr.errors import UserError
from marl_tr.events import Phase
from marl_tr.scenario import ScenarioError, load_scenario, resolved
from marl_tr.scenario.document import dump_yaml

__all__ = [
    "ChangedSettings",
    "Found",
    "clock",
    "diverged_because",
    "find_run",
    "find_runs",
    "made_with",
    "refuse_changed",
    "runs_dir",
    "scenario_file",
    "write_scenarios",
]

State = Literal["finished", "diverged", "unfinished", "absent"]

# Files of a run (marl_tr.trainer.run, which would load torch).
SCENARIO_FILE, REPORT, DUMP, CHECKPOINTS = "scenario.yaml", "report.md", "diverged.json", "checkpoints"

# What tells nothing of what a run learned, or is the sweep's own business.
_FREE = {
    "name",
    "description",
    "preset",
    "seed",
    "trainer.runs_dir",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
}


class ChangedSettings(UserError):
    """Runs of other settings lie where the sweep's runs would go; says which settings, and what to do."""


@dataclass(frozen=True)
class Found:
    """A run of the sweep, and what there is of it.

    Attributes:
        cell: Whose.
        seed: Of the run.
        state: 'unfinished' has a checkpoint; 'absent' may have a folder in which nothing is worth keeping.
        folder: Of the run, or None.
        step: Environment steps of its newest checkpoint; all of them where it is finished.
    """

    cell: Cell
    seed: int
    state: State
    folder: Path | None
    step: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.cell.label} seed {self.seed}"

    @property
    def steps_left(self) -> int:
        """Environment steps to go."""
        return max(0, self.cell.scenario.trainer.total_steps - self.step) if self.state != "finished" else 0


def runs_dir(out: Path) -> Path:
    """Where the sweep's runs lie: ``<task>/<variant>/<time>-seed<seed>/``."""
    return out / "runs"


def scenario_file(out: Path, cell: Cell) -> Path:
    """The resolved scenario that the cell's runs are started from."""
    return out / "scenarios" / cell.task / f"{cell.variant}.yaml"


def write_scenarios(sweep: Sweep, out: Path) -> None:
    """Write every cell's resolved scenario: what was checked is what is run, whatever becomes of the files."""
    for cell in sweep.cells:
        path = scenario_file(out, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_yaml(cell.run_scenario(runs_dir=runs_dir(out))), encoding="utf-8")


def find_runs(sweep: Sweep, out: Path) -> list[Found]:
    """What there is of each run, tasks first, then seeds, so that variants advance side by side."""
    return [
        find_run(cell, seed, out) for task in sweep.file.tasks for seed in sweep.seeds for cell in sweep.of_task(task)
    ]


def find_run(cell: Cell, seed: int, out: Path) -> Found:
    """The finished run of a cell and seed, else the newest that can go on."""
    total = cell.scenario.trainer.total_steps
    best = Found(cell, seed, "absent", None, 0)
    for folder in _folders(cell, seed, out):
        if (folder / REPORT).is_file():
            return Found(cell, seed, "finished", folder, total)
        step = _newest(folder)
        if (folder / DUMP).is_file():
            best = Found(cell, seed, "diverged", folder, step or 0)
        elif step is not None:
            best = Found(cell, seed, "unfinished", folder, step)
    return best


def refuse_changed(sweep: Sweep, out: Path) -> None:
    """Refuse to mix runs of other settings with the sweep's.

    Raises:
        ChangedSettings: With all of them.
    """
    told = []
    for cell in sweep.cells:
        wanted = _settings(resolved(cell.scenario))
        for seed in sweep.seeds:
            for folder in _folders(cell, seed, out):
                if not (folder / REPORT).is_file() and _newest(folder) is None:
                    continue  # nothing in it is used
                changes = _changes(folder, wanted)
                if changes:
                    told.append(f"{folder} is of other settings: {changes}")
    if told:
        raise ChangedSettings(
            "\n".join([*told, f"give the new settings a folder of their own (--out), or delete what is old in {out}"])
        )


def clock(folder: Path) -> tuple[list[tuple[int, float]], int]:
    """Seconds of training by environment step, over all processes that a run took, and how many there were.

    A process counts from its start; what was learned and lost between a checkpoint and an interruption is not in it.
    """
    steps, walls = read_scalars(folder, "perf/wall_clock", phase=Phase.TRAIN)
    began = _process_starts(folder)
    spent: list[tuple[int, float]] = []
    before, last, processes = 0.0, 0.0, 1
    known: float | None = None
    for step, wall in zip(steps.tolist(), walls.tolist(), strict=True):
        start = began.get(int(step))
        # A clock that went back is another process's as well: older runs do not say where each began.
        if spent and (start != known or wall < last):
            before += last
            processes += 1
        known, last = start, wall
        spent.append((int(step), before + wall))
    return spent, processes


def made_with(folder: Path) -> str:
    """The versions that a run was begun with, from the first line of its scenario."""
    first = (folder / SCENARIO_FILE).read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def diverged_because(folder: Path) -> str:
    """What the run itself said of it."""
    try:
        return str(json.loads((folder / DUMP).read_text(encoding="utf-8"))["cause"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _folders(cell: Cell, seed: int, out: Path) -> Iterator[Path]:
    base = runs_dir(out) / cell.task / cell.variant
    # A second run of one second has a number after its seed.
    for folder in sorted([*base.glob(f"*-seed{seed}"), *base.glob(f"*-seed{seed}-*")]):
        if (folder / SCENARIO_FILE).is_file():
            yield folder


def _process_starts(folder: Path) -> dict[int, float]:
    """By environment step, the step at which the process began that made it."""
    if "perf/from_step" not in read_tags(folder):
        return {}
    steps, starts = read_scalars(folder, "perf/from_step", phase=Phase.TRAIN)
    return dict(zip(steps.tolist(), starts.tolist(), strict=True))


def _newest(folder: Path) -> int | None:
    """Step of the newest checkpoint."""
    names = sorted(path.stem for path in (folder / CHECKPOINTS).glob("step_*.safetensors"))
    return int(names[-1].removeprefix("step_")) if names else None


def _settings(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(data).items() if name not in _FREE}


def _changes(folder: Path, wanted: dict[str, Any]) -> str:
    try:
        had = _settings(resolved(load_scenario(folder / SCENARIO_FILE)))
    except ScenarioError as error:
        return f"its {SCENARIO_FILE} can no longer be read ({str(error).splitlines()[0]})"
    names = sorted(name for name in {*had, *wanted} if had.get(name) != wanted.get(name))
    shown = [f"{name} was {had.get(name)!r} and is {wanted.get(name)!r}" for name in names[:5]]
    return ", ".join([*shown, f"and {len(names) - 5} more"] if len(names) > 5 else shown)
