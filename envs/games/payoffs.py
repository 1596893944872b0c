"""Payoffs of textbook games in normal form, and reading any game's from nested lists.

Which player gets what, and which actions they are, is in `NAMED`. The numbers are ours where a textbook says only their
order; those of `rotation` are what the name stands for in the literature on meta-games (see docs/games.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_CELLS", "NAMED", "NAMES", "named_payoffs", "read_payoffs"]

Array = NDArray[Any]

MOST_CELLS = 1_000_000
"""Numbers that a game's payoffs have at most."""

NAMED: dict[str, tuple[tuple[str, ...], Any, Any]] = {
    "matching_pennies": (("heads", "tails"), [[1, -1], [-1, 1]], [[-1, 1], [1, -1]]),
    "rock_paper_scissors": (
        ("rock", "paper", "scissors"),
        [[0, -1, 1], [1, 0, -1], [-1, 1, 0]],
        [[0, 1, -1], [-1, 0, 1], [1, -1, 0]],
    ),
    "prisoners_dilemma": (("cooperate", "defect"), [[3, 0], [5, 1]], [[3, 5], [0, 1]]),
    "stag_hunt": (("stag", "hare"), [[4, 0], [3, 3]], [[4, 3], [0, 3]]),
    "chicken": (("swerve", "straight"), [[0, -1], [1, -10]], [[0, 1], [-1, -10]]),
    "coordination": (("better", "worse"), [[2, 0], [0, 1]], [[2, 0], [0, 1]]),
    "rotation": (("first", "second"), [[0, 3], [1, 2]], [[3, 2], [0, 1]]),
}
"""``{name: (actions, payoffs of the first player, of the second)}``, rows the first player's actions."""

NAMES = (*NAMED, "anti_coordination")
"""All games that have a name."""


def named_payoffs(name: str, *, players: int = 2) -> Array:
    """``[A, n_1, ..., n_A]`` of a game in `NAMES`.

    Args:
        name: One of `NAMES`.
        players: An even number for ``anti_coordination``, in which everybody gets 1 if the first half of the players
            takes one of two actions and the second half the other, else 0; 2 for all others. Players that share one
            policy get at most ``2 / 2^n`` of that (Kuba et al., arXiv 2109.11251, proposition 1).

    Raises:
        KeyError: `name` is not in `NAMES`.
        ValueError: The game has no form for so many players.
    """
    if name == "anti_coordination":
        if players % 2 or players < 2:
            raise ValueError(f"anti_coordination is for an even number of players, not {players}")
        payoffs = np.zeros((players, *(2,) * players))
        half = players // 2
        for first in (0, 1):
            payoffs[(slice(None), *(first,) * half, *(1 - first,) * half)] = 1.0
        return payoffs
    _, first_player, second_player = NAMED[name]
    if players != 2:
        raise ValueError(f"{name} is for 2 players, not {players}")
    return np.array([first_player, second_player], np.float64)


def read_payoffs(nested: Sequence[Any]) -> Array:
    """``[A, n_1, ..., n_A]`` from nested lists, as they come from a YAML file.

    Args:
        nested: One table a player; each is indexed by the actions of player 0, of player 1, and so on.

    Raises:
        ValueError: The lists are ragged, hold what is no finite number, or their depth is not the number of players;
            says where.
    """
    shape = _shape(nested)
    _compare(nested, shape, "payoffs")
    if len(shape) - 1 != shape[0]:
        raise ValueError(
            f"payoffs has {shape[0]} tables, so {shape[0]} players, but each table has {len(shape) - 1} axes; give one "
            "table a player, with one axis a player"
        )
    payoffs = np.array(nested, np.float64)
    if payoffs.size > MOST_CELLS:
        raise ValueError(f"payoffs has {payoffs.size:,} numbers, more than {MOST_CELLS:,}")
    return payoffs


def _shape(nested: Any) -> tuple[int, ...]:
    """Of the first entries all the way down."""
    shape: list[int] = []
    while isinstance(nested, list | tuple):
        shape.append(len(nested))
        if not nested:
            break
        nested = nested[0]
    return tuple(shape)


def _compare(nested: Any, shape: tuple[int, ...], where: str) -> None:
    if not shape:
        if isinstance(nested, bool) or not isinstance(nested, int | float) or not np.isfinite(nested):
            raise ValueError(f"{where} is {nested!r}, not a finite number")
        return
    if not isinstance(nested, list | tuple):
        raise ValueError(f"{where} is {nested!r} where its neighbours are lists of {shape[0]}")
    if len(nested) != shape[0] or not nested:
        raise ValueError(f"{where} has {len(nested)} entries, expected {max(shape[0], 1)}")
    for index, entry in enumerate(nested):
        _compare(entry, shape[1:], f"{where}[{index}]")
