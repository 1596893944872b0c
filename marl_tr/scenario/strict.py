"""The base of all settings models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Activation", "Strict", "Width"]

Activation = Literal["tanh", "relu", "silu"]
"""Between the layers of a network."""

Width = Annotated[int, Field(ge=1, le=65_536)]
"""Of a layer."""


class Strict(BaseModel):
    """Refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
