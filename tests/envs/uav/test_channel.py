import numpy as np
import pytest

from marl_tr.envs.uav.channel import ENVIRONMENTS, elevation_deg, los_probability, power_gain

# Al-Hourani's sigmoid at 10, 30, 45, 60 and 90 degrees, computed independently in double precision.
LOS_TABLE = {
    "suburban": (0.649412, 0.999901, 1.0, 1.0, 1.0),
    "urban": (0.099714, 0.730979, 0.967692, 0.996980, 0.999975),
    "dense_urban": (0.061783, 0.372770, 0.755774, 0.941566, 0.997716),
    "high_rise": (0.009169, 0.043826, 0.132077, 0.335655, 0.847778),
}


def gain(horizontal, height, environment="urban", averaging="mean_gain", dtype=np.float64):
    squared = np.square(np.atleast_1d(np.asarray(horizontal, dtype=dtype)))
    return power_gain(squared, height, constants=ENVIRONMENTS[environment], carrier_hz=2e9, averaging=averaging)


@pytest.mark.parametrize("environment", LOS_TABLE)
def test_line_of_sight_probabilities_meet_the_table(environment):
    angles = np.array([10.0, 30.0, 45.0, 60.0, 90.0])
    p = los_probability(angles, ENVIRONMENTS[environment])
    assert p == pytest.approx(LOS_TABLE[environment], abs=6e-7)


def test_elevation_is_in_degrees_seen_from_the_user():
    angles = elevation_deg(np.array([0.0, 100.0, 1e9]), 100.0)
    assert angles == pytest.approx([90.0, 45.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_line_of_sight_grows_with_elevation(environment):
    p = los_probability(np.linspace(0.0, 90.0, 1000), ENVIRONMENTS[environment])
    assert (np.diff(p) >= 0).all()  # beyond 60 degrees the suburban curve is 1 to the last bit
    assert (np.diff(p[:500]) > 0).all()
    assert p.min() > 0
    assert p.max() <= 1


def test_overhead_an_urban_link_is_in_sight():
    assert los_probability(np.array([90.0]), ENVIRONMENTS["urban"])[0] > 0.99


@pytest.mark.parametrize("averaging", ["mean_gain", "mean_db"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_gain_falls_with_distance_and_stays_between_the_pure_cases(environment, averaging):
    horizontal = np.linspace(0.0, 2000.0, 500)
    g = gain(horizontal, 100.0, environment, averaging)
    assert (np.diff(g) < 0).all()
    constants = ENVIRONMENTS[environment]
    free_space_db = 20 * np.log10(4 * np.pi * 2e9 / 299792458.0 * np.hypot(horizontal, 100.0))
    los = 10 ** (-(free_space_db + constants.eta_los_db) / 10)
    nlos = 10 ** (-(free_space_db + constants.eta_nlos_db) / 10)
    assert (nlos < los).all()
    assert (g <= los).all()
    assert (g >= nlos).all()


@pytest.mark.parametrize("averaging", ["mean_gain", "mean_db"])
def test_gain_meets_the_formula_written_in_decibels(averaging):
    horizontal = np.array([0.0, 37.0, 200.0, 300.0, 1400.0])
    constants = ENVIRONMENTS["dense_urban"]
    theta = np.degrees(np.arctan2(80.0, horizontal))
    p = 1 / (1 + constants.a * np.exp(-constants.b * (theta - constants.a)))
    free_space_db = 20 * np.log10(4 * np.pi * 2e9 * np.hypot(horizontal, 80.0) / 299792458.0)
    los_db, nlos_db = free_space_db + constants.eta_los_db, free_space_db + constants.eta_nlos_db
    if averaging == "mean_gain":
        expected = p * 10 ** (-los_db / 10) + (1 - p) * 10 ** (-nlos_db / 10)
    else:
        expected = 10 ** (-(p * los_db + (1 - p) * nlos_db) / 10)
    assert gain(horizontal, 80.0, "dense_urban", averaging) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("horizontal", "gap_db"), [(200.0, 5.3), (300.0, 8.2)])
def test_the_two_averages_differ_as_published(horizontal, gap_db):
    ratio = gain(horizontal, 100.0) / gain(horizontal, 100.0, averaging="mean_db")
    assert 10 * np.log10(ratio[0]) == pytest.approx(gap_db, abs=0.05)


@pytest.mark.parametrize("averaging", ["mean_gain", "mean_db"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_float32_agrees_with_float64_everywhere(environment, averaging):
    horizontal = np.linspace(0.0, 1500.0, 2000)
    single = gain(horizontal, 100.0, environment, averaging, np.float32)
    assert single.dtype == np.float32
    assert single == pytest.approx(gain(horizontal, 100.0, environment, averaging), rel=2e-5)
