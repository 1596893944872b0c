"""Splits of a joint bound against general solvers, and what the schedules and the Guard make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import generator, make_policy, make_region, play
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.region.guard import Guard
from marl_tr.region.turn import Learners
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.schedule.assignment import Assignment
from marl_tr.schedule.budget import greedy, water_filling
from marl_tr.schedule.config import SequentialConfig, SimultaneousConfig
from marl_tr.schedule.sequential import Sequential
from marl_tr.schedule.simultaneous import Simultaneous

torch.set_num_threads(1)

LIMITS = [(0.25, 2.0), (0.0, 5.0), (0.9, 1.1), (1.0, 1.0)]


def drawn(seed: int, n: int = 5) -> NDArray[np.float64]:
    return np.exp(np.random.default_rng(seed).normal(0, 1.5, n))


@pytest.mark.parametrize(("least", "most"), LIMITS)
@pytest.mark.parametrize("seed", range(4))
def test_water_filling_is_the_optimum_of_the_concave_gains(least: float, most: float, seed: int) -> None:
    slopes, bound = drawn(seed), 0.05
    shares = water_filling(slopes, bound=bound, least=least, most=most)
    assert shares.sum() == pytest.approx(bound, rel=1e-12)
    limits = [(least * bound / 5, most * bound / 5)] * 5
    assert all(low * (1 - 1e-12) <= d <= high * (1 + 1e-12) for d, (low, high) in zip(shares, limits, strict=True))
    found = minimize(
        lambda x: -(slopes * np.sqrt(np.maximum(x, 0))).sum(),
        np.full(5, bound / 5),
        jac=lambda x: -slopes / (2 * np.sqrt(np.maximum(x, 1e-12))),
        bounds=limits,
        constraints={"type": "eq", "fun": lambda x: (x.sum() - bound) / bound},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    gain = (slopes * np.sqrt(shares)).sum()
    assert gain >= -found.fun * (1 - 1e-9)
    assert gain == pytest.approx(-found.fun, rel=1e-5)


def test_water_filling_without_limits_is_in_proportion_to_squared_slopes() -> None:
    shares = water_filling(np.array([1.0, 2.0, 3.0]), bound=0.14, least=0.0, most=3.0)
    np.testing.assert_allclose(shares, [0.01, 0.04, 0.09], rtol=1e-12)


@pytest.mark.parametrize(("least", "most"), LIMITS)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_optimum_of_the_linear_gains(least: float, most: float, seed: int) -> None:
    slopes, bound = drawn(seed), 0.05
    shares = greedy(slopes, bound=bound, least=least, most=most)
    found = linprog(
        -slopes,
        A_eq=np.ones((1, 5)),
        b_eq=[bound],
        bounds=[(least * bound / 5, min(bound, most * bound / 5))] * 5,
        method="highs",
    )
    np.testing.assert_allclose(shares, found.x, atol=1e-9)


@pytest.mark.parametrize("split", [water_filling, greedy])
@pytest.mark.parametrize("slopes", [[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1e-8, 1, 1e6], [0, 2, 0, 1]])
def test_shares_come_to_the_joint_bound_whatever_the_slopes(split: Any, slopes: list[float]) -> None:
    shares = split(np.array(slopes, np.float64), bound=0.04, least=0.25, most=2.0)
    assert shares.sum() == pytest.approx(0.04, rel=1e-12)
    assert shares.min() >= 0.0025 * (1 - 1e-12)
    assert shares.max() <= 0.02 * (1 + 1e-12)


# Schedules.


def assignment(
    region: Any, *, scales: tuple[float, ...] = (1.0, 1.0, 1.0), log: Any = lambda losses: None
) -> Assignment:
    policy = make_policy("beta", "mlp", agents=3)
    batch = play(policy, steps=16, environments=16, seed=10)
    advantage = torch.randn(batch.mask.shape, generator=generator(20)) * torch.tensor(scales)[:, None, None]
    return Assignment(
        learners=Learners(policy, ["a", "b", "c"]),
        batch=batch,
        advantage=advantage,
        normalise=False,
        objective=Surrogate(SurrogateConfig()),
        region=region,
        log=log,
    )


SCHEDULES = [
    lambda **settings: Simultaneous(SimultaneousConfig(**settings)),
    lambda **settings: Sequential(SequentialConfig(**settings)),
]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("split", ["equal", "water_filling", "greedy"])
@pytest.mark.parametrize("name", ["trpo", "measured"])
def test_each_learner_keeps_its_share_and_all_together_the_joint_bound(make: Any, split: str, name: str) -> None:
    """The second learner's advantages are three times as large: it has the most to gain of a nat."""
    optimizer = {"optimizer": OptimizerSection(learning_rate=0.05)} if name == "measured" else {"subsample": 1.0}
    logged: dict[str, float] = {}
    region = make_region(name, bound=0.01, **optimizer)
    part = assignment(region, scales=(1.0, 3.0, 1.0), log=logged.update)
    lines: list[Mapping[str, Any]] = []
    reports = make(budget=split).update([part], Guard(lines.append), generator(1), 0.0)
    shares = {line["learner"]: line["bound"] for line in lines}
    assert sum(shares.values()) == pytest.approx(0.03, rel=1e-9)
    assert all(line["joint_bound"] == pytest.approx(0.03) for line in lines)
    assert shares == {name: logged[f"region/budget/{name}"] for name in "abc"}
    assert all(0.5 * line["bound"] < line["accepted"] <= line["bound"] for line in lines)
    assert [r.bound for r in reports] == [line["bound"] for line in lines]
    if split == "equal":
        assert list(shares.values()) == pytest.approx([0.01] * 3)
    else:
        assert shares["b"] == max(shares.values()) >= 0.0195
    if split == "greedy":
        assert sorted(shares.values()) == pytest.approx([0.0025, 0.0075, 0.02])


def test_a_joint_bound_that_is_given_is_what_is_split() -> None:
    lines: list[Mapping[str, Any]] = []
    schedule = Simultaneous(SimultaneousConfig(budget="equal", joint_bound=0.006))
    schedule.update([assignment(make_region("trpo", subsample=1.0))], Guard(lines.append), generator(1), 0.0)
    assert [line["bound"] for line in lines] == [pytest.approx(0.002)] * 3
    assert [line["accepted"] <= 0.002 for line in lines] == [True] * 3


def test_shares_are_of_the_bounds_as_they_are_then() -> None:
    lines: list[Mapping[str, Any]] = []
    region = make_region("trpo", bound=0.016, bound_end=0.004, subsample=1.0)
    schedule = Simultaneous(SimultaneousConfig(budget="equal"))
    schedule.update([assignment(region)], Guard(lines.append), generator(1), 0.5)
    assert [line["bound"] for line in lines] == [pytest.approx(0.008)] * 3
    assert all(0.004 < line["accepted"] <= 0.008 for line in lines)


def test_equal_shares_of_the_regions_bounds_are_the_updates_without_a_budget() -> None:
    found = []
    for settings in ({}, {"budget": "equal"}):
        part = assignment(make_region("trpo", bound=0.01))
        reports = Simultaneous(SimultaneousConfig(**settings)).update(
            [part], Guard(lambda line: None), generator(1), 0.0
        )
        found.append([r.accepted for r in reports])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_without_a_budget_audit_lines_name_no_joint_bound() -> None:
    lines: list[Mapping[str, Any]] = []
    Sequential(SequentialConfig()).update([assignment(make_region("trpo"))], Guard(lines.append), generator(1), 0.0)
    assert all("joint_bound" not in line for line in lines)
