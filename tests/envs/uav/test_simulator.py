import numpy as np
import pytest

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.energy import HOVER_POWER_W, propulsion_power
from marl_tr.envs.uav.fairness import fairness
from marl_tr.envs.uav.simulator import Simulator

HOVER = (-1.0, 0.0, 1.0)


def placed(positions, users, *, dtype=np.float64, **config):
    """A simulator of one environment with everything in its place."""
    positions, users = np.asarray(positions, float), np.asarray(users, float)
    sim = Simulator(DownlinkConfig(num_uavs=len(positions), num_users=len(users), **config), 1, dtype=dtype)
    sim.reset(0)
    sim.position[0, :, :2], sim.users[0] = positions, users
    return sim


def fly(sim, *actions):
    return sim.step(np.array([actions], float))


GOLDEN_UAVS = [(250, 250), (750, 700)]
GOLDEN_USERS = [(250, 250), (300, 400), (500, 500), (800, 650), (900, 900)]
HALF_POWER = (-1.0, 0.0, 0.0)


def golden(**config):
    sim = placed(GOLDEN_UAVS, GOLDEN_USERS, **config)
    return sim, fly(sim, HOVER, HALF_POWER)


def test_golden_vector_of_the_mean_gain_channel():
    sim, outcome = golden()
    assert sim.power[0] == pytest.approx([0.1, 0.05], rel=1e-12)
    assert sim.serving[0].tolist() == [0, 0, 0, 1, 1]
    sinr_db = 10 * np.log10(sim.sinr[0])
    assert sinr_db == pytest.approx([29.98392, 20.64885, 1.43436, 22.35237, 15.56796], abs=6e-6)
    rates = [3320630.16, 2290590.45, 419274.55, 3716833.37, 2605524.56]
    assert sim.rates[0] == pytest.approx(rates, rel=1e-6)
    assert sim.uav_rates[0] == pytest.approx([6030495.15, 6322357.93], rel=1e-6)
    assert sim.config.rate_ref == pytest.approx(1383772.64745, rel=1e-6)
    assert 1e6 * outcome.metrics["std_rate_mbps"][0] == pytest.approx(1143170.42005, rel=1e-6)
    assert outcome.metrics["jain"][0] == pytest.approx(0.82365179, rel=1e-6)
    assert outcome.reward[0] == pytest.approx([1.330141, 1.414508], rel=1e-6)


def test_golden_vector_of_the_mean_decibel_channel():
    sim, _ = golden(channel={"kind": "al_hourani", "averaging": "mean_db"})
    sinr_db = 10 * np.log10(sim.sinr[0])
    assert sinr_db == pytest.approx([36.76767, 25.27195, 1.31315, 29.14799, 14.26509], abs=6e-6)


def test_float32_meets_the_golden_vector_to_its_precision():
    sim = placed(GOLDEN_UAVS, GOLDEN_USERS, dtype=np.float32)
    outcome = fly(sim, HOVER, HALF_POWER)
    assert outcome.reward.dtype == np.float32
    assert outcome.reward[0] == pytest.approx([1.330141, 1.414508], rel=1e-5)


def test_rho_mixes_own_reward_with_the_mean():
    own = golden()[1].reward[0]
    shared = golden(rho=1.0)[1].reward[0]
    half = golden(rho=0.5)[1].reward[0]
    assert shared == pytest.approx([own.mean()] * 2, rel=1e-12)
    assert half == pytest.approx(0.5 * own + 0.5 * own.mean(), rel=1e-12)


def test_the_deviation_term_is_what_lambda_weighs():
    _, outcome = golden()
    without = golden(lambda_sigma=0.0)[1].reward[0]
    sigma = 1e6 * outcome.metrics["std_rate_mbps"][0] / golden()[0].config.rate_ref
    assert without - outcome.reward[0] == pytest.approx([0.5 * sigma] * 2, rel=1e-9)


def test_energy_enters_the_reward_only_by_its_weight():
    assert golden()[1].reward[0] - golden(w_energy=0.3)[1].reward[0] == pytest.approx([0.3, 0.3])


def test_energy_is_propulsion_and_radio_over_the_slot():
    sim = placed([(500, 500)], GOLDEN_USERS, slot_s=2.0)
    outcome = fly(sim, (0.0, 0.25, 1.0))
    expected = 2.0 * (propulsion_power(np.array([100.0]))[0] + 5.0)
    assert outcome.energy_j[0, 0] == pytest.approx(expected, rel=1e-9)
    assert outcome.metrics["energy_j"][0] == pytest.approx(expected, rel=1e-9)
    still = fly(sim, HOVER)
    assert still.energy_j[0, 0] == pytest.approx(2.0 * (HOVER_POWER_W + 5.0), rel=1e-12)


@pytest.mark.parametrize(
    ("action", "moved"),
    [
        ((1.0, 0.0, 0.0), (20.0, 0.0)),
        ((1.0, 0.5, 0.0), (0.0, 20.0)),
        ((0.0, 1.0, 0.0), (-10.0, 0.0)),
        ((-1.0, 0.3, 0.0), (0.0, 0.0)),
        ((5.0, 0.0, 0.0), (20.0, 0.0)),
    ],
)
def test_speed_and_heading_move_the_uav(action, moved):
    sim = placed([(500, 500)], GOLDEN_USERS)
    outcome = fly(sim, action)
    assert sim.position[0, 0] == pytest.approx((500 + moved[0], 500 + moved[1], 100))
    assert sim.velocity[0, 0] == pytest.approx((*moved, 0), abs=1e-9)
    assert not outcome.out.any()


def test_transmit_power_has_a_floor():
    sim = placed([(500, 500)], GOLDEN_USERS)
    fly(sim, (-1.0, 0.0, -1.0))
    assert sim.power[0, 0] == pytest.approx(1e-4)


def test_the_border_stops_a_uav_and_costs():
    sim = placed([(990, 500)], GOLDEN_USERS)
    outcome = fly(sim, (1.0, 0.0, 1.0))
    assert sim.position[0, 0].tolist() == [1000.0, 500.0, 100.0]
    assert outcome.out.tolist() == [[True]]
    assert outcome.metrics["out_of_bounds"].tolist() == [1.0]
    free = placed([(990, 500)], GOLDEN_USERS, c_out=0.0)
    assert fly(free, (1.0, 0.0, 1.0)).reward - outcome.reward == pytest.approx(np.array([[0.2]]))
    # It flew 10 m in the slot, and pays for that speed, not for the one it asked for.
    assert sim.velocity[0, 0] == pytest.approx((10.0, 0.0, 0.0))


def test_reaching_the_border_exactly_is_not_out():
    sim = placed([(980, 500)], GOLDEN_USERS)
    assert not fly(sim, (1.0, 0.0, 1.0)).out.any()


def test_swapping_places_is_a_collision():
    sim = placed([(490, 500), (510, 500), (100, 100)], GOLDEN_USERS)
    outcome = fly(sim, (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), HOVER)
    assert outcome.collision.tolist() == [[True, True, False]]
    assert outcome.metrics["collisions"].tolist() == [2.0]
    calm = placed([(490, 500), (510, 500), (100, 100)], GOLDEN_USERS, c_collision=0.0)
    penalty = fly(calm, (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), HOVER).reward - outcome.reward
    assert penalty == pytest.approx(np.array([[1.0, 1.0, 0.0]]), abs=1e-12)


def test_crossing_paths_at_different_moments_is_none():
    # Both pass (500, 500), after 0.15 and after 0.95 of the slot: at closest 11.3 m.
    sim = placed([(497, 500), (500, 481)], GOLDEN_USERS)
    assert not fly(sim, (1.0, 0.0, 1.0), (1.0, 0.5, 1.0)).collision.any()


def test_flying_side_by_side_is_safe_from_the_least_separation_on():
    for gap, hit in ((9.99, True), (10.01, False)):
        sim = placed([(500, 500), (500, 500 + gap)], GOLDEN_USERS)
        assert fly(sim, (1.0, 0.0, 1.0), (1.0, 0.0, 1.0)).collision.all() == hit


def test_fairness_meets_numpys_statistics():
    rates = np.random.default_rng(0).uniform(1e4, 4e6, size=(7, 20))
    found = fairness(rates)
    assert found["std_rate_mbps"] == pytest.approx(rates.std(axis=1) / 1e6)
    assert found["p5_rate_mbps"] == pytest.approx(np.percentile(rates, 5, axis=1) / 1e6)
    assert found["min_rate_mbps"] == pytest.approx(rates.min(axis=1) / 1e6)
    assert found["throughput_mbps"] == pytest.approx(rates.sum(axis=1) / 1e6)
    assert found["jain"] == pytest.approx(rates.sum(axis=1) ** 2 / (20 * np.square(rates).sum(axis=1)))
    assert fairness(np.full((1, 1), 5e5))["p5_rate_mbps"].tolist() == [0.5]


def test_jains_index_of_nobody_served_is_zero():
    rates = np.array([[0.0, 0.0, 0.0], [1e6, 0.0, 0.0], [1e6, 1e6, 1e6]])
    assert fairness(rates)["jain"].tolist() == pytest.approx([0, 1 / 3, 1])


def turned(points, angle):
    c, s = np.cos(angle), np.sin(angle)
    return (np.asarray(points, float) - 500) @ np.array([[c, s], [-s, c]]) + 500


@pytest.mark.parametrize(
    "move", [lambda p: np.add(p, (60.0, -40.0)), lambda p: turned(p, 0.3), lambda p: turned(p, np.pi / 2)]
)
def test_rates_do_not_change_when_the_whole_scene_moves(move):
    rng = np.random.default_rng(2)
    uavs, users = rng.uniform(300, 700, (3, 2)), rng.uniform(250, 750, (12, 2))
    base, moved = placed(uavs, users), placed(move(uavs), move(users))
    reward = fly(base, HOVER, HOVER, HALF_POWER).reward
    assert fly(moved, HOVER, HOVER, HALF_POWER).reward == pytest.approx(reward, rel=1e-9)
    assert moved.rates == pytest.approx(base.rates, rel=1e-9)


def test_the_order_of_users_does_not_matter_to_rewards():
    sim = placed(GOLDEN_UAVS, GOLDEN_USERS[::-1])
    assert fly(sim, HOVER, HALF_POWER).reward == pytest.approx(golden()[1].reward, rel=1e-12)


def test_running_means_are_the_means_of_the_rates_so_far():
    sim = Simulator(DownlinkConfig(), 5, dtype=np.float64)
    sim.reset(3)
    rng, seen = np.random.default_rng(0), []
    for _ in range(7):
        sim.step(rng.uniform(-1, 1, (5, 3, 3)))
        seen.append(sim.rates)
    assert sim.mean_rates == pytest.approx(np.mean(seen, axis=0), rel=1e-12)


def test_the_float32_simulator_follows_the_float64_one():
    config = DownlinkConfig(num_uavs=4)
    single, double = Simulator(config, 64), Simulator(config, 64, dtype=np.float64)
    single.reset(1)
    double.reset(1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.uniform(-1, 1, (64, 4, 3))
        a, b = single.step(actions), double.step(actions)
        assert single.position == pytest.approx(double.position, abs=2e-3)
        # A user halfway between two UAVs may change sides on a rounding; that is rare.
        agree = (single.serving == double.serving).all(axis=1)
        assert agree.mean() > 0.98
        assert a.reward[agree] == pytest.approx(b.reward[agree], abs=2e-4)


def test_an_action_that_is_not_finite_is_refused_by_name():
    sim = Simulator(DownlinkConfig(), 4, env_offset=10)
    sim.reset(0)
    actions = np.zeros((4, 3, 3))
    actions[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="uav_1 in environment 12 is not finite"):
        sim.step(actions)
