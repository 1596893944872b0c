"""Critics without a graph: everything side by side, or (scope: local) each agent's own observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from marl_tr.critic.config import MlpCriticConfig
from marl_tr.critic.critic import VALUE_GAIN, Encoding
from marl_tr.critic.inputs import CriticInputs
from marl_tr.nn.named import NamedModules
from marl_tr.nn.normaliser import InputNormaliser
from marl_tr.nn.stacked import StackedLinear, StackedMLP
from marl_tr.vector.contract import EnvSpec

__all__ = ["MlpEncoder"]

_GRAPH_LEAVES = frozenset({"edges", "adjacency"})
"""Leaves of the state that describe a graph; an MLP gets nothing from them that positions do not say."""


class MlpEncoder:
    """Values by MLPs.

    Centralized: the global state where there is one, else all observations, to one value an agent. Local: an MLP a
    group, from an agent's own observation to its own value. Either is shown who is to move where agents take turns.
    """

    def __init__(self, config: MlpCriticConfig, spec: EnvSpec, *, generator: torch.Generator) -> None:
        self._local = config.scope == "local"
        self.observes = config.normalise_observation
        self._groups = tuple(group.name for group in spec.groups)
        self._state = tuple(leaf for leaf in spec.state if leaf not in _GRAPH_LEAVES)
        widths = {
            group.name: sum(int(np.prod(space.shape or ())) for space in group.features.values())
            for group in spec.groups
        }
        self._turns = spec.turns
        if self._local:
            sizes = {name: (width + spec.turns, 1) for name, width in widths.items()}
        else:
            features = sum(int(np.prod(spec.state[leaf].shape or ())) for leaf in self._state) or sum(
                widths[group.name] * len(group.agents) for group in spec.groups
            )
            sizes = {"all": (features + spec.turns * len(spec.agents), len(spec.agents))}
        networks = {
            name: StackedMLP(
                1, [width, *config.hidden, out], config.activation, generator=generator, last_gain=VALUE_GAIN
            )
            for name, (width, out) in sizes.items()
        }
        self.module: nn.Module = _Networks(networks, normalise=config.normalise_observation)
        self.value_layers: tuple[StackedLinear, ...] = tuple(network.last for network in networks.values())

    def initial_memory(self, environments: int) -> Tensor | None:
        """None: it remembers nothing."""
        return None

    def encode(self, parameters: Mapping[str, Tensor] | None, inputs: CriticInputs) -> Encoding:
        """See `marl_tr.critic.critic.Encoder`."""
        features = self._features(inputs)
        by_name: dict[str, Tensor] = (
            self.module(features) if parameters is None else functional_call(self.module, dict(parameters), (features,))
        )
        if self._local:
            values = torch.cat([by_name[name].squeeze(-1) for name in self._groups], -1)
        else:
            values = by_name["all"]
        return Encoding(values=values, memories=None)

    def observe(self, inputs: CriticInputs, *, first: bool = False) -> None:
        """Move the input statistics, values kept (but for the `first` time); rows of the dead do not count."""
        assert isinstance(self.module, _Networks)
        if self._local:
            alive = self._by_group(inputs, inputs.alive)
        else:
            alive = {"all": inputs.alive.any(-1)}
        self.module.observe(self._features(inputs), alive, first=first)

    def prepare(self, inputs: CriticInputs) -> CriticInputs:
        """Only what the networks see, side by side: passes over minibatches gather nothing else."""
        return replace(inputs, observation={}, previous_action={}, state={}, features=self._features(inputs))

    def diagnostics(self, inputs: CriticInputs) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Nothing to show."""
        return {}, {}

    def _features(self, inputs: CriticInputs) -> dict[str, Tensor]:
        """Inputs of each network, ``[T, E, F]`` or (local) ``[T, E, A, F]``."""
        if inputs.features is not None:
            return inputs.features
        if self._local and self._turns:
            acting = self._by_group(inputs, inputs.acting.unsqueeze(-1))
            return {name: torch.cat([inputs.observation[name], acting[name]], -1) for name in self._groups}
        if self._local:
            return {name: inputs.observation[name] for name in self._groups}
        if self._state:
            parts = [inputs.state[leaf].flatten(2) for leaf in self._state]
        else:
            parts = [inputs.observation[name].flatten(2) for name in self._groups]
        if self._turns:
            parts.append(inputs.acting)
        return {"all": torch.cat(parts, -1)}

    def _by_group(self, inputs: CriticInputs, x: Tensor) -> dict[str, Tensor]:
        """``[T, E, A, ...]`` of all agents, a part a group."""
        counts = [inputs.observation[name].shape[2] for name in self._groups]
        return dict(zip(self._groups, x.split(counts, 2), strict=True))


class _Networks(nn.Module):
    def __init__(self, networks: dict[str, StackedMLP], *, normalise: bool) -> None:
        super().__init__()
        self.networks = NamedModules(networks)
        self.normalisers = NamedModules({})
        if normalise:
            for name, network in networks.items():
                self.normalisers[name] = InputNormaliser(network.first.weight.shape[1])

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self.networks[name](x.unsqueeze(0), self.normalisers.get(name)).squeeze(0)
            for name, x in features.items()
        }

    def observe(self, features: Mapping[str, Tensor], alive: Mapping[str, Tensor], *, first: bool) -> None:
        for name, normaliser in self.normalisers.items():
            network = self.networks[name]
            assert isinstance(normaliser, InputNormaliser)
            assert isinstance(network, StackedMLP)
            normaliser.update(features[name], alive[name])
            normaliser.adopt() if first else normaliser.apply_update(network.first)
