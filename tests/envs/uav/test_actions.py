import numpy as np
import pytest
from gymnasium import spaces
from pydantic import ValidationError
from scipy.special import softmax

from marl_tr.envs.uav.actions import action_spaces, checked, decode, encode, least_power, moves
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.vector.sampling import sample

DISCRETE, HYBRID, VELOCITY = {"kind": "discrete"}, {"kind": "hybrid"}, {"kind": "velocity"}
E, U = 40, 3


def configured(dimensions=2, subchannels=None, **config):
    return DownlinkConfig(flight={"dimensions": dimensions}, radio={"subchannels": subchannels}, **config)


def prepared(config, leaves):
    return checked(action_spaces(config), leaves, stream=np.arange(len(leaves["action"])), dtype=np.float64)


def drawn(config, seed=0):
    rng = np.random.default_rng(seed)
    leaves = {leaf: sample(space, (E, U), rng) for leaf, space in action_spaces(config).items()}
    return checked(action_spaces(config), leaves, stream=np.arange(E), dtype=np.float64)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (configured(), {"action": 3}),
        (configured(3), {"action": 4}),
        (configured(2, {"count": 5}), {"action": 7}),
        (configured(3, {"count": 5}), {"action": 8}),
        (configured(actions=VELOCITY), {"action": 3}),
        (configured(3, {"count": 5}, actions=VELOCITY), {"action": 8}),
        (configured(actions=DISCRETE), {"action": [17, 4]}),
        (configured(3, actions=DISCRETE), {"action": [49, 4]}),
        (configured(2, {"count": 2, "nearest": 6}, actions=DISCRETE), {"action": [17, 4, 7, 7]}),
        (configured(2, {"count": 2, "nearest": 60}, actions=DISCRETE), {"action": [17, 4, 21, 21]}),
        (configured(2, None, actions={**DISCRETE, "directions": 4, "speeds": 3, "powers": 2}), {"action": [13, 2]}),
        (configured(actions=HYBRID), {"move": 2, "alloc": [4]}),
        (configured(3, {"count": 1, "nearest": 3}, actions=HYBRID), {"move": 3, "alloc": [4, 4]}),
    ],
)
def test_spaces_have_the_sizes_of_the_specification(config, expected):
    found = action_spaces(config)
    sizes = {
        leaf: space.shape[0] if isinstance(space, spaces.Box) else space.nvec.tolist() for leaf, space in found.items()
    }
    assert sizes == expected


def test_discrete_moves_are_the_eight_winds_at_two_speeds_and_hovering():
    table = moves(configured(actions=DISCRETE))
    assert table[0].tolist() == [0, 0, 0]
    east, north_east, north = table[1:4, 1]
    assert (east, north_east, north) == pytest.approx((0, np.pi / 4, np.pi / 2))
    assert table[1:9, 0] == pytest.approx(np.full(8, 10.0))
    assert table[9:17, 0] == pytest.approx(np.full(8, 20.0))
    steep = moves(configured(3, actions=DISCRETE))
    assert len(np.unique(steep.round(9), axis=0)) == 49
    assert sorted(set(np.degrees(steep[1:, 2]).round(6))) == [-30, 0, 30]


def test_a_discrete_choice_flies_as_its_table_says():
    config = configured(actions=DISCRETE)
    command = decode(config, prepared(config, {"action": np.array([[[0, 0], [3, 1], [9, 3]]])}))
    assert command.speed[0] == pytest.approx([0, 10, 20])
    assert command.heading[0, 1:] == pytest.approx([np.pi / 2, 0])
    assert command.power[0] == pytest.approx([0.025, 0.05, 0.1])
    assert command.pitch is None


def test_powers_of_sub_channels_are_a_softmax_with_a_share_for_no_power():
    config = configured(2, {"count": 3})
    action = np.random.default_rng(0).uniform(-1, 1, (1, U, 5))
    command = decode(config, prepared(config, {"action": action}))
    logits = np.concatenate((5.0 * action[..., 2:], np.zeros((1, U, 1))), axis=2)
    assert command.split == pytest.approx(0.1 * softmax(logits, axis=2)[..., :3])
    assert command.power == pytest.approx(command.split.sum(axis=2))
    assert (command.power < 0.1).all()
    assert command.choice is None


def test_a_chosen_power_is_split_evenly_over_the_sub_channels_in_use():
    config = configured(2, {"count": 3, "nearest": 4}, actions=DISCRETE)
    action = np.array([[[0, 3, 1, 4, 0], [0, 1, 0, 0, 0], [0, 0, 2, 0, 0]]])
    command = decode(config, prepared(config, {"action": action}))
    assert command.choice.tolist() == [[[0, 3, -1], [-1, -1, -1], [1, -1, -1]]]
    assert command.split == pytest.approx(np.array([[[0.05, 0.05, 0], [0, 0, 0], [0.025, 0, 0]]]))
    assert command.power == pytest.approx(np.array([[0.1, 0.0, 0.025]]))


def test_a_velocity_is_flown_as_it_is_up_to_the_highest_speed():
    config = configured(actions=VELOCITY)
    command = decode(config, prepared(config, {"action": np.array([[[0.3, -0.4, 1], [1, 1, 0], [-1, 0, -1]]])}))
    assert command.pitch is None
    assert command.speed[0] == pytest.approx([10, 20, 20])
    assert command.heading[0] == pytest.approx([np.arctan2(-4, 3), np.pi / 4, np.pi])
    assert command.power[0] == pytest.approx([0.1, 0.05, 0.0001])


@pytest.mark.parametrize("kind", ["continuous", "velocity"])
def test_no_power_is_below_its_floor(kind):
    config = configured(actions={"kind": kind, "power_floor": 0.25})
    command = decode(config, prepared(config, {"action": np.array([[[0, 0, -1], [0, 0, -0.4], [0, 0, 1]]])}))
    assert command.power[0] == pytest.approx([0.025, 0.03, 0.1])
    assert least_power(config) == pytest.approx(0.025)


@pytest.mark.parametrize("kind", ["continuous", "velocity"])
def test_powers_may_be_chosen_in_decibels(kind):
    config = configured(actions={"kind": kind, "power_floor": 0.01, "power_scale": "decibel"})
    command = decode(config, prepared(config, {"action": np.array([[[0, 0, -1], [0, 0, 0.2], [0, 0, 1]]])}))
    assert 10 * np.log10(command.power[0] / 0.1) == pytest.approx([-20, -8, 0], abs=1e-5)
    assert least_power(config) == pytest.approx(0.001)
    power = np.array([[1e-9, 0.02, 0.1]])
    again = decode(config, encode(config, np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3)), power))
    assert again.power[0] == pytest.approx([0.001, 0.02, 0.1])


def test_a_scale_in_decibels_needs_a_lowest_power():
    with pytest.raises(ValidationError, match="power_floor, which is 0; give a power_floor above 0"):
        configured(actions={"kind": "velocity", "power_floor": 0, "power_scale": "decibel"})


def test_one_power_is_all_there_is_where_the_floor_is_the_highest():
    config = configured(actions={"kind": "velocity", "power_floor": 1, "power_scale": "decibel"})
    command = decode(config, prepared(config, {"action": np.array([[[0, 0, -1], [0, 0, 0.2], [0, 0, 1]]])}))
    assert command.power[0] == pytest.approx([0.1, 0.1, 0.1])
    rest = encode(config, np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3)), np.array([[0.1, 0.01, 0.05]]))
    assert rest["action"][0, :, 2].tolist() == [1, 1, 1]


def test_a_velocity_in_space_climbs_no_steeper_than_may_be_and_keeps_its_course():
    config = configured(3, actions=VELOCITY)
    wanted = np.array([[[0.3, -0.4, 0.1, 0], [0.3, -0.4, 1, 0], [0, 0, 1, 0]]])
    command = decode(config, prepared(config, {"action": wanted}))
    level = command.speed * np.cos(command.pitch)
    climb = command.speed * np.sin(command.pitch)
    assert level[0] == pytest.approx([10, 10, 0])
    assert climb[0] == pytest.approx([2, 10 * np.tan(np.pi / 6), 0])
    assert command.heading[0, :2] == pytest.approx(np.full(2, np.arctan2(-4, 3)))


DECIBEL = {"kind": "velocity", "power_floor": 1e-3, "power_scale": "decibel"}
KINDS = [{"kind": "continuous"}, VELOCITY, DISCRETE, HYBRID]


@pytest.mark.parametrize("actions", [*KINDS, DECIBEL], ids=["continuous", "velocity", "discrete", "hybrid", "decibel"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("subchannels", [None, {"count": 4}], ids=["band", "subchannels"])
def test_encoding_what_was_decoded_gives_the_same_flight_and_power(actions, dimensions, subchannels):
    config = configured(dimensions, subchannels, actions=actions)
    first = decode(config, drawn(config))
    pitch = np.zeros_like(first.speed) if first.pitch is None else first.pitch
    leaves = encode(config, first.speed, first.heading, pitch, first.power)
    assert all(space.contains(leaves[leaf][0, 0]) for leaf, space in action_spaces(config).items())
    again = decode(config, checked(action_spaces(config), leaves, stream=np.arange(E), dtype=np.float64))
    assert again.speed == pytest.approx(first.speed, abs=1e-5)
    moving = first.speed > 1e-3
    assert again.heading[moving] == pytest.approx(first.heading[moving], abs=1e-5)
    if dimensions == 3:
        assert again.pitch[moving] == pytest.approx(first.pitch[moving], abs=1e-5)
    if subchannels is None or actions["kind"] in ("continuous", "velocity"):
        assert again.power == pytest.approx(first.power, abs=1e-6)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_discrete_move_that_is_encoded_is_the_nearest(dimensions):
    config = configured(dimensions, actions=DISCRETE)
    rng = np.random.default_rng(1)
    speed, heading = rng.uniform(0, 20, (E, U)), rng.uniform(-np.pi, np.pi, (E, U))
    pitch = rng.uniform(-0.5, 0.5, (E, U)) * (dimensions == 3)

    def velocity(speed, heading, pitch):
        level = speed * np.cos(pitch)
        return np.stack((level * np.cos(heading), level * np.sin(heading), speed * np.sin(pitch)), -1)

    wanted, offered = velocity(speed, heading, pitch), velocity(*moves(config).T)
    best = np.linalg.norm(wanted[:, :, None] - offered, axis=-1).argmin(-1)
    found = encode(config, speed, heading, pitch, np.full((E, U), 0.1))["action"]
    assert (found[..., 0] == best).all()
    assert (found[..., 1] == 3).all()


def test_a_power_that_is_encoded_is_the_nearest_choice():
    config = configured(actions=HYBRID)
    power = np.array([[0.0, 0.036, 0.038, 0.1]])
    flat = np.zeros_like(power)
    assert encode(config, flat, flat, flat, power)["alloc"][0, :, 0].tolist() == [0, 0, 1, 3]


def test_full_power_on_sub_channels_is_met_nearly():
    config = configured(2, {"count": 4})
    flat = np.zeros((1, 2))
    leaves = encode(config, flat, flat, flat, np.array([[0.1, 0.04]]))
    command = decode(config, prepared(config, leaves))
    assert command.power[0] == pytest.approx([0.1, 0.04], rel=2e-3)
    assert command.split[0, 0] == pytest.approx(np.full(4, command.power[0, 0] / 4))


@pytest.mark.parametrize(
    ("config", "values", "said"),
    [
        (configured(), [0.0, np.inf, 0.0], r"uav_1 in environment 7 is not finite"),
        (configured(actions=DISCRETE), [17, 0], r"uav_1 in environment 7 is not among the choices \[17, 4\]"),
        (configured(actions=DISCRETE), [-1, 0], r"uav_1 in environment 7 is not among the choices"),
        (configured(actions=DISCRETE), [0.5, 0], r"uav_1 in environment 7 is not among the choices"),
    ],
)
def test_what_is_no_action_is_refused_by_name(config, values, said):
    action = np.zeros((2, U, len(values)))
    action[1, 1] = values
    with pytest.raises(ValueError, match=said):
        checked(action_spaces(config), {"action": action}, stream=np.array([6, 7]), dtype=np.float32)
