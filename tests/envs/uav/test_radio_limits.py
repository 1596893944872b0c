import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from marl_tr.envs.uav import association
from marl_tr.envs.uav.radio import Links, serve, with_rates
from marl_tr.envs.uav.radio_config import RadioConfig

NOISE, BAND = 2e-14, 1e6
RESOURCES = ["equal_share", "orthogonal"]
FIELDS = [field.name for field in dataclasses.fields(Links)]


def links(gain, power, resources="equal_share", *, horizontal_sq=None, **limits):
    return serve(
        gain,
        power,
        noise_w=NOISE,
        bandwidth_hz=BAND,
        resources=resources,
        limits=RadioConfig(**limits),
        horizontal_sq=horizontal_sq,
    )


def random_links(seed=0, e=3, u=4, g=15, dtype=np.float64):
    rng = np.random.default_rng(seed)
    gain = 10 ** rng.uniform(-13, -8, size=(e, u, g))
    return gain.astype(dtype), rng.uniform(1e-4, 0.1, size=(e, u)).astype(dtype)


def brute_force(gain, power, serving, resources, *, least_db=-math.inf, most=math.inf):
    """Rates of a given association, one user after the other."""
    envs, uavs, users = gain.shape
    sinr, rates = np.zeros((envs, users)), np.zeros((envs, users))
    for e in range(envs):
        for g in range(users):
            s = serving[e, g]
            if s < 0:
                continue
            width = BAND if resources == "equal_share" else BAND / uavs
            noise = NOISE * width / BAND
            others = [u for u in range(uavs) if u != s and resources == "equal_share"]
            sinr[e, g] = power[e, s] * gain[e, s, g] / (sum(power[e, u] * gain[e, u, g] for u in others) + noise)
            if 10 * math.log10(sinr[e, g]) >= least_db:
                rates[e, g] = width / sum(serving[e] == s) * min(math.log1p(sinr[e, g]) / math.log(2), most)
    return sinr, rates


@pytest.mark.parametrize("resources", RESOURCES)
@pytest.mark.parametrize(
    "limits",
    [
        {"max_users_per_uav": 3},
        {"coverage_radius_m": 100.0},
        {"min_sinr_db": 18.0},
        {"max_spectral_efficiency": 4.0},
        {"max_users_per_uav": 2, "coverage_radius_m": 120.0, "min_sinr_db": -3.0, "max_spectral_efficiency": 7.4},
    ],
    ids=lambda limits: "+".join(limits),
)
def test_rates_under_limits_meet_a_loop_over_users(resources, limits):
    gain, power = random_links()
    power[0, 1] = 0
    horizontal = np.random.default_rng(5).uniform(0, 250, gain.shape)
    found = links(gain, power, resources, horizontal_sq=horizontal**2, **limits)
    sinr, rates = brute_force(
        gain,
        power,
        found.serving,
        resources,
        least_db=limits.get("min_sinr_db", -math.inf),
        most=limits.get("max_spectral_efficiency", math.inf),
    )
    assert found.sinr == pytest.approx(sinr, rel=1e-12)
    assert found.rates == pytest.approx(rates, rel=1e-12)
    assert (rates != brute_force(gain, power, gain_only(gain, power), resources)[1]).any()
    for u in range(4):
        served = found.serving == u
        assert (found.load[:, u] == served.sum(axis=1)).all()
        assert found.uav_rates[:, u] == pytest.approx(np.where(served, rates, 0).sum(axis=1), rel=1e-12)
        for v in range(4):
            level = np.where(served, power[:, v, None] * gain[:, v] / NOISE, 0).sum(axis=1)
            expected = level if resources == "equal_share" else 4 * level * (u == v)
            assert found.levels[:, u, v] == pytest.approx(expected, rel=1e-12)


def gain_only(gain, power):
    return (gain * power[:, :, None]).argmax(axis=1)


@pytest.mark.parametrize("resources", RESOURCES)
def test_users_out_of_everybodys_reach_have_no_uav_no_sinr_and_no_rate(resources):
    gain, power = random_links()
    far = np.full(gain.shape, 200.0)
    far[0, 2, 3] = 50.0
    found = links(gain, power, resources, horizontal_sq=far**2, coverage_radius_m=100.0)
    assert (found.serving >= 0).sum() == 1
    assert found.serving[0, 3] == 2
    unserved = found.serving < 0
    assert (found.rates[unserved] == 0).all()
    assert (found.sinr[unserved] == 0).all()
    assert all(np.isfinite(getattr(found, name)).all() for name in FIELDS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("resources", RESOURCES)
def test_silent_uavs_neither_serve_nor_disturb(resources, dtype):
    gain, power = random_links(dtype=dtype)
    power[:, 1] = 0
    found, without = links(gain, power, resources), links(np.delete(gain, 1, axis=1), np.delete(power, 1, axis=1))
    assert (found.load[:, 1] == 0).all()
    assert (found.levels[:, 1] == 0).all()
    assert (found.levels[:, :, 1] == 0).all()
    if resources == "equal_share":
        assert (found.rates == without.rates).all()
        assert (found.sinr == without.sinr).all()


@pytest.mark.parametrize("resources", RESOURCES)
@pytest.mark.parametrize("limits", [{}, {"max_users_per_uav": 2, "min_sinr_db": 0.0}])
def test_all_uavs_may_be_silent(resources, limits):
    gain, power = random_links()
    found = links(gain, 0 * power, resources, **limits)
    assert (found.serving == -1).all()
    for name in FIELDS[1:]:
        assert (getattr(found, name) == 0).all(), name


def test_a_user_below_the_least_sinr_keeps_its_share_of_the_band():
    gain, power = np.array([[[1e-9, 1e-13]]]), np.array([[0.1]])
    found = links(gain, power, min_sinr_db=0.0)
    assert found.load.tolist() == [[2]]
    assert found.rates[0] == pytest.approx([BAND / 2 * math.log2(1 + 1e-10 / NOISE), 0.0])
    assert found.sinr[0, 1] == pytest.approx(0.5)


def test_the_least_sinr_itself_is_enough():
    found = links(np.array([[[NOISE * 10, NOISE * 9.99]]]), np.array([[1.0]]), min_sinr_db=10.0)
    assert (found.rates[0] > 0).tolist() == [True, False]


@pytest.mark.parametrize("limits", [{}, {"max_users_per_uav": 5, "coverage_radius_m": 150.0}])
@pytest.mark.parametrize("resources", RESOURCES)
def test_a_batch_of_65_equals_65_singles_whatever_the_blocks(limits, resources, monkeypatch):
    gain, power = random_links(e=65, dtype=np.float32)
    horizontal_sq = np.random.default_rng(5).uniform(0, 300, gain.shape).astype(np.float32) ** 2
    together = links(gain, power, resources, horizontal_sq=horizontal_sq, **limits)
    monkeypatch.setattr(association, "_BLOCK", 7 * gain[0].size)
    cut = links(gain, power, resources, horizontal_sq=horizontal_sq, **limits)
    singles = [links(gain[[e]], power[[e]], resources, horizontal_sq=horizontal_sq[[e]], **limits) for e in range(65)]
    for name in FIELDS:
        whole = getattr(together, name)
        assert (getattr(cut, name) == whole).all(), name
        assert (np.concatenate([getattr(single, name) for single in singles]) == whole).all(), name
        assert getattr(cut, name).dtype == whole.dtype


def test_exchanging_users_exchanges_the_results_under_a_cap():
    gain, power = random_links(e=6, g=20)
    order = np.random.default_rng(1).permutation(20)
    base, other = links(gain, power, max_users_per_uav=4), links(gain[:, :, order], power, max_users_per_uav=4)
    assert (other.serving == base.serving[:, order]).all()
    assert other.rates == pytest.approx(base.rates[:, order], rel=1e-12)
    assert other.levels == pytest.approx(base.levels, rel=1e-12)


def test_shares_of_a_capped_uav_add_up_to_its_band():
    gain, power = random_links()
    found = links(gain, power, max_users_per_uav=3)
    share = np.divide(found.rates, np.log2(1 + found.sinr), out=np.zeros_like(found.rates), where=found.sinr > 0)
    for u in range(4):
        total = np.where(found.serving == u, share, 0).sum(axis=1)
        assert total == pytest.approx(np.where(found.load[:, u] > 0, BAND, 0), rel=1e-9)


def test_new_rates_are_summed_over_the_users_of_each_uav():
    gain, power = random_links()
    found = links(gain, power, max_users_per_uav=3)
    rates = np.where(found.serving >= 0, np.random.default_rng(0).uniform(size=found.rates.shape), 0)
    changed = with_rates(found, rates)
    for u in range(4):
        assert changed.uav_rates[:, u] == pytest.approx(np.where(found.serving == u, rates, 0).sum(axis=1))
    assert changed.levels is found.levels
    assert with_rates(found, found.rates).uav_rates == pytest.approx(found.uav_rates, rel=1e-12)


def test_memory_stays_bounded_where_there_are_many_users():
    gain, power = random_links(e=32, u=16, g=2000, dtype=np.float32)
    links(gain, power)
    tracemalloc.start()
    try:
        links(gain, power)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Temporaries of one block (2**18 links, about 12 bytes each) and the results twice, in parts and joined.
    assert peak < 2**18 * 16 + 2 * 32 * (2000 * 16 + 16**2 * 4 + 16 * 12)
