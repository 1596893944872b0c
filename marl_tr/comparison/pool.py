"""Runs as processes of their own, some side by side, that are stopped cleanly with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "Job", "carry_out"]

_POLL_S = 0.1
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A process to start.

    Attributes:
        label: For whoever is told of its end.
        arguments: Of ``marl-tr``.
        log: File that gets what it prints, after what is there.
        threads: Of numerical libraries, beside torch's own setting.
    """

    label: str
    arguments: tuple[str, ...]
    log: Path
    threads: int


@dataclass(frozen=True)
class Ended:
    """A process that ended.

    Attributes:
        job: Which.
        code: Its exit code; negative: the signal that killed it.
        began: Seconds since the epoch.
        seconds: How long it took.
        load_began: The machine's load average (1 min) at its start.
        load_ended: At its end.
    """

    job: Job
    code: int
    began: float
    seconds: float
    load_began: float | None
    load_ended: float | None

    @property
    def last_line(self) -> str:
        """What it said last."""
        try:
            lines = self.job.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def carry_out(jobs: Sequence[Job], *, at_once: int, ended: Callable[[Ended], None]) -> bool:
    """Run `jobs` in order, `at_once` side by side.

    Ctrl-C, SIGTERM or a closed terminal are passed on: no further job is started, runs save and end, and so does this.
    A second time they stop at once, a third time they are killed.

    Args:
        jobs: What to start.
        at_once: Processes.
        ended: Told of each that ends, in the order in which they do, also of those that were stopped.

    Returns:
        Whether all were carried out; False where a signal came.
    """
    waiting = list(jobs)
    running: list[tuple[Job, subprocess.Popen[bytes], float, float, float | None]] = []
    with _signals() as asked:
        passed_on = 0
        try:
            while running or (waiting and not asked.count):
                while waiting and len(running) < at_once and not asked.count:
                    job = waiting.pop(0)
                    running.append((job, _start(job), time.time(), time.monotonic(), _load()))
                if asked.count > passed_on:
                    passed_on = asked.count
                    for _, process, *_ in running:
                        process.send_signal(signal.SIGINT) if passed_on < 3 else process.kill()
                time.sleep(_POLL_S)
                for entry in [entry for entry in running if entry[1].poll() is not None]:
                    running.remove(entry)
                    job, process, began, started, load = entry
                    ended(Ended(job, process.returncode, began, time.monotonic() - started, load, _load()))
        finally:
            for _, process, *_ in running:
                process.kill()
                process.wait()
        return not waiting and not asked.count


@dataclass
class _Asked:
    """How often somebody asked to stop."""

    count: int = 0


@contextmanager
def _signals() -> Iterator[_Asked]:
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: object) -> None:
        asked.count += 1

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    # Runs side by side must not take each other's cores; what the user set himself stands.
    environment = {**dict.fromkeys(_BLAS, str(job.threads)), **os.environ}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            # -P: the folder we are in must not shadow what is installed; the command line adds it at the end.
            [sys.executable, "-P", "-m", "marl_tr", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # A terminal's Ctrl-C would reach them a second time beside ours, which means 'at once'.
            start_new_session=True,
        )


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
