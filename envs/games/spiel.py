"""``games/openspiel-v0``: any turn-based game of OpenSpiel, whose package comes with the extra ``spiel``.

Source: Lanctot et al., "OpenSpiel: a framework for reinforcement learning in games", arXiv 1908.09453.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.envs.games.sequential import CHANCE, OVER, State
from marl_tr.envs.games.turn_based import SequentialAECEnv
from marl_tr.vector.errors import BadEnvironmentConfig

__all__ = ["SpielGame", "SpielMissing", "env"]

Array = NDArray[Any]


class SpielMissing(BadEnvironmentConfig):
    """The package of OpenSpiel is not installed."""


def env(
    *, game: str = "kuhn_poker", parameters: Mapping[str, Any] | None = None, render_mode: str | None = None
) -> SequentialAECEnv:
    """A game of OpenSpiel as an ``AECEnv``.

    Args:
        game: Its short name there, such as ``"leduc_poker"``.
        parameters: Its parameters, such as ``{"players": 3}``.
        render_mode: ``"ansi"`` or None.

    Raises:
        SpielMissing: ``pyspiel`` cannot be imported.
        BadEnvironmentConfig: There is no such game, or it is not played in turns with known chances, or it does not
            tell what a player knows as numbers.
    """
    return SequentialAECEnv(SpielGame(game, parameters or {}), render_mode=render_mode)


class SpielGame:
    """See `marl_tr.envs.games.sequential.SequentialGame`.

    What a player sees is OpenSpiel's information-state tensor, which holds all that it ever saw and did. Rewards on the
    way are paid at the end, as OpenSpiel's ``returns()``.

    Args:
        name: Short name.
        parameters: Of the game.

    Raises:
        SpielMissing, BadEnvironmentConfig: See `env`.
    """

    id = "games/openspiel-v0"

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        pyspiel = _pyspiel()
        try:
            self._game = pyspiel.load_game(name, dict(parameters))
        except RuntimeError as error:  # pyspiel.SpielError is one
            raise BadEnvironmentConfig(f"environment {self.id!r}: OpenSpiel does not load {name!r}: {error}") from error
        kind = self._game.get_type()
        if kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL:
            raise BadEnvironmentConfig(
                f"environment {self.id!r}: {name!r} is not played in turns; OpenSpiel's "
                f"'turn_based_simultaneous_game' makes a game of turns of it"
            )
        if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
            raise BadEnvironmentConfig(
                f"environment {self.id!r}: {name!r} draws its chances itself, so that no seed repeats it; choose a "
                "game with explicit chances"
            )
        if not (kind.provides_information_state_tensor and kind.provides_information_state_string):
            raise BadEnvironmentConfig(
                f"environment {self.id!r}: {name!r} has no information-state tensor and string; choose a game with both"
            )
        self.agents: tuple[str, ...] = tuple(f"player_{i}" for i in range(self._game.num_players()))
        self.actions: int = self._game.num_distinct_actions()
        self.features: int = self._game.information_state_tensor_size()

    def start(self) -> State:
        """OpenSpiel's initial state."""
        return _SpielState(self._game.new_initial_state())


@dataclass(frozen=True)
class _SpielState:
    """A state of OpenSpiel, which is never changed; see `marl_tr.envs.games.sequential.State`."""

    of: Any

    def turn(self) -> int:
        """See `State.turn`."""
        if self.of.is_terminal():
            return OVER
        return CHANCE if self.of.is_chance_node() else int(self.of.current_player())

    def chances(self) -> Sequence[tuple[int, float]]:
        """See `State.chances`."""
        outcomes: Sequence[tuple[int, float]] = self.of.chance_outcomes()
        return outcomes

    def allowed(self) -> Sequence[int]:
        """See `State.allowed`."""
        actions: Sequence[int] = self.of.legal_actions()
        return actions

    def after(self, action: int) -> _SpielState:
        """See `State.after`."""
        return _SpielState(self.of.child(action))

    def returns(self) -> Sequence[float]:
        """See `State.returns`."""
        values: Sequence[float] = self.of.returns()
        return values

    def known(self, player: int) -> str:
        """See `State.known`."""
        name: str = self.of.information_state_string(player)
        return name

    def seen(self, player: int) -> Array:
        """See `State.seen`."""
        return np.asarray(self.of.information_state_tensor(player), np.float32)


def _pyspiel() -> Any:
    try:
        return importlib.import_module("pyspiel")
    except ImportError as error:
        raise SpielMissing(
            "environment 'games/openspiel-v0' needs OpenSpiel: pip install 'marl-tr[spiel]'; games/kuhn-v0 and "
            "games/leduc-v0 do without"
        ) from error
