"""Code of others that is called from here: what it raises is theirs, and says from where it was called.

An environment's own errors keep their type and their traceback. A note tells which environment it was, which copy and
which step, and how much of the traceback is theirs, so that the command line can leave out the rest.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from types import TracebackType

from marl_tr.errors import Diverged, Interrupted, UserError

__all__ = ["RaisedInside", "foreign_code", "last_place", "mark", "own_traceback", "raised_inside"]

_VIEWS = str(Path(__file__).parent / "vector")
"""Between our call and their code there may be a view of their environment."""

_IMPORT_SYSTEM = ("<frozen importlib", "importlib/__init__.py", "importlib\\__init__.py")


class RaisedInside(str):
    """The note, such as ``"(raised inside environment 'team/x-v0', copy 3, step 17)"``.

    Attributes:
        where: Its middle.
        frames: The last frames of the traceback, as many as are not ours.
        env_id: The environment that can be checked, or None.
    """

    where: str
    frames: int
    env_id: str | None

    def __new__(cls, where: str, frames: int, env_id: str | None) -> RaisedInside:  # noqa: D102
        cure = "" if env_id is None else f"; 'marl-tr check-env {env_id}' looks for the cause"
        note = super().__new__(cls, f"(raised inside {where}{cure})")
        note.where, note.frames, note.env_id = where, frames, env_id
        return note

    def __reduce__(self) -> tuple[type[RaisedInside], tuple[str, int, str | None]]:
        return RaisedInside, (self.where, 0, self.env_id)  # a traceback does not cross processes


@contextmanager
def foreign_code(where: str, *, env_id: str | None = None) -> Iterator[None]:
    """Add a `RaisedInside` to whatever is raised inside; errors that say where by themselves are left as they are.

    Args:
        where: What is called, such as ``"environment 'team/x-v0', copy 3, step 17"``.
        env_id: The environment that ``marl-tr check-env`` should ask, if it is one.

    Example:
        >>> with foreign_code("environment 'team/x-v0'"):
        ...     1 / 0
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """
    try:
        yield
    except Exception as error:
        mark(error, where, env_id=env_id)
        raise


def mark(error: Exception, where: str, *, env_id: str | None = None) -> None:
    """Add a `RaisedInside` to `error`, in the except clause of a context manager that is a generator function."""
    if raised_inside(error) is None and not isinstance(error, UserError | Diverged | Interrupted):
        # The first frame is that function's, the second that of the with statement; all below are theirs.
        error.add_note(RaisedInside(where, max(0, _length(error.__traceback__) - 2), env_id))


def raised_inside(error: BaseException) -> RaisedInside | None:
    """The note of `foreign_code`, or None where `error` does not come from there."""
    notes = getattr(error, "__notes__", ())
    return next((note for note in notes if isinstance(note, RaisedInside)), None)


def own_traceback(error: BaseException) -> str:
    """The traceback of `error` without our frames and the import system's, as Python would print it."""
    note = raised_inside(error)
    told = traceback.TracebackException.from_exception(error)
    told.__notes__ = [text for text in told.__notes__ or () if text != note]
    told.stack = traceback.StackSummary.from_list(_foreign(told.stack, note))
    return "".join(told.format()).rstrip()


def last_place(error: BaseException) -> str:
    """``" (file.py:12)"``, the last line of the traceback that is not the import system's, or an empty text."""
    frames = _foreign(traceback.extract_tb(error.__traceback__), None)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _foreign(frames: traceback.StackSummary, note: RaisedInside | None) -> list[traceback.FrameSummary]:
    theirs = list(frames) if note is None else list(frames)[len(frames) - note.frames :]
    theirs = list(dropwhile(lambda frame: frame.filename.startswith(_VIEWS), theirs))
    return [frame for frame in theirs if not any(part in frame.filename for part in _IMPORT_SYSTEM)]


def _length(tb: TracebackType | None) -> int:
    count = 0
    while tb is not None:
        tb, count = tb.tb_next, count + 1
    return count
