"""``marl-tr eval``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


class VideoFormat(StrEnum):
    """File formats of videos."""

    MP4 = "mp4"
    GIF = "gif"


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Held-out episodes; the scenario's final_episodes if left out.")
    ] = None,
    video: Annotated[
        bool, typer.Option("--video", help="Also write pictures and videos of an episode, or of several.")
    ] = False,
    video_format: Annotated[
        VideoFormat | None, typer.Option("--format", help="File format of the videos; mp4 if left out.")
    ] = None,
    csv: Annotated[
        int, typer.Option("--csv", min=0, metavar="EPISODES", help="Also write so many episodes as CSV tables.")
    ] = 0,
) -> None:
    """Evaluate a run's newest checkpoint on held-out episodes, beside the reference policies."""
    if video_format and not video:
        raise typer.BadParameter("it is the format of videos, which only --video writes", param_hint="--format")
    from marl_tr.cli.folders import run_folder

    folder = run_folder(run)
    from marl_tr.trainer import api

    api.evaluate(
        folder, episodes=episodes, video=video, video_format=(video_format or VideoFormat.MP4).value, tables=csv
    )
