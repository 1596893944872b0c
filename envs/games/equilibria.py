"""Exact equilibria of games in normal form.

Pure functions in float64. The payoffs of ``A`` players with ``n_1, ..., n_A`` actions are one array
``[A, n_1, ..., n_A]``: ``payoffs[i, a_1, ..., a_A]`` is what player ``i`` gets. A profile is one vector of
probabilities a player, ``[n_i]`` each. Everything enumerates the joint actions, at the cost of a few passes over
`payoffs`; `support_equilibria` says what it costs.

Source of the notions: Nash, "Non-cooperative games", Annals of Mathematics 54(2), 1951; NashConv as in Lanctot et al.,
"A unified game-theoretic approach to multiagent reinforcement learning", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "EquilibriumCheck",
    "NotAGame",
    "NotAProfile",
    "TooManySupports",
    "action_values",
    "best_responses",
    "check_equilibrium",
    "equilibrium",
    "expected_payoffs",
    "gaps",
    "nash_conv",
    "pure_equilibria",
    "pure_profile",
    "support_equilibria",
    "uniform_profile",
]

Array = NDArray[Any]
Profile = tuple[Array, ...]
"""One vector of probabilities a player."""

MOST_SUPPORTS = 1_000_000
"""Pairs of supports that `support_equilibria` goes through at most: two players with 11 actions each have 705,431."""


class NotAGame(ValueError):
    """An array of payoffs has the wrong shape, or holds what is no finite number."""


class NotAProfile(ValueError):
    """Something else than one vector of probabilities a player; says which player, and what is wrong."""


class TooManySupports(ValueError):
    """A game is too large for the enumeration of supports."""


@dataclass(frozen=True)
class EquilibriumCheck:
    """What `check_equilibrium` found.

    Attributes:
        holds: Whether nobody gains more than the tolerance by deviating.
        payoffs: ``[A]``, what the profile pays.
        gaps: ``[A]``, what each player gains by its best response; at least 0 up to rounding.
        responses: The best pure deviation of each player, of equals the first.
    """

    holds: bool
    payoffs: Array
    gaps: Array
    responses: tuple[int, ...]

    @property
    def nash_conv(self) -> float:
        """Sum of the gaps."""
        return float(self.gaps.sum())

    @property
    def epsilon(self) -> float:
        """The largest gap: the profile is an epsilon-equilibrium."""
        return float(self.gaps.max())


def uniform_profile(payoffs: ArrayLike) -> Profile:
    """Every action of every player with the same probability."""
    return tuple(np.full(n, 1.0 / n) for n in _game(payoffs).shape[1:])


def pure_profile(payoffs: ArrayLike, actions: Sequence[int]) -> Profile:
    """The profile in which player ``i`` takes ``actions[i]``."""
    return tuple(np.eye(n)[action] for n, action in zip(_game(payoffs).shape[1:], actions, strict=True))


def expected_payoffs(payoffs: ArrayLike, profile: Sequence[ArrayLike]) -> Array:
    """What each player gets on average when all draw independently from `profile`, ``[A]``.

    Raises:
        NotAGame, NotAProfile: The arguments do not fit the description above.
    """
    game = _game(payoffs)
    value = game
    for mixed in reversed(_profile(game, profile)):
        value = value @ mixed
    return value


def action_values(payoffs: ArrayLike, profile: Sequence[ArrayLike]) -> Profile:
    """What each player gets by each of its actions while the others keep to `profile`, ``[n_i]`` a player.

    Raises:
        NotAGame, NotAProfile: As in `expected_payoffs`.
    """
    game = _game(payoffs)
    return tuple(_values(game, _profile(game, profile)))


def best_responses(payoffs: ArrayLike, profile: Sequence[ArrayLike]) -> tuple[int, ...]:
    """The best action of each player against the others' `profile`; of equals the first."""
    return tuple(int(values.argmax()) for values in action_values(payoffs, profile))


def gaps(payoffs: ArrayLike, profile: Sequence[ArrayLike]) -> Array:
    """What each player would gain by a best response, ``max_a u_i(a, pi_-i) - u_i(pi)``, ``[A]``."""
    best = [values.max() for values in action_values(payoffs, profile)]
    return np.array(best) - expected_payoffs(payoffs, profile)


def nash_conv(payoffs: ArrayLike, profile: Sequence[ArrayLike]) -> float:
    """Sum of the `gaps`; 0 exactly at equilibria."""
    return float(gaps(payoffs, profile).sum())


def check_equilibrium(payoffs: ArrayLike, profile: Sequence[ArrayLike], *, tolerance: float = 1e-9) -> EquilibriumCheck:
    """Whether `profile` is an equilibrium up to `tolerance`, in units of the payoffs; and what speaks against it."""
    found = gaps(payoffs, profile)
    return EquilibriumCheck(
        holds=bool(found.max() <= tolerance),
        payoffs=expected_payoffs(payoffs, profile),
        gaps=found,
        responses=best_responses(payoffs, profile),
    )


def pure_equilibria(payoffs: ArrayLike, *, tolerance: float = 0.0) -> list[tuple[int, ...]]:
    """All joint actions from which no player gains more than `tolerance` by deviating alone, in ascending order."""
    game = _game(payoffs)
    stable = np.ones(game.shape[1:], bool)
    for player, own in enumerate(game):
        stable &= own >= own.max(axis=player, keepdims=True) - tolerance
    return [tuple(int(a) for a in cell) for cell in np.argwhere(stable)]


def support_equilibria(payoffs: ArrayLike, *, tolerance: float = 1e-9) -> list[Profile]:
    """Equilibria of two players by enumeration of supports of equal size, pure ones first.

    For every pair of supports of one size: the strategy of each player on its support that makes the other indifferent
    on theirs, kept where it exists, is unique, is nowhere negative, and no action off the support pays more. In a
    non-degenerate game these are all equilibria. A degenerate one may have infinitely many; then some of them are
    found, and always at least one: the complementary bases at which Lemke and Howson's method can end are among the
    pairs, for a probability within a support may be 0.

    ``C(n_1 + n_2, n_1) - 1`` pairs of supports are solved, those of one size together.

    Args:
        payoffs: ``[2, n_1, n_2]``.
        tolerance: What an action off the support may pay more, relative to the range of a player's payoffs; and how far
            below 0 a probability may come out.

    Raises:
        NotAGame: There are not two players.
        TooManySupports: More than `MOST_SUPPORTS` pairs.

    Source: von Stengel, "Equilibrium computation for two-player games in strategic and extensive form", in Algorithmic
    Game Theory (2007), algorithm 3.4; Lemke and Howson, "Equilibrium points of bimatrix games", SIAM J. 12(2), 1964.
    """
    game = _game(payoffs)
    if len(game) != 2:
        raise NotAGame(f"the enumeration of supports is for two players, not {len(game)}")
    rows, columns = game.shape[1:]
    pairs = comb(rows + columns, rows) - 1
    if pairs > MOST_SUPPORTS:
        raise TooManySupports(
            f"{rows} x {columns} actions have {pairs:,} pairs of supports, more than {MOST_SUPPORTS:,}"
        )
    # Between 0 and 1: what an equilibrium is does not change, and tolerances mean the same in every game.
    low, high = (fold(game, axis=(1, 2), keepdims=True) for fold in (np.min, np.max))
    scaled = (game - low) / np.where(high > low, high - low, 1.0)
    found: list[Profile] = []
    for size in range(1, min(rows, columns) + 1):
        for profile in _on_supports(scaled, size, tolerance):
            if all(max(np.abs(p - q).max() for p, q in zip(profile, other, strict=True)) > 1e-6 for other in found):
                found.append(profile)
    return found


def equilibrium(payoffs: ArrayLike) -> Profile | None:
    """One equilibrium: of the pure ones that of the greatest sum of payoffs (the first of equals); without pure ones,
    of two players, the same of `support_equilibria`.

    Returns:
        None for three players or more without a pure equilibrium, and for two of them with too many supports: an
        equilibrium exists, but enumeration does not find it.
    """
    game = _game(payoffs)
    pure = pure_equilibria(game)
    if pure:
        total = game.sum(axis=0)
        return pure_profile(game, max(pure, key=lambda cell: float(total[cell])))
    if len(game) != 2:
        return None
    try:
        mixed = support_equilibria(game)
    except TooManySupports:
        return None
    return max(mixed, key=lambda profile: float(expected_payoffs(game, profile).sum()))


def _on_supports(scaled: Array, size: int, tolerance: float) -> Iterator[Profile]:
    """The equilibria of `support_equilibria` on all pairs of supports of one size, from payoffs within [0, 1]."""
    rows, columns = scaled.shape[1:]
    mine = np.array(list(combinations(range(rows), size)))
    theirs = np.array(list(combinations(range(columns), size)))
    # In parts, so that memory stays bounded: C(11, 5)^2 systems of 6 x 6 are 62 MB each time they are copied.
    for some in np.array_split(mine, max(1, len(mine) * len(theirs) // 20_000)):
        first, second = (x.reshape(-1, size) for x in np.broadcast_arrays(some[:, None], theirs[None]))
        on_columns = _indifferent(scaled[0][first[:, :, None], second[:, None, :]])
        on_rows = _indifferent(scaled[1][first[:, :, None], second[:, None, :]].transpose(0, 2, 1))
        valid = (on_rows >= -tolerance).all(axis=1) & (on_columns >= -tolerance).all(axis=1)
        for pair in np.flatnonzero(valid):
            row, column = np.zeros(rows), np.zeros(columns)
            row[first[pair]], column[second[pair]] = np.maximum(on_rows[pair], 0), np.maximum(on_columns[pair], 0)
            profile = (row / row.sum(), column / column.sum())
            if check_equilibrium(scaled, profile, tolerance=tolerance).holds:
                yield profile


def _indifferent(payoffs: Array) -> Array:
    """Weights ``y`` of sum 1 with ``payoffs y`` constant, ``[N, k]`` of ``[N, k, k]``; NaN where not unique."""
    count, size, _ = payoffs.shape
    system = np.zeros((count, size + 1, size + 1))
    system[:, :size, :size] = payoffs
    system[:, :size, size], system[:, size, :size] = -1.0, 1.0
    regular = np.linalg.cond(system) < 1e12
    weights = np.full((count, size), np.nan)
    target = np.zeros((int(regular.sum()), size + 1, 1))
    target[:, size] = 1.0
    weights[regular] = np.linalg.solve(system[regular], target)[:, :size, 0]
    return weights


def _values(game: Array, profile: Profile) -> Iterator[Array]:
    for player, own in enumerate(game):
        # Contract the others' axes, last first, so that the axes before keep their places.
        for other in reversed(range(len(profile))):
            if other != player:
                own = np.tensordot(own, profile[other], axes=(other, 0))
        yield own


def _game(payoffs: ArrayLike) -> Array:
    game = np.asarray(payoffs, np.float64)
    if game.ndim < 2 or game.shape[0] != game.ndim - 1 or 0 in game.shape:
        raise NotAGame(f"payoffs have shape {game.shape}, expected [A, n_1, ..., n_A] for A players")
    if not np.isfinite(game).all():
        raise NotAGame("payoffs must be finite")
    return game


def _profile(game: Array, profile: Sequence[ArrayLike]) -> Profile:
    mixed = tuple(np.asarray(p, np.float64) for p in profile)
    if len(mixed) != len(game):
        raise NotAProfile(f"{len(mixed)} vectors of probabilities for {len(game)} players")
    for player, (p, n) in enumerate(zip(mixed, game.shape[1:], strict=True)):
        if p.shape != (n,):
            raise NotAProfile(f"player {player}: probabilities have shape {p.shape}, expected {(n,)}")
        # Policies are float32: their sums are 1 up to about 1e-6.
        if not (np.isfinite(p).all() and (p >= 0).all() and abs(p.sum() - 1) <= 1e-5):
            raise NotAProfile(f"player {player}: {p} is no distribution; it must be at least 0 and sum to 1")
    return mixed
