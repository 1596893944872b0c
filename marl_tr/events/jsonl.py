"""metrics.jsonl: the numbers of a run, one JSON object an event."""

from __future__ import annotations

from pathlib import Path

from marl_tr.events.line_file import LineFile
from marl_tr.events.stream import Event
from marl_tr.events.strict_json import dumps

__all__ = ["METRICS_FILE", "JsonlSink"]

METRICS_FILE = "metrics.jsonl"


class JsonlSink:
    """Writes ``{"step": 12800, "phase": "train", "scalars": {...}}`` for each event that has scalars.

    Tags are sorted and no clock is read, so equal runs give equal bytes, but for the tags that measure time.

    Args:
        run_dir: The run's folder, which exists. A file that is there is gone on with.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = LineFile(run_dir / METRICS_FILE)

    def write(self, event: Event) -> None:
        """Append the event's scalars."""
        if event.scalars:
            scalars = {tag: event.scalars[tag] for tag in sorted(event.scalars)}
            self._file.append(dumps({"step": event.step, "phase": str(event.phase), "scalars": scalars}))

    def position(self) -> dict[str, int]:
        """Bring everything to the disk; ``{"metrics.jsonl": lines}``."""
        return {METRICS_FILE: self._file.position()}

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        self._file.close()
