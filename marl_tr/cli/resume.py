"""``marl-tr resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["resume"]


def resume(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]) -> None:
    """Go on with a run from its newest whole checkpoint, as if it had never stopped."""
    from marl_tr.cli.folders import run_folder

    folder = run_folder(run)
    from marl_tr.trainer import api

    api.resume(folder)
