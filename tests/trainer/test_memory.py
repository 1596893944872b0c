"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of allocating, writing and freeing a block of 8 MiB once more, after the first time.
SCRIPT = """
import resource, sys
import numpy as np
from marl_tr.trainer.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.empty(8 << 20, np.uint8) for _ in range(4)]
        for block in blocks:
            block.fill(1)
        del blocks, block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")
def test_blocks_that_were_freed_are_used_again_without_the_kernel():
    def faults(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True, text=True).stdout
        )

    # 20 times 4 blocks of 2,048 pages of 4 KiB, where each comes from the kernel (fewer where it gives huge pages).
    kept, plain = faults("kept"), faults("plain")
    assert kept <= 16
    assert kept < plain
