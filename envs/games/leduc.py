"""``games/leduc-v0``: Leduc poker, two rounds of betting and a public card.

Source: Southey et al., "Bayes' bluff: opponent modelling in poker", UAI 2005.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.games.sequential import CHANCE, OVER, GameTree
from marl_tr.envs.games.tree_env import TreeVectorEnv
from marl_tr.envs.games.turn_based import SequentialAECEnv

__all__ = ["CALL", "FOLD", "RAISE", "LeducPoker", "env", "make"]

Array = NDArray[Any]

FOLD, CALL, RAISE = 0, 1, 2
_CARDS = "JQK"
_COPIES = 2
"""Of each rank in the deck."""
_BETS = (2, 4)
"""What a raise adds, by round."""
_MOST_RAISES = 2
_LONGEST = 4
"""Moves of a round: check, raise, raise, call."""


def make(*, num_envs: int = 1, env_offset: int = 0) -> TreeVectorEnv:
    """``games/leduc-v0``, native.

    Args:
        num_envs: ``E``.
        env_offset: Index of the first copy in the random streams.

    Raises:
        ValueError: `num_envs` is below 1.
    """
    tree = GameTree(LeducPoker())
    policies = {"uniform": tree.uniform()}
    return TreeVectorEnv(tree, num_envs=num_envs, env_offset=env_offset, policies=policies)


def env(*, render_mode: str | None = None) -> SequentialAECEnv:
    """``games/leduc-v0`` as an ``AECEnv``."""
    return SequentialAECEnv(LeducPoker(), render_mode=render_mode)


@dataclass(frozen=True)
class _Hand:
    """A history; see `marl_tr.envs.games.sequential.State`. Cards are ranks: suits mean nothing here.

    Attributes:
        cards: Of the players, once dealt.
        public: The public card, once it lies there.
        rounds: Moves of the first and of the second round.
    """

    cards: tuple[int, ...] = ()
    public: int | None = None
    rounds: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def turn(self) -> int:
        """See `State.turn`; the first player begins both rounds."""
        first, second = self.rounds
        if not self.cards:
            return CHANCE
        if FOLD in (*first, *second):
            return OVER
        if self.public is None:
            return CHANCE if _closed(first) else len(first) % 2
        return OVER if _closed(second) else len(second) % 2

    def chances(self) -> Sequence[tuple[int, float]]:
        """Ranks of the players' cards (outcome ``3 r_0 + r_1``), then of the public card."""
        ranks = range(len(_CARDS))
        deck = len(_CARDS) * _COPIES
        if not self.cards:
            pairs = [(a, b, _COPIES * (_COPIES - (a == b))) for a in ranks for b in ranks]
            return [(len(_CARDS) * a + b, ways / (deck * (deck - 1))) for a, b, ways in pairs]
        left = [(rank, _COPIES - self.cards.count(rank)) for rank in ranks]
        return [(rank, copies / (deck - 2)) for rank, copies in left if copies]

    def allowed(self) -> Sequence[int]:
        """To fold where something is to be called; to call or check; to raise up to twice a round."""
        moves = self._now()
        facing = bool(moves) and moves[-1] == RAISE
        return [*([FOLD] if facing else []), CALL, *([RAISE] if moves.count(RAISE) < _MOST_RAISES else [])]

    def after(self, action: int) -> _Hand:
        """See `State.after`."""
        if not self.cards:
            return _Hand(divmod(action, len(_CARDS)))
        if self.turn() == CHANCE:
            return _Hand(self.cards, action, self.rounds)
        first, second = self.rounds
        if self.public is None:
            return _Hand(self.cards, None, ((*first, action), second))
        return _Hand(self.cards, self.public, (first, (*second, action)))

    def returns(self) -> Sequence[float]:
        """Won and lost chips; a pair with the public card wins, else the higher rank; equal ranks split."""
        paid = self._paid()
        moves = self._now()
        if moves[-1] == FOLD:
            winner = len(moves) % 2  # who would move next
        else:
            mine, theirs = ((card == self.public, card) for card in self.cards)
            if mine == theirs:
                return (0.0, 0.0)
            winner = int(theirs > mine)
        gain = paid[1 - winner]
        return (gain, -gain) if winner == 0 else (-gain, gain)

    def known(self, player: int) -> str:
        """The own card, the public one, and the moves: ``"Q:cr"``, ``"QK:crc/r"``."""
        public = "" if self.public is None else _CARDS[self.public]
        spelt = ["".join("fcr"[move] for move in moves) for moves in self.rounds]
        return f"{_CARDS[self.cards[player]]}{public}:{spelt[0]}" + ("" if self.public is None else f"/{spelt[1]}")

    def seen(self, player: int) -> Array:
        """The own card (3), the public one (3), and four moves a round (3 each), one-hot; zeros for what is to come."""
        seen = np.zeros(LeducPoker.features, np.float32)
        seen[self.cards[player]] = 1
        if self.public is not None:
            seen[3 + self.public] = 1
        for index, moves in enumerate(self.rounds):
            for slot, move in enumerate(moves):
                seen[6 + 3 * (_LONGEST * index + slot) + move] = 1
        return seen

    def _now(self) -> tuple[int, ...]:
        return self.rounds[0 if self.public is None else 1]

    def _paid(self) -> list[int]:
        """By each player, antes included."""
        paid = [1, 1]
        for bet, moves in zip(_BETS, self.rounds, strict=True):
            for slot, move in enumerate(moves):
                player = slot % 2
                if move != FOLD:
                    paid[player] = paid[1 - player] + (bet if move == RAISE else 0)
        return paid


class LeducPoker:
    """The game; see `marl_tr.envs.games.sequential.SequentialGame`.

    Six cards, two each of J < Q < K. Each player puts one chip in and gets a card. In each of two rounds of betting,
    before and after a public card is shown, at most two raises, of 2 chips in the first and of 4 in the second.
    """

    id = "games/leduc-v0"
    agents: tuple[str, ...] = ("player_0", "player_1")
    actions = 3
    features = 6 + 2 * _LONGEST * 3

    def start(self) -> _Hand:
        """Before the deal."""
        return _Hand()


def _closed(moves: tuple[int, ...]) -> bool:
    """Whether nobody is to bet or call in a round any more."""
    return len(moves) >= 2 and moves[-1] == CALL
