"""The solver of meta-games against closed forms, brute force, and the tables of exact play."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from marl_tr.schedule.meta_nash import expected_payoffs, gains_of_moving, regrets, solve_meta_game

Table = NDArray[np.float64]

MATCHING_PENNIES = np.array([[[1.0, -1], [-1, 1]], [[-1, 1], [1, -1]]])
ROTATION = np.array([[[0.0, 3], [1, 2]], [[3, 2], [0, 1]]])
PRISONERS = np.array([[[3.0, 0], [5, 1]], [[3, 5], [0, 1]]])
STAG_HUNT = np.array([[[4.0, 0], [3, 3]], [[4, 3], [0, 3]]])
CHICKEN = np.array([[[0.0, -1], [1, -10]], [[0, 1], [-1, -10]]])
COORDINATION = np.array([[[2.0, 0], [0, 1]], [[2, 0], [0, 1]]])


def brute_payoffs(table: Table, move: Table) -> Table:
    """Expectation by a sum over profiles."""
    total = np.zeros(len(table))
    for profile in itertools.product((0, 1), repeat=len(table)):
        total += np.prod(np.where(profile, move, 1 - move)) * table[(slice(None), *profile)]
    return total


def brute_regrets(table: Table, move: Table) -> Table:
    """By trying both choices of each player."""
    found = []
    for i in range(len(table)):
        tried = []
        for choice in (0.0, 1.0):
            other = move.copy()
            other[i] = choice
            tried.append(brute_payoffs(table, other)[i])
        found.append(max(tried) - brute_payoffs(table, move)[i])
    return np.array(found)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_payoffs_and_regrets_are_those_of_brute_force(n: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(20):
        table, move = random.standard_normal((n, *(2,) * n)), random.random(n)
        np.testing.assert_allclose(expected_payoffs(table, move), brute_payoffs(table, move), atol=1e-12)
        np.testing.assert_allclose(regrets(table, move), brute_regrets(table, move), atol=1e-12)
        ends = [brute_payoffs(table, np.where(np.arange(n) == i, end, move)) for i in range(n) for end in (0, 1)]
        expected = [ends[2 * i + 1][i] - ends[2 * i][i] for i in range(n)]
        np.testing.assert_allclose(gains_of_moving(table, move), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("table", "kind", "move"),
    [
        (MATCHING_PENNIES, "mixed", [0.5, 0.5]),
        (ROTATION, "mixed", [0.5, 0.5]),
        (PRISONERS, "pure", [1, 1]),
        # The equilibrium with the larger total: both hunt the stag (keep), both take the better of two.
        (STAG_HUNT, "pure", [0, 0]),
        (COORDINATION, "pure", [0, 0]),
        # Two with equal totals: the first in order, move before keep.
        (CHICKEN, "pure", [1, 0]),
        (np.zeros((2, 2, 2)), "pure", [1, 1]),
        (np.array([[0.0, 1.0]]), "pure", [1]),
        (np.array([[0.0, -1.0]]), "pure", [0]),
    ],
)
def test_known_games(table: Table, kind: str, move: list[float]) -> None:
    found = solve_meta_game(table)
    assert found.kind == kind
    np.testing.assert_allclose(found.move, move, atol=1e-12)
    assert found.regret == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "games"), [(2, 400), (3, 300), (4, 60)])
def test_random_games_are_all_solved_and_pure_equilibria_preferred(n: int, games: int) -> None:
    random = np.random.default_rng(10 + n)
    mixed = 0
    for _ in range(games):
        # Payoffs of the size that ratios leave.
        table = 1e-4 * random.standard_normal((n, *(2,) * n))
        found = solve_meta_game(table)
        assert brute_regrets(table, found.move).max() < 1e-11
        pure = [
            np.array(b, np.float64)
            for b in itertools.product((0, 1), repeat=n)
            if brute_regrets(table, np.array(b, np.float64)).max() <= 0
        ]
        assert found.kind == ("pure" if pure else "mixed")
        mixed += not pure
        if pure:
            best = max(brute_payoffs(table, b).sum() for b in pure)
            assert found.payoffs.sum() == pytest.approx(best, abs=1e-15)
    assert mixed > games // 20


def test_three_player_matching_pennies_has_its_one_equilibrium() -> None:
    """Jordan's game: each of three wants to match the next, the last wants to differ; only (1/2, 1/2, 1/2) is an
    equilibrium (Jordan, Games and Economic Behavior 5, 1993)."""
    table = np.zeros((3, 2, 2, 2))
    for b in itertools.product((0, 1), repeat=3):
        table[(slice(None), *b)] = [b[0] == b[1], b[1] == b[2], b[2] != b[0]]
    found = solve_meta_game(table)
    assert found.kind == "mixed"
    np.testing.assert_allclose(found.move, 0.5, atol=1e-9)


def test_four_players_who_all_mix_need_the_search_by_regret() -> None:
    """Jordan's game of four: no profile of two or three mixers is an equilibrium, and without steps of the search all
    keep."""
    table = np.zeros((4, 2, 2, 2, 2))
    for b in itertools.product((0, 1), repeat=4):
        table[(slice(None), *b)] = [b[0] == b[1], b[1] == b[2], b[2] == b[3], b[3] != b[0]]
    table += 0.01 * np.random.default_rng(0).standard_normal(table.shape)
    found = solve_meta_game(table)
    assert found.kind == "mixed"
    assert ((found.move > 0.3) & (found.move < 0.7)).all()
    assert brute_regrets(table, found.move).max() < 1e-8
    fallen_back = solve_meta_game(table, iterations=0)
    assert fallen_back.kind == "kept"
    assert not fallen_back.move.any()
    assert fallen_back.regret == pytest.approx(brute_regrets(table, np.zeros(4)).sum())
    assert fallen_back.regret > 0.5


def test_tables_that_are_not_finite_mean_that_all_keep() -> None:
    table = MATCHING_PENNIES.copy()
    table[0, 1, 1] = np.nan
    found = solve_meta_game(table)
    assert found.kind == "kept"
    assert not found.move.any()


@pytest.mark.parametrize("shape", [(2, 2), (0,), (5, 2, 2, 2, 2, 2), (2, 2, 3), ()])
def test_tables_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        solve_meta_game(np.zeros(shape))


# Specification 4.4: clipped gradient ascent on probabilities from (.9, .2), mean NashConv of the last 500 of 4,000.


def value(table: Table, p: Table) -> Table:
    """Expected payoffs where `p` are the probabilities of the first choice."""
    return expected_payoffs(table, 1 - p)


def gradient(table: Table, p: Table) -> Table:
    return -gains_of_moving(table, 1 - p)


def nash_conv(table: Table, p: Table) -> float:
    return float(regrets(table, 1 - p).sum())


def exact_play(table: Table, *, step: float, meta: bool, best_response: bool, iterations: int) -> list[float]:
    p, found = np.array([0.9, 0.2]), []
    for k in range(iterations):
        candidate = np.clip(p + step * gradient(table, p), 0, 1)
        share = np.ones(2)
        if meta:
            payoffs = np.zeros((2, 2, 2))
            for b in itertools.product((0, 1), repeat=2):
                payoffs[(slice(None), *b)] = value(table, np.where(b, candidate, p)) - value(table, p)
            share = solve_meta_game(payoffs).move
        mixed = p + share * (candidate - p)
        p = np.clip(p + step * gradient(table, mixed), 0, 1) if best_response else mixed
        if k >= iterations - 500:
            found.append(nash_conv(table, p))
    return found


@pytest.mark.parametrize(
    ("table", "step", "expected"),
    [
        (MATCHING_PENNIES, 0.02, [1.305, 1.305, 0, 0]),
        (MATCHING_PENNIES, 0.1, [1.390, 1.390, 0, 0]),
        (MATCHING_PENNIES, 0.3, [1.532, 1.532, 1.200, 0]),
        (ROTATION, 0.1, [0.670, 0.670, 0, 0]),
    ],
)
def test_table_of_exact_play(table: Table, step: float, expected: list[float]) -> None:
    """Neither, meta only, best response only, both."""
    variants = [(False, False), (True, False), (False, True), (True, True)]
    found = [
        float(np.mean(exact_play(table, step=step, meta=meta, best_response=answer, iterations=4000)))
        for meta, answer in variants
    ]
    np.testing.assert_allclose(found, expected, atol=5.1e-4)


@pytest.mark.parametrize("table", [PRISONERS, STAG_HUNT, CHICKEN, COORDINATION])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("best_response", [False, True])
def test_games_with_pure_equilibria_end_in_one(table: Table, meta: bool, best_response: bool) -> None:
    last = exact_play(table, step=0.1, meta=meta, best_response=best_response, iterations=600)[-1]
    assert last == pytest.approx(0, abs=1e-9)
