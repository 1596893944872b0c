import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl_tr.errors import UserError
from marl_tr.events import Event, EventStream, Phase
from marl_tr.events.audit_log import AuditLog, check_chain
from marl_tr.events.jsonl import JsonlSink
from marl_tr.events.line_file import LogMismatch, truncate_logs
from marl_tr.events.strict_json import dumps, number


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_numbers_keep_their_value_through_strict_json() -> None:
    values = [0.1, -0.0, 1e-300, 5, np.float64(0.3), np.float32(0.1), np.int64(7), math.inf, -math.inf]
    text = dumps({"values": values, "nan": math.nan, "zero_dim": np.array(2.5)})
    read = json.loads(text, parse_constant=refuse_constant)
    assert [number(v) for v in read["values"]] == [float(v) for v in values]
    assert math.isnan(number(read["nan"]))
    assert read["zero_dim"] == 2.5
    with pytest.raises(ValueError, match="not a number"):
        number("7")
    with pytest.raises(ValueError, match="not a number"):
        number(True)
    with pytest.raises(TypeError, match="ndarray"):
        dumps({"x": np.zeros(2)})


def test_metrics_lines_have_one_order_and_skip_events_without_scalars(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.write(Event(5, Phase.TRAIN, {"b/x": 1.0, "a/y": math.nan}))
    sink.write(Event(5, Phase.TRAIN, texts={"note": "hello"}))
    sink.write(Event(6, Phase.EVAL, {"eval/iqm": np.float32(0.5)}))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == (
        '{"step":5,"phase":"train","scalars":{"a/y":"NaN","b/x":1.0}}\n'
        '{"step":6,"phase":"eval","scalars":{"eval/iqm":0.5}}\n'
    )
    assert sink.position() == {"metrics.jsonl": 2}
    sink.close()
    sink.close()


def test_a_resumed_log_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    def events(sink: EventStream, log: AuditLog, steps: range) -> None:
        for step in steps:
            sink.emit(Event(step, Phase.TRAIN, {"x": step / 3}))
            log.append({"iteration": step, "bound": 0.01, "proposed": math.inf})

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    stream, log = EventStream([JsonlSink(whole)]), AuditLog(whole)
    events(stream, log, range(10))
    stream.close()
    log.close()

    stream, log = EventStream([JsonlSink(broken)]), AuditLog(broken)
    events(stream, log, range(4))
    position, state = {**stream.position(), **log.position()}, log.state_dict()
    events(stream, log, range(4, 7))  # lost: no checkpoint holds them
    stream.close()
    log.close()
    (broken / "metrics.jsonl").open("a").write('{"step": 99, "half a li')

    check_chain(broken, position["audit.jsonl"], state["digest"])
    truncate_logs(broken, position)
    stream, log = EventStream([JsonlSink(broken)]), AuditLog(broken)
    events(stream, log, range(4, 10))
    stream.close()
    log.close()
    for name in ("metrics.jsonl", "audit.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"metrics.jsonl": 1, "audit.jsonl": 5}, r"audit\.jsonl has 1 whole lines.*5"),
        ({"metrics.jsonl": 1, "audit.jsonl": 2}, r"audit\.jsonl has 1 whole lines.*2"),
        ({"metrics.jsonl": 1, "gone.jsonl": 5}, r"gone\.jsonl has 0 whole lines"),
        ({"metrics.jsonl": 1, "audit.jsonl": -1}, r"audit\.jsonl"),
        ({"metrics.jsonl": 1, "../other.jsonl": 0}, "not the name of a log"),
        ({"metrics.jsonl": 1, "..": 0}, "not the name of a log"),
        ({"metrics.jsonl": 1, "folder": 0}, "not a plain file"),
        ({"metrics.jsonl": 1, "link.jsonl": 0}, "not a plain file"),
    ],
)
def test_a_log_that_does_not_fit_is_named_and_nothing_is_cut(
    tmp_path: Path, position: dict[str, int], message: str
) -> None:
    run = tmp_path / "run"
    (run / "folder").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("first line 1\nsecond line\n")
    (run / "audit.jsonl").write_text("first line.\nhalf a second li")
    (tmp_path / "other.jsonl").write_text("not ours\n")
    (run / "link.jsonl").symlink_to(tmp_path / "other.jsonl")
    with pytest.raises(LogMismatch, match=message) as caught:
        truncate_logs(run, position)
    assert isinstance(caught.value, UserError)
    assert (run / "metrics.jsonl").stat().st_size == 25
    assert (tmp_path / "other.jsonl").read_text() == "not ours\n"


def test_a_file_that_a_checkpoint_saw_empty_may_be_absent(tmp_path: Path) -> None:
    truncate_logs(tmp_path, {"metrics.jsonl": 0})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "metrics.jsonl").write_text("line\n")
    truncate_logs(tmp_path, {"metrics.jsonl": 0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def digests(path: Path) -> list[str]:
    return [json.loads(line)["digest"] for line in (path / "audit.jsonl").read_text().splitlines()]


def test_audit_digests_are_sha256_over_the_previous_digest_and_the_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append({"b": 1, "a": "é"})
    log.append({"c": None})
    log.close()
    # Computed with coreutils: printf '%s' "<previous><canonical line>" | sha256sum
    previous = "0" * 64
    for canonical, found in zip(['{"a":"é","b":1}', '{"c":null}'], digests(tmp_path), strict=True):
        done = subprocess.run(["sha256sum"], input=(previous + canonical).encode(), capture_output=True, check=True)
        previous = done.stdout.decode().split()[0]
        assert found == previous


def test_the_chain_goes_on_in_a_file_that_is_there(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    # Lines longer than the block in which the end of the file is sought.
    lines: list[dict[str, Any]] = [{"i": i, "reason": "x" * 5000 * (i % 3)} for i in range(6)]
    for folder, parts in ((once, [lines]), (twice, [lines[:2], lines[2:3], [], lines[3:]])):
        folder.mkdir()
        for part in parts:
            log = AuditLog(folder)
            for line in part:
                log.append(line)
            log.close()
    assert digests(once) == digests(twice)


def test_another_log_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append({"i": 0})
    first = log.state_dict()["digest"]
    log.append({"i": 1})
    log.position()
    check_chain(tmp_path, 1, first)
    with pytest.raises(LogMismatch, match=r"audit\.jsonl: line 2 has digest"):
        check_chain(tmp_path, 2, first)
    with pytest.raises(ValueError, match="digest"):
        log.append({"digest": "mine"})
    log.close()
    for broken in ('{"i": 2', "not json\n", "[]\n", '{"i": 3}\n'):
        (tmp_path / "audit.jsonl").write_text(broken)
        with pytest.raises(LogMismatch, match="last line"):
            AuditLog(tmp_path)


def test_the_logs_import_neither_torch_nor_tensorboard() -> None:
    program = (
        "import sys; import marl_tr.events.jsonl, marl_tr.events.audit_log, marl_tr.events.console,"
        " marl_tr.events.tensorboard, marl_tr.analysis, marl_tr.analysis.audit, marl_tr.analysis.plots,"
        " marl_tr.analysis.video; print(sorted({'torch', 'tensorboard', 'matplotlib', 'PIL', 'imageio'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
