import math

import numpy as np
import pytest

from marl_tr.envs.uav.backhaul import backhaul_capacity, limit_by_backhaul, macro_place
from marl_tr.envs.uav.channel import ENVIRONMENTS
from marl_tr.envs.uav.radio import serve
from marl_tr.envs.uav.radio_config import BackhaulConfig, RadioConfig

URBAN = ENVIRONMENTS["urban"]


def capacity(position, height=100.0, **settings):
    return backhaul_capacity(position, height, config=BackhaulConfig(**settings), area_m=1000.0, constants=URBAN)


@pytest.mark.parametrize(
    ("place", "expected"), [("centre", (500, 500)), ("edge", (500, 0)), ((-200.0, 30.0), (-200, 30))]
)
def test_the_macro_stands_where_it_was_put(place, expected):
    config = BackhaulConfig(place=place)
    assert macro_place(config, area_m=1000.0) == expected
    here, away = capacity(np.array([[expected, (expected[0] + 300, expected[1])]], float), place=place)[0]
    assert here > away


@pytest.mark.parametrize("channel", ["free_space", "mean_gain"])
def test_capacity_meets_its_link_budget_in_decibels(channel):
    position = np.random.default_rng(0).uniform(0, 1000, (3, 4, 2))
    found = capacity(position, channel=channel, place="edge", power_w=10.0, bandwidth_hz=5e6, carrier_hz=3.5e9)
    for e in range(3):
        for u in range(4):
            x, y = position[e, u]
            across, up = math.hypot(x - 500, y), 100 - 25
            loss = 20 * math.log10(4 * math.pi * 3.5e9 * math.hypot(across, up) / 299_792_458)
            if channel == "mean_gain":
                angle = math.degrees(math.atan2(up, across))
                p = 1 / (1 + 9.61 * math.exp(-0.16 * (angle - 9.61)))
                loss -= 10 * math.log10(p * 10**-0.1 + (1 - p) * 10**-2.0)
            snr_db = 40 - loss - (-174 + 7 + 10 * math.log10(5e6))
            assert found[e, u] == pytest.approx(5e6 / 4 * math.log2(1 + 10 ** (snr_db / 10)), rel=1e-9)


def test_spectral_efficiency_may_be_capped_and_a_uav_at_the_mast_is_finite():
    position = np.full((1, 2, 3), 500.0)
    assert capacity(position, 25.0, max_spectral_efficiency=7.4)[0] == pytest.approx([3.7e6] * 2)
    assert np.isfinite(capacity(position.astype(np.float32), np.full((1, 2), 25.0, np.float32))).all()
    assert capacity(position.astype(np.float32)).dtype == np.float32


def test_heights_below_and_above_the_mast_are_alike():
    position = np.array([[[100.0, 900.0]]])
    for channel in ("free_space", "mean_gain"):
        assert capacity(position, 5.0, channel=channel) == pytest.approx(capacity(position, 45.0, channel=channel))


def test_a_binding_backhaul_scales_its_users_alike_and_no_others():
    rng = np.random.default_rng(0)
    gain, power = 10 ** rng.uniform(-13, -8, size=(5, 4, 15)), rng.uniform(0.01, 0.1, (5, 4))
    power[0, 2] = 0
    links = serve(
        gain,
        power,
        noise_w=2e-14,
        bandwidth_hz=1e6,
        resources="equal_share",
        limits=RadioConfig(max_users_per_uav=3),
    )
    bound = links.uav_rates * rng.uniform(0.3, 1.7, (5, 4))
    bound[1, 0] = 0.0
    found = limit_by_backhaul(links, bound)
    binding = links.uav_rates > bound
    assert binding.any()
    assert not binding.all()
    assert (links.serving < 0).any()
    for e in range(5):
        for g in range(15):
            u = links.serving[e, g]
            factor = min(1.0, bound[e, u] / links.uav_rates[e, u]) if u >= 0 else 0.0
            assert found.rates[e, g] == pytest.approx(links.rates[e, g] * factor, rel=1e-12)
    assert found.uav_rates == pytest.approx(np.minimum(links.uav_rates, bound), rel=1e-12)
    assert found.sinr is links.sinr
    unbound = limit_by_backhaul(links, np.full((5, 4), 1e12))
    assert (unbound.rates == links.rates).all()
