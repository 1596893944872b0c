"""Settings of the plain actors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict
from marl_tr.scenario.strict import Activation, Width

__all__ = ["GaussianConfig"]


class GaussianConfig(Strict):
    """A network an agent (or one for all): hidden layers, perhaps a GRU cell, a law for each action space."""

    scope: Literal["own", "joint"] = Field(
        default="own",
        description="'joint': a law over the actions of all agents, of which each executes its own; for schedule "
        "'consensus'.",
    )
    network: Literal["mlp", "gru"] = Field(default="mlp", description="'gru' puts a GRU cell behind the hidden layers.")
    hidden: list[Width] = Field(default=[128, 128], min_length=1, description="Widths of the hidden layers.")
    activation: Activation = Field(default="tanh", description="Between the hidden layers.")
    law: Literal["gaussian", "beta", "mixture"] = Field(
        default="gaussian",
        description="Law of a Box action: 'gaussian' (state-independent log std, clipped by the bounds), "
        "'beta' (on the bounds themselves; needs bounded spaces) or 'mixture' (of such Gaussians; divergences are "
        "upper bounds, entropies lower ones). Discrete spaces are categorical.",
    )
    initial_log_std: float = Field(
        default=-0.5, ge=-5, le=2, description="Log std of a Gaussian, or of a mixture's, at the start."
    )
    components: int = Field(default=4, ge=2, le=64, description="Gaussians of a mixture.")
    initial_spread: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="How far from the centre of a Box the means of a mixture lie at the start, evenly over each "
        "dimension in an order drawn for it; 1 reaches the bounds. In units of the action where it is unbounded.",
    )
    head_gain: float = Field(default=0.01, gt=0, description="Gain of the last layer's orthogonal start.")
    normalise_observation: bool = Field(
        default=False, description="Running mean/std of the inputs; the law is kept when the statistics move."
    )

    @property
    def capabilities(self) -> frozenset[str]:
        """What the agents can say of themselves, as far as settings tell; whether an action is a choice, its space
        does."""
        return frozenset({"log_prob", "kl", "mass"} | ({"gaussian"} if self.law == "gaussian" else set()))
