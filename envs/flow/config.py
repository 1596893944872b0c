"""Settings of the generation environments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from marl_tr.scenario.schema import Strict

__all__ = ["GenerationConfig", "MixtureConfig", "MovingShapesConfig", "Weights", "component_weights"]

Weights = Literal["A", "B"] | Annotated[list[float], Field(min_length=3, max_length=3)]

_NAMED: dict[str, tuple[float, float, float]] = {"A": (1.0, 1.0, 1.0), "B": (0.5, 0.5, 1.0)}


def component_weights(weights: Weights) -> tuple[float, float, float]:
    """Weights of visual quality, motion quality and text alignment, by name or as given."""
    if isinstance(weights, str):
        return _NAMED[weights]
    vq, mq, ta = weights
    return vq, mq, ta


class GenerationConfig(Strict):
    """What all generation environments share: how a sample is made, and which samples are compared."""

    view: Literal["clip", "steps"] = Field(
        default="clip",
        description="'clip': an action is a whole sample (the policy runs its own chain) and ends the episode; "
        "'steps': each environment step is one denoising step, an action is the next latent.",
    )
    cohort: int = Field(
        default=1, ge=1, le=65_536, description="Samples that share a condition; divides the number of copies."
    )
    steps: int = Field(default=10, ge=1, le=2000, description="Denoising steps of an episode (view 'steps').")
    shift: float = Field(
        default=3.0, ge=1, le=100, description="Of the noise levels: s = shift u / (1 + (shift-1) u) (view 'steps')."
    )

    @property
    def horizon(self) -> int:
        """Environment steps of an episode."""
        return self.steps if self.view == "steps" else 1

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels from 1 to 0, ``steps + 1`` of them."""
        falling = [1 - step / self.steps for step in range(self.steps + 1)]
        return tuple(self.shift * u / (1 + (self.shift - 1) * u) for u in falling)


class MovingShapesConfig(GenerationConfig):
    """``flow/moving_shapes-v0``: clips of a shape that moves, 8 frames of 16 x 16."""

    level: Literal["plain", "hard"] = Field(
        default="plain", description="'plain': a torus; 'hard': walls to bounce off, and a brightness of its own."
    )
    segments: int = Field(
        default=1, ge=1, le=16, description="Agents n; agent k makes frames 8k to 8k + 7 of one long clip."
    )
    place: bool = Field(
        default=False,
        description="Tell the cell (4 pixels wide) in which a clip starts; always told with several segments.",
    )
    weights: Weights = Field(
        default="A",
        description="Of visual quality, motion quality and text alignment: 'A' (1, 1, 1), 'B' (0.5, 0.5, 1), or three "
        "numbers.",
    )
    tau: float = Field(
        default=4.0,
        gt=0,
        le=1e4,
        description="Width of text alignment's kernel exp(-d^2 / (2 tau^2)) of the distance d over 2048 pixels.",
    )
    consistency: float = Field(
        default=1.0, ge=0, le=1e3, description="Weight of how well segments continue each other (several segments)."
    )

    @model_validator(mode="after")
    def _torus_only(self) -> MovingShapesConfig:
        if self.segments > 1 and self.level != "plain":
            raise ValueError("several segments need level: plain (a bounce would change the direction asked for)")
        return self

    @property
    def told_place(self) -> bool:
        """Whether the place token is given."""
        return self.place or self.segments > 1


class MixtureConfig(GenerationConfig):
    """``flow/mixture-v0``: points in the plane, data a Gaussian mixture along a curve."""

    curve: Literal["circle", "moons", "spiral"] = Field(default="circle", description="Where the data lie.")
    arcs: int = Field(default=4, ge=1, le=64, description="Conditions C: equal parts of the curve.")
    reach: float = Field(
        default=0.5, gt=0, le=100, description="Width of the preference along the curve, in lengths of an arc."
    )
    manifold_weight: float = Field(
        default=0.0,
        ge=-100,
        le=100,
        description="Price of the distance to the curve (up to 1). 0: leaving it costs nothing; negative: it pays, a "
        "reward to be hacked.",
    )
