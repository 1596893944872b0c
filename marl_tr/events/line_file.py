"""A text file that grows by whole lines, and the way back to where a checkpoint left it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from marl_tr.errors import UserError

__all__ = ["LineFile", "LogMismatch", "line_offset", "truncate_logs"]


class LogMismatch(UserError):
    """A log on disk is not the one that a checkpoint belongs to; names the file."""


class LineFile:
    """Appends lines. Each is handed to the operating system whole, so a killed process leaves no half line.

    Args:
        path: The file; made if missing, gone on with if not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = _count_lines(path)
        self._file = path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Write `line` (which holds no line break) and a line break."""
        data = memoryview(f"{line}\n".encode())
        while data:
            data = data[self._file.write(data) :]
        self._lines += 1

    def position(self) -> int:
        """Bring everything to the disk; how many lines the file has.

        Lines and not bytes: lines that hold measured times have lengths of their own in every run, and equal runs
        are to have equal checkpoints.
        """
        os.fsync(self._file.fileno())
        return self._lines

    def close(self) -> None:
        """Bring everything to the disk and close; harmless when done twice."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def truncate_logs(run_dir: Path, position: Mapping[str, int]) -> None:
    """Cut the logs of a run back to where they stood at a checkpoint, so that a resumed run repeats no line.

    Nothing is cut unless every file passes the checks. Files that `position` does not name stay as they are.

    Args:
        run_dir: The run's folder.
        position: ``{file name: lines}``, as `EventStream.position` gave it when the checkpoint was written.

    Raises:
        LogMismatch: A file is missing or has fewer lines: it is not the log that the checkpoint was written with.
    """
    offsets = {name: line_offset(run_dir, name, lines) for name, lines in position.items()}
    for name, offset in offsets.items():
        path = run_dir / name
        if path.exists() and path.stat().st_size > offset:
            with path.open("r+b") as file:
                file.truncate(offset)
                os.fsync(file.fileno())


def line_offset(run_dir: Path, name: str, lines: int) -> int:
    """The byte at which the first `lines` lines of a log end.

    Raises:
        LogMismatch: See `truncate_logs`.
    """
    # The names come from a file that may be a stranger's: they must not lead out of the run's folder.
    if Path(name).name != name or name in ("", ".", ".."):
        raise LogMismatch(f"{name!r} is not the name of a log in {run_dir}")
    path = run_dir / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise LogMismatch(f"{path} is not a plain file")
    offset = found = 0
    if path.exists() and lines > 0:
        with path.open("rb") as file:
            for line in file:
                if found == lines or not line.endswith(b"\n"):
                    break
                offset, found = offset + len(line), found + 1
    if found != lines:
        raise LogMismatch(
            f"{path} has {found:,} whole lines, but the checkpoint was written when it had {lines:,}: "
            "the log was cut or replaced since. Restore the file, or resume from an older checkpoint."
        )
    return offset


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
