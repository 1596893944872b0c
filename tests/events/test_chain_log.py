"""chain.jsonl: a line an update of a policy with a chain, cut back with the other logs, and no file without one."""

import math
from pathlib import Path

import numpy as np
import pytest

from marl_tr.analysis.curves import CurveError, read_chains
from marl_tr.events import Event, Phase
from marl_tr.events.chain_log import CHAIN_FILE, ChainSink
from marl_tr.events.line_file import truncate_logs


def an_update(step: int) -> Event:
    chains = {"left": {"std": [0.5, 0.0], "kl": [math.inf, 1 / 3]}, "right": {"std": [1]}}
    return Event(step, Phase.TRAIN, {"x": 1.0}, chains=chains)


def test_updates_come_back_as_they_were_written(tmp_path: Path) -> None:
    sink = ChainSink(tmp_path)
    sink.write(an_update(10))
    sink.write(an_update(20))
    sink.close()
    found = read_chains(tmp_path)
    assert [(update.step, update.learner) for update in found] == [
        *((10, "left"), (10, "right"), (20, "left"), (20, "right"))
    ]
    np.testing.assert_array_equal(found[0].measures["kl"], [np.inf, 1 / 3])
    np.testing.assert_array_equal(found[3].measures["std"], [1.0])


def test_a_run_without_chains_has_no_file(tmp_path: Path) -> None:
    sink = ChainSink(tmp_path)
    sink.write(Event(10, Phase.TRAIN, {"x": 1.0}))
    assert sink.position() == {CHAIN_FILE: 0}
    sink.close()
    assert not list(tmp_path.iterdir())
    assert read_chains(tmp_path) == ()


def test_what_was_written_after_a_checkpoint_is_cut_even_where_it_was_the_first(tmp_path: Path) -> None:
    sink = ChainSink(tmp_path)
    nothing = sink.position()
    sink.write(an_update(10))
    one = sink.position()
    sink.write(an_update(20))
    sink.close()
    assert one == {CHAIN_FILE: 2}
    truncate_logs(tmp_path, one)
    again = ChainSink(tmp_path)
    again.write(an_update(30))
    assert again.position() == {CHAIN_FILE: 4}
    again.close()
    assert [update.step for update in read_chains(tmp_path)] == [10, 10, 30, 30]
    truncate_logs(tmp_path, nothing)
    assert read_chains(tmp_path) == ()


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"step":1}', '{"step":1,"learner":"a","measures":{"x":["big"]}}'])
def test_a_broken_line_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CHAIN_FILE).write_text('{"step":1,"learner":"a","measures":{}}\n' + text + '\n{"step":2')
    with pytest.raises(CurveError, match=r"chain\.jsonl:2: not an (update|event)"):
        read_chains(tmp_path)
