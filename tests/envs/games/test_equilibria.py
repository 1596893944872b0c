"""Equilibria against closed forms and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from marl_tr.envs.games.equilibria import (
    NotAGame,
    NotAProfile,
    TooManySupports,
    action_values,
    best_responses,
    check_equilibrium,
    equilibrium,
    expected_payoffs,
    gaps,
    nash_conv,
    pure_equilibria,
    pure_profile,
    support_equilibria,
    uniform_profile,
)
from marl_tr.envs.games.payoffs import named_payoffs

HALF = (0.5, 0.5)
THIRD = (1 / 3, 1 / 3, 1 / 3)

CLOSED_FORMS = {
    "matching_pennies": [(HALF, HALF)],
    "rock_paper_scissors": [(THIRD, THIRD)],
    "prisoners_dilemma": [((0, 1), (0, 1))],
    # Hunting a stag pays 4 p, a hare 3.
    "stag_hunt": [((1, 0), (1, 0)), ((0, 1), (0, 1)), ((0.75, 0.25), (0.75, 0.25))],
    # With s the chance of straight: swerving pays -s, going on (1 - s) - 10 s.
    "chicken": [((1, 0), (0, 1)), ((0, 1), (1, 0)), ((0.9, 0.1), (0.9, 0.1))],
    "coordination": [((1, 0), (1, 0)), ((0, 1), (0, 1)), ((1 / 3, 2 / 3), (1 / 3, 2 / 3))],
    "rotation": [(HALF, HALF)],
}


def brute_payoffs(game, profile):
    return sum(
        np.prod([p[a] for p, a in zip(profile, cell, strict=True)]) * game[(slice(None), *cell)]
        for cell in product(*(range(n) for n in game.shape[1:]))
    )


def drawn_profile(game, generator):
    return tuple(generator.dirichlet(np.ones(n)) for n in game.shape[1:])


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_all_equilibria_of_the_named_games_are_those_of_their_closed_forms(name):
    game, expected = named_payoffs(name), CLOSED_FORMS[name]
    found = support_equilibria(game)
    assert len(found) == len(expected)
    for profile in expected:
        assert any(np.allclose(np.concatenate(profile), np.concatenate(other), atol=1e-12) for other in found)
        assert check_equilibrium(game, profile).holds
    pure = sorted(tuple(int(np.argmax(p)) for p in profile) for profile in expected if max(profile[0]) == 1)
    assert pure_equilibria(game) == pure
    assert any(np.allclose(np.concatenate(equilibrium(game)), np.concatenate(p), atol=1e-12) for p in expected)


def test_values_of_zero_sum_games_are_zero_and_the_dilemma_costs_its_players():
    for name in ("matching_pennies", "rock_paper_scissors"):
        game = named_payoffs(name)
        assert np.allclose(expected_payoffs(game, equilibrium(game)), 0, atol=1e-15)
    assert nash_conv(named_payoffs("matching_pennies"), ((1, 0), (1, 0))) == 2
    dilemma = named_payoffs("prisoners_dilemma")
    assert expected_payoffs(dilemma, equilibrium(dilemma)).tolist() == [1, 1]
    assert gaps(dilemma, ((1, 0), (1, 0))).tolist() == [2, 2]


@pytest.mark.parametrize("players", [2, 4])
def test_anti_coordination_caps_shared_policies_at_2_over_2_to_the_n(players):
    game = named_payoffs("anti_coordination", players=players)
    half = players // 2
    goals = {(0,) * half + (1,) * half, (1,) * half + (0,) * half}
    assert all(game[(0, *cell)] == (cell in goals) for cell in product((0, 1), repeat=players))
    assert (game == game[0]).all()
    p = np.linspace(0, 1, 101)
    shared = [expected_payoffs(game, [(q, 1 - q)] * players)[0] for q in p]
    assert max(shared) == pytest.approx(2 / 2**players, abs=1e-12)
    assert goals <= set(pure_equilibria(game))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 2, 4), (2, 2, 2, 3)])
def test_expectations_values_and_gaps_are_the_sums_written_out(shape):
    generator = np.random.default_rng(len(shape))
    game = generator.normal(size=(len(shape), *shape))
    profile = drawn_profile(game, generator)
    paid = brute_payoffs(game, profile)
    assert np.allclose(expected_payoffs(game, profile), paid, atol=1e-12)
    for i, n in enumerate(shape):
        deviations = [brute_payoffs(game, (*profile[:i], np.eye(n)[a], *profile[i + 1 :]))[i] for a in range(n)]
        assert np.allclose(action_values(game, profile)[i], deviations, atol=1e-12)
        assert gaps(game, profile)[i] == pytest.approx(max(deviations) - paid[i], abs=1e-12)
        assert best_responses(game, profile)[i] == int(np.argmax(deviations))
    check = check_equilibrium(game, profile)
    assert check.nash_conv == pytest.approx(nash_conv(game, profile))
    assert check.epsilon == check.gaps.max()
    assert not check.holds


def test_pure_equilibria_are_those_that_brute_force_finds():
    generator = np.random.default_rng(0)
    found = 0
    for shape in [(3, 3), (2, 4), (3, 2, 2)] * 10:
        game = generator.integers(0, 4, (len(shape), *shape)).astype(float)
        expected = [
            cell
            for cell in product(*(range(n) for n in shape))
            if all(
                game[(i, *cell)] >= game[(i, *cell[:i], a, *cell[i + 1 :])]
                for i, n in enumerate(shape)
                for a in range(n)
            )
        ]
        assert pure_equilibria(game) == expected
        found += len(expected)
    assert found > 20


def test_random_two_player_games_have_an_odd_number_of_equilibria_each_checked_by_brute_force():
    """Wilson (1971): almost all games have an odd number."""
    generator = np.random.default_rng(1)
    several = 0
    for shape in [(2, 2), (3, 3), (3, 5), (4, 4)] * 8:
        game = generator.normal(size=(2, *shape))
        found = support_equilibria(game)
        assert len(found) % 2 == 1
        several += len(found) > 1
        for profile in found:
            paid = brute_payoffs(game, profile)
            assert all(
                brute_payoffs(game, pure)[i] <= paid[i] + 1e-9
                for i, n in enumerate(shape)
                for pure in (tuple(np.eye(n)[a] if j == i else profile[j] for j in (0, 1)) for a in range(n))
            )
    assert several >= 3


def test_equilibria_move_with_positive_affine_payoffs_and_swapped_players():
    generator = np.random.default_rng(2)
    game = generator.normal(size=(2, 3, 4))
    found = {tuple(np.concatenate(p).round(8)) for p in support_equilibria(game)}
    moved = game * np.array([1e-3, 1e6])[:, None, None] + np.array([5, -1e7])[:, None, None]
    assert {tuple(np.concatenate(p).round(8)) for p in support_equilibria(moved)} == found
    swapped = game[::-1].transpose(0, 2, 1)
    assert {tuple(np.concatenate(p[::-1]).round(8)) for p in support_equilibria(swapped)} == found


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_degenerate_games_still_have_one(levels):
    generator = np.random.default_rng(levels)
    for shape in [(2, 2), (3, 3), (2, 4), (4, 3)] * 10:
        game = generator.integers(0, levels, (2, *shape)).astype(float)
        found = support_equilibria(game)
        assert found
        assert all(check_equilibrium(game, profile).holds for profile in found)


def test_the_value_of_zero_sum_games_is_the_linear_programs():
    from scipy.optimize import linprog

    generator = np.random.default_rng(3)
    for shape in [(2, 3), (4, 4), (5, 3)]:
        matrix = generator.normal(size=shape)
        n, m = shape
        program = linprog(
            [*np.zeros(n), -1.0],
            A_ub=np.hstack([-matrix.T, np.ones((m, 1))]),
            b_ub=np.zeros(m),
            A_eq=[[*np.ones(n), 0.0]],
            b_eq=[1.0],
            bounds=[(0, 1)] * n + [(None, None)],
        )
        game = np.stack([matrix, -matrix])
        assert expected_payoffs(game, equilibrium(game))[0] == pytest.approx(-program.fun, abs=1e-9)


def test_a_game_of_three_without_a_pure_equilibrium_is_said_to_be_out_of_reach():
    pennies = named_payoffs("matching_pennies")
    game = np.zeros((3, 2, 2, 2))
    game[:2] = pennies[..., None]
    assert pure_equilibria(game) == []
    assert equilibrium(game) is None
    assert check_equilibrium(game, [HALF, HALF, (0.2, 0.8)]).holds


def test_what_is_no_game_or_no_profile_is_named():
    with pytest.raises(NotAGame, match="expected"):
        expected_payoffs(np.zeros((2, 2)), [HALF])
    with pytest.raises(NotAGame, match="finite"):
        uniform_profile(np.full((2, 2, 2), np.nan))
    with pytest.raises(NotAGame, match="two players"):
        support_equilibria(np.zeros((1, 3)))
    with pytest.raises(TooManySupports, match="supports"):
        support_equilibria(np.zeros((2, 12, 12)))
    game = named_payoffs("stag_hunt")
    with pytest.raises(NotAProfile, match="player 1: probabilities have shape"):
        gaps(game, [HALF, THIRD])
    with pytest.raises(NotAProfile, match=r"player 0: .* no distribution"):
        gaps(game, [(0.7, 0.7), HALF])
    with pytest.raises(NotAProfile, match="1 vectors"):
        gaps(game, [HALF])
    assert pure_profile(game, (0, 1))[1].tolist() == [0, 1]


def test_nashpy_finds_the_same():
    nashpy = pytest.importorskip("nashpy")
    generator = np.random.default_rng(4)
    for _ in range(5):
        game = generator.normal(size=(2, 3, 3))
        theirs = {tuple(np.concatenate(p).round(6)) for p in nashpy.Game(*game).support_enumeration()}
        assert {tuple(np.concatenate(p).round(6)) for p in support_equilibria(game)} == theirs
