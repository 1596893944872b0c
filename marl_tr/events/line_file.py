"""A text file that grows by whole lines, and the way back to where a checkpoint left it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from marl_tr.errors import UserError

__all__ = ["LineFile", "LogMismatch", "truncate_logs"]


class LogMismatch(UserError):
    """A log on disk is not the one that a checkpoint belongs to; names the file."""


class LineFile:
    """Appends lines. Each is handed to the operating system whole, so a killed process leaves no half line.

    Args:
        path: The file; made if missing, gone on with if not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Write `line` (which holds no line break) and a line break."""
        data = memoryview(f"{line}\n".encode())
        while data:
            data = data[self._file.write(data) :]

    def position(self) -> int:
        """Bring everything to the disk; the file's length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

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
        position: ``{file name: bytes}``, as `EventStream.position` gave it when the checkpoint was written.

    Raises:
        LogMismatch: A file is missing, shorter than its offset, or has no line's end there: it is not the log
            that the checkpoint was written with.
    """
    for name, offset in position.items():
        _check(run_dir, name, offset)
    for name, offset in position.items():
        path = run_dir / name
        if path.exists() and path.stat().st_size > offset:
            with path.open("r+b") as file:
                file.truncate(offset)
                os.fsync(file.fileno())


def _check(run_dir: Path, name: str, offset: int) -> None:
    # The names come from a file that may be a stranger's: they must not lead out of the run's folder.
    if Path(name).name != name or name in ("", ".", ".."):
        raise LogMismatch(f"{name!r} is not the name of a log in {run_dir}")
    path = run_dir / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise LogMismatch(f"{path} is not a plain file")
    size = path.stat().st_size if path.exists() else 0
    if offset < 0 or size < offset:
        raise LogMismatch(
            f"{path} has {size:,} bytes, but the checkpoint was written when it had {offset:,}: "
            "the log was cut or replaced since. Restore the file, or resume from an older checkpoint."
        )
    if offset:
        with path.open("rb") as file:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                raise LogMismatch(
                    f"{path} has no line's end at byte {offset:,}, where the checkpoint left it: "
                    "the log was edited since. Restore the file, or resume from an older checkpoint."
                )
