"""Settings of the games."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Strict

__all__ = ["BanditConfig", "GameConfig", "MeetingConfig", "ReachConfig"]

Height = Annotated[float, Field(gt=0, le=1e3)]


class GameConfig(Strict):
    """What all games share."""

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


class BanditConfig(GameConfig):
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


class ReachConfig(GameConfig):
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


class MeetingConfig(GameConfig):
    """``games/meeting-v0``: two agents that should choose the same point."""

    modes: int = Field(default=2, ge=1, le=16, description="Meeting points M, at equal angles on a circle.")
    radius: float = Field(default=0.7, gt=0, le=1, description="Of the circle; actions lie in [-1, 1] x [-1, 1].")
    width: float = Field(default=0.2, gt=0, le=10, description="Standard deviation of a point's bump.")
    noise: float = Field(default=0.05, ge=0, le=1e3, description="Standard deviation of the shared reward's noise.")

    @property
    def shared_reward(self) -> bool:
        """Both agents always get the same."""
        return True
