"""Arguments that are folders on disk."""

from __future__ import annotations

from pathlib import Path

from marl_tr.errors import UserError

__all__ = ["FolderNotFound", "existing_folder", "run_folder"]


class FolderNotFound(UserError, FileNotFoundError):
    """The argument does not lead to a folder, or not to one of a run."""


def existing_folder(path: Path) -> Path:
    """`path`, if it is a folder.

    Raises:
        FolderNotFound: It is not.
    """
    if path.is_dir():
        return path
    what = "is a file; give the folder it lies in" if path.exists() else "does not exist"
    raise FolderNotFound(f"{path} {what} (runs are written to runs/<scenario>/<time>-seed<seed>/)")


def run_folder(path: Path, *, needs: str = "scenario.yaml") -> Path:
    """`path`, if it is the folder of one run, which holds the file `needs`.

    Raises:
        FolderNotFound: It is no folder, or holds no such file; runs below it are named.
    """
    existing_folder(path)
    if (path / needs).is_file():
        return path
    below = sorted(found.parent for found in path.glob("*/scenario.yaml")) or sorted(
        found.parent for found in path.glob("*/*/scenario.yaml")
    )
    hint = f"; runs in it, newest last: {', '.join(map(str, below[-3:]))}" if below else ""
    raise FolderNotFound(f"{path} is not a run: it holds no {needs}{hint}")
