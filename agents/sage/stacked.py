"""Any network, once for each learner: parameters in rows, as the trainer keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from marl_tr.policy import Parameters

__all__ = ["StackedNetworks"]


class StackedNetworks(nn.Module):
    """``L`` networks of one architecture, whose trained parameters are stacked ``[L, ...]``.

    What is not trained (buffers, and parameters that require no gradient: a pretrained model under adapters) exists
    once and serves all rows; it is part of no checkpoint.

    Args:
        networks: ``L`` networks; the first lends its structure and all that is not trained.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        trained = [[(name, p) for name, p in network.named_parameters() if p.requires_grad] for network in networks]
        # A module's parameter may have no dot in its name.
        self._names = {name: name.replace(".", "/") for name, _ in trained[0]}
        for position, (name, _) in enumerate(trained[0]):
            stacked = torch.stack([row[position][1].detach() for row in trained])
            self.register_parameter(self._names[name], nn.Parameter(stacked))
        # In a list, so that it is no submodule: its parameters are not ours.
        self._structure = [networks[0].requires_grad_(False)]

    @property
    def frozen(self) -> dict[str, Tensor]:
        """What is not trained, by name."""
        network = self._structure[0]
        held = {name: p for name, p in network.named_parameters() if name not in self._names}
        return held | dict(network.named_buffers())

    def row(self, parameters: Parameters | None, row: int) -> Callable[..., Tensor]:
        """One learner's network.

        Args:
            parameters: Stacked, by the names of this module; None: its own.
            row: Which row of `parameters`.
        """
        source: Mapping[str, Tensor] = dict(self.named_parameters()) if parameters is None else parameters
        own = {name: source[stacked][row] for name, stacked in self._names.items()}
        dtype = next(iter(own.values())).dtype

        def call(x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
            cast = {
                name: value.to(dtype)
                for name, value in self.frozen.items()
                if dtype == torch.float64 and value.is_floating_point() and value.dtype != dtype
            }
            velocity: Tensor = functional_call(self._structure[0], {**own, **cast}, (x, sigma, observation))
            return velocity

        return call

    def _apply(self, fn: Any, recurse: bool = True) -> StackedNetworks:
        """Moves to other devices take along what is not registered."""
        self._structure[0]._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
