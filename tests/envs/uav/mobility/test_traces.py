"""Traces: what is replayed, what is refused, what is written."""

import os

import numpy as np
import pytest

from marl_tr.envs.uav.mobility_config import RandomWaypointConfig, TraceConfig
from marl_tr.envs.uav.traces import TraceError, read_trace, write_trace
from marl_tr.errors import UserError


def csv_of(path, text):
    path.write_text(text)
    return str(path)


@pytest.fixture
def ragged(tmp_path):
    """Six ids with times of their own, over 100 s and 12 s late; and the knots by id."""
    rng = np.random.default_rng(0)
    knots, lines = {}, []
    for user in range(6):
        inner = np.sort(rng.uniform(12.0, 112.0, rng.integers(1, 30)))
        times = np.array([12.0, *inner, 112.0]) if user == 0 else inner
        places = rng.uniform(0, 1000.0, (len(times), 2))
        knots[f"user {user}"] = (times, places)
        lines += [
            (t, f"{t!r}, user {user},{x!r},{y!r}") for t, (x, y) in zip(times.tolist(), places.tolist(), strict=True)
        ]
    text = "\n".join(["t,id,x,y", *(line for _, line in sorted(lines))])
    return csv_of(tmp_path / "ragged.csv", text + "\n"), knots


def interpolated(knots, name, times):
    own, places = knots[name]
    return np.stack([np.interp(times, own, places[:, axis]) for axis in (0, 1)], axis=-1)


def test_positions_between_and_beyond_the_lines_are_those_of_interp(ragged):
    path, knots = ragged
    trace = read_trace(path, num_users=6, area_m=1000.0)
    assert sorted(trace.ids) == sorted(knots)
    times = np.concatenate([np.linspace(0, 130, 500), trace.times])
    place = trace.at(times)
    for user, name in enumerate(trace.ids):
        assert place[:, user] == pytest.approx(interpolated(knots, name, times), abs=1e-9)


def test_users_are_the_ids_in_the_order_of_the_file(tmp_path):
    text = "id,y,note,t,x\nb,2,-,0,1\n\na,4,-,0,3\nb,6,-,1,5\nc,8,-,0,7\n"
    trace = read_trace(csv_of(tmp_path / "t.csv", text), num_users=2, area_m=10.0)
    assert trace.ids == ("b", "a")
    assert trace.at(np.array([0.0, 0.5])).tolist() == [[[1, 2], [3, 4]], [[3, 4], [3, 4]]]


@pytest.mark.parametrize("after_end", ["hold", "loop"])
def test_replay_goes_by_slots_from_where_it_begins_and_beyond_the_end(ragged, after_end, users_of):
    path, knots = ragged
    config = TraceConfig(path=path, begin_s=70.0, after_end=after_end)
    users = users_of(config, envs=2, users=6, slot_s=1.7, dtype=np.float64)
    places, velocities = users.walk(150)
    time = 70.0 + 1.7 * np.arange(151)
    time = np.minimum(time, 100.0) if after_end == "hold" else time % 100.0
    for user, name in enumerate(read_trace(path, num_users=6, area_m=1000.0).ids):
        for env in (0, 1):
            assert places[:, env, user] == pytest.approx(interpolated(knots, name, 12.0 + time), abs=1e-6)
    begun_again = np.diff(time) < 0
    assert begun_again.sum() == (3 if after_end == "loop" else 0)
    assert (velocities[begun_again] == 0).all()
    moved = np.diff(places, axis=0) / 1.7
    assert velocities[~begun_again] == pytest.approx(moved[~begun_again], abs=1e-9)


@pytest.mark.parametrize(
    ("after_end", "horizon", "latest"), [("hold", 40, 60.0), ("hold", 100, 0.0), ("loop", 100, 100.0)]
)
def test_drawn_beginnings_leave_room_for_the_episode_or_go_round(ragged, after_end, horizon, latest, users_of):
    users = users_of(TraceConfig(path=ragged[0], after_end=after_end), envs=400, users=6, horizon=horizon)
    offset = users.mobility.state_dict()["offset"]
    assert offset.min() >= 0
    assert offset.max() <= latest
    assert offset.max() >= 0.98 * latest
    assert offset.mean() == pytest.approx(0.5 * latest, abs=0.06 * latest)


def test_one_moment_is_a_trace_of_users_who_stand(tmp_path, users_of):
    path = csv_of(tmp_path / "t.csv", "t,id,x,y\n5,a,1,2\n5,b,3,4\n")
    for after_end in ("hold", "loop"):
        places, velocities = users_of(TraceConfig(path=path, after_end=after_end), users=2, area_m=9.0).walk(3)
        assert (places == np.array([[1, 2], [3, 4]])).all()
        assert (velocities == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_recorded_episode_is_replayed_as_it_was(tmp_path, dtype, users_of):
    recorded, velocities = users_of(RandomWaypointConfig(), users=7, slot_s=0.3, area_m=333.3, dtype=dtype).walk(50)
    path = tmp_path / "recorded.csv"
    write_trace(path, recorded[:, 0], 0.3)
    config = TraceConfig(path=str(path), begin_s=0.0)
    replayed, again = users_of(config, users=7, slot_s=0.3, area_m=333.3, dtype=dtype).walk(50)
    assert replayed == pytest.approx(recorded, abs=1e-4 if dtype == np.float32 else 1e-9)
    assert again == pytest.approx(velocities, abs=1e-3)
    knots = read_trace(path, num_users=7, area_m=333.3)
    assert (knots.points.reshape(7, 51, 2).astype(dtype) == np.swapaxes(recorded[:, 0], 0, 1)).all()
    assert knots.times.tolist() == [slot * 0.3 for slot in range(51)]


def test_ids_are_written_as_given(tmp_path):
    path = tmp_path / "t.csv"
    write_trace(path, np.array([[[1.5, 2.0], [0.1, 4.0]]], np.float32), 1.0, ids=["ann", "bob, jr"])
    assert path.read_text() == 't,id,x,y\n0.0,ann,1.5,2.0\n0.0,"bob, jr",0.1,4.0\n'
    assert read_trace(path, num_users=2, area_m=10.0).ids == ("ann", "bob, jr")


HEAD = "t,id,x,y\n0,a,1,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.csv:1: no column 't', 'id', 'x', 'y'; the first line names the columns"),
        ("t,id,x\n0,a,1\n", r"t\.csv:1: no column 'y'"),
        (HEAD + "1,a,one,1\n", r"t\.csv:3: x is not a number: 'one'"),
        (HEAD + "1,a,1,\n", r"t\.csv:3: y is not a number: ''"),
        (HEAD + "nan,a,1,1\n", r"t\.csv:3: t is not finite: 'nan'"),
        (HEAD + "\n1,b,1,inf\n", r"t\.csv:4: y is not finite"),
        (HEAD + "1,,1,1\n", r"t\.csv:3: id is empty"),
        (HEAD + "1,a,1\n", r"t\.csv:3: 3 fields, and the header has 4"),
        (HEAD + "0,b,1,1\n0,a,2,2\n", r"t\.csv:4: t = 0\.0 s of id 'a' does not come after its last, 0\.0 s"),
        (
            HEAD + "2000000.5,b,1,1\n2000000,b,2,2\n",
            r"t = 2000000\.0 s of id 'b' does not come after its last, 2000000\.5 s",
        ),
        (HEAD + "1,a,10.0001,1\n", r"t\.csv:3: x = 10\.0001 m is outside the area, \[0, 10\] m \(area_m\)"),
        (HEAD + "1,a,1,-0.5\n", r"t\.csv:3: y = -0\.5 m is outside"),
        (HEAD + "1,a,1,1\n", r"t\.csv: has 1 ids, fewer than the 2 users \(num_users\)"),
    ],
)
def test_wrong_traces_are_refused_with_file_and_line(tmp_path, text, message):
    path = csv_of(tmp_path / "t.csv", text)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path, num_users=2, area_m=10.0)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


def test_files_that_cannot_be_read_are_named(tmp_path, users_of):
    missing = tmp_path / "none.csv"
    with pytest.raises(TraceError, match=r"none\.csv: cannot be read: No such file"):
        read_trace(missing, num_users=1, area_m=10.0)
    with pytest.raises(
        TraceError, match=r"none\.csv: cannot be read: No such file or directory \(mobility\.path; .* current folder, /"
    ):
        users_of(TraceConfig(path=str(missing)))
    (tmp_path / "b.csv").write_bytes(b"t,id,x,y\n\xff\xfe,a,1,1\n")
    with pytest.raises(TraceError, match=r"b\.csv: is not UTF-8 text"):
        read_trace(tmp_path / "b.csv", num_users=1, area_m=10.0)


def test_a_beginning_after_the_end_is_refused(tmp_path, users_of):
    path = csv_of(tmp_path / "t.csv", HEAD + "5,a,2,2\n")
    with pytest.raises(TraceError, match=r"lasts 5 s, less than mobility\.begin_s, 6 s"):
        users_of(TraceConfig(path=path, begin_s=6.0), users=1)


def test_blocks_share_a_trace_until_its_file_changes(tmp_path, users_of):
    path = tmp_path / "t.csv"
    config = TraceConfig(path=csv_of(path, HEAD), begin_s=0.0)
    first, second = users_of(config, users=1).mobility, users_of(config, users=1).mobility
    assert first.trace is second.trace
    path.write_text(HEAD.replace("1,1", "7,7"))
    os.utime(path, ns=(1, 1))
    assert (users_of(config, users=1).mobility.position == 7.0).all()


@pytest.mark.parametrize(
    ("positions", "slot_s", "ids", "message"),
    [
        (np.zeros((3, 2)), 1.0, None, r"shape \(3, 2\), expected \[T, G, 2\]"),
        (np.full((1, 1, 2), np.nan), 1.0, None, "not all finite"),
        (np.zeros((1, 1, 2)), 0.0, None, "slot_s must be positive, got 0"),
        (np.zeros((1, 2, 2)), 1.0, ["a", "a"], "ids must be 2 different names, got 2 with 1 different"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, positions, slot_s, ids, message):
    with pytest.raises(ValueError, match=message):
        write_trace(tmp_path / "t.csv", positions, slot_s, ids=ids)
    assert not (tmp_path / "t.csv").exists()
