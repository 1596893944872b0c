"""Keeping freed memory, where the C library would give it back and fetch it again at every pass of a network."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

# Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_LARGEST_ON_THE_HEAP = 1 << 25
"""32 MiB, the most that glibc takes for a threshold of its own maps."""
_AHEAD = 1 << 24


@cache
def keep_freed_memory() -> bool:
    """Let freed blocks of up to 32 MiB stay with this process; True where the C library took the settings.

    Activations of a minibatch are a few MiB each. By default glibc gives such blocks back to the kernel when they are
    freed, so that every pass of a network waits for the kernel to clear the same pages anew: a quarter of the CPU time
    of ``uav_team_mappo``. The price is that the process keeps the memory of its largest pass. Elsewhere than under
    glibc nothing is done. Once a process: settings that were made outside (``MALLOC_TRIM_THRESHOLD_``) are replaced.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, as musl's
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_ON_THE_HEAP),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, _AHEAD),
    )
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)
