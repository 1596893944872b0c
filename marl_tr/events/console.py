"""The console sink: a live progress bar on a terminal, one plain line an update elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from marl_tr.events.stream import Event, Phase

__all__ = ["ConsoleSink", "rejected", "tightest"]

_DIVERGENCE, _BOUND, _ACCEPTED = "region/divergence/", "region/bound/", "region/accepted/"
_RETURNS = {"iqm", "ci_low", "ci_high", "mean", "length", "window_mean"}


class ConsoleSink:
    """Shows how far a run is, how fast, what it earns, and how close to its bounds it updates.

    On a terminal each TRAIN event moves the bar; elsewhere each prints a line. EVAL and FINAL events print a
    line of their returns (``eval/...``) in both.

    Args:
        total_steps: Environment steps of the whole run.
        headline: Tags whose newest values are shown, for example ``("charts/episodic_return",)``; a tag that
            has not come yet is left out.
        start_step: Where this process begins: a checkpoint's step on a resume. Steps a second count from
            here.
        console: Where to print; by default standard output.
        clock: Seconds from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        headline: tuple[str, ...] = ("charts/episodic_return",),
        *,
        start_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._headline, self._start_step = total_steps, headline, start_step
        self._console = console if console is not None else Console()
        self._clock, self._start = clock, clock()
        self._newest: dict[str, tuple[int, float]] = {}
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                # The trainer's thread does the work; the bar moves with its events.
                auto_refresh=False,
            )
            self._task = self._progress.add_task("starting", total=total_steps, completed=start_step)
            self._progress.start()

    def write(self, event: Event) -> None:
        """Show `event`."""
        self._newest.update({tag: (event.step, value) for tag, value in event.scalars.items()})
        if event.phase is Phase.TRAIN:
            text = "  ".join([*self._pace(event.step), *self._numbers(event.step, event.scalars)])
            if self._progress is None:
                self._print(f"step {event.step:,}/{self._total:,}  {text}")
            else:
                self._progress.update(self._task, completed=event.step, description=text, refresh=True)
        elif event.phase in (Phase.EVAL, Phase.FINAL):
            values = {tag: value for tag, value in event.scalars.items() if _headlines(tag)}
            if values:
                shown = "  ".join(f"{tag.removeprefix('eval/')} {_short(v)}" for tag, v in values.items())
                name = "evaluation" if event.phase is Phase.EVAL else "final evaluation"
                self._print(f"step {event.step:,}  {name}: {shown}")

    def position(self) -> dict[str, int]:
        """Nothing is kept."""
        return {}

    def close(self) -> None:
        """Leave the bar as it stands, and the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()

    def _pace(self, step: int) -> list[str]:
        elapsed = self._clock() - self._start
        done = step - self._start_step
        if elapsed <= 0 or done <= 0:
            return []
        rate = done / elapsed
        left = timedelta(seconds=round(max(self._total - step, 0) / rate))
        return [f"{rate:,.0f} steps/s", f"{left} left"]

    def _numbers(self, now: int, scalars: Mapping[str, float]) -> list[str]:
        shown = []
        for tag in self._headline:
            if tag in self._newest:
                step, value = self._newest[tag]
                # An evaluation's number stays until the next one.
                since = "" if step == now else f" (step {step:,})"
                shown.append(f"{tag.rpartition('/')[2].replace('_', ' ')} {_short(value)}{since}")
        nearest = tightest(scalars)
        if nearest is not None:
            learner, divergence, bound = nearest
            shown.append(f"divergence {_short(divergence)} of {_short(bound)} ({learner})")
        refused = rejected(scalars)
        if refused:
            shown.append(f"rejected: {', '.join(refused)}")
        return shown

    def _print(self, line: str) -> None:
        console = self._progress.console if self._progress is not None else self._console
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _headlines(tag: str) -> bool:
    """Whether a tag is of an evaluation's returns or of a match; what an environment measures is in the report."""
    if tag.startswith("eval/vs_"):
        return tag.count("/") == 2 or tag.endswith("/won")
    return tag.startswith("eval/") and tag.rpartition("/")[2] in _RETURNS


def tightest(scalars: Mapping[str, float]) -> tuple[str, float, float] | None:
    """The learner whose divergence is nearest its bound, with both; None where no learner has a bound."""
    pairs = [
        (tag.removeprefix(_DIVERGENCE), value, scalars[_BOUND + tag.removeprefix(_DIVERGENCE)])
        for tag, value in scalars.items()
        if tag.startswith(_DIVERGENCE) and scalars.get(_BOUND + tag.removeprefix(_DIVERGENCE), 0) > 0
    ]
    return max(pairs, key=lambda pair: pair[1] / pair[2], default=None)


def rejected(scalars: Mapping[str, float]) -> list[str]:
    """Learners whose update was not taken at all; an interpolated one has a divergence."""
    return [
        tag.removeprefix(_ACCEPTED)
        for tag, value in scalars.items()
        if tag.startswith(_ACCEPTED) and not value and not scalars.get(_DIVERGENCE + tag.removeprefix(_ACCEPTED))
    ]


def _short(value: float) -> str:
    """Four significant digits, and no exponent for the sizes that returns and divergences have."""
    return f"{value:.4g}"
