"""Errors in other people's code keep type and traceback, say where they came from, and are shown without our frames."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from marl_tr.cli import main
from marl_tr.errors import UserError
from marl_tr.foreign import foreign_code, own_traceback, raised_inside
from marl_tr.registry import register_env


def theirs(x: int) -> float:
    return deeper(x)


def deeper(x: int) -> float:
    return 1 / x


def caught(where: str = "environment 'a'", env_id: str | None = None) -> ZeroDivisionError:
    with pytest.raises(ZeroDivisionError) as raised, foreign_code(where, env_id=env_id):
        theirs(0)
    return raised.value


def test_the_note_says_where_and_the_frames_are_theirs_alone() -> None:
    error = caught()
    note = raised_inside(error)
    assert note == "(raised inside environment 'a')"
    assert note is not None
    assert note.frames == 2
    told = own_traceback(error)
    assert [line.split(" in ")[1] for line in told.splitlines() if line.startswith("  File")] == ["theirs", "deeper"]
    assert told.endswith("ZeroDivisionError: division by zero")


def test_the_innermost_place_is_kept() -> None:
    def inner() -> None:
        with foreign_code("copy 3"):
            theirs(0)

    with pytest.raises(ZeroDivisionError) as raised, foreign_code("the whole"):
        inner()
    note = raised_inside(raised.value)
    assert note is not None
    assert note.where == "copy 3"
    assert raised.value.__notes__ == ["(raised inside copy 3)"]


def test_causes_and_their_own_notes_are_shown() -> None:
    def fails() -> None:
        try:
            theirs(0)
        except ZeroDivisionError as error:
            error.add_note("their own note")
            raise RuntimeError("no result") from error

    with pytest.raises(RuntimeError) as raised, foreign_code("environment 'a'"):
        fails()
    told = own_traceback(raised.value)
    assert "their own note" in told
    assert "direct cause" in told
    assert told.endswith("RuntimeError: no result")
    assert "marl_tr/foreign.py" not in told


def test_errors_that_say_where_by_themselves_are_left_as_they_are() -> None:
    with pytest.raises(UserError) as raised, foreign_code("environment 'a'"):
        raise UserError("environment 'a', copy 0: ...")
    assert raised_inside(raised.value) is None


def test_a_note_crosses_processes() -> None:
    note = raised_inside(pickle.loads(pickle.dumps(caught("copy 1", "a/b-v0"))))
    assert note is not None
    assert note == "(raised inside copy 1; 'marl-tr check-env a/b-v0' looks for the cause)"
    # The traceback stays on the other side.
    assert (note.where, note.env_id, note.frames) == ("copy 1", "a/b-v0", 0)


def test_very_deep_tracebacks_are_counted() -> None:
    def endless() -> None:
        endless()

    with pytest.raises(RecursionError) as raised, foreign_code("environment 'a'"):
        endless()
    note = raised_inside(raised.value)
    assert note is not None
    assert note.frames > 100


def test_the_command_line_shows_their_frames_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "boom_at_import.py").write_text("def fail():\n    raise RuntimeError('no licence')\n\nfail()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["envs", "boom_at_import:make"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(
        "crash: RuntimeError in the import of module 'boom_at_import' for 'boom_at_import:make'\nTraceback"
    )
    files = [line.split('"')[1] for line in told.splitlines() if line.startswith("  File")]
    assert files == [str(tmp_path / "boom_at_import.py")] * 2
    assert told.endswith("RuntimeError: no licence\n")


def test_a_missing_dependency_of_a_module_is_named_with_the_line_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "needs_more.py").write_text("import json\nimport no_such_simulator\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    register_env("foreign-tests/needs-v0", "needs_more:make")
    assert main(["envs", "foreign-tests/needs-v0"]) == 2
    told = capsys.readouterr().err
    assert "No module named 'no_such_simulator'" in told
    assert f"({tmp_path / 'needs_more.py'}:2); install or mend what it imports" in told


def test_a_syntax_error_is_shown_with_its_line_alone(tmp_path: Path) -> None:
    (tmp_path / "mistyped.py").write_text("def f(:\n")
    done = subprocess.run(
        [sys.executable, "-m", "marl_tr", "envs", "mistyped:f"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    head, file, line, *_, last = done.stderr.splitlines()
    assert head == "crash: SyntaxError in the import of module 'mistyped' for 'mistyped:f'"
    assert "mistyped.py" in file
    assert line.strip() == "def f(:"
    assert last.startswith("SyntaxError")
