"""What benchmarks of growth share: points in processes of their own, their peak memory, power laws of their costs."""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t, from 1 degree of freedom on."""


@dataclass(frozen=True)
class PowerLaw:
    """``y = coefficient x^exponent``.

    Attributes:
        exponent: Slope of the logarithms.
        coefficient: The law's value at ``x = 1``, in the unit of `y`.
        standard_error: Of the exponent, from the residuals; NaN with two points, which leave none.
        low, high: Ends of the exponent's 95 % interval, Student's t; NaN likewise.
        r_squared: Share of the variance of ``log y`` that the law explains; 1 where there is no variance.
        first, last: The range of `x` that was fitted.
    """

    exponent: float
    coefficient: float
    standard_error: float
    low: float
    high: float
    r_squared: float
    first: float
    last: float


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of logarithms.

    Points are sizes of one program, not draws: the interval says how far the points are from *one* power over this
    range, and promises nothing beyond it.

    Raises:
        ValueError: Fewer than two different sizes, or something that has no logarithm.
    """
    sizes, costs = np.asarray(x, float), np.asarray(y, float)
    if len(set(sizes.tolist())) < 2 or not (np.all(sizes > 0) and np.all(costs > 0)):
        raise ValueError(f"a power law needs two different sizes, and positive numbers: {list(x)}, {list(y)}")
    log_x, log_y = np.log(sizes), np.log(costs)
    centred = log_x - log_x.mean()
    exponent = float(centred @ (log_y - log_y.mean()) / (centred @ centred))
    intercept = float(log_y.mean() - exponent * log_x.mean())
    unexplained = float(np.square(log_y - (exponent * log_x + intercept)).sum())
    spread = float(np.square(log_y - log_y.mean()).sum())
    freedom = len(sizes) - 2
    error = math.sqrt(unexplained / freedom / float(centred @ centred)) if freedom else math.nan
    reach = error * _T_95[min(freedom, len(_T_95)) - 1] if freedom else math.nan
    return PowerLaw(
        exponent=exponent,
        coefficient=math.exp(intercept),
        standard_error=error,
        low=exponent - reach,
        high=exponent + reach,
        r_squared=1 - unexplained / spread if spread else 1.0,
        first=float(sizes.min()),
        last=float(sizes.max()),
    )


def peak_mib() -> float:
    """Peak resident memory of this process so far, MiB.

    Linux counts a parent's memory at the fork in ``ru_maxrss``; ``VmHWM`` belongs to this program alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def in_fork(measure: Callable[[dict[str, Any]], dict[str, Any]], point: dict[str, Any]) -> dict[str, Any]:
    """``measure(point)`` in a fork of this process: a peak of its own, and nothing to import again.

    Raises:
        BrokenProcessPool: The process was ended from outside, for its memory for example.
        Exception: What `measure` raises.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(measure, point).result()


def in_subprocess(script: str, point: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """What ``python script ARGUMENTS --point POINT`` prints, which is JSON.

    Raises:
        RuntimeError: The process failed; with what it wrote to its standard error.
    """
    command = [sys.executable, script, *arguments, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{point} failed with exit code {done.returncode}:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
