"""Layers of several learners at once: parameters ``[L, ...]``, inputs ``[L, ..., D]``, one row a learner.

The number of rows is read from the tensors at every call, never from the module, so that
``torch.func.functional_call(module, {name: p[row : row + 1]}, (x[row : row + 1],))`` runs one learner alone.
Everything here supports forward-mode differentiation and double backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from marl_tr.scenario.strict import Activation

if TYPE_CHECKING:
    from marl_tr.nn.normaliser import InputNormaliser

__all__ = ["StackedGRUCell", "StackedLinear", "StackedMLP", "affine"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": nn.functional.silu,
}


class StackedLinear(nn.Module):
    """``y = x W + b`` with weights of its own for each row.

    Args:
        rows: Learners ``L``.
        in_features: Width of the input.
        out_features: Width of the output.
        generator: Source of the orthogonal start (Saxe et al. 2014, arXiv 1312.6120), drawn row after row.
        gain: Factor of the orthogonal matrix. Biases start at zero.

    Attributes:
        weight: ``[L, in, out]``.
        bias: ``[L, out]``.
    """

    def __init__(
        self,
        rows: int,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        gain: float = math.sqrt(2),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(_orthogonal(rows, in_features, out_features, generator, gain))
        self.bias = nn.Parameter(torch.zeros(rows, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """``[L, ..., in] -> [L, ..., out]``."""
        return affine(x, self.weight, self.bias)


class StackedMLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        rows: Learners ``L``.
        sizes: Widths from the input to the output, two at least.
        activation: ``"tanh"``, ``"relu"`` or ``"silu"``.
        generator: Source of the start.
        gain: Orthogonal gain of every layer but the last.
        last_gain: Orthogonal gain of the last layer; by default `gain`.
        activate_last: Whether the activation follows the last layer too (a trunk).
    """

    def __init__(
        self,
        rows: int,
        sizes: Sequence[int],
        activation: Activation = "tanh",
        *,
        generator: torch.Generator,
        gain: float = math.sqrt(2),
        last_gain: float | None = None,
        activate_last: bool = False,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs the width of its input and of its output, not {list(sizes)}")
        gains = [gain] * (len(sizes) - 2) + [gain if last_gain is None else last_gain]
        self.layers = nn.ModuleList(
            StackedLinear(rows, sizes[i], sizes[i + 1], generator=generator, gain=gains[i]) for i in range(len(gains))
        )
        self.activation = activation
        self.activate_last = activate_last

    @property
    def first(self) -> StackedLinear:
        """The layer that sees the input, for an `InputNormaliser`."""
        layer = self.layers[0]
        assert isinstance(layer, StackedLinear)
        return layer

    @property
    def last(self) -> StackedLinear:
        """The layer that gives the output, for a `ValueNormaliser`."""
        layer = self.layers[-1]
        assert isinstance(layer, StackedLinear)
        return layer

    def forward(self, x: Tensor, normaliser: InputNormaliser | None = None) -> Tensor:
        """``[L, ..., sizes[0]] -> [L, ..., sizes[-1]]``, of inputs normalised first where there is a `normaliser`."""
        for index, layer in enumerate(self.layers):
            x = layer(x) if index or normaliser is None else normaliser.through(self.first, x)
            if index < len(self.layers) - 1 or self.activate_last:
                x = self.activate(x)
        return x

    def activate(self, x: Tensor) -> Tensor:
        """The activation alone."""
        return _ACTIVATIONS[self.activation](x)


class StackedGRUCell(nn.Module):
    """A gated recurrent unit, written out (cuDNN's has no double backward and no forward mode).

    ``z = sigm(W_z x + U_z h + b_z)``, ``q = sigm(W_q x + U_q h + b_q)``,
    ``n = tanh(W_n x + q * (U_n h + b_hn) + b_n)``, ``h' = (1 - z) * n + z * h``: the function of
    ``torch.nn.GRUCell``, whose two biases of z and of q are one here.

    Args:
        rows: Learners ``L``.
        in_features: Width of the input.
        hidden: Width ``H`` of the memory.
        generator: Source of the orthogonal start, one matrix a gate.

    Attributes:
        weight_input: ``[L, in, 3 H]``, gates in the order z, q, n.
        weight_memory: ``[L, H, 3 H]``, same order.
        bias: ``[L, 3 H]``: b_z, b_q, b_n.
        bias_memory: ``[L, H]``: b_hn.
    """

    def __init__(self, rows: int, in_features: int, hidden: int, *, generator: torch.Generator) -> None:
        super().__init__()
        gates = range(3)
        self.weight_input = nn.Parameter(
            torch.cat([_orthogonal(rows, in_features, hidden, generator, 1.0) for _ in gates], -1)
        )
        self.weight_memory = nn.Parameter(
            torch.cat([_orthogonal(rows, hidden, hidden, generator, 1.0) for _ in gates], -1)
        )
        self.bias = nn.Parameter(torch.zeros(rows, 3 * hidden))
        self.bias_memory = nn.Parameter(torch.zeros(rows, hidden))

    @property
    def hidden(self) -> int:
        """Width ``H`` of the memory."""
        return self.bias_memory.shape[-1]

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """One step: x ``[L, N, in]``, memory ``[L, N, H]`` -> the new memory ``[L, N, H]``."""
        return self._step(affine(x, self.weight_input, self.bias), memory)

    def sequence(self, x: Tensor, memory: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over time; all input projections are one product.

        Args:
            x: ``[L, T, N, in]``.
            memory: Before the first step, ``[L, N, H]``.
            starts: ``[T, N]`` or ``[L, T, N]`` bool; where a step is the first of an episode, the memory is
                set to zero before it.

        Returns:
            The memory after each step, ``[L, T, N, H]``, and after the last, ``[L, N, H]``.
        """
        # unbind, not x[:, t]: its backward is one stack, where T selections would each write a whole tensor.
        projected = affine(x, self.weight_input, self.bias).unbind(1)
        keep, any_start = _restarts(starts, memory, len(projected))
        outputs = []
        for t, inputs in enumerate(projected):
            if any_start[t]:
                memory = memory * keep[:, t]
            memory = self._step(inputs, memory)
            outputs.append(memory)
        return torch.stack(outputs, 1), memory

    def _step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        hidden = self.hidden
        recurrent = torch.bmm(memory, self.weight_memory)
        gates = torch.sigmoid(inputs[..., : 2 * hidden] + recurrent[..., : 2 * hidden])
        z, q = gates[..., :hidden], gates[..., hidden:]
        n = torch.tanh(inputs[..., 2 * hidden :] + q * (recurrent[..., 2 * hidden :] + self.bias_memory.unsqueeze(1)))
        return n + z * (memory - n)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W + b``, a row each: ``[L, ..., in]``, ``[L, in, out]`` and ``[L, out]`` to ``[L, ..., out]``."""
    rows, out_features = bias.shape
    if x.shape[0] != rows:
        raise ValueError(f"input {tuple(x.shape)} has {x.shape[0]} rows, the parameters {rows}")
    flat = x.reshape(rows, -1, x.shape[-1])
    return torch.baddbmm(bias.unsqueeze(1), flat, weight).reshape(*x.shape[:-1], out_features)


def _restarts(starts: Tensor | None, memory: Tensor, steps: int) -> tuple[Tensor, list[bool]]:
    if starts is None:
        return memory, [False] * steps
    stacked = starts if starts.dim() == 3 else starts.unsqueeze(0)
    # One transfer for all steps: most steps start nothing, and need no multiplication then.
    any_start: list[bool] = stacked.any(-1).any(0).tolist()
    return (~stacked).to(memory.dtype).unsqueeze(-1), any_start


def _orthogonal(rows: int, in_features: int, out_features: int, generator: torch.Generator, gain: float) -> Tensor:
    weight = torch.empty(rows, in_features, out_features)
    for row in weight:
        nn.init.orthogonal_(row, gain=gain, generator=generator)
    return weight
