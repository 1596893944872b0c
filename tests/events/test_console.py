import io
import itertools
from collections.abc import Callable

import pytest
from rich.console import Console

from marl_tr.events import Event, Phase
from marl_tr.events.console import ConsoleSink, tightest

NUMBERS = "episodic return 0.7123  divergence 0.009 of 0.01 (uav_0)"


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that moves by `seconds` each time it is read."""
    count = itertools.count()
    return lambda: next(count) * seconds


def train(step: int, divergence: float = 0.009) -> Event:
    scalars = {
        "charts/episodic_return": 0.71234567,
        "region/divergence/uav_0": divergence,
        "region/bound/uav_0": 0.01,
        "region/divergence/critic": 0.001,
        "region/bound/critic": 0.02,
    }
    return Event(step, Phase.TRAIN, scalars)


def test_away_from_a_terminal_each_update_is_one_plain_line() -> None:
    output = io.StringIO()
    sink = ConsoleSink(10_000, console=Console(file=output, width=40), clock=ticking(2.0))
    sink.write(Event(500, Phase.ACT, {"charts/episodic_return": 0.5}))
    sink.write(train(1000))
    sink.write(train(2000))
    sink.write(Event(2000, Phase.EVAL, {"eval/iqm": 1.25, "eval/ci_low": 1.0, "perf/env_s": 3.0}))
    sink.write(Event(2000, Phase.FINAL, texts={"note": "[bold]"}))
    sink.close()
    assert output.getvalue().splitlines() == [
        f"step 1,000/10,000  500 steps/s  0:00:18 left  {NUMBERS}",
        f"step 2,000/10,000  500 steps/s  0:00:16 left  {NUMBERS}",
        "step 2,000  evaluation: iqm 1.25  ci_low 1",
    ]
    assert sink.position() == {}


def test_a_resumed_run_counts_its_own_steps_for_its_pace() -> None:
    output = io.StringIO()
    sink = ConsoleSink(
        10_000, start_step=9000, console=Console(file=output), clock=ticking(1.0), headline=("eval/iqm",)
    )
    sink.write(Event(9500, Phase.TRAIN, {"x": 1.0}))
    assert output.getvalue() == "step 9,500/10,000  500 steps/s  0:00:01 left\n"


def test_on_a_terminal_a_bar_moves_and_evaluations_are_printed_above_it() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=140, color_system=None)
    sink = ConsoleSink(10_000, console=console, clock=ticking(1.0))
    sink.write(train(1000))
    sink.write(Event(1000, Phase.EVAL, {"eval/iqm": 1.25}))
    sink.write(train(10_000))
    sink.close()
    text = output.getvalue()
    assert " 10% " in text
    assert "evaluation: iqm 1.25" in text
    assert f"100% 5,000 steps/s  0:00:00 left  {NUMBERS}" in text
    assert text.endswith("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        ({}, None),
        ({"region/divergence/a": 0.1}, None),
        ({"region/divergence/a": 0.1, "region/bound/a": 0.0}, None),
        (
            {
                "region/divergence/a": 0.1,
                "region/bound/a": 1.0,
                "region/divergence/b/c": 0.05,
                "region/bound/b/c": 0.1,
            },
            ("b/c", 0.05, 0.1),
        ),
    ],
)
def test_the_tightest_learner_is_the_one_nearest_its_bound(
    scalars: dict[str, float], expected: tuple[str, float, float] | None
) -> None:
    assert tightest(scalars) == expected


def test_a_rejected_update_is_said_and_an_old_number_is_dated() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    sink = ConsoleSink(100, ("eval/iqm",), console=console, clock=lambda: 0.0)
    sink.write(Event(10, Phase.EVAL, {"eval/iqm": 1.5}))
    region = {"accepted": (1.0, 0.0, 0.0), "divergence": (0.01, 0.0, 0.02), "bound": (0.02, 0.02, 0.02)}
    scalars = {
        f"region/{key}/{name}": v for key, values in region.items() for name, v in zip("abc", values, strict=True)
    }
    sink.write(Event(20, Phase.TRAIN, scalars))
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert "iqm 1.5 (step 10)" in last
    # The third was interpolated.
    assert last.endswith("rejected: b")
