"""Settings of gradient steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from marl_tr.scenario.strict import Strict

__all__ = ["OptimizerSection"]

_ONLY_FOR: Mapping[str, tuple[frozenset[str], str]] = {
    "weight_decay": (
        frozenset({"adamw", "muon", "spectral", "normalised_momentum"}),
        "set kind: adamw, or leave weight_decay out",
    ),
    "adamw_learning_rate": (
        frozenset({"muon", "spectral", "normalised_momentum"}),
        "it is for what they leave to AdamW; set learning_rate",
    ),
    "momentum": (frozenset({"spectral", "normalised_momentum"}), "leave momentum out"),
    "step_scale": (frozenset({"spectral", "normalised_momentum"}), "leave step_scale out"),
    "norm": (frozenset({"spectral"}), "leave norm out"),
    "orthogonalisation": (frozenset({"spectral"}), "leave orthogonalisation out"),
}
"""Fields that some kinds have, and what to do where another kind is given one."""


class OptimizerSection(Strict):
    """Minibatch gradient steps; for regions that do not take their own step."""

    kind: Literal["adam", "adamw", "muon", "spectral", "normalised_momentum"] = Field(
        default="adam",
        description="'muon', 'spectral' and 'normalised_momentum' move the hidden matrices of a learner; vectors, "
        "embeddings, the first and the last matrix are AdamW's. 'spectral': each matrix to the edge of a ball in a "
        "norm of its own (arXiv 2503.12645). 'normalised_momentum': momentum of Frobenius norm 1 (AuON, arXiv "
        "2509.24320).",
    )
    learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Step size.")
    adamw_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="AdamW's step size beside the kinds that move matrices; empty: learning_rate.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Decoupled (arXiv 1711.05101), times the step size; not with 'adam'."
    )
    momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Of 'spectral' and 'normalised_momentum': the share of the old momentum that a step keeps, m <- "
        "momentum m + (1 - momentum) g; empty: 0.95.",
    )
    norm: Literal["spectral", "l2", "linf"] | None = Field(
        default=None,
        description="Of 'spectral': the ball's norm. 'spectral' (empty): largest singular value, a step along U V^T; "
        "'l2': Frobenius, normalised descent; 'linf': largest entry, descent by signs.",
    )
    orthogonalisation: Literal["newton_schulz", "svd"] | None = Field(
        default=None,
        description="Of norm 'spectral': 'newton_schulz' (empty) is five iterations, steps at most 1.21 times the "
        "radius; 'svd' is exact.",
    )
    step_scale: Literal["rms", "unit"] | None = Field(
        default=None,
        description="Of 'spectral' and 'normalised_momentum': what learning_rate is multiplied by to be a matrix's "
        "radius. 'rms' (empty): so that the entries' root mean square is 0.2 of it, as long as AdamW's steps (arXiv "
        "2502.16982); 'unit': 1.",
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
        for name, (kinds, cure) in _ONLY_FOR.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and self.kind not in kinds:
                raise ValueError(f"{name} is of {_listed(kinds)}, and the kind is {self.kind!r}; {cure}")
        if self.orthogonalisation is not None and self.norm not in (None, "spectral"):
            raise ValueError(
                f"orthogonalisation is of norm 'spectral', and the norm is {self.norm!r}; leave orthogonalisation out"
            )
        return self


def _listed(kinds: frozenset[str]) -> str:
    *most, last = (repr(kind) for kind in sorted(kinds))
    return f"{', '.join(most)} and {last}" if most else last
