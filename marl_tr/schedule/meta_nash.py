"""Nash equilibria of meta-games: a few players, each of whom keeps its old policy or moves to a candidate.

Pure mathematics in float64 over payoff tables ``[n, 2, ..., 2]``: entry ``[i, b_1, ..., b_n]`` is player ``i``'s payoff
where exactly the players with ``b_j = 1`` move. It knows nothing of policies.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

__all__ = ["MOST_PLAYERS", "Equilibrium", "expected_payoffs", "gains_of_moving", "regrets", "solve_meta_game"]

MOST_PLAYERS = 4
"""A table of more players is refused: it has ``n 2^n`` entries, and its mixed equilibria are out of this solver's
reach."""

_TOLERANCE = 1e-9
"""Regret, as a share of the largest payoff difference, that counts as none."""

Kind = Literal["pure", "mixed", "kept"]


@dataclass(frozen=True)
class Equilibrium:
    """A profile of a meta-game.

    Attributes:
        move: ``[n]``, each player's probability of moving.
        kind: ``"pure"`` or ``"mixed"``; ``"kept"``: no equilibrium was found (or the table is not finite), and
            everybody keeps its policy, which need not be one.
        payoffs: ``[n]``, expected.
        regret: What the players could gain by deviating alone, all together; 0 at an equilibrium but for rounding.
    """

    move: NDArray[np.float64]
    kind: Kind
    payoffs: NDArray[np.float64]
    regret: float


def solve_meta_game(payoffs: NDArray[np.float64], *, iterations: int = 60) -> Equilibrium:
    """A Nash equilibrium of a meta-game, chosen by a rule that never draws.

    The rule: the pure equilibrium with the largest total payoff; where there is none, the mixed one with the largest
    of those that are looked at; where none is found, everybody keeps. Ties go to the first in lexicographic order
    with *move* before *keep*, so that equal payoffs mean that all take their candidates. Supports are enumerated:
    pure profiles, then all in which two or three players mix, in closed form. Where four mix, or the game is
    degenerate, regret is brought to zero by a semismooth Newton method from a fixed grid of starts; that method may
    fail.

    Args:
        payoffs: ``[n, 2, ..., 2]``, 1 to 4 players.
        iterations: Newton steps from each start.

    Raises:
        ValueError: The shape is not that of a game of up to `MOST_PLAYERS` players with two choices each.

    Source: Wen et al., arXiv 2106.06828, whose meta-game this solves; the order of preference is ours. Newton on the
    natural residual: Facchinei and Pang, Finite-Dimensional Variational Inequalities (2003), section 8.
    """
    table = np.asarray(payoffs, np.float64)
    _check(table)
    n = len(table)
    if not np.isfinite(table).all():
        return Equilibrium(np.zeros(n), "kept", np.full(n, np.nan), float("nan"))
    spread = float(np.abs(table - table.reshape(n, -1)[:, 0].reshape(n, *(1,) * n)).max())
    slack = _TOLERANCE * spread
    pure = [
        np.array(profile, np.float64)
        for profile in itertools.product((1, 0), repeat=n)
        if float(regrets(table, np.array(profile, np.float64)).max()) <= slack
    ]
    if pure:
        return _best(table, pure, "pure", slack)
    unit = table / spread
    for search in (_by_support, partial(_by_regret, iterations=iterations)):
        mixed = [profile for profile in search(unit) if float(regrets(table, profile).max()) <= 10 * slack]
        if mixed:
            return _best(table, mixed, "mixed", slack)
    return _equilibrium(table, np.zeros(n), "kept")


def expected_payoffs(payoffs: NDArray[np.float64], move: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[n]``: what each player expects where they move with probabilities `move` ``[n]``, independently."""
    value = payoffs
    for probability in reversed(move):
        value = (1 - probability) * value[..., 0] + probability * value[..., 1]
    return np.asarray(value)


def gains_of_moving(payoffs: NDArray[np.float64], move: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[n]``: what each player expects of moving less what it expects of keeping, the others at `move`."""
    gains = np.empty(len(move))
    for player in range(len(move)):
        own = np.take(payoffs[player], 1, player) - np.take(payoffs[player], 0, player)
        for probability in reversed(np.delete(move, player)):
            own = (1 - probability) * own[..., 0] + probability * own[..., 1]
        gains[player] = own
    return gains


def regrets(payoffs: NDArray[np.float64], move: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[n]``: what each player could gain by deviating alone from `move` ``[n]``; 0 at an equilibrium."""
    gain = gains_of_moving(payoffs, move)
    return np.asarray((1 - move) * np.maximum(gain, 0) + move * np.maximum(-gain, 0))


def _by_support(table: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Profiles in which two or three players are indifferent and mix, whatever the others choose; closed forms."""
    n = len(table)
    found: list[NDArray[np.float64]] = []
    for choices in itertools.product((1, 0, None), repeat=n):
        mixers = [player for player, choice in enumerate(choices) if choice is None]
        if len(mixers) not in (2, 3):
            continue
        at = tuple(slice(None) if choice is None else choice for choice in choices)
        # Of each mixer: its gain of moving, over what the other mixers do.
        gains = [
            np.take(table[i][at], 1, position) - np.take(table[i][at], 0, position) for position, i in enumerate(mixers)
        ]
        for mixed in _pair(gains) if len(mixers) == 2 else _triple(gains):
            profile = np.array([0.0 if choice is None else choice for choice in choices])
            profile[mixers] = mixed
            if np.isfinite(profile).all() and (profile >= -1e-12).all() and (profile <= 1 + 1e-12).all():
                found.append(np.clip(profile, 0, 1))
    return found


def _pair(gains: list[NDArray[np.float64]]) -> list[list[float]]:
    """Where two players are indifferent: each one's gain is linear in the other's probability."""
    (a0, a1), (b0, b1) = gains
    return [] if a0 == a1 or b0 == b1 else [[float(b0 / (b0 - b1)), float(a0 / (a0 - a1))]]


def _triple(gains: list[NDArray[np.float64]]) -> list[list[float]]:
    """Where three players are indifferent: ``p`` and ``q`` are fractions linear in ``r``, which solves a quadratic."""
    (a0, ar, aq, aqr), (b0, br, bp, bpr), (c0, cq, cp, cpq) = (
        (g[0, 0], g[0, 1] - g[0, 0], g[1, 0] - g[0, 0], g[1, 1] - g[1, 0] - g[0, 1] + g[0, 0]) for g in gains
    )
    # q = -q_up / q_down and p = -p_up / p_down, each linear in r (constant first).
    q_up, q_down = Polynomial([a0, ar]), Polynomial([aq, aqr])
    p_up, p_down = Polynomial([b0, br]), Polynomial([bp, bpr])
    quadratic = c0 * p_down * q_down - cp * p_up * q_down - cq * q_up * p_down + cpq * p_up * q_up
    found = []
    for root in np.atleast_1d(quadratic.trim().roots()):
        r = float(np.real(root))
        if abs(np.imag(root)) < 1e-12 and q_down(r) != 0 and p_down(r) != 0:
            found.append([float(-p_up(r) / p_down(r)), float(-q_up(r) / q_down(r)), r])
    return found


def _by_regret(table: NDArray[np.float64], iterations: int) -> list[NDArray[np.float64]]:
    """The first zero of ``F(p) = p - clip(p + d(p), 0, 1)`` that a grid of starts leads to, `d` the gains of moving.

    ``F = 0`` says that nobody has regret. Steps are Newton's on the active pieces, regularised as Levenberg and
    Marquardt do, halved until ``|F|`` falls, and kept within the cube.
    """
    n = len(table)
    for start in itertools.product((0.5, 0.85, 0.15), repeat=n):
        p = np.array(start)
        residual = _residual(table, p)
        merit = float(residual @ residual)
        for _ in range(iterations):
            if merit < 1e-26:
                break
            jacobian = _jacobian(table, p)
            normal = jacobian.T @ jacobian + 1e-3 * min(1.0, merit) * np.eye(n)
            direction = -np.linalg.lstsq(normal, jacobian.T @ residual, rcond=None)[0]
            length = 1.0
            while length > 1e-4:
                trial = np.clip(p + length * direction, 0, 1)
                there = _residual(table, trial)
                if float(there @ there) < merit * (1 - 1e-4 * length):
                    break
                length /= 2
            else:
                break
            p, residual, merit = trial, there, float(there @ there)
        if merit < 1e-18:
            return [p]
    return []


def _residual(table: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(p - np.clip(p + gains_of_moving(table, p), 0, 1))


def _jacobian(table: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of `_residual`, an element of its generalised derivative: gains are linear in each coordinate."""
    n = len(p)
    moved = p + gains_of_moving(table, p)
    inside = (moved > 0) & (moved < 1)
    jacobian = np.eye(n)
    for j in range(n):
        at = p.copy()
        at[j] = 1
        slope = gains_of_moving(table, at)
        at[j] = 0
        slope = slope - gains_of_moving(table, at)
        # Where the clip does not bind, p - (p + d) = -d; a player's own gain does not hang on its own choice.
        jacobian[inside, j] = -slope[inside]
    return jacobian


def _best(table: NDArray[np.float64], profiles: list[NDArray[np.float64]], kind: Kind, slack: float) -> Equilibrium:
    """The first of those whose total payoff is the largest, but for rounding."""
    totals = [float(expected_payoffs(table, profile).sum()) for profile in profiles]
    most = max(totals) - len(table) * slack
    return _equilibrium(table, next(p for p, total in zip(profiles, totals, strict=True) if total >= most), kind)


def _equilibrium(table: NDArray[np.float64], move: NDArray[np.float64], kind: Kind) -> Equilibrium:
    return Equilibrium(move, kind, expected_payoffs(table, move), float(regrets(table, move).sum()))


def _check(table: NDArray[np.float64]) -> None:
    n = len(table) if table.ndim else 0
    if not 1 <= n <= MOST_PLAYERS or table.shape != (n, *(2,) * n):
        raise ValueError(
            f"a meta-game of n players, 1 to {MOST_PLAYERS}, has payoffs of shape [n, 2, ..., 2], not {table.shape}"
        )
