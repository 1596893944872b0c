"""A trust-region mechanism from outside the package: soft adaptive policy optimization (SAPO).

    PYTHONPATH=examples marl-tr run cartpole preset=mappo region.kind=sapo:SAPO region.temperature_down=2.0

``A (4 / t) sigmoid(t (w - 1))``: its slope is ``A`` at ratio 1 and fades out on both sides, where PPO's breaks off.
Source: arXiv 2511.20347, as second-hand accounts give it (temperatures 1.0 for good actions, 1.05 for bad ones).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from marl_tr.region.config import ReshapedConfig, Status
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest_deviation
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.registry import Entry

__all__ = ["SAPO"]


class SapoConfig(ReshapedConfig):
    """Soft adaptive policy optimization (arXiv 2511.20347)."""

    paper: ClassVar[str] = "2511.20347"
    status: ClassVar[Status] = "second-hand"

    temperature_up: float = Field(default=1.0, gt=0, description="How fast the slope fades for good actions.")
    temperature_down: float = Field(default=1.05, gt=0, description="The same for bad ones.")


class Sapo(ReshapedGain):
    """See the module."""

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """``[R, T, N, k]``."""
        w, a, config = decisions.ratio, decisions.advantage, self.config
        temperature = torch.where(a > 0, config.temperature_up, config.temperature_down)
        return a * (4 / temperature) * torch.sigmoid(temperature * (w - 1))

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|``, beside the width within which the slope is above half."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), 1.76 / self.config.temperature_up)


SAPO = Entry(Sapo, "slope of the ratio fades out smoothly (SAPO)", SapoConfig)
