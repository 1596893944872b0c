"""``marl-tr tb``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["tb"]


def tb(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, or a folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any free one.")] = 6006,
) -> None:
    """Open a run, or a folder of runs, in TensorBoard."""
    from importlib.util import find_spec

    from marl_tr.cli.folders import FolderNotFound, existing_folder
    from marl_tr.errors import UserError

    existing_folder(folder)
    if next(folder.rglob("events.out.tfevents.*"), None) is None:
        raise FolderNotFound(f"{folder} holds no TensorBoard files, and neither does a folder in it")
    if find_spec("tensorboard") is None:
        raise UserError("TensorBoard is not installed; run: pip install tensorboard")
    sys.stdout.flush()
    # In place of this process, so that Ctrl-C and signals reach TensorBoard itself.
    arguments = ["-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    os.execv(sys.executable, [sys.executable, *arguments])
