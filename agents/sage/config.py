"""Settings of flow policies."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.schema import Strict
from marl_tr.scenario.velocity import MlpVelocityConfig, VelocityConfig

__all__ = ["FlowConfig"]


class FlowConfig(Strict):
    """A flow-matching policy: an action is drawn by a chain of Gaussian steps from noise to the action."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"log_prob", "kl", "gaussian"})

    network: VelocityConfig = Field(
        default=MlpVelocityConfig(), description="What predicts the velocity: mlp, residual or transformer."
    )
    chain: Literal["own", "environment"] = Field(
        default="own",
        description="'own': the policy runs its steps between two steps of the environment. 'environment': each step "
        "of the environment is one denoising step; it shows leaves 'latent' and 'sigma'.",
    )
    steps: int = Field(default=10, ge=1, le=2000, description="Steps K from noise to action.")
    shift: float = Field(
        default=3.0, ge=1, le=100, description="Of the noise levels, s = shift u / (1 + (shift - 1) u)."
    )
    sampler: Literal["sage", "flow", "dance", "cps", "precise"] = Field(
        default="sage", description="Which SDE the steps follow: where the noise is put."
    )
    eta: float = Field(default=0.5, gt=0, le=10, description="Scale of the noise; at most 1 for 'cps'.")
    clamp: Literal["safe", "published"] = Field(
        default="safe", description="Of 'sage' at s = 1; 'published' is refused on grids where it is invalid."
    )
    clamp_eps: float = Field(default=3e-3, gt=0, lt=1, description="Distance of the clamp from s = 1.")
    cps_log_prob: Literal["gaussian", "surrogate"] = Field(
        default="gaussian", description="The density of 'cps', or the published -|x' - mean|^2 in its ratios."
    )
    sde_window: tuple[int, int] | None = Field(
        default=None, description="[start, stop): noise in these steps only, the rest are ODE steps. Empty: all steps."
    )
    equalizer: bool = Field(
        default=True, description="Weigh each step's gain so that all pull on the network equally (not its KL terms)."
    )
    decode: Literal["latent", "clean"] = Field(
        default="latent",
        description="What the environment gets: the chain's last state, or the last step's estimate of clean data.",
    )
    guidance: float | None = Field(
        default=None,
        ge=0,
        description="Classifier-free guidance w, v = v_null + w (v - v_null), in rollout and training alike.",
    )
    mode_noise: Literal["random", "zero"] = Field(
        default="random", description="Where the deterministic (ODE) samples of evaluations start."
    )
    mode_steps: int | None = Field(
        default=None, ge=1, le=2000, description="Their number of steps; empty: the same as in learning."
    )

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.sde_window is not None and not 0 <= self.sde_window[0] < self.sde_window[1] <= self.steps:
            raise ValueError(f"sde_window must be [start, stop) with 0 <= start < stop <= steps = {self.steps}")
        if self.sampler == "cps" and self.eta > 1:
            raise ValueError(f"eta of sampler 'cps' is a share of a right angle, at most 1, not {self.eta:g}")
        if self.chain == "environment" and self.mode_steps is not None:
            raise ValueError("mode_steps is for chain 'own'; the environment's own chain has a fixed number of steps")
        if self.chain == "environment" and self.mode_noise == "zero":
            raise ValueError("mode_noise is for chain 'own'; where the environment denoises, it draws the first noise")
        return self
