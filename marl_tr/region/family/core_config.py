"""Settings of the mechanisms that other families are compared with."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from marl_tr.region.config import ReshapedConfig, Status

__all__ = ["PpoClipConfig", "SpoConfig"]


class PpoClipConfig(ReshapedConfig):
    """Clipped ratios (PPO, arXiv 1707.06347); not a trust region by itself."""

    paper: ClassVar[str] = "1707.06347"
    status: ClassVar[Status] = "classic"
    guarantee: ClassVar[str] = "none"

    clip: float = Field(default=0.2, gt=0, lt=1, description="How far below 1 the ratio's interval reaches.")
    clip_high: float | None = Field(
        default=None, gt=0, description="How far above; empty: as far. 0.28 is Clip-Higher (DAPO)."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Floor of the gain of bad actions, dual_clip A (verl: 3); empty: none."
    )


class SpoConfig(ReshapedConfig):
    """Simple policy optimization (arXiv 2401.16025, v9): each ratio is drawn to ``1 + epsilon sign(A)``."""

    paper: ClassVar[str] = "2401.16025"
    status: ClassVar[Status] = "verified"
    guarantee: ClassVar[str] = "soft"

    epsilon: float = Field(default=0.2, gt=0, lt=1, description="Half-width of the ratio's interval.")
