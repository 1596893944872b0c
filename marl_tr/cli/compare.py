"""``marl-tr compare``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compare"]


def compare(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="What to compare: tasks, variants, seeds.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings for all runs that win over the file: env.id=my/env-v0."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, each with its own trainer.threads.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/compare/<name> if left out.")] = None,
    seeds: Annotated[str | None, typer.Option(help="In place of the file's: 1,2,3 or 1-5.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is, and what it would cost.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only report the runs that are finished.")] = False,
) -> None:
    """Run every variant on every task with every seed, and say how far the runs tell them apart.

    The same command goes on with what was stopped: finished runs are kept.
    """
    from marl_tr.comparison import compare as carry_out
    from marl_tr.comparison import load_sweep

    loaded = load_sweep(sweep, overrides or [], seeds=None if seeds is None else _seeds(seeds))
    outcome = carry_out(
        loaded,
        out or Path("runs") / "compare" / loaded.file.name,
        jobs=jobs,
        dry_run=dry_run,
        report_only=report_only,
        say=lambda line: print(line, flush=True),
        show=_show,
    )
    if outcome.failed:
        many = "runs are" if len(outcome.failed) > 1 else "run is"
        print(f"{len(outcome.failed)} {many} not finished: {', '.join(outcome.failed)}", flush=True)
        raise typer.Exit(1)


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table that keeps its heading in a pipe: numbers alone would not say what they are."""
    from marl_tr.cli.tables import print_table

    print_table(columns, rows if sys.stdout.isatty() else [columns, *rows])


def _seeds(text: str) -> list[int]:
    """``1,2,3`` and ``1-5``, also mixed.

    Raises:
        UserError: It is neither.
    """
    from marl_tr.errors import UserError

    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise UserError(f"--seeds {text}: seeds are whole numbers, 1,2,3 or 1-5")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < 1000:
            raise UserError(f"--seeds {text}: {part.strip()} is no range of at most 1000 seeds")
        found += range(first, last + 1)
    return found
