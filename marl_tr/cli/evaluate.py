"""``marl-tr eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Held-out episodes; the scenario's final_episodes if left out.")
    ] = None,
    video: Annotated[
        bool, typer.Option("--video", help="Also write a video of an episode, or pictures and videos of several.")
    ] = False,
) -> None:
    """Evaluate a run's newest checkpoint on held-out episodes, beside the reference policies."""
    from marl_tr.cli.folders import run_folder

    folder = run_folder(run)
    from marl_tr.trainer import api

    api.evaluate(folder, episodes=episodes, video=video)
