"""The generator's network: from an observation and noise to an action, stacked over learners."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from marl_tr.agents.drifting.config import DriftingConfig
from marl_tr.agents.gaussian.network import FlatEncoder
from marl_tr.nn.stacked import StackedGRUCell, StackedLinear, StackedMLP
from marl_tr.vector.contract import GroupSpec

__all__ = ["Generator", "NoiseHead", "ObservationPart"]


class ObservationPart(nn.Module):
    """Features of what was observed; a memory depends on observations alone, never on the noise.

    Args:
        config: Widths, recurrence, input statistics.
        group: The observation's leaves.
        rows: Learners ``L``.
        generator: Source of the start.

    Attributes:
        width: Features ``F``.
    """

    def __init__(self, config: DriftingConfig, group: GroupSpec, *, rows: int, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = FlatEncoder(config, group, rows=rows, generator=generator)
        self.width = self.encoder.width
        self.cell = (
            StackedGRUCell(rows, self.width, self.width, generator=generator) if config.network == "gru" else None
        )

    def forward(
        self, observation: Mapping[str, Tensor], memory: Tensor | None, starts: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """``{leaf: [L, T, N, ...]}`` to features ``[L, T, N, F]`` and the last memory ``[L, N, F]``."""
        x = self.encoder(observation)
        if self.cell is not None:
            assert memory is not None
            x, memory = self.cell.sequence(x, memory, starts)
        return x, memory


class NoiseHead(nn.Module):
    """``h, z -> head(h, g z) + sigma_0 z[:D]``: at the start nearly ``N(0, sigma_0^2)``, whatever is observed.

    Conditioning 'film' scales and shifts features of the noise (Perez et al., arXiv 1709.07871):
    ``u = act((1 + scale(h)) * W g z + shift(h))``.

    Args:
        config: Conditioning, widths and start.
        features: ``F``.
        latent: ``Z``.
        action: ``D``, at most ``Z``.
        rows: Learners ``L``.
        generator: Source of the start.
    """

    def __init__(
        self,
        config: DriftingConfig,
        *,
        features: int,
        latent: int,
        action: int,
        rows: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._gain, self._spread, self._action = config.latent_gain, config.initial_spread, action
        width = config.head[0]
        film = config.conditioning == "film"
        # Weights of variance 1 / Z, so that the noise's features vary by g: were they of the size that an orthogonal
        # start gives a wide layer, an activation would be almost linear in them, and samples could hardly part.
        gain = math.sqrt(max(1.0, width / latent))
        self.noise = StackedLinear(rows, latent, width, generator=generator, gain=gain) if film else None
        self.film = StackedLinear(rows, features, 2 * width, generator=generator, gain=1.0) if film else None
        self.body = StackedMLP(
            rows,
            [*(config.head if film else [features + latent, *config.head]), action],
            config.activation,
            generator=generator,
            last_gain=config.head_gain,
        )

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        """``[L, ..., F]`` and ``[L, ..., G, Z]`` to raw actions ``[L, ..., G, D]``."""
        scaled = self._gain * noise
        if self.noise is None or self.film is None:
            beside = features.unsqueeze(-2).expand(*noise.shape[:-1], features.shape[-1])
            x = self.body(torch.cat([beside, scaled], -1))
        else:
            # By features once a decision, not once a sample.
            scale, shift = self.film(features).unsqueeze(-2).chunk(2, -1)
            x = self.body(self.body.activate(torch.addcmul(shift, self.noise(scaled), 1 + scale)))
        action: Tensor = x + self._spread * noise[..., : self._action]
        return action


class Generator(nn.Module):
    """Both parts, whose parameters are a policy's.

    Attributes:
        observation: An `ObservationPart`.
        head: A `NoiseHead`.
    """

    def __init__(
        self,
        config: DriftingConfig,
        group: GroupSpec,
        *,
        latent: int,
        action: int,
        rows: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.observation = ObservationPart(config, group, rows=rows, generator=generator)
        self.head = NoiseHead(
            config,
            features=self.observation.width,
            latent=latent,
            action=action,
            rows=rows,
            generator=generator,
        )
