"""Ctrl-C and SIGTERM as a request that is honoured where everything can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from marl_tr.errors import Interrupted

__all__ = ["stop_request"]


@contextmanager
def stop_request(how_to_go_on: str) -> Iterator[threading.Event]:
    """An event that the signals set, to be honoured after the step or iteration; a second signal stops at once.

    Args:
        how_to_go_on: Said to whoever stops at once.

    Raises:
        Interrupted: At the second signal.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise Interrupted(f"stopped at once; the newest checkpoint is whole ({how_to_go_on})")
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
