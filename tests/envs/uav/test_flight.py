import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.energy import HOVER_POWER_W, climb_power, propulsion_power
from marl_tr.envs.uav.flight import advance, closest_approach_sq, collisions, limit_speed, limit_turn
from marl_tr.envs.uav.simulator import Simulator

HALF_TURN = np.pi


def one(value):
    return np.array([[float(value)]])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_closest_approach_meets_a_fine_sampling_of_time(dimensions):
    rng = np.random.default_rng(0)
    before, after = rng.uniform(0, 50, (2, 20, 4, dimensions))
    times = np.linspace(0, 1, 4001)[:, None, None, None]
    paths = before + times * (after - before)
    pairs = np.square(paths[:, :, :, None] - paths[:, :, None]).sum(axis=-1).min(axis=0)
    found = closest_approach_sq(before, after)
    assert np.isinf(found[:, np.arange(4), np.arange(4)]).all()
    off = ~np.eye(4, dtype=bool)
    assert np.sqrt(found[:, off]) == pytest.approx(np.sqrt(pairs[:, off]), abs=0.02)


def test_parallel_flight_and_standing_still_keep_their_distance():
    before = np.array([[(0, 0, 100), (3, 4, 100), (0, 0, 112)]], float)
    for move in ((0, 0, 0), (20, 0, 0), (7, -3, 9)):
        found = np.sqrt(closest_approach_sq(before, before + move))
        assert found[0, 0, 1:] == pytest.approx([5, 12])
        assert found[0, 1, 2] == pytest.approx(13)


def test_swapping_heights_is_a_collision_and_passing_at_different_heights_is_none():
    before = np.array([[(0, 0, 60), (0, 0, 90), (20, 0, 120), (40, 0, 120)]], float)
    after = np.array([[(0, 0, 90), (0, 0, 60), (40, 0, 131), (20, 0, 109)]], float)
    hit = collisions(before, after, separation_m=10.0)
    # The last two swap places in the plane while their heights part: nearest half-way, level with each other.
    assert hit.tolist() == [[True, True, True, True]]
    after[0, 2:, 2] = 120, 131
    before[0, 2:, 2] = 120, 131
    assert collisions(before, after, separation_m=10.0).tolist() == [[True, True, False, False]]


def test_who_lies_on_the_ground_meets_nobody():
    place = np.array([[(0, 0, 5), (0, 0, 0), (3, 0, 5)]], float)
    flying = np.array([[True, False, True]])
    assert collisions(place, place, separation_m=10.0).all()
    assert collisions(place, place, separation_m=10.0, flying=flying).tolist() == [[True, False, True]]
    flying[0, 2] = False
    assert not collisions(place, place, separation_m=10.0, flying=flying).any()


def test_advance_meets_trigonometry_and_stops_at_every_wall():
    position = np.array([[(500, 500, 100), (995, 500, 100), (500, 500, 145), (500, 500, 55)]], float)
    speed = np.full((1, 4), 20.0)
    heading = np.array([[0.3, 0.0, 0.0, 0.0]])
    pitch = np.array([[0.4, 0.0, 0.5, -0.5]])
    reached, out = advance(position, speed, heading, pitch, dt=0.5, area_m=1000.0, altitudes=(50.0, 150.0))
    level = 10 * np.cos(0.4)
    assert reached[0, 0] == pytest.approx(
        [500 + level * np.cos(0.3), 500 + level * np.sin(0.3), 100 + 10 * np.sin(0.4)]
    )
    assert reached[0, 1].tolist() == [1000, 500, 100]
    assert reached[0, 2, 2] == pytest.approx(145 + 10 * np.sin(0.5))
    assert reached[0, 3, 2] == pytest.approx(55 - 10 * np.sin(0.5))
    assert out.tolist() == [[False, True, False, False]]
    high, hit = advance(reached, speed, heading, pitch, dt=0.5, area_m=1000.0, altitudes=(50.0, 150.0))
    assert high[0, 2:, 2].tolist() == [150, 50]
    assert hit.tolist() == [[False, True, True, True]]


def test_level_flight_leaves_heights_alone():
    position = np.array([[(500, 500, 33.0)]])
    reached, out = advance(position, one(20), one(2.0), None, dt=1.0, area_m=1000.0)
    assert reached[0, 0, 2] == 33.0
    assert np.linalg.norm(reached - position) == pytest.approx(20)
    assert not out.any()


@pytest.mark.parametrize(
    ("wanted", "before", "reached"),
    [
        (0.2, 0.0, 0.2),
        (3.0, 0.0, 0.5),
        (-3.0, 0.0, -0.5),
        (-3.0, 3.0, -3.0),  # across the seam: 0.283 rad the short way
        (-2.5, 2.5, 3.0),
        (2.5, -2.5, -3.0),
        (-3.1, 2.9, -3.1),
        (2.9 - 2 * HALF_TURN, 2.9, 2.9),
    ],
)
def test_turns_take_the_shorter_way(wanted, before, reached):
    found = limit_turn(one(wanted), one(before), rate_max=0.25, dt=2.0)
    assert found[0, 0] == pytest.approx(reached)
    assert -HALF_TURN <= found[0, 0] < HALF_TURN


def test_turns_are_the_nearest_that_the_rate_allows():
    rng = np.random.default_rng(1)
    wanted, before = rng.uniform(-np.pi, np.pi, (2, 1, 500))
    found = limit_turn(wanted, before, rate_max=0.7, dt=1.0)
    offered = before + np.linspace(-0.7, 0.7, 5601)[:, None, None]
    best = np.abs(np.angle(np.exp(1j * (offered - wanted)))).min(axis=0)
    assert np.abs(np.angle(np.exp(1j * (found - wanted)))) == pytest.approx(best, abs=2.6e-4)
    assert (np.abs(np.angle(np.exp(1j * (found - before)))) <= 0.7 + 1e-9).all()


def test_speed_changes_by_no_more_than_the_acceleration_allows():
    wanted, before = np.array([[20.0, 0.0, 11.0]]), np.array([[10.0, 10.0, 10.0]])
    assert limit_speed(wanted, before, accel_max=2.0, dt=1.5).tolist() == [[13.0, 7.0, 11.0]]


def test_climbing_takes_the_work_against_gravity_and_descending_gives_nothing_back():
    assert climb_power(np.array([-5.0, 0.0, 5.0])).tolist() == [0.0, 0.0, 100.0]


THREE = {"dimensions": 3}


def in_flight(places, *, battery=None, **flight):
    config = DownlinkConfig(
        num_uavs=len(places), num_users=5, flight={**THREE, **flight}, battery=battery, c_collision=2.0
    )
    sim = Simulator(config, 1, dtype=np.float64)
    sim.reset(0)
    sim.position[0] = places
    return sim


def fly(sim, *actions):
    return sim.step(np.array([actions], float))


def test_a_climb_costs_what_its_speeds_say():
    sim = in_flight([(500, 500, 100)])
    outcome = fly(sim, (0.0, 0.0, 1.0, 1.0))
    level, rise = 10 * np.cos(np.pi / 6), 10 * np.sin(np.pi / 6)
    assert sim.velocity[0, 0] == pytest.approx([level, 0, rise], abs=1e-12)
    expected = propulsion_power(np.array(level**2)) + 20 * rise
    assert outcome.objectives.propulsion_w[0, 0] == pytest.approx(expected)
    assert outcome.energy_j[0, 0] == pytest.approx(expected + 5)
    down = fly(sim, (0.0, 0.0, -1.0, 1.0))
    assert down.objectives.propulsion_w[0, 0] == pytest.approx(propulsion_power(np.array(level**2)))
    assert sim.position[0, 0, 2] == pytest.approx(100)


def test_flying_one_over_the_other_is_safe_from_the_least_separation_on():
    for gap, hit in ((9.99, True), (10.01, False)):
        sim = in_flight([(500, 500, 100), (500, 500, 100 + gap)])
        outcome = fly(sim, (1.0, 0.5, 0.0, 1.0), (1.0, 0.5, 0.0, 1.0))
        assert outcome.collision.all() == hit


def test_inertia_holds_a_uav_to_its_speed_and_heading():
    sim = in_flight([(500, 500, 100)], accel_max_m_s2=4.0, yaw_rate_max_deg_s=90.0)
    speeds = []
    for _ in range(6):
        fly(sim, (1.0, 1.0, 0.0, 1.0))
        speeds.append(np.linalg.norm(sim.velocity[0, 0]))
    assert speeds == pytest.approx([4, 8, 12, 16, 20, 20])
    assert abs(sim.heading[0, 0]) == pytest.approx(np.pi)
    fly(sim, (1.0, 0.0, 0.0, 1.0))
    assert abs(sim.heading[0, 0]) == pytest.approx(np.pi / 2)
    assert np.abs(sim.velocity[0, 0]) == pytest.approx([0, 20, 0], abs=1e-9)


def test_a_collision_ends_the_episode_for_all_where_it_is_told_to():
    places = [(490, 500, 100), (510, 500, 100), (100, 100, 60)]
    crash = (1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 0.0, 1.0), (-1.0, 0.0, 0.0, 1.0)
    sim = in_flight(places)
    outcome = fly(sim, *crash)
    assert outcome.collision.tolist() == [[True, True, False]]
    assert not outcome.terminated.any()
    assert not sim.over.any()
    sim = in_flight(places, terminate_on_collision=True)
    outcome = fly(sim, *crash)
    assert outcome.terminated.all()
    assert sim.over.all()


STILL = (-1.0, 0.0, 0.0, 1.0)


def test_an_empty_battery_lands_a_uav_for_good():
    hover = HOVER_POWER_W + 5.0
    sim = in_flight([(300, 300, 100), (700, 700, 80)], battery={"capacity_j": 2.5 * hover})
    sim.battery[0, 1] = 10 * hover
    for slot in range(2):
        outcome = fly(sim, STILL, STILL)
        assert outcome.energy_j[0] == pytest.approx([hover, hover])
        assert not outcome.terminated.any()
        assert sim.battery[0] == pytest.approx([(1.5 - slot) * hover, (9 - slot) * hover])
    outcome = fly(sim, STILL, STILL)
    assert outcome.terminated.tolist() == [[True, False]]
    assert outcome.energy_j[0] == pytest.approx([0.5 * hover, hover])  # what was left
    assert outcome.flew.all()
    assert sim.load[0].sum() == 5  # it served in its last slot
    assert sim.position[0, 0].tolist() == [300, 300, 0]
    for _ in range(2):
        outcome = fly(sim, (1.0, 0.0, 1.0, 1.0), STILL)
        assert not outcome.terminated.any()
        assert outcome.flew.tolist() == [[False, True]]
        assert sim.position[0, 0].tolist() == [300, 300, 0]
        assert sim.velocity[0, 0].tolist() == [0, 0, 0]
        assert sim.power[0, 0] == 0
        assert sim.load[0].tolist() == [0, 5]
        assert outcome.reward[0, 0] == 0
        assert outcome.energy_j[0, 0] == 0
        assert outcome.metrics["energy_j"][0] == pytest.approx(hover)
        assert not outcome.out[0, 0]
        assert not outcome.collision.any()


def test_means_are_over_the_uavs_that_fly():
    sim = in_flight([(300, 300, 100), (700, 700, 80), (500, 200, 90)], battery={"capacity_j": 1e6})
    sim.alive[0, 0] = False
    sim.position[0, 0, 2] = 0.0
    outcome = fly(sim, STILL, (1.0, 0.0, 0.0, 1.0), STILL)
    arrays = outcome.objectives.arrays()
    assert arrays["energy"][0, 0] == 0
    for name in ("utility", "energy", "fairness", "collision", "out"):
        mean = arrays[name][0, 1:].mean()
        assert outcome.metrics[f"objective_{name}"][0] == pytest.approx(mean), name


def test_charges_and_heights_at_the_start_are_uniform_in_their_ranges():
    config = DownlinkConfig(num_uavs=8, flight=THREE, battery={"capacity_j": 1000.0, "least_charge": 0.2})
    sim = Simulator(config, 200)
    sim.reset(3)
    for values, low, high in ((sim.position[..., 2], 50, 150), (sim.battery, 200, 1000)):
        assert values.min() >= low
        assert values.max() <= high
        assert np.histogram(values, bins=4, range=(low, high))[0] == pytest.approx([400] * 4, abs=80)
