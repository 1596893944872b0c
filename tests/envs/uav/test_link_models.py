"""Power law and 3GPP channel, and what all models of links share."""

import math

import numpy as np
import pytest

from marl_tr.envs.uav import tr36777
from marl_tr.envs.uav.channel_config import AlHouraniConfig, PowerLawConfig, Tr36777Config
from marl_tr.envs.uav.propagation import link_model

MODELS = {
    "suburban": AlHouraniConfig(environment="suburban"),
    "high_rise": AlHouraniConfig(environment="high_rise"),
    "power_law": PowerLawConfig(),
    "rma": Tr36777Config(scenario="rma"),
    "uma": Tr36777Config(scenario="uma"),
    "umi": Tr36777Config(scenario="umi"),
}
# From the lowest heights at which the 3GPP scenarios hold to where they see everybody.
HEIGHTS = [22.6, 35.0, 50.0, 99.0, 100.0, 140.0, 300.0]
HORIZONTAL = np.linspace(0.0, 3500.0, 1500)


@pytest.fixture(params=MODELS)
def model(request):
    return link_model(MODELS[request.param], 2e9)


def column(height, dtype=np.float64):
    return np.full(1, height, dtype)


@pytest.mark.parametrize(
    ("scenario", "height", "horizontal", "base", "p", "los", "nlos"),
    [
        ("uma", 50.0, 500.0, 25.0, 0.888749, 93.4099, 113.0352),
        ("umi", 50.0, 500.0, 10.0, 0.378936, 94.7096, 120.2085),
        ("rma", 30.0, 1000.0, 35.0, 0.908745, 102.1860, 107.9763),
    ],
)
def test_the_3gpp_formulas_meet_the_golden_vectors(scenario, height, horizontal, base, p, los, nlos):
    r = np.array([horizontal])
    assert tr36777.los_probability(r, column(height), scenario) == pytest.approx(p, abs=6e-7)
    losses = tr36777.path_loss_db(r**2, column(height), scenario=scenario, carrier_hz=2e9, ground_height_m=base)
    assert losses.los == pytest.approx(los, abs=6e-5)
    assert losses.nlos == pytest.approx(nlos, abs=6e-5)


def test_3gpp_shadowing_has_the_tabled_deviations():
    assert tr36777.shadowing_db(column(50.0), "uma") == (pytest.approx(3.3358, abs=5e-5), pytest.approx(6.0))
    assert tr36777.shadowing_db(column(30.0), "rma")[0] == pytest.approx(4.2 * math.exp(-0.138))
    assert tr36777.shadowing_db(column(50.0), "umi") == (pytest.approx(5 * math.exp(-0.5)), pytest.approx(8.0))
    assert tr36777.shadowing_db(column(200.0), "umi")[0] == pytest.approx(2.0)


@pytest.mark.parametrize(("scenario", "height"), [("rma", 40.5), ("uma", 100.5)])
def test_high_enough_over_a_macro_cell_everybody_is_in_sight(scenario, height):
    assert (tr36777.los_probability(HORIZONTAL, column(height), scenario) == 1.0).all()
    assert tr36777.los_probability(HORIZONTAL, column(height - 1.0), scenario).min() < 1.0


def test_heights_may_differ_from_uav_to_uav():
    height = np.array([30.0, 100.0, 150.0])[:, None]
    together = tr36777.los_probability(np.broadcast_to(HORIZONTAL, (3, HORIZONTAL.size)), height, "uma")
    for row, alone in enumerate(height[:, 0]):
        assert (together[row] == tr36777.los_probability(HORIZONTAL, column(alone), "uma")).all()


@pytest.mark.parametrize(("scenario", "height"), [("rma", 10.0), ("uma", 22.5), ("umi", 5.0), ("uma", 300.5)])
def test_a_height_outside_the_scenario_is_named_with_what_would_fit(scenario, height):
    links = link_model(Tr36777Config(scenario=scenario), 2e9)
    lowest = tr36777.SCENARIOS[scenario].lowest_m
    message = rf"scenario '{scenario}' holds for heights above {lowest:g} up to 300 m, not for {height:g} m"
    with pytest.raises(ValueError, match=message):
        links.mean(HORIZONTAL, column(height), "mean_gain")


def test_users_of_the_3gpp_channel_stand_one_and_a_half_metres_high():
    links = link_model(Tr36777Config(scenario="uma"), 2e9)
    los, _ = links.gains(np.zeros(1), column(101.5))
    assert 10 * np.log10(los) == pytest.approx(-(28 + 22 * 2 + 20 * math.log10(2.0)), abs=1e-9)


@pytest.mark.parametrize("averaging", ["mean_gain", "mean_db"])
def test_the_power_law_meets_its_formula(averaging):
    config = PowerLawConfig(beta0_db=-50.0, alpha=2.3, kappa=0.2, los_c=10.0, los_d=0.6)
    got = link_model(config, 2e9).mean(np.square([0.0, 150.0, 400.0, 900.0]), column(100.0), averaging)
    for r, gain in zip([0.0, 150.0, 400.0, 900.0], got, strict=True):
        p = 1 / (1 + 10 * math.exp(-0.6 * (math.degrees(math.atan2(100, r)) - 10)))
        los = 1e-5 * math.hypot(r, 100) ** -2.3
        expected = los * (p + 0.2 * (1 - p)) if averaging == "mean_gain" else los**p * (0.2 * los) ** (1 - p)
        assert gain == pytest.approx(expected, rel=1e-12)


def test_without_a_reference_gain_the_power_law_starts_in_free_space():
    los, _ = link_model(PowerLawConfig(alpha=2.0), 2e9).gains(np.zeros(1), column(100.0))
    assert -10 * np.log10(los) == pytest.approx(20 * math.log10(4 * math.pi * 100 * 2e9 / 299792458.0))


@pytest.mark.parametrize("height", HEIGHTS)
def test_without_line_of_sight_less_arrives_and_all_falls_with_distance(model, height):
    los, nlos = model.gains(HORIZONTAL**2, column(height))
    assert (nlos <= los).all()
    # Close by, and where nobody is out of sight, the 3GPP models let both states meet.
    apart = (model.los_probability(HORIZONTAL**2, column(height)) < 1) & (HORIZONTAL > 1000)
    assert (nlos < los)[apart].all()
    for gain in (los, nlos, *(model.mean(HORIZONTAL**2, column(height), a) for a in ("mean_gain", "mean_db"))):
        assert (np.diff(gain) < 0).all()
        assert (gain <= los).all()
        assert (gain >= nlos * (1 - 1e-12)).all()
        assert 0 < gain.min() <= gain.max() < 1


@pytest.mark.parametrize("height", HEIGHTS)
def test_line_of_sight_is_likelier_nearer(model, height):
    p = model.los_probability(HORIZONTAL**2, column(height))
    assert (np.diff(p) <= 0).all()
    assert p[-1] > 0
    assert p[0] <= 1


@pytest.mark.parametrize("averaging", ["mean_gain", "mean_db"])
def test_the_average_is_that_of_the_two_states(model, averaging):
    squared, height = HORIZONTAL**2, column(60.0)
    p, (los, nlos) = model.los_probability(squared, height), model.gains(squared, height)
    expected = p * los + (1 - p) * nlos if averaging == "mean_gain" else los**p * nlos ** (1 - p)
    assert model.mean(squared, height, averaging) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("averaging", ["mean_gain", "mean_db"])
@pytest.mark.parametrize("height", HEIGHTS)
def test_float32_agrees_with_float64(model, height, averaging):
    single = model.mean(np.square(HORIZONTAL, dtype=np.float32), column(height, np.float32), averaging)
    assert single.dtype == np.float32
    assert single == pytest.approx(model.mean(HORIZONTAL**2, column(height), averaging), rel=1e-4)
