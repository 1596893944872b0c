import math

import numpy as np
import pytest

from marl_tr.envs.uav.radio import serve

NOISE, BAND = 2e-14, 1e6


def links(gain, power, resources="equal_share"):
    return serve(gain, power, noise_w=NOISE, bandwidth_hz=BAND, resources=resources)


def random_links(seed=0, e=3, u=4, g=15, dtype=np.float64):
    rng = np.random.default_rng(seed)
    gain = 10 ** rng.uniform(-13, -8, size=(e, u, g))
    return gain.astype(dtype), rng.uniform(1e-4, 0.1, size=(e, u)).astype(dtype)


def brute_force(gain, power, resources):
    """One user after the other, in Python."""
    e, u, g = gain.shape
    serving, sinr, rates = np.zeros((e, g), int), np.zeros((e, g)), np.zeros((e, g))
    for i in range(e):
        for k in range(g):
            received = [power[i, j] * gain[i, j, k] for j in range(u)]
            serving[i, k] = max(range(u), key=lambda j, r=received: r[j])
        for k in range(g):
            s = serving[i, k]
            users = sum(serving[i] == s)
            if resources == "equal_share":
                interference = sum(power[i, j] * gain[i, j, k] for j in range(u) if j != s)
                sinr[i, k] = power[i, s] * gain[i, s, k] / (interference + NOISE)
                rates[i, k] = BAND / users * math.log2(1 + sinr[i, k])
            else:
                sinr[i, k] = power[i, s] * gain[i, s, k] / (NOISE / u)
                rates[i, k] = BAND / u / users * math.log2(1 + sinr[i, k])
    return serving, sinr, rates


@pytest.mark.parametrize("resources", ["equal_share", "orthogonal"])
@pytest.mark.parametrize("uavs", [1, 2, 5])
def test_rates_meet_a_loop_over_users(resources, uavs):
    gain, power = random_links(u=uavs)
    serving, sinr, rates = brute_force(gain, power, resources)
    found = links(gain, power, resources)
    assert (found.serving == serving).all()
    assert found.sinr == pytest.approx(sinr, rel=1e-12)
    assert found.rates == pytest.approx(rates, rel=1e-12)
    for u in range(uavs):
        assert found.load[:, u] == pytest.approx((serving == u).sum(axis=1))
        assert found.uav_rates[:, u] == pytest.approx(np.where(serving == u, rates, 0).sum(axis=1), rel=1e-12)


def test_levels_are_the_powers_that_reach_each_others_users():
    gain, power = random_links()
    found = links(gain, power)
    expected = np.zeros((3, 4, 4))
    for e in range(3):
        for receiver in range(4):
            for sender in range(4):
                users = found.serving[e] == receiver
                expected[e, receiver, sender] = (power[e, sender] * gain[e, sender, users]).sum() / NOISE
    assert found.levels == pytest.approx(expected, rel=1e-12)
    alone = links(gain, power, "orthogonal").levels
    diagonal = np.arange(4)
    assert alone[:, diagonal, diagonal] == pytest.approx(4 * expected[:, diagonal, diagonal], rel=1e-12)
    assert (alone * (1 - np.eye(4)) == 0).all()


def test_a_single_uav_has_no_interference():
    gain, power = random_links(u=1)
    shared, orthogonal = links(gain, power), links(gain, power, "orthogonal")
    assert shared.sinr == pytest.approx(power * gain[:, 0] / NOISE, rel=1e-12)
    assert shared.rates == pytest.approx(orthogonal.rates, rel=1e-12)


def test_a_uav_without_users_has_rate_zero():
    gain, power = random_links()
    gain[:, 2] *= 1e-9
    found = links(gain, power)
    assert (found.load[:, 2] == 0).all()
    assert (found.uav_rates[:, 2] == 0).all()
    assert np.isfinite(found.rates).all()


def test_a_tie_goes_to_one_uav():
    gain = np.full((1, 3, 4), 1e-10)
    found = links(gain, np.full((1, 3), 0.1))
    assert found.load.tolist() == [[4, 0, 0]]


def test_shares_add_up_to_the_band():
    gain, power = random_links()
    found = links(gain, power)
    share = found.rates / np.log2(1 + found.sinr)
    for u in range(4):
        total = np.where(found.serving == u, share, 0).sum(axis=1)
        assert total == pytest.approx(np.where(found.load[:, u] > 0, BAND, 0), rel=1e-9)


def test_power_scaling_leaves_interference_limited_sinr_unchanged():
    gain, power = random_links()
    gain *= 1e6
    assert links(gain, power * 3).sinr == pytest.approx(links(gain, power).sinr, rel=1e-3)


def test_float32_keeps_the_interference_under_a_dominant_server():
    gain = np.array([[[1e-3], [1e-12]]])
    power = np.array([[0.1, 0.1]])
    exact = 1e-4 / (1e-13 + NOISE)
    assert links(gain.astype(np.float32), power.astype(np.float32)).sinr[0, 0] == pytest.approx(exact, rel=1e-5)


def test_exchanging_uavs_or_users_exchanges_the_results():
    gain, power = random_links()
    rng = np.random.default_rng(1)
    uavs, users = rng.permutation(4), rng.permutation(15)
    base, other = links(gain, power), links(gain[:, uavs][:, :, users], power[:, uavs])
    assert other.rates == pytest.approx(base.rates[:, users], rel=1e-12)
    assert other.uav_rates == pytest.approx(base.uav_rates[:, uavs], rel=1e-12)
