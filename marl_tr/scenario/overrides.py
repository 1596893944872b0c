"""``key=value`` from the command line, laid over a document before anything is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marl_tr.scenario.document import Document, parse
from marl_tr.scenario.problems import Path, Place, Problem, ScenarioError

__all__ = ["apply_overrides"]


def apply_overrides(document: Document, overrides: Sequence[str], *, form: str = "section.key=value") -> None:
    """Set each override in `document`, in order; what is wrong with their form goes to ``document.problems``.

    A value is YAML (``env.num_envs=128``, ``agents.hidden=[64, 64]``). Sections that the file leaves out are
    made; whether a key exists at all is for the models to say, so that a misspelt override gets the same
    answer, with the same suggestion, as a misspelt line of the file. ``agents.kind`` means ``agents.0.kind``
    where there is one entry. `form` is what an override that is none is told to look like.
    """
    for number, override in enumerate(overrides, start=1):
        file = f"override {number}"
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            message = f"is not of the form {form}"
            document.problems.append(Problem(file, None, 1, "", message, override))
            continue
        try:
            value = parse(text.strip() or "null", file)
        except ScenarioError as error:
            at = len(key) + 2
            document.problems += [Problem(file, None, at, key, problem.message, override) for problem in error.problems]
            continue
        document.problems += [
            Problem(file, None, len(key) + 2, key, problem.message, override) for problem in value.problems
        ]
        _set(document, names, value.data, Place(file, None, 1, override), len(key) + 2)


def _set(document: Document, names: list[str], value: Any, key_place: Place, value_column: int) -> None:
    target = document.data
    path: Path = ()
    for position, name in enumerate(names):
        last = position == len(names) - 1
        step: str | int = name
        if isinstance(target, list):
            if not name.isdecimal() and len(target) == 1:
                # One entry: its index may be left out.
                path, target = (*path, 0), target[0]
            elif not name.isdecimal() or int(name) >= len(target):
                message = f"no entry {name!r}; entries are numbered 0 to {len(target) - 1}"
                document.problems.append(Problem.at(key_place, ".".join(names[: position + 1]), message))
                return
            else:
                step = int(name)
        if not isinstance(target, list | dict):
            message = f"is a single value and has no {name!r} in it"
            document.problems.append(Problem.at(key_place, ".".join(names[:position]), message))
            return
        path = (*path, step)
        if last:
            _forget(document, path)
            document.keys[path] = key_place
            document.values[path] = Place(key_place.file, None, value_column, key_place.source)
            target[step] = value  # type: ignore[index]  # a dict or a list, and the step fits it
        elif isinstance(target, dict):
            if target.get(name) is None:
                target[name] = {}
                document.keys[path] = document.values[path] = key_place
            target = target[name]
        else:
            target = target[int(step)]


def _forget(document: Document, path: Path) -> None:
    """Drop the positions of what `path` held: it is replaced as a whole."""
    for places in (document.keys, document.values):
        for known in [known for known in places if known[: len(path)] == path]:
            del places[known]
