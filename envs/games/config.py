"""Settings of the games."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from marl_tr.envs.games.payoffs import MOST_CELLS, named_payoffs, read_payoffs
from marl_tr.scenario.strict import Strict

__all__ = [
    "BanditConfig",
    "ContextConfig",
    "DifferentialConfig",
    "MatrixConfig",
    "MeetingConfig",
    "PlacementConfig",
    "PokerConfig",
    "ReachConfig",
    "SpielConfig",
]

Height = Annotated[float, Field(gt=0, le=1e3)]


class ContextConfig(Strict):
    """What games share whose episodes are drawn."""

    cohort: int = Field(
        default=1,
        ge=1,
        le=65_536,
        description="Copies that are given the same episode, all but the noise of its reward; divides the number of "
        "copies.",
    )

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        return 1


class BanditConfig(ContextConfig):
    """``games/bandit-v0``: one choice for a context."""

    modes: int = Field(default=2, ge=1, le=16, description="Modes M of the reward, at equal angles on a circle.")
    radius: float = Field(default=0.7, gt=0, le=1, description="Of the circle; actions lie in [-1, 1] x [-1, 1].")
    width: float = Field(default=0.2, gt=0, le=10, description="Standard deviation of a mode's bump.")
    heights: list[Height] | None = Field(
        default=None, description="What each mode is worth, one number a mode. None: 1 each."
    )
    rotation: float = Field(
        default=1.0,
        ge=-100,
        le=100,
        description="How far the modes turn with the context: 0 not at all, 1 by up to 67.5 degrees either way.",
    )
    noise: float = Field(default=0.1, ge=0, le=1e3, description="Standard deviation of the reward's noise.")

    @property
    def worth(self) -> tuple[float, ...]:
        """Height of each mode."""
        return (1.0,) * self.modes if self.heights is None else tuple(self.heights)

    @model_validator(mode="after")
    def _one_height_a_mode(self) -> BanditConfig:
        if self.heights is not None and len(self.heights) != self.modes:
            raise ValueError(f"heights has {len(self.heights)} numbers for {self.modes} modes; give one a mode")
        return self


class ReachConfig(ContextConfig):
    """``games/reach-v0``: on the way to any of several goals."""

    modes: int = Field(default=4, ge=1, le=16, description="Goals M, at equal angles on a circle.")
    radius: float = Field(default=0.8, gt=0, le=1, description="Of the circle; places lie in [-1, 1] x [-1, 1].")
    steps: int = Field(default=25, ge=1, le=1000, description="Steps of an episode.")
    speed: float = Field(default=0.1, gt=0, le=2, description="Longest way of a step.")
    spread: float = Field(
        default=0.05, ge=0, le=1, description="Episodes start in [-spread, spread] x [-spread, spread]."
    )
    arrival: float = Field(default=0.1, gt=0, le=2, description="Distance from which a goal counts as reached.")
    bonus: float = Field(default=1.0, ge=0, le=1e3, description="Of a whole episode spent at a goal.")

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        return self.steps


class MeetingConfig(ContextConfig):
    """``games/meeting-v0``: two agents that should choose the same point."""

    modes: int = Field(default=2, ge=1, le=16, description="Meeting points M, at equal angles on a circle.")
    radius: float = Field(default=0.7, gt=0, le=1, description="Of the circle; actions lie in [-1, 1] x [-1, 1].")
    width: float = Field(default=0.2, gt=0, le=10, description="Standard deviation of a point's bump.")
    noise: float = Field(default=0.05, ge=0, le=1e3, description="Standard deviation of the shared reward's noise.")

    @property
    def shared_reward(self) -> bool:
        """Both agents always get the same."""
        return True


class MatrixConfig(Strict):
    """``games/matrix-v0``: any game in normal form, once or repeated."""

    game: (
        Literal[
            "matching_pennies",
            "rock_paper_scissors",
            "prisoners_dilemma",
            "stag_hunt",
            "chicken",
            "coordination",
            "rotation",
            "anti_coordination",
        ]
        | None
    ) = Field(default=None, description="A game with a name. None: matching pennies, where no `payoffs` are given.")
    payoffs: list[Any] | None = Field(
        default=None,
        description="Any game: one table a player, indexed by the actions of player 0, of player 1, and so on; players "
        "may have different numbers of actions.",
    )
    players: int | None = Field(
        default=None,
        ge=2,
        le=14,
        description="Players of `anti_coordination`, an even number; None: 2. Other games have their own.",
    )
    rounds: int = Field(
        default=1, ge=1, le=10_000, description="Times the game is played in an episode; all see the last joint action."
    )

    @field_validator("payoffs")
    @classmethod
    def _a_tensor(cls, payoffs: list[Any] | None) -> list[Any] | None:
        if payoffs is not None:
            read_payoffs(payoffs)
        return payoffs

    @model_validator(mode="after")
    def _one_game(self) -> MatrixConfig:
        others = [name for name in ("game", "players") if getattr(self, name) is not None]
        if self.payoffs is not None and others:
            raise ValueError(f"payoffs and {' and '.join(others)} are both given; payoffs alone say everything")
        _ = self.tensor
        return self

    @cached_property
    def tensor(self) -> NDArray[np.float64]:
        """``[A, n_1, ..., n_A]``."""
        if self.payoffs is not None:
            return read_payoffs(self.payoffs)
        return named_payoffs(self.game or "matching_pennies", players=self.players or 2)

    @property
    def shared_reward(self) -> bool:
        """Whether all players always get the same."""
        return bool((self.tensor == self.tensor[0]).all())


class DifferentialConfig(Strict):
    """``games/differential-v0``: two players, one number each."""

    game: Literal["product", "saddle", "two_hills"] = Field(
        default="product",
        description="'product': both get `a_1 a_2`; 'saddle': the first gets `a_1 a_2`, the second loses it; "
        "'two_hills': both get the higher of a low wide and a high narrow hill.",
    )
    bound: float | None = Field(
        default=None,
        gt=0,
        le=1e3,
        description="Choices lie in [-bound, bound]. None: 2, in `two_hills` 10 (at least 5, where the hills are).",
    )

    @model_validator(mode="after")
    def _both_hills_within_reach(self) -> DifferentialConfig:
        if self.game == "two_hills" and self.limit < 5:
            raise ValueError(f"the hills of two_hills lie at -5 and 5; bound must be at least 5, not {self.bound}")
        return self

    @property
    def limit(self) -> float:
        """The bound."""
        if self.bound is not None:
            return self.bound
        return 10.0 if self.game == "two_hills" else 2.0

    @property
    def shared_reward(self) -> bool:
        """Whether both get the same."""
        return self.game != "saddle"


class PlacementConfig(Strict):
    """``games/uav_placement-v0``: UAVs choose where to hover, and how loudly to send, once."""

    num_uavs: int = Field(default=2, ge=1, le=4, description="UAV base stations U, one agent each.")
    places: list[float] = Field(
        default=[100.0, 300.0, 500.0, 700.0, 900.0],
        min_length=1,
        max_length=64,
        description="Where a UAV may hover, in m along a line.",
    )
    powers: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        default=[0.05, 0.1], min_length=1, max_length=64, description="Transmit powers to choose from, in W."
    )
    users: list[float] = Field(
        default=[150.0, 350.0, 450.0, 800.0],
        min_length=1,
        max_length=10_000,
        description="Where the users are, in m along the same line.",
    )
    lambda_sigma: float = Field(
        default=0.5, ge=0, le=1e3, description="Weight of the users' rate deviation (population std over R_ref)."
    )
    rho: float = Field(
        default=0.0, ge=0, le=1, description="0: each UAV its own reward; 1: all get the mean (cooperative)."
    )
    c_collision: float = Field(default=1.0, ge=0, le=1e3, description="Penalty of choosing a place that another chose.")

    @property
    def shared_reward(self) -> bool:
        """Whether all agents get the same reward, ``rho = 1``."""
        return self.rho == 1.0

    @model_validator(mode="after")
    def _different_and_few(self) -> PlacementConfig:
        for name in ("places", "powers"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {values}")
        cells = self.num_uavs * (len(self.places) * len(self.powers)) ** self.num_uavs
        if cells > MOST_CELLS:
            raise ValueError(f"the game has {cells:,} payoffs, more than {MOST_CELLS:,}: fewer places, powers or UAVs")
        return self


class PokerConfig(Strict):
    """``games/kuhn-v0`` and ``games/leduc-v0``: no settings."""


class SpielConfig(Strict):
    """``games/openspiel-v0``: a game of OpenSpiel."""

    game: str = Field(default="kuhn_poker", min_length=1, description="OpenSpiel's short name of the game.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="The game's parameters, by their names there.")
