"""What it took: a line a process, with the machine, its load and the versions, kept beside the runs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import marl_tr
from marl_tr.comparison.pool import Ended

__all__ = ["FILE", "commit", "read_attempts", "seconds_spent", "write_attempt"]

FILE = "attempts.jsonl"
_PACKAGES = ("marl-tr", "torch", "numpy", "gymnasium", "pettingzoo")


def write_attempt(out: Path, ended: Ended, *, task: str, variant: str, seed: int, at_once: int) -> None:
    """Append a line for a process that ended."""
    line = {
        "task": task,
        "variant": variant,
        "seed": seed,
        "command": ended.job.arguments[0],
        "exit": ended.code,
        "began": datetime.fromtimestamp(ended.began, UTC).isoformat(timespec="seconds"),
        "seconds": round(ended.seconds, 2),
        "load": [ended.load_began, ended.load_ended],
        "at_once": at_once,
        **_machine(),
    }
    with (out / FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")


def read_attempts(out: Path) -> list[dict[str, Any]]:
    """Every line, oldest first; one that is not whole is left out."""
    try:
        lines = (out / FILE).read_text(encoding="utf-8").split("\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def seconds_spent(attempts: Iterable[dict[str, Any]], *, task: str, variant: str, seed: int) -> float | None:
    """Of all processes of one run; None where none is known."""
    wanted = (task, variant, seed)
    spent = [a["seconds"] for a in attempts if (a["task"], a["variant"], a["seed"]) == wanted]
    return sum(spent) if spent else None


@cache
def commit() -> str | None:
    """The commit of the source that is in use, with ``+`` where files differ from it; None outside a checkout."""
    source = Path(marl_tr.__file__).resolve().parent
    root = _git(source, "rev-parse", "--show-toplevel")
    # An installed package may lie in somebody else's repository.
    if root is None or Path(root).resolve() != source.parent:
        return None
    name = _git(source, "rev-parse", "HEAD")
    return None if name is None else name + ("+" if _git(source, "status", "--porcelain") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _machine() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": versions,
        "commit": commit(),
    }
