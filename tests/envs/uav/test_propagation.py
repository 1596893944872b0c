"""What every channel promises a simulator."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from marl_tr.envs.uav.channel_config import (
    AlHouraniConfig,
    ChannelConfig,
    GainMapConfig,
    PowerLawConfig,
    SamplingConfig,
    Tr36777Config,
)
from marl_tr.envs.uav.gain_map import save_gain_map
from marl_tr.envs.uav.propagation import check_coverage, make_channel

SHADOWED = SamplingConfig(shadowing_los_db=2.0, shadowing_nlos_db=6.0)
ANALYTIC = {
    "al_hourani": AlHouraniConfig(),
    "al_hourani_db": AlHouraniConfig(environment="dense_urban", averaging="mean_db"),
    "power_law": PowerLawConfig(),
    "tr36777": Tr36777Config(scenario="umi"),
    "al_hourani_sampled": AlHouraniConfig(averaging="sampled"),
    "power_law_sampled": PowerLawConfig(averaging="sampled", sampling=SHADOWED),
    "tr36777_sampled": Tr36777Config(averaging="sampled"),
}
KINDS = [*ANALYTIC, "gain_map"]
MOVED = 30.0  # m a slot: states of links are drawn anew every second slot


@pytest.fixture(scope="module")
def map_file(tmp_path_factory):
    grid = np.linspace(-500.0, 1500.0, 9)
    rng = np.random.default_rng(0)
    return save_gain_map(
        tmp_path_factory.mktemp("maps") / "map.npz",
        gain_db=rng.uniform(-120, -80, (9, 9, 2, 9, 9)),
        uav_x=grid,
        uav_y=grid,
        uav_z=[20.0, 300.0],
        user_x=grid,
        user_y=grid,
    )


@pytest.fixture(params=KINDS)
def config(request, map_file):
    return ANALYTIC.get(request.param) or GainMapConfig(file=str(map_file))


def scene(envs, uavs=3, users=7, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    position = rng.uniform(0, 1000, (envs, uavs, 3))
    position[..., 2] = rng.uniform(50, 150, (envs, uavs))
    return position.astype(dtype), rng.uniform(0, 1000, (envs, users, 2)).astype(dtype)


def channel(config, envs, uavs=3, users=7, dtype=np.float32):
    return make_channel(config, carrier_hz=2e9, num_envs=envs, num_uavs=uavs, num_users=users, dtype=dtype)


def fly(made, position, users, *, stream, slots, start=0):
    """Gains of a few slots in which everything moves by a known amount, the same in every environment."""
    gains = []
    for slot in range(start, start + slots):
        shift = np.array([slot * MOVED, 0.0], position.dtype)
        there = position.copy()
        there[..., :2] += shift
        moment = np.full(len(stream), 5 * 101 + slot, np.int64)
        gains.append(made.gain(there, users + shift / 10, seed=11, stream=stream, moment=moment))
    return np.stack(gains)


def begin(made, stream):
    made.begin(np.arange(len(stream)), seed=11, stream=stream, episode=np.full(len(stream), 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gains_have_the_shape_dtype_and_order_that_the_simulator_counts_on(config, dtype):
    position, users = scene(4, dtype=dtype)
    made = channel(config, 4, dtype=dtype)
    begin(made, np.arange(4))
    gain = made.gain(position, users, seed=1, stream=np.arange(4), moment=np.arange(4))
    mean = made.mean_gain(position, np.asfortranarray(users))
    for got in (gain, mean):
        assert got.shape == (4, 3, 7)
        assert got.dtype == dtype
        assert got.flags.c_contiguous
        assert np.isfinite(got).all()
        assert (got > 0).all()


def test_environment_j_of_a_batch_equals_a_batch_of_one(config):
    position, users = scene(65)
    stream = np.arange(65) + 1000
    together = channel(config, 65)
    begin(together, stream)
    gains = fly(together, position, users, stream=stream, slots=5)
    for j in (0, 1, 63, 64):
        alone = channel(config, 1)
        begin(alone, stream[j : j + 1])
        single = fly(alone, position[j : j + 1], users[j : j + 1], stream=stream[j : j + 1], slots=5)
        assert (single[:, 0] == gains[:, j]).all()


def test_an_episode_begun_in_some_environments_leaves_the_others_alone():
    config = ANALYTIC["tr36777_sampled"]
    position, users = scene(3)
    stream = np.arange(3)
    moment = np.array([40, 40, 40])

    def run(rows):
        made = channel(config, 3)
        begin(made, stream)
        fly(made, position, users, stream=stream, slots=3)
        made.begin(rows, seed=11, stream=stream[rows], episode=np.full(len(rows), 6))
        return made.gain(position, users, seed=11, stream=stream, moment=moment)

    all_go_on, one_begins = run(np.zeros(0, int)), run(np.array([1]))
    assert (all_go_on[[0, 2]] == one_begins[[0, 2]]).all()
    assert (all_go_on[1] != one_begins[1]).any()
    # What the new episode draws does not depend on the one before it.
    fresh = channel(config, 3)
    begin(fresh, stream)
    assert (fresh.gain(position, users, seed=11, stream=stream, moment=moment)[1] == one_begins[1]).all()


def test_a_channel_goes_on_where_its_state_was_taken(config):
    position, users = scene(4)
    stream = np.arange(4)
    first, second = channel(config, 4), channel(config, 4)
    begin(first, stream)
    fly(first, position, users, stream=stream, slots=3)
    state = first.state_dict()
    expected = fly(first, position, users, stream=stream, slots=4, start=3)
    second.load_state_dict(state)
    assert (fly(second, position, users, stream=stream, slots=4, start=3) == expected).all()


def test_a_state_of_another_channel_is_refused():
    drawn, mean = channel(ANALYTIC["tr36777_sampled"], 2), channel(ANALYTIC["tr36777"], 2)
    with pytest.raises(ValueError, match=r"los: shape \(2, 3, 7\) does not fit a channel with \(5, 3, 7\)"):
        channel(ANALYTIC["tr36777_sampled"], 5).load_state_dict(drawn.state_dict())
    with pytest.raises(ValueError, match="keeps no state"):
        mean.load_state_dict(drawn.state_dict())
    with pytest.raises(ValueError, match="los is missing"):
        drawn.load_state_dict(mean.state_dict())


@pytest.mark.parametrize("kind", ANALYTIC)
def test_gains_depend_on_relative_places_alone(kind):
    position, users = scene(4, dtype=np.float64)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    moved_position, moved_users = position.copy(), users @ turn.T + 250.0
    moved_position[..., :2] = position[..., :2] @ turn.T + 250.0
    stream, moment = np.arange(4), np.arange(4)

    def gains(position, users):
        made = channel(ANALYTIC[kind], 4, dtype=np.float64)
        begin(made, stream)
        return made.gain(position, users, seed=1, stream=stream, moment=moment), made.mean_gain(position, users)

    for here, there in zip(gains(position, users), gains(moved_position, moved_users), strict=True):
        assert here == pytest.approx(there, rel=1e-9)


def test_expected_gains_are_given_for_any_points_and_change_nothing(config):
    position, users = scene(2)
    made = channel(config, 2)
    begin(made, np.arange(2))
    grid = scene(1, users=400, seed=9)[1]
    before = made.state_dict()
    many = made.mean_gain(position, grid)
    assert many.shape == (2, 3, 400)
    assert many[:, :, 17:18] == pytest.approx(made.mean_gain(position, grid[:, 17:18]), rel=1e-6)
    after = made.state_dict()
    assert all((before[name] == after[name]).all() for name in before)
    made.gain(position, users, seed=1, stream=np.arange(2), moment=np.arange(2))


def test_where_nothing_is_drawn_the_gain_is_the_expected_one():
    position, users = scene(2)
    for config in ANALYTIC.values():
        if config.averaging != "sampled":
            made = channel(config, 2)
            gain = made.gain(position, users, seed=1, stream=np.arange(2), moment=np.arange(2))
            assert (gain == made.mean_gain(position, users)).all()


def test_a_uav_on_the_ground_serves_nobody_and_the_others_as_before(config):
    position, users = scene(2)
    landed = position.copy()
    landed[0, 1, 2] = 0.0
    landed[0, 1, :2] = users[0, 0]  # right beside a user
    stream = np.arange(2)

    def gains(position):
        made = channel(config, 2)
        begin(made, stream)
        return made.gain(position, users, seed=1, stream=stream, moment=stream)

    flying, grounded = gains(position), gains(landed)
    assert (grounded[0, 1] == 0).all()
    others = np.ones((2, 3), bool)
    others[0, 1] = False
    assert (grounded[others] == flying[others]).all()


def test_the_golden_scene_has_its_losses():
    position = np.array([[[250.0, 250.0, 100.0], [750.0, 700.0, 100.0]]])
    users = np.array([[[250.0, 250.0], [300.0, 400.0], [500.0, 500.0], [800.0, 650.0], [900.0, 900.0]]])
    gain = channel(AlHouraniConfig(), 1, 2, 5, np.float64).mean_gain(position, users)
    expected = [
        [79.46849, 85.87902, 97.18294, 106.66201, 110.41106],
        [106.51918, 103.55670, 95.61330, 81.25934, 91.73857],
    ]
    assert -10 * np.log10(gain[0]) == pytest.approx(np.array(expected), abs=6e-6)


def test_settings_tell_the_kinds_apart():
    parse = TypeAdapter(ChannelConfig).validate_python
    assert parse({"kind": "power_law", "alpha": 2.0}) == PowerLawConfig(alpha=2.0)
    assert parse({"kind": "tr36777", "averaging": "sampled", "sampling": {"fading": False}}) == Tr36777Config(
        averaging="sampled", sampling=SamplingConfig(fading=False)
    )
    with pytest.raises(ValidationError, match="kind"):
        parse({"kind": "two_ray"})
    with pytest.raises(ValidationError, match="scenario"):
        parse({"kind": "al_hourani", "scenario": "uma"})


def test_what_a_channel_does_not_cover_is_known_before_the_first_slot(map_file):
    def check(config, lowest=100.0, highest=100.0, area=1000.0):
        check_coverage(config, carrier_hz=2e9, area_m=area, lowest_m=lowest, highest_m=highest)

    for config in (*ANALYTIC.values(), GainMapConfig(file=str(map_file))):
        check(config)
    with pytest.raises(ValueError, match=r"above 22\.5 up to 300 m, not for 20 to 120 m"):
        check(Tr36777Config(scenario="uma"), 20.0, 120.0)
    with pytest.raises(ValueError, match=r"a UAV at \(0, 0, 10\) m is off the map"):
        check(GainMapConfig(file=str(map_file)), 10.0, 100.0)
    with pytest.raises(ValueError, match=r"a UAV at \(2000, 2000, 100\) m .* x -500 to 1500, y -500 to 1500"):
        check(GainMapConfig(file=str(map_file)), area=2000.0)
    check(GainMapConfig(file=str(map_file), outside="edge"), area=2000.0)
