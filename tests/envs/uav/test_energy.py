import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from marl_tr.envs.uav.energy import HOVER_POWER_W, propulsion_power


def power(speed):
    return float(propulsion_power(np.array([speed**2]))[0])


@pytest.mark.parametrize(
    ("speed", "watts"),
    [(0, 168.4842), (5, 143.5946), (10, 126.0169), (15, 138.5348), (20, 178.2894), (30, 356.2797)],
)
def test_the_power_curve_meets_its_table(speed, watts):
    assert power(speed) == pytest.approx(watts, abs=6e-5)


def test_hover_power_is_the_curve_at_rest():
    assert pytest.approx(power(0.0), rel=1e-14) == HOVER_POWER_W


def test_least_power_is_at_the_published_speed():
    least = minimize_scalar(power, bounds=(1, 30), method="bounded")
    assert least.x == pytest.approx(10.21, abs=0.01)
    assert least.fun == pytest.approx(125.991, abs=1e-3)


def test_best_range_is_at_the_published_speed():
    best = minimize_scalar(lambda v: power(v) / v, bounds=(1, 30), method="bounded")
    assert best.x == pytest.approx(18.29, abs=0.01)
    assert best.fun == pytest.approx(8.828, abs=1e-3)


def test_float32_keeps_its_digits_in_fast_flight():
    speed_sq = np.square(np.linspace(0, 60, 500))
    single = propulsion_power(speed_sq.astype(np.float32))
    assert single.dtype == np.float32
    assert single == pytest.approx(propulsion_power(speed_sq), rel=1e-6)
