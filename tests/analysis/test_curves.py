from pathlib import Path

import numpy as np
import pytest

from marl_tr.analysis.curves import CurveError, read_scalars, read_tags
from marl_tr.events import Event, Phase
from marl_tr.events.jsonl import JsonlSink


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sink = JsonlSink(tmp_path)
    for step in (0, 100, 200):
        sink.write(Event(step, Phase.TRAIN, {"charts/episodic_return": step / 3, "perf/env_s": 1.0}))
    sink.write(Event(200, Phase.EVAL, {"eval/iqm": float("nan")}))
    sink.write(Event(300, Phase.FINAL, {"eval/iqm": float("-inf")}))
    sink.close()
    return tmp_path


def test_curves_come_back_as_they_were_written(run: Path) -> None:
    steps, values = read_scalars(run, "charts/episodic_return")
    assert steps.dtype == np.int64
    assert steps.tolist() == [0, 100, 200]
    assert values.tolist() == [0.0, 100 / 3, 200 / 3]
    steps, values = read_scalars(run, "eval/iqm")
    assert steps.tolist() == [200, 300]
    assert np.array_equal(values, [np.nan, -np.inf], equal_nan=True)
    assert read_scalars(run, "eval/iqm", phase=Phase.FINAL)[0].tolist() == [300]
    assert read_tags(run) == ("charts/episodic_return", "eval/iqm", "perf/env_s")


def test_a_line_that_is_being_written_is_left_for_later(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step":400,"phase":"tra')
    assert read_scalars(run, "eval/iqm")[0].tolist() == [200, 300]


def test_unknown_tags_and_files_are_explained(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CurveError, match=r"no 'eval/iqn'; did you mean 'eval/iqm'\?"):
        read_scalars(run, "eval/iqn")
    with pytest.raises(CurveError, match=r"no 'eval/iqm' in phase act$"):
        read_scalars(run, "eval/iqm", phase=Phase.ACT)
    with pytest.raises(CurveError, match=r"cannot read .*metrics\.jsonl: No such file"):
        read_scalars(tmp_path / "elsewhere", "eval/iqm")


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"step":1,"phase":"act","scalars":{"x":"big"}}', '{"step":1}'])
def test_a_broken_line_is_named(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(CurveError, match=r"metrics\.jsonl:6: not an event"):
        read_tags(run)
