"""What a flow needs of its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

__all__ = ["Velocity"]


class Velocity(Protocol):
    """A velocity field ``v(x, s | observation)``; an `nn.Module`.

    With ``x_s = (1 - s) x0 + s e`` the network's target is ``v = e - x0``: ``s = 1`` is noise, ``s = 0`` data.
    """

    def __call__(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Velocities ``[B, *event]`` at samples ``[B, *event]``, noise levels ``[B]`` and ``{leaf: [B, ...]}``."""
        ...
