"""What every way of moving keeps to."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from marl_tr.envs.uav.mobility import make_mobility
from marl_tr.envs.uav.mobility_config import (
    GaussMarkovConfig,
    GroupConfig,
    MobilityConfig,
    RandomWalkConfig,
    RandomWaypointConfig,
    StaticConfig,
    TraceConfig,
)
from marl_tr.envs.uav.traces import write_trace

AREA = 120.0
KINDS = {
    "static": (StaticConfig(), 0.0),
    "random_walk": (RandomWalkConfig(v_max=8.0), 8.0),
    "random_waypoint": (RandomWaypointConfig(v_lo=1.0, v_hi=9.0, pause_max_s=5.0), 9.0),
    "from_layout": (RandomWaypointConfig(v_lo=1.0, v_hi=9.0, pause_max_s=5.0, start="layout"), 9.0),
    "gauss_markov": (GaussMarkovConfig(mean_speed=5.0, speed_deviation=3.0, v_max=8.0, margin_m=20.0), 8.0),
    "group": (GroupConfig(groups=2, v_hi=6.0, pause_max_s=4.0, radius_m=15.0, member_v_hi=3.0), 9.0),
    "trace": (None, 3.0 * math.sqrt(2.0)),
}
MOVING = [name for name in KINDS if name != "static"]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Settings and the highest speed of every kind, with a trace of steps up to 1.5 m each way in half a second."""
    path = tmp_path_factory.mktemp("traces") / "walk.csv"
    steps = np.random.default_rng(0).uniform(-1.5, 1.5, (150, 5, 2))
    write_trace(path, np.clip(60.0 + np.cumsum(steps, axis=0), 0.0, AREA), 0.5)
    return {**KINDS, "trace": (TraceConfig(path=str(path)), KINDS["trace"][1])}


def starts(envs, users=5):
    return np.random.default_rng(envs).uniform(0, AREA, (200, users, 2))[:envs]


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_of_a_batch_of_65_moves_as_a_batch_of_one(kind, configs, users_of):
    start = np.random.default_rng(1).uniform(0, AREA, (65, 5, 2))
    config = configs[kind][0]
    many = users_of(config, envs=65, area_m=AREA, start=start)
    many.walk(7)
    many.begin(np.arange(0, 65, 2), 1)
    path, velocities = many.walk(30)
    for j in (0, 63, 64):
        one = users_of(config, area_m=AREA, start=start[j : j + 1], offset=j)
        one.walk(7)
        if j % 2 == 0:
            one.begin(np.arange(1), 1)
        own_path, own_velocities = one.walk(30)
        assert (own_path[:, 0] == path[:, j]).all()
        assert (own_velocities[:, 0] == velocities[:, j]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_users_stay_in_the_area_and_keep_to_their_highest_speed(kind, configs, users_of):
    config, highest = configs[kind]
    slot_s = 0.5 if kind == "trace" else 4.0  # longer slots would cut the corners of the trace
    path, velocities = users_of(config, envs=8, area_m=AREA, slot_s=slot_s, start=starts(8)).walk(150)
    assert path.dtype == velocities.dtype == np.float32
    assert path.min() >= 0
    assert path.max() <= AREA
    speed = np.hypot(velocities[..., 0], velocities[..., 1])
    assert speed.max() <= highest * (1 + 1e-5)
    assert speed.max() >= 0.7 * highest
    assert velocities == pytest.approx(np.diff(path, axis=0) / slot_s, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_through_a_state_are_the_whole(kind, configs, users_of):
    config, start = configs[kind][0], starts(4)
    whole = users_of(config, envs=4, area_m=AREA, start=start)
    whole.walk(20)
    state = whole.mobility.state_dict()
    expected, expected_velocities = whole.walk(20)
    second = users_of(config, envs=4, area_m=AREA, start=start[::-1], seed=9)
    second.walk(3)
    second.mobility.load_state_dict(state)
    second.seed, second.slot = whole.seed, whole.slot - 20
    path, velocities = second.walk(20)
    assert (path == expected).all()
    assert (velocities == expected_velocities).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_a_copy_and_must_fit(kind, configs, users_of):
    config = configs[kind][0]
    users = users_of(config, envs=2, area_m=AREA, start=starts(2))
    state = users.mobility.state_dict()
    kept = {name: array.copy() for name, array in state.items()}
    users.walk(3)
    assert all((state[name] == kept[name]).all() for name in state)
    with pytest.raises(ValueError, match=r"shape .* does not fit"):
        users_of(config, envs=3, area_m=AREA).mobility.load_state_dict(state)
    with pytest.raises(ValueError, match="is missing; the state is of another kind"):
        users.mobility.load_state_dict({})


@pytest.mark.parametrize("kind", [name for name in MOVING if name != "trace"])
def test_seed_stream_and_episode_change_where_users_go(kind, configs, users_of):
    config, start = configs[kind][0], starts(1)
    variants = [users_of(config, area_m=AREA, start=start, seed=seed, offset=j) for seed, j in ((1, 0), (2, 0), (1, 1))]
    later = users_of(config, area_m=AREA, start=start)
    later.begin(np.arange(1), 1)
    ends = [users.walk(5)[0][-1] for users in [*variants, later]]
    assert all((a != b).any(axis=-1).all() for i, a in enumerate(ends) for b in ends[:i])


def test_traces_begin_elsewhere_by_seed_stream_and_episode(configs, users_of):
    config = configs["trace"][0]
    offsets = users_of(config, envs=3, area_m=AREA, horizon=10).mobility.state_dict()["offset"].tolist()
    offsets += users_of(config, area_m=AREA, horizon=10, seed=2).mobility.state_dict()["offset"].tolist()
    again = users_of(config, area_m=AREA, horizon=10)
    again.begin(np.arange(1), 1)
    offsets += again.mobility.state_dict()["offset"].tolist()
    assert len(set(offsets)) == 5


@pytest.mark.parametrize("kind", MOVING)
def test_each_slot_draws_anew_and_float32_follows_float64(kind, configs, users_of):
    config, start = configs[kind][0], starts(2)
    single = users_of(config, envs=2, area_m=AREA, start=start).walk(60)[0]
    double = users_of(config, envs=2, area_m=AREA, start=start, dtype=np.float64).walk(60)[0]
    assert double.dtype == np.float64
    assert single == pytest.approx(double, abs=1e-2)
    assert np.abs(np.diff(double[1:], axis=0)).max() > 0.1


def test_beginning_some_environments_leaves_the_others(configs, users_of):
    for kind in KINDS:
        users = users_of(configs[kind][0], envs=4, area_m=AREA, start=starts(4))
        users.walk(5)
        before = users.mobility.state_dict()
        users.begin(np.array([2]), 1)
        after = users.mobility.state_dict()
        for name in before:
            assert (before[name][[0, 1, 3]] == after[name][[0, 1, 3]]).all()
        assert (users.mobility.velocity[2] == 0).all()


def test_static_users_stand_at_their_start(users_of):
    start = starts(3)
    path, velocities = users_of(StaticConfig(), envs=3, area_m=AREA, start=start).walk(3)
    assert path == pytest.approx(np.broadcast_to(start, path.shape))
    assert (velocities == 0).all()


def test_moments_count_on_beyond_32_bits():
    ends = []
    for moment in (7, 2**32 + 7, 2**40 + 8):
        users = make_mobility(
            RandomWalkConfig(), area_m=AREA, slot_s=1.0, horizon=5, num_envs=1, num_users=4, dtype=np.float64
        )
        users.begin(np.arange(1), starts(1, 4), seed=1, stream=np.arange(1), episode=np.zeros(1, int))
        users.move(seed=1, stream=np.arange(1), moment=np.array([moment]))
        ends.append(users.position.copy())
    assert (ends[0] == ends[1]).all()
    assert (ends[0] != ends[2]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "teleport"}, "teleport"),
        ({"kind": "random_walk", "v_max": -1}, "v_max"),
        ({"kind": "random_walk", "speed": 1}, "speed"),
        ({"kind": "random_waypoint", "v_lo": 0}, "v_lo"),
        ({"kind": "random_waypoint", "v_lo": 2.0, "v_hi": 1.0}, "v_lo must not exceed v_hi: 2 > 1"),
        ({"kind": "gauss_markov", "memory": 1.0}, "memory"),
        ({"kind": "gauss_markov", "mean_speed": 2.0}, "mean_speed must not exceed v_max: 2 > 1.5"),
        ({"kind": "group", "member_v_lo": 1.0}, "member_v_lo must not exceed member_v_hi: 1 > 0.3"),
        ({"kind": "trace"}, "path"),
        ({"kind": "trace", "path": "x.csv", "after_end": "stop"}, "after_end"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(MobilityConfig).validate_python(settings)


def test_every_setting_is_described():
    for config, _ in [*KINDS.values(), (TraceConfig(path="x"), 0)]:
        if config is not None:
            fields = type(config).model_fields.items()
            assert all(field.description for name, field in fields if name != "kind")
