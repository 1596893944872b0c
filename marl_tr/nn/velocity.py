"""What a flow needs of its network, and the networks that give it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import torch
from torch import Tensor, nn

from marl_tr.errors import UserError
from marl_tr.registry import find
from marl_tr.scenario.velocity import MlpVelocityConfig, ResidualVelocityConfig, VelocityConfig
from marl_tr.vector.contract import GroupSpec

__all__ = ["MlpVelocity", "ResidualVelocity", "Velocity", "build_velocity", "event_shape"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


class Velocity(Protocol):
    """A velocity field ``v(x, s | observation)``; an `nn.Module`.

    With ``x_s = (1 - s) x0 + s e`` the network's target is ``v = e - x0``: ``s = 1`` is noise, ``s = 0`` data.
    """

    def __call__(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Velocities ``[B, *event]`` at samples ``[B, *event]``, noise levels ``[B]`` and ``{leaf: [B, ...]}``."""
        ...


def build_velocity(config: VelocityConfig, group: GroupSpec, generator: torch.Generator) -> nn.Module:
    """The network of `config` for the actions of `group`, a `Velocity`.

    Args:
        config: Which, and its sizes.
        group: Its one ``Box`` action leaf is the event; its observation leaves are the condition.
        generator: Source of every random start. torch's global generator is left as it is.

    Raises:
        UserError: The spaces do not suit the network; or see `marl_tr.nn.transformer.build_transformer`.
    """
    event = event_shape(group)
    if isinstance(config, MlpVelocityConfig):
        return MlpVelocity(config, event, group.observation, generator)
    if isinstance(config, ResidualVelocityConfig):
        base: nn.Module = find("models", config.base).load()(group)
        return ResidualVelocity(base, MlpVelocity(config, event, group.observation, generator))
    # Only here, because diffusers takes seconds to import.
    from marl_tr.nn.transformer import build_transformer

    return build_transformer(config, group, generator)


def event_shape(group: GroupSpec) -> tuple[int, ...]:
    """The shape of what a flow of `group` generates.

    Raises:
        UserError: The action is not one ``Box``.
    """
    spaces = list(group.action.values())
    if len(spaces) != 1 or not isinstance(spaces[0], gymnasium.spaces.Box):
        kinds = ", ".join(f"{name}: {type(space).__name__}" for name, space in group.action.items())
        raise UserError(f"a flow generates one Box, and the action of group {group.name!r} is {{{kinds}}}")
    return tuple(spaces[0].shape)


class MlpVelocity(nn.Module):
    """The sample, features of the noise level and the observation side by side through an MLP.

    The noise level enters as itself and as ``sin(pi k s), cos(pi k s)``, ``k = 1 ... frequencies``. The last layer
    starts at zero, so that a residual starts as its base.

    Args:
        config: Widths, activation, frequencies.
        event: Shape of a sample.
        observation: Space of each leaf that is read.
        generator: Source of the start: uniform in ``+- sqrt(6 / inputs)`` (He et al., arXiv 1502.01852), biases 0.
    """

    def __init__(
        self,
        config: MlpVelocityConfig | ResidualVelocityConfig,
        event: Sequence[int],
        observation: Mapping[str, gymnasium.Space[Any]],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._event = tuple(event)
        self._leaves = tuple(observation)
        self._frequencies = config.frequencies
        size = math.prod(self._event)
        features = sum(math.prod(space.shape or ()) for space in observation.values())
        widths = [size + 1 + 2 * config.frequencies + features, *config.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [_linear(inputs, outputs, generator), _ACTIVATIONS[config.activation]()]
        self.body = nn.Sequential(*layers)
        self.head = _linear(widths[-1], size, None)

    def forward(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """See `Velocity`."""
        level = sigma.to(x.dtype).unsqueeze(-1)
        phase = math.pi * level * torch.arange(1, self._frequencies + 1, dtype=x.dtype, device=x.device)
        leaves = [observation[leaf].to(x.dtype).reshape(len(x), -1) for leaf in self._leaves]
        inputs = torch.cat([x.flatten(1), level, phase.sin(), phase.cos(), *leaves], -1)
        velocity: Tensor = self.head(self.body(inputs)).unflatten(-1, self._event)
        return velocity


class ResidualVelocity(nn.Module):
    """A velocity that is given, plus one that learns.

    Args:
        base: A `Velocity`; whatever it holds is frozen.
        correction: A `Velocity`, zero at its start.
    """

    def __init__(self, base: nn.Module, correction: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.correction = correction

    def forward(self, x: Tensor, sigma: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """See `Velocity`."""
        velocity: Tensor = self.base(x, sigma, observation) + self.correction(x, sigma, observation)
        return velocity


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """A layer with bias 0, and weights 0 where there is no `generator`."""
    # skip_init: the class's own start would draw from the global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.zeros_(layer.bias)
    if generator is None:
        nn.init.zeros_(layer.weight)
    else:
        bound = math.sqrt(6 / inputs)
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=generator)
    return layer
