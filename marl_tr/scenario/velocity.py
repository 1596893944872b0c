"""Settings of the networks that give a flow its velocity."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from marl_tr.scenario.schema import Strict
from marl_tr.scenario.strict import Activation, Width

__all__ = [
    "LoraConfig",
    "MlpVelocityConfig",
    "ResidualVelocityConfig",
    "TransformerVelocityConfig",
    "VelocityConfig",
]


class _Hidden(Strict):
    hidden: list[Width] = Field(default=[128, 128], min_length=1, description="Widths of the hidden layers.")
    activation: Activation = Field(default="silu", description="Between the hidden layers.")
    frequencies: int = Field(default=8, ge=0, le=64, description="Fourier features of the noise level, pairs.")


class MlpVelocityConfig(_Hidden):
    """An MLP of the sample, the noise level and the observation; its last layer starts at zero."""

    kind: Literal["mlp"] = "mlp"


class ResidualVelocityConfig(_Hidden):
    """A registered velocity (in closed form, say) plus an MLP that starts at zero."""

    kind: Literal["residual"] = "residual"
    base: str = Field(description="Registered velocity ('marl-tr models' lists them), or 'package.module:factory'.")


class LoraConfig(Strict):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) through peft; the pretrained weights stay as they are."""

    rank: int = Field(default=8, ge=1, le=1024, description="Rank of an adapter.")
    alpha: float = Field(default=16.0, gt=0, description="The adapter's output is scaled by alpha / rank.")
    targets: list[str] = Field(
        default=["to_q", "to_k", "to_v", "to_out.0"], min_length=1, description="Suffixes of the layers adapted."
    )


class TransformerVelocityConfig(Strict):
    """A diffusers video transformer: pretrained, or of a given architecture from a random start."""

    kind: Literal["transformer"] = "transformer"
    pretrained: str | None = Field(
        default=None,
        description="Registered model ('marl-tr models' lists them), a .safetensors of 'marl-tr pretrain', or the "
        "folder of a diffusers transformer. Empty: a random start, which 'marl-tr pretrain' trains.",
    )
    architecture: str = Field(default="WanTransformer3DModel", description="Class of diffusers, for a random start.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Its constructor's, for a random start.")
    condition: str = Field(
        default="tokens", description="Observation leaf [B, tokens, D] that a text encoder's output stands in."
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="In which the transformer computes.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, more time.")
    lora: LoraConfig | None = Field(default=None, description="Train adapters only (needs the extra 'lora').")


VelocityConfig = Annotated[
    MlpVelocityConfig | ResidualVelocityConfig | TransformerVelocityConfig, Field(discriminator="kind")
]
