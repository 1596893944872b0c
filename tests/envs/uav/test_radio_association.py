import numpy as np
import pytest

from marl_tr.envs.uav import association
from marl_tr.envs.uav.association import associate, nearest_users, row_blocks
from marl_tr.envs.uav.radio import NO_LIMITS
from marl_tr.envs.uav.radio_config import RadioConfig


def received_power(seed=0, e=4, u=5, g=30, dtype=np.float64):
    return (10 ** np.random.default_rng(seed).uniform(-3, 4, size=(e, u, g))).astype(dtype)


def slow_rounds(received, cap, reachable=None):
    """The documented rule, one user and one UAV after the other."""
    envs, uavs, users = received.shape
    serving = np.full((envs, users), -1)
    for e in range(envs):
        room = [cap] * uavs
        for _ in range(uavs):
            askers = {u: [] for u in range(uavs)}
            for g in range(users):
                options = [
                    u
                    for u in range(uavs)
                    if room[u] > 0 and received[e, u, g] > 0 and (reachable is None or reachable[e, u, g])
                ]
                if serving[e, g] < 0 and options:
                    askers[max(options, key=lambda u: (received[e, u, g], -u))].append(g)
            for u, asking in askers.items():
                for g in sorted(asking, key=lambda g: (-received[e, u, g], g))[: room[u]]:
                    serving[e, g] = u
                    room[u] -= 1
    return serving


@pytest.mark.parametrize(
    ("uavs", "users", "cap"), [(1, 7, 3), (2, 9, 1), (5, 30, 6), (5, 30, 4), (8, 25, 2), (3, 4, 9)]
)
@pytest.mark.parametrize("seed", range(4))
def test_caps_meet_a_loop_over_users(uavs, users, cap, seed):
    received = received_power(seed, u=uavs, g=users)
    received[0, 0] = 0  # a silent UAV
    found = associate(received, limits=RadioConfig(max_users_per_uav=cap))
    assert (found.serving == slow_rounds(received, cap)).all()
    taken = np.take_along_axis(received, np.maximum(found.serving, 0)[:, None], axis=1)[:, 0]
    assert (found.signal == np.where(found.serving >= 0, taken, 0)).all()


@pytest.mark.parametrize("cap", [None, 4])
def test_coverage_and_caps_together_meet_a_loop_over_users(cap):
    received = received_power(7)
    distance = np.random.default_rng(1).uniform(0, 400, received.shape)
    limits = RadioConfig(max_users_per_uav=cap, coverage_radius_m=150.0)
    found = associate(received, limits=limits, horizontal_sq=distance**2)
    assert (found.serving == slow_rounds(received, cap or 99, distance <= 150)).all()
    assert (found.serving == -1).any()


def test_the_coverage_radius_itself_is_covered():
    distance = np.array([[[149.9, 150.0, 150.1]]])
    limits = RadioConfig(coverage_radius_m=150.0)
    found = associate(np.ones((1, 1, 3)), limits=limits, horizontal_sq=distance**2)
    assert found.serving.tolist() == [[0, 0, -1]]


def test_equal_powers_are_settled_by_index():
    received = np.full((2, 3, 7), 5.0)
    found = associate(received, limits=RadioConfig(max_users_per_uav=2)).serving
    assert found.tolist() == [[0, 0, 1, 1, 2, 2, -1]] * 2
    assert (found == slow_rounds(received, 2)).all()


def test_a_crowd_round_one_uav_overflows_to_all_of_them_in_turn():
    # Everybody ranks the UAVs alike: each round fills one more, as many rounds as UAVs.
    received = np.array([[[40.0], [30.0], [20.0], [10.0]]]) * np.arange(1.0, 9.0)
    found = associate(received, limits=RadioConfig(max_users_per_uav=2)).serving
    assert found.tolist() == [[3, 3, 2, 2, 1, 1, 0, 0]]


def test_no_cap_is_exceeded_and_nobody_is_left_out_while_there_is_room():
    received = received_power(3, e=6, u=8, g=100)
    for cap in (5, 12, 13):
        serving = associate(received, limits=RadioConfig(max_users_per_uav=cap)).serving
        load = (serving[:, None] == np.arange(8)[:, None]).sum(axis=2)
        assert load.max() <= cap
        assert (load.sum(axis=1) == min(100, 8 * cap)).all()


def test_exchanging_uavs_or_users_exchanges_the_association():
    received, limits = received_power(5), RadioConfig(max_users_per_uav=4)
    rng = np.random.default_rng(0)
    uavs, users = rng.permutation(5), rng.permutation(30)
    base = associate(received, limits=limits).serving
    other = associate(received[:, uavs][:, :, users], limits=limits).serving
    named = np.where(other >= 0, uavs[other], -1)
    assert (named == base[:, users]).all()


def test_a_power_of_zero_serves_nobody():
    received = received_power()
    received[:, 2] = 0
    received[1] = 0
    found = associate(received, limits=NO_LIMITS)
    assert not (found.serving == 2).any()
    assert (found.serving[1] == -1).all()
    assert (found.signal[1] == 0).all()


def test_a_coverage_radius_needs_distances():
    with pytest.raises(ValueError, match="pass horizontal_sq"):
        associate(received_power(), limits=RadioConfig(coverage_radius_m=100.0))


def slow_nearest(position, users, count, among=None):
    found = np.full((*position.shape[:2], count), -1)
    for e in range(position.shape[0]):
        for u in range(position.shape[1]):
            options = [g for g in range(users.shape[1]) if among is None or among[e, u, g]]
            offset = users[e, :, :2] - position[e, u, :2]
            options.sort(key=lambda g, d=offset: (float(d[g, 0] ** 2 + d[g, 1] ** 2), g))
            found[e, u, : min(count, len(options))] = options[:count]
    return found


@pytest.mark.parametrize("count", [1, 6, 20, 24])
@pytest.mark.parametrize("grid", [False, True])
def test_nearest_users_meet_a_sort_of_all_users_ties_included(count, grid):
    rng = np.random.default_rng(count)
    position, users = rng.uniform(0, 9, (3, 4, 3)), rng.uniform(0, 9, (3, 20, 2))
    if grid:  # whole numbers: many users are equally far, and many in one place
        position, users = position.round(), users.round()
    assert (nearest_users(position, users, count) == slow_nearest(position, users, count)).all()
    among = rng.uniform(size=(3, 4, 20)) < 0.3
    found = nearest_users(position, users, count, among=among)
    assert (found == slow_nearest(position, users, count, among)).all()


def test_nearest_users_refuses_to_look_for_none():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        nearest_users(np.zeros((1, 1, 2)), np.zeros((1, 3, 2)), 0)


@pytest.mark.parametrize(("rows", "size"), [(1, 10), (64, 10**5), (65, 2**18), (7, 2**30), (3, 0)])
def test_blocks_of_rows_cover_them_once(rows, size):
    blocks = list(row_blocks(rows, size))
    assert [i for block in blocks for i in range(rows)[block]] == list(range(rows))
    assert all((b.stop - b.start) * size <= association._BLOCK or b.stop - b.start == 1 for b in blocks)
