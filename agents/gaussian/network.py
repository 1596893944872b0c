"""The actors' network: an encoder of the observation, perhaps a GRU cell, and a linear head, stacked over learners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from marl_tr.agents.gaussian.config import GaussianConfig
from marl_tr.nn.heads import ProductHead
from marl_tr.nn.normaliser import InputNormaliser
from marl_tr.nn.stacked import StackedGRUCell, StackedLinear, StackedMLP
from marl_tr.scenario.strict import Activation
from marl_tr.vector.contract import GroupSpec

__all__ = ["ActorNetwork", "EncoderSettings", "FlatEncoder", "ObservationEncoder", "side_by_side"]


class ObservationEncoder(Protocol):
    """From observations to features; an `nn.Module`. It sees `GroupSpec.features`: masks are the head's.

    Attributes:
        width: Features it gives.
    """

    width: int

    def __call__(self, observation: Mapping[str, Tensor]) -> Tensor:
        """``{leaf: [L, T, N, ...]}`` to ``[L, T, N, width]``."""
        ...

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool) -> None:
        """Take ``{leaf: [T, E, A, ...]}`` where `mask` into the input statistics; outputs stay, but for the `first`."""
        ...


class EncoderSettings(Protocol):
    """What `FlatEncoder` reads of a policy's settings."""

    @property
    def hidden(self) -> list[int]:
        """Widths of the layers."""
        ...

    @property
    def activation(self) -> Activation:
        """Between them, and after the last."""
        ...

    @property
    def normalise_observation(self) -> bool:
        """Whether to keep running statistics of the inputs."""
        ...


class FlatEncoder(nn.Module):
    """All leaves but masks side by side through an MLP.

    Args:
        config: Widths, activation, input statistics.
        group: The observation's leaves, of any number of axes and of any kind of number.
        rows: Learners ``L``.
        generator: Source of the start.
    """

    def __init__(self, config: EncoderSettings, group: GroupSpec, *, rows: int, generator: torch.Generator) -> None:
        super().__init__()
        self._ranks = {leaf: len(space.shape or ()) for leaf, space in group.features.items()}
        features = sum(int(np.prod(space.shape or ())) for space in group.features.values())
        self.width = config.hidden[-1]
        self.normaliser = InputNormaliser(features) if config.normalise_observation else None
        self.body = StackedMLP(
            rows, [features, *config.hidden], config.activation, generator=generator, activate_last=True
        )

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """See `ObservationEncoder`."""
        x = self._beside(observation)
        features: Tensor = self.body(x, self.normaliser)
        return features

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool) -> None:
        """See `ObservationEncoder`."""
        if self.normaliser is not None:
            self.normaliser.update(self._beside(observation), mask)
            self.normaliser.adopt() if first else self.normaliser.apply_update(self.body.first)

    def _beside(self, observation: Mapping[str, Tensor]) -> Tensor:
        return side_by_side(observation, self._ranks, self.body.first.weight.dtype)


def side_by_side(observation: Mapping[str, Tensor], ranks: Mapping[str, int], dtype: torch.dtype) -> Tensor:
    """Leaves flat and side by side, ``[..., D]``; whole numbers (pixels, flags) become `dtype`.

    Args:
        observation: ``{leaf: [..., *shape]}``.
        ranks: How many axes the shape of each leaf that is wanted has.
        dtype: Of the network.
    """
    parts = []
    for leaf, rank in ranks.items():
        x = observation[leaf]
        x = x if x.is_floating_point() else x.to(dtype)
        parts.append(x if rank == 1 else x.unsqueeze(-1) if rank == 0 else x.flatten(-rank))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class ActorNetwork(nn.Module):
    """``{leaf: [L, T, N, ...]}`` observations to ``[L, T, N, size]`` outputs of the action head.

    Args:
        config: Recurrence and start.
        encoder: An `ObservationEncoder`.
        rows: Learners ``L``.
        head: Says how many outputs and state-independent parameters are needed.
        generator: Source of the start.

    Attributes:
        extra: ``[L, extra_size]``, the head's state-independent parameters (log standard deviations).
    """

    def __init__(
        self,
        config: GaussianConfig,
        encoder: ObservationEncoder,
        *,
        rows: int,
        head: ProductHead,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.width
        self.cell = StackedGRUCell(rows, width, width, generator=generator) if config.network == "gru" else None
        self.head = StackedLinear(rows, width, head.size, generator=generator, gain=config.head_gain)
        self.extra = (
            nn.Parameter(torch.full((rows, head.extra_size), config.initial_log_std)) if head.extra_size else None
        )

    def forward(
        self, observation: Mapping[str, Tensor], memory: Tensor | None, starts: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Outputs ``[L, T, N, size]``, the state-independent parameters, and the last memory ``[L, N, H]``."""
        x = self.encoder(observation)
        if self.cell is not None:
            assert memory is not None
            x, memory = self.cell.sequence(x, memory, starts)
        return self.head(x), self.extra, memory
