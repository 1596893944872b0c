"""chain.jsonl: what every update did to each step of a policy's chain, one JSON object an update and learner."""

from __future__ import annotations

from pathlib import Path

from marl_tr.events.line_file import LineFile
from marl_tr.events.stream import Event
from marl_tr.events.strict_json import dumps

__all__ = ["CHAIN_FILE", "ChainSink"]

CHAIN_FILE = "chain.jsonl"


class ChainSink:
    """Writes ``{"step": 12800, "learner": "...", "measures": {"divergence": [K numbers], ...}}``.

    The file is made with its first line: policies that decide in one step have none.

    Args:
        run_dir: The run's folder, which exists. A file that is there is gone on with.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / CHAIN_FILE
        self._file = LineFile(self._path) if self._path.exists() else None

    def write(self, event: Event) -> None:
        """Append the event's chains."""
        for learner, measures in event.chains.items():
            if self._file is None:
                self._file = LineFile(self._path)
            listed = {name: list(values) for name, values in sorted(measures.items())}
            self._file.append(dumps({"step": event.step, "learner": learner, "measures": listed}))

    def position(self) -> dict[str, int]:
        """Bring everything to the disk; ``{"chain.jsonl": lines}``, 0 where there is no file."""
        return {CHAIN_FILE: 0 if self._file is None else self._file.position()}

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        if self._file is not None:
            self._file.close()
