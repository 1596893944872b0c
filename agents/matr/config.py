"""Settings of the GA-MATR-style agents and of their graph-recurrent attention critic."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.critic.config import CriticConfig
from marl_tr.scenario.strict import Activation, Width

__all__ = ["GraphRecurrentConfig", "MatrConfig"]


class MatrConfig(GaussianConfig):
    """Decentralised actors; GRU and Beta law are the reconstruction's defaults (specification 2.2)."""

    network: Literal["mlp", "gru"] = Field(default="gru", description="'gru' puts a GRU cell behind the hidden layers.")
    hidden: list[Width] = Field(default=[128], min_length=1, description="Widths of the hidden layers.")
    activation: Activation = Field(default="relu", description="Between the hidden layers.")
    law: Literal["gaussian", "beta", "mixture"] = Field(default="beta", description="Law of a Box action.")
    encoder: Literal["flat", "entities"] = Field(
        default="flat",
        description="'flat': the observation side by side; 'entities': attention from the agent to tables of entities "
        "([n, F] observation leaves; a row of zeros is not seen).",
    )
    entity_width: int = Field(default=64, ge=4, le=4096, description="Features of an embedded entity.")
    entity_heads: int = Field(default=4, ge=1, le=64, description="Heads of that attention; divides `entity_width`.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.entity_width % self.entity_heads:
            raise ValueError(
                f"entity_heads must divide entity_width: {self.entity_heads} do not divide {self.entity_width}"
            )
        return self


class GraphRecurrentConfig(CriticConfig):
    """Graph-recurrent attention critic; the switches mirror the ablations."""

    width: int = Field(default=128, ge=4, le=4096, description="Features D of a node.")
    heads: int = Field(default=4, ge=1, le=64, description="Attention heads; divides `width`.")
    layers: int = Field(default=2, ge=1, le=8, description="Attention layers.")
    graph: bool = Field(default=True, description="False: each node attends to itself only.")
    recurrent: bool = Field(default=True, description="False: a linear layer in place of the GRU cell.")
    attention: Literal["dot", "gatv2", "uniform"] = Field(
        default="dot", description="Scores: scaled dot product with an edge bias, GATv2, or 1/|N|."
    )
    backend: Literal["dense", "pyg"] = Field(
        default="dense",
        description="'dense': masked batched layer; 'pyg': torch-geometric's GATv2Conv (gatv2 only).",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width: {self.heads} heads do not divide {self.width} features")
        if self.backend == "pyg" and self.attention != "gatv2":
            raise ValueError(f"backend 'pyg' computes attention 'gatv2' only, not {self.attention!r}")
        return self
