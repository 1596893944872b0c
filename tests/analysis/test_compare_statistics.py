"""Comparisons of variants against numbers computed by hand, over all pairs, and by SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from marl_tr.analysis.compare_statistics import (
    curve_band,
    first_reached,
    normalise,
    on_common_grid,
    performance_profile,
    probability_of_improvement,
)


def test_a_run_that_is_ahead_in_every_pair_improves_for_sure() -> None:
    found = probability_of_improvement([[3.0, 4.0]], [[1.0, 2.0, 2.5]])
    assert (found.estimate, found.low, found.high) == (1.0, 1.0, 1.0)


def test_probability_of_improvement_of_a_case_by_hand() -> None:
    # Task 1: pairs (1,2) behind, (1,1) tie, (3,2) ahead, (3,1) ahead: 2.5 of 4. Task 2: (5,7) behind: 0 of 1.
    found = probability_of_improvement([[1.0, 3.0], [5.0]], [[2.0, 1.0], [7.0]])
    assert found.estimate == pytest.approx((2.5 / 4 + 0.0) / 2)


def test_probability_of_improvement_is_mann_and_whitneys_u() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.integers(0, 6, 11).astype(float), generator.integers(1, 7, 7).astype(float)
    found = probability_of_improvement([x], [y])
    assert found.estimate == pytest.approx(mannwhitneyu(x, y).statistic / (11 * 7), abs=1e-12)
    turned = probability_of_improvement([y], [x])
    assert found.estimate + turned.estimate == pytest.approx(1.0)


def test_its_interval_is_that_of_all_resamples() -> None:
    x, y = [1.0, 2.0, 4.0], [1.5, 3.0]
    every = [
        np.mean([[float(a > b) for b in ys] for a in xs])
        for xs in itertools.product(x, repeat=3)
        for ys in itertools.product(y, repeat=2)
    ]
    found = probability_of_improvement([x], [y], confidence=0.4, resamples=20_000)
    assert found.estimate == pytest.approx(3 / 6)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.3, 0.7])))


def test_tasks_count_alike_however_many_runs_they_have() -> None:
    found = probability_of_improvement([[1.0] * 9, [0.0]], [[0.0] * 9, [1.0]])
    assert found.estimate == 0.5


def test_comparisons_need_the_same_tasks_with_scores() -> None:
    with pytest.raises(ValueError, match="X has 1 tasks and Y 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="row of scores"):
        probability_of_improvement([[]], [[1.0]])


def test_a_profile_is_the_share_of_runs_above() -> None:
    found = performance_profile([[0.0, 0.5, 1.0, 1.0], [0.5, 0.6]], [-1.0, 0.0, 0.5, 0.75, 1.0])
    # Above 0: 3 of 4 and 2 of 2; above 0.5: 2 of 4 and 1 of 2; above 0.75: 2 of 4 and none.
    assert found.estimate == pytest.approx([1.0, 0.875, 0.5, 0.25, 0.0])
    assert np.all(found.low <= found.estimate)
    assert np.all(found.estimate <= found.high)
    assert found.low[0] == found.high[0] == 1.0
    assert found.low[-1] == found.high[-1] == 0.0


def test_a_profiles_band_is_binomial() -> None:
    # One task, 8 runs, half above: a resample's share above is binomial(8, 1/2) / 8.
    found = performance_profile([[0.0] * 4 + [1.0] * 4], [0.5], resamples=40_000)
    draws = np.random.default_rng(3).binomial(8, 0.5, 400_000) / 8
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_a_curve_is_the_interquartile_mean_of_each_point() -> None:
    values = np.random.default_rng(2).normal(size=(8, 5))
    found = curve_band(values)
    assert found.estimate == pytest.approx(trim_mean(values, 0.25, axis=0))
    assert np.all((found.low < found.estimate) & (found.estimate < found.high))


def test_a_curves_band_is_that_of_all_resamples() -> None:
    values = np.array([[0.0, 5.0], [3.0, 1.0], [9.0, 2.0]])
    # Of three in order the outer ones weigh 1/6, the middle one 4/6: see `iqm`.
    every = [
        np.sort(values[list(rows)], axis=0).T @ [1 / 6, 4 / 6, 1 / 6] for rows in itertools.product(range(3), repeat=3)
    ]
    found = curve_band(values, confidence=0.6, resamples=20_000)
    low, high = np.quantile(every, [0.2, 0.8], axis=0)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)


def test_runs_that_are_alike_leave_no_doubt() -> None:
    found = curve_band(np.ones((4, 1)) * np.array([[1.0, 2.0]]))
    assert found.low.tolist() == found.high.tolist() == [1.0, 2.0]


def test_equal_seeds_give_equal_bands() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    assert curve_band(values, seed=4).low.tolist() == curve_band(values, seed=4).low.tolist()
    assert curve_band(values, seed=4).low.tolist() != curve_band(values, seed=5).low.tolist()


def test_normalised_scores_are_not_cut_off() -> None:
    assert normalise([0.0, 5.0, 10.0, 20.0], low=5.0, high=10.0).tolist() == [-1.0, 0.0, 1.0, 3.0]
    with pytest.raises(ValueError, match="must rise"):
        normalise([1.0], low=2.0, high=2.0)


def test_a_threshold_is_reached_where_it_is_met_for_the_first_time() -> None:
    assert first_reached([0, 10, 20, 30], [1.0, 5.0, 2.0, 6.0], 5.0) == 10.0
    assert first_reached([0, 10], [1.0, 2.0], 2.5) == float("inf")


def test_a_common_grid_lies_where_all_curves_are_known() -> None:
    grid, values = on_common_grid([([0.0, 10.0], [0.0, 1.0]), ([2.0, 6.0], [4.0, 8.0])], points=3)
    assert grid.tolist() == [2.0, 4.0, 6.0]
    assert values == pytest.approx(np.array([[0.2, 0.4, 0.6], [4.0, 6.0, 8.0]]))
