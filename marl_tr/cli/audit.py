"""``marl-tr audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["audit"]


def audit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
) -> None:
    """Verify from the audit log that every accepted update kept its bound; exit code 1 where one did not."""
    from marl_tr.analysis.audit import audit as verify
    from marl_tr.cli.folders import run_folder

    report = verify([run_folder(run, needs="audit.jsonl") for run in runs])
    print(report.render())
    raise typer.Exit(0 if report.ok else 1)
