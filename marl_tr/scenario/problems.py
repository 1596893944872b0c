"""What is wrong with a scenario, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from marl_tr.errors import UserError

__all__ = ["Path", "Place", "Problem", "ScenarioError", "did_you_mean"]

Path = tuple[str | int, ...]
"""Way to a value in nested mappings and lists: ``("agents", 0, "kind")``."""


@dataclass(frozen=True)
class Place:
    """A position in a text.

    Attributes:
        file: File name, or ``"override 2"``.
        line: From 1; None where the text has no line numbers (overrides, mappings built in Python).
        column: From 1; None where there is no text to point at.
        source: The line itself.
    """

    file: str
    line: int | None = None
    column: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing to put right.

    Attributes:
        file: File name, or ``"override 2"``.
        line: From 1, or None.
        column: From 1, or None.
        path: The setting, dotted: ``"region.bound"``; empty for the file as a whole.
        message: What is wrong and what would be right.
        source: The line that the caret is drawn under.
    """

    file: str
    line: int | None
    column: int | None
    path: str
    message: str
    source: str = ""

    @classmethod
    def at(cls, place: Place, path: str, message: str) -> Problem:
        """The problem `message` of the setting `path`, at `place`."""
        return cls(place.file, place.line, place.column, path, message, place.source)

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        head = ": ".join(part for part in (where, self.path, self.message) if part)
        if self.column is None or self.column > len(self.source) + 1 or not self.source.strip():
            return head
        # Tabs stay tabs, so that the caret lands under its column however wide a terminal makes them.
        indent = "".join("\t" if letter == "\t" else " " for letter in self.source[: self.column - 1])
        return f"{head}\n    {self.source}\n    {indent}^"


class ScenarioError(UserError):
    """A scenario cannot be used; `problems` says why, all of it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = sorted(set(problems), key=_reading_order)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'bound'?"`` where one of `known` is close to `word`, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _reading_order(problem: Problem) -> tuple[bool, int, str, int, str, str]:
    return (
        problem.line is None,
        problem.line or 0,
        problem.file,
        problem.column or 0,
        problem.path,
        problem.message,
    )
