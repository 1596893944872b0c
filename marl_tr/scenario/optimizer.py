"""Settings of gradient steps."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Strict

__all__ = ["OptimizerSection"]


class OptimizerSection(Strict):
    """Minibatch gradient steps; for regions that do not take their own step."""

    kind: Literal["adam", "adamw", "muon"] = Field(
        default="adam",
        description="'muon' moves the hidden matrices of a learner; vectors, embeddings, the first and the last matrix "
        "are AdamW's.",
    )
    learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Step size.")
    adamw_learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="AdamW's step size beside 'muon'; empty: learning_rate."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Decoupled (arXiv 1711.05101), times the step size; not with 'adam'."
    )
    anneal: bool = Field(default=False, description="Let the step sizes fall linearly to 0 over the run.")
    epochs: int = Field(default=5, ge=1, le=1000, description="Passes over a rollout.")
    minibatches: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Minibatches a pass; whole trajectories where the policy is recurrent.",
    )
    chain_batch: int | None = Field(
        default=None,
        ge=1,
        description="Steps of a flow's chain that a forward and backward pass sees of each decision, drawn by a random "
        "permutation a decision and epoch; empty: all.",
    )
    chain_fraction: float = Field(
        default=1.0, gt=0, le=1, description="Share of a flow's chain that is trained on an epoch, at least one step."
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Forward and backward passes an optimizer step, at most those of an epoch (its last step may have "
        "fewer).",
    )
    max_grad_norm: float | None = Field(
        default=10.0, gt=0, description="Gradient norm a learner, clipped above; empty: not clipped."
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "adam" and self.weight_decay:
            raise ValueError("weight_decay is of 'adamw' and 'muon'; set kind: adamw, or leave weight_decay out")
        if self.kind != "muon" and self.adamw_learning_rate is not None:
            raise ValueError("adamw_learning_rate is for what 'muon' leaves to AdamW; set learning_rate")
        return self
