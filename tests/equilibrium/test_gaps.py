"""The statistics of paired gaps, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from marl_tr.equilibrium import joint_gap


def test_a_gap_is_the_mean_difference_and_keeps_its_sign() -> None:
    found = joint_gap({"a": [1.0, 3.0, -1.0], "b": [-2.0, -2.0, -2.0]}, seed=1)
    assert found.agents["a"].estimate == pytest.approx(1.0)
    assert (found.agents["b"].low, found.agents["b"].estimate, found.agents["b"].high) == (-2.0, -2.0, -2.0)
    assert found.nash_conv.estimate == pytest.approx(-1.0)
    assert found.epsilon.estimate == pytest.approx(1.0)


def test_agents_stand_for_their_groups_by_their_weights() -> None:
    found = joint_gap({"a": [1.0, 2.0], "b": [4.0, 4.0]}, seed=1, weights={"a": 3.0, "b": 1.0})
    assert found.nash_conv.estimate == pytest.approx(3 * 1.5 + 4)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    x = np.random.default_rng(3).exponential(size=300) - 0.7
    ours = joint_gap({"a": x}, seed=5, resamples=20_000).agents["a"]
    theirs = bootstrap(
        (x,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(8)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.05 * width
    assert abs(ours.high - theirs.high) < 0.05 * width


def test_the_interval_of_the_sum_keeps_the_agents_episodes_together() -> None:
    x = np.random.default_rng(4).normal(size=400)
    opposed = joint_gap({"a": x, "b": -x}, seed=2)
    assert opposed.nash_conv.high - opposed.nash_conv.low < 1e-12
    alike = joint_gap({"a": x, "b": x}, seed=2)
    assert alike.nash_conv.high - alike.nash_conv.low == pytest.approx(
        2 * (alike.agents["a"].high - alike.agents["a"].low)
    )


def test_ninety_five_of_a_hundred_intervals_hold_the_true_gap() -> None:
    # Skewed and discrete, as returns are; the true mean is known. 400 draws leave the share an error of 1.1 points.
    generator, inside = np.random.default_rng(6), 0
    for trial in range(400):
        paired = generator.exponential(size=256) - generator.integers(0, 2, size=256)
        found = joint_gap({"a": paired}, seed=trial, resamples=400).agents["a"]
        inside += found.low <= 0.5 <= found.high
    assert 0.915 <= inside / 400 <= 0.985


@pytest.mark.parametrize(
    ("differences", "what"),
    [
        ({}, "no agents"),
        ({"a": []}, r"\[n\] each"),
        ({"a": [1.0], "b": [1.0, 2.0]}, "one length"),
        ({"a": [1.0, np.nan]}, "not finite"),
    ],
)
def test_what_is_no_set_of_pairs_is_refused(differences: dict[str, list[float]], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        joint_gap(differences, seed=0)
