"""One process at a time writes to a run's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marl_tr.errors import UserError

__all__ = ["RunInUse", "locked"]


class RunInUse(UserError):
    """Another process trains this run: a second one would cut and mix its logs."""


@contextmanager
def locked(folder: Path, file: str) -> Iterator[None]:
    """Hold `file` of `folder` for this process; a killed process holds nothing.

    Raises:
        RunInUse: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which has no advisory locks on files that others read
        yield
        return
    descriptor = os.open(folder / file, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunInUse(f"{folder} is being trained by another process; wait for it, or end it first") from error
        yield
    finally:
        os.close(descriptor)
