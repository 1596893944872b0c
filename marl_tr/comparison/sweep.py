"""The sweep file: what is compared, on what, how often. It and all its scenarios are checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from marl_tr.scenario import Problem, Scenario, ScenarioError, load_scenario, resolved, scenario_warnings
from marl_tr.scenario.document import Document, read_document
from marl_tr.scenario.problems import Path, Place, did_you_mean
from marl_tr.scenario.strict import Strict
from marl_tr.scenario.validation import check_model

__all__ = ["Cell", "Sweep", "SweepFile", "VariantSection", "flat", "load_sweep"]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class VariantSection(Strict):
    """One of the things compared."""

    scenario: str | dict[str, str] | None = Field(
        default=None,
        description="In place of the task's scenario; for several tasks one each: {task: scenario}.",
    )
    overrides: list[str] = Field(default=[], description="'section.key=value', after those that hold for all.")
    tasks: list[str] | None = Field(default=None, min_length=1, description="Only on these; empty: on all.")


class SweepFile(Strict):
    """A sweep as it is written."""

    name: Name = Field(description="Names the folder: runs/compare/<name>.")
    description: str = Field(default="", description="One sentence for the report.")
    tasks: dict[Name, str] = Field(
        min_length=1, description="Name: a shipped scenario, or a path (relative to the sweep file)."
    )
    seeds: list[Seed] = Field(min_length=1, description="A run each, of every variant on every task.")
    overrides: list[str] = Field(default=[], description="'section.key=value', for all runs.")
    variants: dict[Name, VariantSection] = Field(
        min_length=1, description="Name: overrides, or {scenario, overrides, tasks}."
    )
    baseline: str | None = Field(default=None, description="Variant that the others are held against.")
    threshold: dict[str, float] = Field(
        default={}, description="Score a task that counts as learned; empty: 90 % of the way to the best variant."
    )
    range: dict[str, tuple[float, float]] = Field(
        default={},
        description="Scores a task that become 0 and 1 over tasks; empty: before learning, and the best variant's.",
    )
    score: dict[str, str] = Field(
        default={}, description="Tag of metrics.jsonl a task; empty: the headline policy's mean return."
    )


@dataclass(frozen=True)
class Cell:
    """One variant on one task.

    Attributes:
        task: Its name.
        variant: Its name.
        scenario: Checked; its seed, name and folder are those of no run yet.
    """

    task: str
    variant: str
    scenario: Scenario

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.task}/{self.variant}"

    def run_scenario(self, *, runs_dir: FilePath) -> dict[str, Any]:
        """The scenario of the cell's runs but for the seed; their folders lie in ``runs_dir/<task>/<variant>/``."""
        data = resolved(self.scenario)
        data["name"] = self.variant
        data["trainer"]["runs_dir"] = str(runs_dir / self.task)
        return data

    def tag(self, given: Mapping[str, str]) -> str:
        """The scalar that scores a run: the headline policy's mean return, where `given` has none for the task."""
        return given.get(self.task, f"eval/{self.scenario.evaluation.policies[0]}/mean")


@dataclass(frozen=True)
class Sweep:
    """A sweep whose scenarios are all good.

    Attributes:
        file: As it is written.
        cells: Every variant on each of its tasks, tasks first.
        seeds: A run of every cell for each.
        overrides: Further ones of the command line.
        warnings: What is possible and probably not meant.
    """

    file: SweepFile
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def of_task(self, task: str) -> tuple[Cell, ...]:
        """The task's cells, in the order of the variants."""
        return tuple(cell for cell in self.cells if cell.task == task)


def load_sweep(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, seeds: Sequence[int] | None = None
) -> Sweep:
    """Read a sweep, and load and check the scenario of every variant on every task.

    Args:
        path: Of the YAML file.
        overrides: ``"section.key=value"`` for all runs; they win over the file's.
        seeds: In place of the file's.

    Raises:
        ScenarioError: With every problem of the file and of all scenarios, and its position.
    """
    document = read_document(FilePath(path), os.fspath(path))
    if not isinstance(document.data, dict):
        message = "a sweep is a mapping (name:, tasks:, seeds:, variants: ...)"
        raise ScenarioError([*document.problems, Problem.at(document.place(()), "", message)])
    _spell_out_variants(document)
    if seeds is not None:
        document.data["seeds"] = list(seeds)
    file, problems = check_model(SweepFile, document.data, document, ())
    problems = [*document.problems, *problems]
    # What else is wrong with the file must not hide what is wrong with its scenarios.
    file = file or _salvaged(document.data)
    if file is None:
        raise ScenarioError(problems)
    problems += _names(file, document)
    cells, found = _load(file, document, list(overrides), FilePath(path).parent)
    if problems or found.problems:
        raise ScenarioError([*problems, *found.listed()])
    return Sweep(file, tuple(cells), tuple(file.seeds), tuple(overrides), tuple(_warnings(file, cells)))


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"agents.0.kind": value}``."""
    if isinstance(data, dict):
        items: Any = data.items()
    elif isinstance(data, list) and any(isinstance(item, dict | list) for item in data):
        items = enumerate(data)
    else:
        return {prefix: data}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _spell_out_variants(document: Document) -> None:
    """``name: [overrides]`` and ``name:`` as the mappings that they stand for; positions move along."""
    variants = document.data.get("variants")
    if not isinstance(variants, dict):
        return
    for name, value in variants.items():
        if value is None:
            variants[name] = {}
        elif isinstance(value, list):
            variants[name] = {"overrides": value}
            own: Path = ("variants", name)
            for places in (document.keys, document.values):
                inner: dict[Path, Place] = {at: place for at, place in places.items() if at[:2] == own and len(at) > 2}
                for at, place in inner.items():
                    del places[at]
                    places[(*own, "overrides", *at[2:])] = place


def _salvaged(data: Mapping[str, Any]) -> SweepFile | None:
    """Of a sweep with problems: what is good by itself; None where no scenario can be loaded as it was meant."""
    good = {key: value for key, value in data.items() if key in SweepFile.model_fields}
    if isinstance(good.get("tasks"), dict):
        good["tasks"] = {name: source for name, source in good["tasks"].items() if isinstance(source, str)}
    if isinstance(good.get("variants"), dict):
        variants = good["variants"]
        good["variants"] = {}
        for name, own in variants.items():
            known = (
                {key: own[key] for key in VariantSection.model_fields if key in own} if isinstance(own, dict) else own
            )
            with suppress(ValidationError):
                good["variants"][name] = VariantSection.model_validate(known)
    for _ in range(2):
        try:
            return SweepFile.model_validate(good)
        except ValidationError as error:
            wrong = {item["loc"][0] for item in error.errors()}
            if not wrong <= {"name", "description", "seeds", "baseline", "threshold", "range", "score"}:
                return None
            good = {"name": "salvaged", "seeds": [1]} | {key: good[key] for key in good if key not in wrong}
    return None


def _names(file: SweepFile, document: Document) -> list[Problem]:
    """Names that lead nowhere, and seeds that come twice."""
    problems: list[Problem] = []

    def known(path: Path, name: str, kind: str, names: Mapping[str, Any], *, key: bool = False) -> None:
        if name not in names:
            hint = did_you_mean(name, names) or f" ({kind}s: {', '.join(names)})"
            problems.append(document.problem(path, f"no {kind} {name!r}{hint}", key=key))

    for section in ("threshold", "range", "score"):
        for task in getattr(file, section):
            known((section, task), task, "task", file.tasks, key=True)
    for task, (low, high) in file.range.items():
        if not low < high:
            problems.append(document.problem(("range", task), f"must rise, not go from {low} to {high}"))
    for name, variant in file.variants.items():
        for index, task in enumerate(variant.tasks or ()):
            known(("variants", name, "tasks", index), task, "task", file.tasks)
        if isinstance(variant.scenario, dict):
            for task in variant.scenario:
                known(("variants", name, "scenario", task), task, "task", file.tasks, key=True)
        elif variant.scenario is not None and len(_tasks_of(file, name)) > 1:
            message = "one scenario for several tasks: say which, {task: scenario}, or name one task in 'tasks'"
            problems.append(document.problem(("variants", name, "scenario"), message))
    if file.baseline is not None:
        known(("baseline",), file.baseline, "variant", file.variants)
    for index, seed in enumerate(file.seeds):
        if seed in file.seeds[:index]:
            problems.append(document.problem(("seeds", index), f"seed {seed} is given twice"))
    return problems


def _tasks_of(file: SweepFile, variant: str) -> list[str]:
    chosen = file.variants[variant].tasks
    return [task for task in file.tasks if chosen is None or task in chosen]


@dataclass
class _Found:
    """Problems of scenarios; one that several cells have is told once."""

    problems: dict[Problem, list[str]] = field(default_factory=dict)
    cells: int = 0

    def listed(self) -> list[Problem]:
        told = []
        for problem, labels in self.problems.items():
            more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
            where = "" if len(labels) == self.cells > 1 else f" (in {', '.join(labels[:3])}{more})"
            told.append(replace(problem, message=problem.message + where))
        return told


def _load(file: SweepFile, document: Document, overrides: Sequence[str], folder: FilePath) -> tuple[list[Cell], _Found]:
    cells, found = [], _Found()
    for task in file.tasks:
        for name in file.variants:
            if task not in _tasks_of(file, name):
                continue
            found.cells += 1
            variant = file.variants[name]
            source, at = _source(file, name, task)
            lists = [(("overrides",), file.overrides), (("variants", name, "overrides"), variant.overrides)]
            places: list[tuple[Path, str] | str] = [
                ((*path, index), text) for path, texts in lists for index, text in enumerate(texts)
            ]
            places += [f"override {number}" for number in range(1, len(overrides) + 1)]
            given = [text for _, texts in lists for text in texts] + list(overrides)
            try:
                scenario = load_scenario(_resolve(source, folder), given)
            except ScenarioError as error:
                for problem in error.problems:
                    placed = _placed(problem, places, document, source, at)
                    found.problems.setdefault(placed, []).append(f"{task}/{name}")
            else:
                cells.append(Cell(task, name, scenario))
    return cells, found


def _source(file: SweepFile, variant: str, task: str) -> tuple[str, Path]:
    """What scenario a cell begins from, and where the sweep says so."""
    own = file.variants[variant].scenario
    if isinstance(own, str):
        return own, ("variants", variant, "scenario")
    if own is not None and task in own:
        return own[task], ("variants", variant, "scenario", task)
    return file.tasks[task], ("tasks", task)


def _resolve(source: str, folder: FilePath) -> str:
    """Paths are relative to the sweep file; anything else is the name of a shipped scenario."""
    is_path = FilePath(source).suffix in (".yaml", ".yml") or os.sep in source
    return str(folder / source) if is_path else source


def _placed(
    problem: Problem, places: Sequence[tuple[Path, str] | str], document: Document, source: str, at: Path
) -> Problem:
    """A problem of a scenario where it was written: in the sweep, on the command line, or in the scenario's file."""
    if problem.file.startswith("override ") and problem.line is None:
        place = places[int(problem.file.removeprefix("override ")) - 1]
        if isinstance(place, str):
            return replace(problem, file=place)
        written = document.place(place[0])
        # What is said of a form or a value is said of the override as a whole: its text may be quoted or folded.
        return Problem.at(written, problem.path or place[1], problem.message)
    if problem.line is None and not problem.path:
        # The scenario itself is not there.
        shown = "" if problem.file == source else f"{problem.file}: "
        return document.problem(at, f"{source!r}: {shown}{problem.message}")
    return problem


_SAME = ("env.", "evaluation.", "trainer.total_steps")
"""What the variants of a task usually have in common; where they differ they may be playing different games."""

_FREE = ("env.num_envs", "env.backend", "env.workers", "env.reward", "evaluation.media", "evaluation.ema")


def _footing(scenario: Scenario) -> dict[str, Any]:
    """Settings by name; evaluations are so many environment steps apart, however long rollouts are."""
    settings = flat(resolved(scenario))
    apart = scenario.evaluation.every * scenario.trainer.rollout_steps * scenario.env.num_envs
    return settings | {"evaluation.every": apart}


def _warnings(file: SweepFile, cells: Sequence[Cell]) -> list[str]:
    told: dict[str, list[str]] = {}
    for cell in cells:
        for warning in scenario_warnings(cell.scenario):
            told.setdefault(warning, []).append(cell.label)
    warnings = [
        message if len(labels) == len(cells) else f"{', '.join(labels)}: {message}" for message, labels in told.items()
    ]
    for task in file.tasks:
        settings = [_footing(cell.scenario) for cell in cells if cell.task == task]
        names = sorted({name for found in settings for name in found if name.startswith(_SAME)})
        absent = object()
        apart = [
            name
            for name in names
            if name not in _FREE and any(found.get(name, absent) != settings[0].get(name, absent) for found in settings)
        ]
        if apart:
            warnings.append(f"{task}: variants differ in {', '.join(apart)}: they are not compared on the same footing")
    return warnings
