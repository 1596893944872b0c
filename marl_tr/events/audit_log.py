"""audit.jsonl: what the Guard decided about every update, in lines that are chained by their digests.

A line is ``{...sorted fields..., "digest": d}``, where ``d = sha256(previous d + the fields as canonical
JSON)`` in hexadecimal and the first line follows `GENESIS`. Whoever edits, drops, repeats or reorders lines
must compute every later digest anew; whoever cuts off the end leaves a shorter, valid chain, which only a
checkpoint can tell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marl_tr.events.line_file import LineFile, LogMismatch, line_offset
from marl_tr.events.strict_json import dumps

__all__ = ["AUDIT_FILE", "GENESIS", "AuditLog", "chained_line", "check_chain"]

AUDIT_FILE = "audit.jsonl"
GENESIS = "0" * 64


def chained_line(fields: Mapping[str, Any], previous: str) -> tuple[str, str]:
    """The line for `fields` after a line with digest `previous`, without a line break, and its own digest."""
    canonical = dumps(fields, sort_keys=True)
    digest = hashlib.sha256((previous + canonical).encode()).hexdigest()
    separator = "," if fields else ""
    return f'{canonical[:-1]}{separator}"digest":"{digest}"}}', digest


def check_chain(run_dir: Path, lines: int, digest: str) -> None:
    """Check, without touching the log, that its first `lines` lines end with `digest`, as a checkpoint says.

    Raises:
        LogMismatch: They do not; or the log is shorter.
    """
    path = run_dir / AUDIT_FILE
    end = line_offset(run_dir, AUDIT_FILE, lines)
    found = _last_digest(path, end) if lines else GENESIS
    if found != digest:
        raise LogMismatch(
            f"{path}: line {lines:,} has digest {found[:12]}..., in the checkpoint it is {digest[:12]}...: the log "
            "was edited since. Restore it, or resume from an older checkpoint."
        )


class AuditLog:
    """Appends audit lines, and goes on with the chain of a file that is already there.

    Args:
        run_dir: The run's folder, which exists.

    Raises:
        LogMismatch: The file's last line is no audit line.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / AUDIT_FILE
        self._digest = _last_digest(self._path)
        self._file = LineFile(self._path)

    def append(self, fields: Mapping[str, Any]) -> None:
        """Write one decision; numbers may be NumPy or torch scalars, infinities and nan become strings.

        Raises:
            ValueError: `fields` has a ``"digest"`` of its own.
        """
        if "digest" in fields:
            raise ValueError("an audit line gets its digest from the log")
        line, digest = chained_line(fields, self._digest)
        self._file.append(line)
        self._digest = digest

    def position(self) -> dict[str, int]:
        """Bring everything to the disk; ``{"audit.jsonl": lines}``."""
        return {AUDIT_FILE: self._file.position()}

    def state_dict(self) -> dict[str, Any]:
        """The chain's last digest, for a checkpoint."""
        return {"digest": self._digest}

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        self._file.close()


def _last_digest(path: Path, end: int | None = None) -> str:
    if not path.exists() or path.stat().st_size == 0:
        return GENESIS
    line = _last_line(path, end)
    try:
        digest = json.loads(line)["digest"]
    except (ValueError, KeyError, TypeError):
        digest = None
    if not line.endswith(b"\n") or not isinstance(digest, str):
        raise LogMismatch(f"{path}: the last line is cut off or is no audit line")
    return digest


def _last_line(path: Path, end: int | None, chunk: int = 4096) -> bytes:
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END) if end is None else end
        tail = b""
        while start > 0 and tail.count(b"\n", 0, -1) == 0:
            size = min(chunk, start)
            start = file.seek(start - size)
            tail = file.read(size) + tail
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]
