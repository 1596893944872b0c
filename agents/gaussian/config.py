"""Settings of the plain actors."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict

__all__ = ["GaussianConfig"]


class GaussianConfig(Strict):
    """A network an agent (or one for all): hidden layers, perhaps a GRU cell, a law for each action space."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl"})

    network: Literal["mlp", "gru"] = Field(default="mlp", description="'gru' puts a GRU cell behind the hidden layers.")
    hidden: list[int] = Field(default=[128, 128], min_length=1, description="Widths of the hidden layers.")
    activation: Literal["tanh", "relu"] = Field(default="tanh", description="Between the hidden layers.")
    law: Literal["gaussian", "beta"] = Field(
        default="gaussian",
        description="Law of a Box action: 'gaussian' (state-independent log std, clipped by the bounds) or "
        "'beta' (on the bounds themselves; needs bounded spaces). Discrete spaces are categorical.",
    )
    initial_log_std: float = Field(default=-0.5, ge=-5, le=2, description="Log std of a Gaussian at the start.")
    head_gain: float = Field(default=0.01, gt=0, description="Gain of the last layer's orthogonal start.")
    normalise_observation: bool = Field(
        default=False, description="Running mean/std of the inputs; the law is kept when the statistics move."
    )
