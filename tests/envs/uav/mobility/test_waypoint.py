"""Random waypoint and groups against closed forms, renewal theory and one walker in plain Python."""

import math

import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.draws import unit, words_at
from marl_tr.envs.uav.mobility_config import GroupConfig, RandomWaypointConfig
from marl_tr.envs.uav.waypoint import Disc, Square, Walkers

SIDE = 200.0
CONFIG = RandomWaypointConfig(v_lo=0.5, v_hi=4.0, pause_max_s=40.0)
MEAN_SPEED = 3.5 / math.log(8.0)
"""Stationary, while moving; the mean of the legs is 2.25."""


def renewal(legs=400_000):
    """Shares of time of a long walk, summed leg by leg: pausing, and the second moment about the centre."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(-0.5 * SIDE, 0.5 * SIDE, (legs + 1, 2))
    begin, end = ends[:-1], ends[1:]
    travel = np.hypot(*(end - begin).T) / rng.uniform(CONFIG.v_lo, CONFIG.v_hi, legs)
    pause = rng.uniform(0, CONFIG.pause_max_s, legs)
    along = ((begin**2).sum(axis=1) + (begin * end).sum(axis=1) + (end**2).sum(axis=1)) / 3
    total = travel.sum() + pause.sum()
    return pause.sum() / total, (along @ travel + (end**2).sum(axis=1) @ pause) / total


@pytest.mark.parametrize("region", [Square(7.0), Disc(3.0)])
def test_regions_know_their_distances(region):
    rng = np.random.default_rng(0)
    first, second = (region.points(*rng.random((2, 200_000))) for _ in range(2))
    apart = np.hypot(*(second - first).T)
    assert apart.mean() == pytest.approx(region.mean_distance, abs=4 * apart.std() / math.sqrt(200_000))
    assert 0.93 * region.longest < apart.max() <= region.longest


def test_points_of_a_disc_are_uniform_in_it():
    points = Disc(3.0).points(*np.random.default_rng(0).random((2, 20_000)))
    assert stats.kstest((points**2).sum(axis=1) / 9.0, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("slots", [0, 400])
def test_random_waypoint_is_stationary_from_the_start(slots, users_of):
    # Short slots: a velocity is the speed of a leg.
    users = users_of(CONFIG, envs=64, users=250, area_m=SIDE, slot_s=0.01, dtype=np.float64)
    if slots:
        coarse = users_of(CONFIG, envs=64, users=250, area_m=SIDE, dtype=np.float64)
        coarse.walk(slots)
        users.mobility.load_state_dict(coarse.mobility.state_dict())
    path, velocities = users.walk(1)
    speed = np.hypot(velocities[0, ..., 0], velocities[0, ..., 1]).ravel()
    moving = speed[speed > 0.99 * CONFIG.v_lo]
    number = speed.size
    pausing, second_moment = renewal()
    assert (speed == 0).mean() == pytest.approx(pausing, abs=4 * 0.5 / math.sqrt(number))
    assert moving.mean() == pytest.approx(MEAN_SPEED, abs=4 * moving.std() / math.sqrt(moving.size))
    uniform_in_logarithm = np.log(moving / CONFIG.v_lo) / math.log(CONFIG.v_hi / CONFIG.v_lo)
    assert stats.kstest(uniform_in_logarithm, "uniform").pvalue > 1e-3
    square = np.square(path[0] - 0.5 * SIDE).sum(axis=-1)
    assert square.mean() == pytest.approx(second_moment, abs=4 * square.std() / math.sqrt(number))
    assert second_moment < 0.9 * SIDE**2 / 6  # a uniform law would have L^2 / 6: the test can tell them apart


def test_pauses_left_at_the_start_are_residuals(users_of):
    users = users_of(CONFIG, envs=64, users=250, area_m=SIDE)
    wait = users.mobility.state_dict()["walkers_wait"]
    left = wait[wait > 0] / CONFIG.pause_max_s
    assert stats.kstest(left, stats.beta(1, 2).cdf).pvalue > 1e-3


def test_without_pauses_everybody_moves_and_equal_speeds_are_kept(users_of):
    config = RandomWaypointConfig(v_lo=2.0, v_hi=2.0, pause_max_s=0.0)
    users = users_of(config, envs=4, users=50, area_m=SIDE, slot_s=0.01, dtype=np.float64)
    _, velocities = users.walk(20)
    speed = np.hypot(velocities[..., 0], velocities[..., 1])
    assert np.median(speed, axis=0) == pytest.approx(np.full((4, 50), 2.0))


def test_from_the_layout_users_begin_a_leg_where_they_were_drawn_and_slow_down(users_of):
    config = CONFIG.model_copy(update={"start": "layout", "pause_max_s": 0.0})
    start = np.random.default_rng(0).uniform(0, SIDE, (64, 250, 2))
    users = users_of(config, envs=64, users=250, area_m=SIDE, start=start, dtype=np.float64)
    assert (users.mobility.position == start).all()
    legs = np.hypot(*np.moveaxis(users.mobility.state_dict()["walkers_motion"], -1, 0))
    assert legs.mean() == pytest.approx(2.25, abs=0.04)
    users.walk(400)
    legs = np.hypot(*np.moveaxis(users.mobility.state_dict()["walkers_motion"], -1, 0))
    assert legs.mean() == pytest.approx(MEAN_SPEED, abs=0.04)


def test_many_legs_a_slot_are_those_of_one_walker_in_plain_python():
    region, speeds, pause, slot_s = Square(10.0), (1.0, 3.0), 2.0, 30.0
    walkers = Walkers(region, 1, 3, speeds=speeds, pause_max_s=pause, slot_s=slot_s, purposes=(5, 6))
    stream, rows = np.array([4]), np.arange(1)
    walkers.begin(rows, None, seed=8, stream=stream, episode=np.zeros(1, int))
    for moment in range(1, 30):
        expected, legs = [], 0
        for user in range(3):
            place, target = walkers.place[0, user].copy(), walkers.target[0, user].copy()
            speed, wait = math.hypot(*walkers.motion[0, user]), walkers.wait[0, user]
            left, number = slot_s, 0
            while True:
                stand = min(wait, left)
                wait, left = wait - stand, left - stand
                distance = math.dist(place, target)
                if distance > speed * left:
                    place = place + (target - place) * (speed * left / distance)
                    break
                place, left = target, left - distance / speed
                block = np.array([number * 3 + user])
                u = unit(words_at(8, stream, purpose=6, step=np.array([moment]), block=block))[0]
                target, speed, wait = 10.0 * u[:2], 1.0 + 2.0 * u[2], 2.0 * u[3]
                number += 1
            legs = max(legs, number)
            expected.append([*place, wait])
        walkers.move(seed=8, stream=stream, moment=np.array([moment]))
        assert walkers.place[0] == pytest.approx(np.array(expected)[:, :2], abs=1e-9)
        assert walkers.wait[0] == pytest.approx(np.array(expected)[:, 2], abs=1e-9)
        assert legs > 3


def test_slots_of_very_many_legs_are_refused(users_of):
    with pytest.raises(ValueError, match=r"a slot of 3600 s lasts \d+ mean legs .* make slots shorter"):
        users_of(RandomWaypointConfig(pause_max_s=0.0, v_lo=50.0, v_hi=100.0), area_m=10.0, slot_s=3600.0)


GROUPS = GroupConfig(groups=3, radius_m=20.0)


def test_groups_keep_together_and_apart(users_of):
    users = users_of(GROUPS, envs=8, users=11, area_m=5000.0, dtype=np.float64)
    path, _ = users.walk(100)
    members = [slice(0, 4), slice(4, 8), slice(8, 11)]
    spread = [np.hypot(*np.moveaxis(path[:, :, m, None] - path[:, :, None, m], -1, 0)).max() for m in members]
    assert max(spread) <= 2 * 20.0
    assert min(spread) > 20.0
    centres = np.stack([path[:, :, m].mean(axis=2) for m in members], axis=2)
    assert np.hypot(*np.moveaxis(centres[:, :, 0] - centres[:, :, 1], -1, 0)).max() > 1000.0


def test_members_walk_in_the_disc_round_their_leader_in_a_law_that_stays(users_of):
    users = users_of(GROUPS, envs=64, users=60, area_m=5000.0, dtype=np.float64)
    rng = np.random.default_rng(0)
    begin, end = (Disc(20.0).points(*rng.random((2, 400_000))) for _ in range(2))
    length = np.hypot(*(end - begin).T)
    along = ((begin**2).sum(axis=1) + (begin * end).sum(axis=1) + (end**2).sum(axis=1)) / 3
    expected = along @ length / length.sum()
    for slots in (0, 200):
        users.walk(slots)
        offset = users.mobility.state_dict()["members_place"]
        square = np.square(offset).sum(axis=-1)
        assert square.max() <= 20.0**2 * (1 + 1e-9)
        assert square.mean() == pytest.approx(expected, abs=4 * square.std() / math.sqrt(square.size))


def test_members_beyond_the_border_stand_at_its_nearest_point(users_of):
    users = users_of(GroupConfig(groups=1, radius_m=30.0), envs=16, users=40, area_m=60.0, dtype=np.float64)
    users.walk(50)
    state = users.mobility.state_dict()
    free = state["leaders_place"] + state["members_place"]
    assert users.mobility.position == pytest.approx(np.clip(free, 0.0, 60.0))
    assert (free != users.mobility.position).any()


def test_more_groups_than_users_are_refused(users_of):
    with pytest.raises(ValueError, match=r"mobility\.groups: 3 groups need at least as many users, got 2"):
        users_of(GROUPS, users=2)
