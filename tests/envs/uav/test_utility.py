import numpy as np
import pytest

from marl_tr.envs.uav.simulator import fairness
from marl_tr.envs.uav.utility import alpha_fair, outage_share, rate_deviation

FLOOR = 1e-3


def some_rates(dtype=np.float64):
    return np.random.default_rng(0).uniform(0.05, 3, (4, 20)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("alpha", "closed_form"),
    [
        (0.0, lambda r: r.sum(axis=1)),
        (0.5, lambda r: 2 * np.sqrt(r).sum(axis=1)),
        (1.0, lambda r: np.log(r).sum(axis=1)),
        (2.0, lambda r: -(1 / r).sum(axis=1)),
        (3.0, lambda r: -0.5 * (1 / r**2).sum(axis=1)),
    ],
)
def test_utilities_meet_their_closed_forms(alpha, closed_form, dtype):
    found = alpha_fair(some_rates(dtype), alpha=alpha, floor=FLOOR)
    assert found == pytest.approx(closed_form(some_rates()), rel=1e-5 if dtype == np.float32 else 1e-12)
    assert found.dtype == dtype


@pytest.mark.parametrize("alpha", [1 - 1e-6, 1 + 1e-6])
def test_near_one_differences_of_utilities_are_those_of_logarithms(alpha):
    rates = some_rates()
    near, log = (alpha_fair(rates, alpha=a, floor=FLOOR) for a in (alpha, 1.0))
    assert np.diff(near) == pytest.approx(np.diff(log), abs=1e-4)
    assert near - 20 / (1 - alpha) == pytest.approx(log, abs=1e-4)


def test_a_high_alpha_looks_at_the_least_rate_only():
    better_least = np.array([[0.5, 0.5, 0.5], [0.4, 9.0, 9.0]])
    few, many = (alpha_fair(better_least, alpha=alpha, floor=FLOOR) for alpha in (0.0, 20.0))
    assert few[0] < few[1]
    assert many[0] > many[1]


def test_equal_rates_are_best_of_equal_sums_for_every_alpha_above_zero():
    equal, unequal = np.full((1, 4), 1.0), np.array([[0.4, 0.8, 1.2, 1.6]])
    for alpha in (0.3, 1.0, 2.5):
        assert alpha_fair(equal, alpha=alpha, floor=FLOOR) > alpha_fair(unequal, alpha=alpha, floor=FLOOR)


def test_a_rate_of_zero_counts_as_the_floor_from_alpha_one_on():
    rates = np.array([[0.0, 2.0]])
    assert alpha_fair(rates, alpha=1.0, floor=0.01)[0] == pytest.approx(np.log(0.02))
    assert alpha_fair(rates, alpha=2.0, floor=0.01)[0] == pytest.approx(-100.5)
    assert alpha_fair(rates, alpha=0.0, floor=0.01)[0] == 2.0
    assert alpha_fair(rates, alpha=0.95, floor=0.01)[0] == pytest.approx(20 * 2**0.05)
    assert alpha_fair(rates, alpha=0.5, floor=0.01)[0] == pytest.approx(2 * np.sqrt(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": -0.1, "floor": 1.0}, "alpha must be at least 0"), ({"alpha": 1.0, "floor": 0.0}, "floor must be")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        alpha_fair(some_rates(), **settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deviations_meet_numpy_for_each_of_what_they_are_over(dtype):
    rng = np.random.default_rng(1)
    given = {
        "rates": rng.uniform(0, 3e6, (5, 12)).astype(dtype),
        "mean_rates": rng.uniform(0, 3e6, (5, 12)).astype(dtype),
        "uav_rates": rng.uniform(0, 9e6, (5, 3)).astype(dtype),
    }
    expected = {
        "users": given["rates"].std(axis=1),
        "running_users": given["mean_rates"].std(axis=1),
        "uavs": given["uav_rates"].std(axis=1) * 3 / 12,
    }
    for over, std in expected.items():
        found = rate_deviation(over, **given)
        assert found == pytest.approx(std * 1e-6, rel=1e-5)
        assert found.dtype == dtype
        order = rng.permutation(12)
        mixed = {name: value[:, order[order < value.shape[1]]] for name, value in given.items()}
        assert (rate_deviation(over, **mixed) == found).all()


def test_over_users_it_is_the_metric_to_the_last_bit():
    rates = (1e6 * some_rates()).astype(np.float32)
    found = rate_deviation("users", rates=rates, mean_rates=rates, uav_rates=rates[:, :3])
    assert (found == fairness(rates)["std_rate_mbps"]).all()


def test_outage_is_the_share_below_the_threshold():
    rates = np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]], np.float32)
    share = outage_share(rates, threshold=2.0)
    assert share.tolist() == [0.5, 0.0]
    assert share.dtype == np.float32
