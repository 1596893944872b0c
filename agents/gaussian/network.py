"""The actors' network: hidden layers, perhaps a GRU cell, and a linear head, stacked over learners."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.nn.heads import ProductHead
from marl_tr.nn.normaliser import InputNormaliser
from marl_tr.nn.stacked import StackedGRUCell, StackedLinear, StackedMLP

__all__ = ["ActorNetwork"]


class ActorNetwork(nn.Module):
    """``[L, T, N, D]`` observations to ``[L, T, N, size]`` outputs of the action head.

    Args:
        config: Widths, activation, recurrence.
        rows: Learners ``L``.
        features: ``D``.
        head: Says how many outputs and state-independent parameters are needed.
        generator: Source of the start.

    Attributes:
        extra: ``[L, extra_size]``, the head's state-independent parameters (log standard deviations).
    """

    def __init__(
        self,
        config: GaussianConfig,
        *,
        rows: int,
        features: int,
        head: ProductHead,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.normaliser = InputNormaliser(features) if config.normalise_observation else None
        self.body = StackedMLP(
            rows, [features, *config.hidden], config.activation, generator=generator, activate_last=True
        )
        width = config.hidden[-1]
        self.cell = StackedGRUCell(rows, width, width, generator=generator) if config.network == "gru" else None
        self.head = StackedLinear(rows, width, head.size, generator=generator, gain=config.head_gain)
        self.extra = (
            nn.Parameter(torch.full((rows, head.extra_size), config.initial_log_std)) if head.extra_size else None
        )

    def forward(
        self, observation: Tensor, memory: Tensor | None, starts: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Outputs ``[L, T, N, size]``, the state-independent parameters, and the last memory ``[L, N, H]``."""
        x = self.body(observation if self.normaliser is None else self.normaliser(observation))
        if self.cell is not None:
            assert memory is not None
            x, memory = self.cell.sequence(x, memory, starts)
        return self.head(x), self.extra, memory
