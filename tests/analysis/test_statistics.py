from fractions import Fraction

import numpy as np
import pytest
import scipy.stats

from marl_tr.analysis.statistics import iqm, stratified_bootstrap_ci


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7], 7),
        ([1, 3], 2),
        ([0, 0, 9], 9 * Fraction(1, 6)),  # weights 1/6, 4/6, 1/6
        ([0, 9, 100], (0 + 4 * 9 + 100) * Fraction(1, 6)),
        ([-50, 1, 2, 900], Fraction(3, 2)),
        ([0, 1, 2, 3, 100], (Fraction(3, 4) * 1 + 2 + Fraction(3, 4) * 3) / Fraction(5, 2)),
        ([0, 4, 1, 3, 2, 100], (Fraction(1, 2) * 1 + 2 + 3 + Fraction(1, 2) * 4) / 3),
        ([5, 1, 4, 2, 3, 8, 7, 6], Fraction(3 + 4 + 5 + 6, 4)),
    ],
)
def test_iqm_by_hand(scores: list[float], expected: Fraction) -> None:
    assert iqm(scores) == pytest.approx(float(expected), rel=1e-15)


@pytest.mark.parametrize("n", [4, 8, 64, 256, 1000])
def test_iqm_is_scipys_trimmed_mean_where_four_divides_n(n: int) -> None:
    scores = np.random.default_rng(n).standard_cauchy((5, n))
    assert np.allclose(iqm(scores), scipy.stats.trim_mean(scores, 0.25, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 13, 257])
def test_iqm_of_any_n_is_that_of_each_score_four_times(n: int) -> None:
    """Copies leave the distribution as it is; with four of each the definition is the trimmed mean."""
    scores = np.random.default_rng(n).normal(size=n)
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(np.repeat(scores, 4), 0.25), rel=1e-12)


def test_interval_equals_scipys_for_one_stratum() -> None:
    scores = np.random.default_rng(5).lognormal(size=41)
    ours = stratified_bootstrap_ci(scores, lambda x: x.mean(axis=-1), resamples=3000, confidence=0.9, seed=11)
    theirs = scipy.stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=3000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(11),
        batch=3000,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.estimate == pytest.approx(scores.mean())
    assert (ours.confidence, ours.resamples) == (0.9, 3000)


def test_strata_are_not_mixed() -> None:
    # Within each stratum all scores are equal: redrawing changes nothing, however far apart the strata are.
    scores = [[0.0] * 5, [10.0] * 3, [20.0]]
    interval = stratified_bootstrap_ci(scores, lambda x: x.mean(axis=-1), seed=0)
    assert interval.low == interval.high == interval.estimate == pytest.approx(50 / 9)
    mixed = stratified_bootstrap_ci(np.concatenate(scores), lambda x: x.mean(axis=-1), seed=0)
    assert mixed.high - mixed.low > 5


def test_interval_of_a_normal_mean_has_its_textbook_width() -> None:
    scores = np.random.default_rng(1).normal(3.0, 2.0, size=(4, 100))
    interval = stratified_bootstrap_ci(scores, lambda x: x.mean(axis=-1), resamples=20_000, seed=2)
    # Resampling within strata leaves only the variance inside them.
    half = 1.96 * np.sqrt(scores.var(axis=1).mean() / scores.size)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.04)
    assert interval.low + interval.high == pytest.approx(2 * scores.mean(), abs=0.1 * half)


def test_equal_seeds_give_equal_intervals_in_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(3).normal(size=50)
    first = stratified_bootstrap_ci(scores, seed=4)
    assert first == stratified_bootstrap_ci(scores, seed=4)
    assert first != stratified_bootstrap_ci(scores, seed=5)
    monkeypatch.setattr("marl_tr.analysis.statistics._BLOCK", 50 * 7)
    assert first == stratified_bootstrap_ci(scores, seed=4)


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []], [1.0, np.nan], [np.inf], [[[1.0]]], np.zeros((2, 0))])
def test_scores_that_cannot_be_aggregated_are_refused(scores: object) -> None:
    with pytest.raises(ValueError, match="score"):
        stratified_bootstrap_ci(scores, seed=0)  # type: ignore[arg-type]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence"):
        stratified_bootstrap_ci([1.0], confidence=1.0, seed=0)
    with pytest.raises(ValueError, match="resamples"):
        stratified_bootstrap_ci([1.0], resamples=0, seed=0)
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        iqm([1.0, np.nan])
    with pytest.raises(ValueError, match="no scores"):
        iqm([])
