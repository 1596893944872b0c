"""``games/kuhn-v0``: Kuhn poker, the smallest poker with bluffs; every equilibrium is known.

Source: Kuhn, "A simplified two-person poker", Contributions to the Theory of Games 1, 1950.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.games.sequential import CHANCE, OVER, GameTree
from marl_tr.envs.games.tree_env import TreeVectorEnv
from marl_tr.envs.games.turn_based import SequentialAECEnv

__all__ = ["BET", "PASS", "KuhnPoker", "env", "kuhn_equilibrium", "make"]

Array = NDArray[Any]

PASS, BET = 0, 1
_CARDS = "JQK"
_DEALS = tuple(permutations(range(3), 2))
_SHOWDOWNS = {(PASS, PASS): 1, (BET, BET): 2, (PASS, BET, BET): 2}
"""What is won by the higher card, by the moves that led there."""
_FOLDED = {(BET, PASS): 0, (PASS, BET, PASS): 1}
"""Who wins an ante because the other did not call."""


def make(*, num_envs: int = 1, env_offset: int = 0) -> TreeVectorEnv:
    """``games/kuhn-v0``, native.

    Args:
        num_envs: ``E``.
        env_offset: Index of the first copy in the random streams.

    Raises:
        ValueError: `num_envs` is below 1.
    """
    tree = GameTree(KuhnPoker())
    policies = {"uniform": tree.uniform(), "equilibrium": kuhn_equilibrium(1 / 6)}
    return TreeVectorEnv(tree, num_envs=num_envs, env_offset=env_offset, policies=policies)


def env(*, render_mode: str | None = None) -> SequentialAECEnv:
    """``games/kuhn-v0`` as an ``AECEnv``.

    Example:
        >>> game = env()
        >>> game.reset(seed=1)
        >>> game.observe("player_0")["observation"].shape
        (9,)
    """
    return SequentialAECEnv(KuhnPoker(), render_mode=render_mode)


@dataclass(frozen=True)
class _Hand:
    """A history: the cards, once dealt, and the moves; see `marl_tr.envs.games.sequential.State`."""

    cards: tuple[int, ...] = ()
    moves: tuple[int, ...] = ()

    def turn(self) -> int:
        """See `State.turn`."""
        if not self.cards:
            return CHANCE
        return OVER if self.moves in _SHOWDOWNS or self.moves in _FOLDED else len(self.moves) % 2

    def chances(self) -> Sequence[tuple[int, float]]:
        """Six deals."""
        return [(deal, 1 / len(_DEALS)) for deal in range(len(_DEALS))]

    def allowed(self) -> Sequence[int]:
        """To pass (check, or fold) or to bet (or call)."""
        return (PASS, BET)

    def after(self, action: int) -> _Hand:
        """See `State.after`."""
        return _Hand(self.cards, (*self.moves, action)) if self.cards else _Hand(_DEALS[action])

    def returns(self) -> Sequence[float]:
        """Won and lost chips."""
        if self.moves in _FOLDED:
            stake, winner = 1, _FOLDED[self.moves]
        else:
            stake, winner = _SHOWDOWNS[self.moves], int(self.cards[1] > self.cards[0])
        return (stake, -stake) if winner == 0 else (-stake, stake)

    def known(self, player: int) -> str:
        """The own card and the moves: ``"Q:pb"``."""
        return f"{_CARDS[self.cards[player]]}:{''.join('pb'[move] for move in self.moves)}"

    def seen(self, player: int) -> Array:
        """The own card (3) and each of three moves (2 each), one-hot; zeros for moves to come."""
        seen = np.zeros(9, np.float32)
        seen[self.cards[player]] = 1
        for index, move in enumerate(self.moves):
            seen[3 + 2 * index + move] = 1
        return seen


class KuhnPoker:
    """The game; see `marl_tr.envs.games.sequential.SequentialGame`.

    Each of two players puts one chip in and gets one of three cards, J < Q < K. The first passes or bets one more;
    after a pass the second does. A bet is answered by a call (``BET``) or a fold (``PASS``). The higher card wins.
    """

    id = "games/kuhn-v0"
    agents: tuple[str, ...] = ("player_0", "player_1")
    actions = 2
    features = 9

    def start(self) -> _Hand:
        """Before the deal."""
        return _Hand()


def kuhn_equilibrium(alpha: float) -> tuple[dict[str, Array], dict[str, Array]]:
    """The equilibrium in which the first player bets a jack with probability `alpha`; worth -1/18 to it.

    Raises:
        ValueError: `alpha` is not in [0, 1/3]: it would be no equilibrium.
    """
    if not 0 <= alpha <= 1 / 3:
        raise ValueError(f"alpha must be in [0, 1/3], got {alpha}")
    bets = (
        {"J:": alpha, "Q:": 0, "K:": 3 * alpha, "J:pb": 0, "Q:pb": alpha + 1 / 3, "K:pb": 1},
        {"J:p": 1 / 3, "Q:p": 0, "K:p": 1, "J:b": 0, "Q:b": 1 / 3, "K:b": 1},
    )
    first, second = ({place: np.array([1 - bet, bet], np.float64) for place, bet in table.items()} for table in bets)
    return first, second
