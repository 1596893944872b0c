"""The graph-recurrent attention critic of GA-MATR-R.

Nodes are agents. Reconstruction: the roles (a graph recurrent network over the topology, attention for the critic)
are stated in the abstract of Feng et al., arXiv 2401.17880; every size and equation is assumed (specification 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from marl_tr.agents.matr.config import GraphRecurrentConfig
from marl_tr.critic.critic import VALUE_GAIN, Encoding
from marl_tr.critic.inputs import CriticInputs
from marl_tr.nn.graph import DenseGraphAttention, SparseGraphAttention, attention_entropy
from marl_tr.nn.heads import ProductHead, make_head
from marl_tr.nn.named import NamedModules
from marl_tr.nn.stacked import StackedGRUCell, StackedLinear, StackedMLP
from marl_tr.vector.contract import EnvSpec

__all__ = ["GraphRecurrentEncoder"]


class GraphRecurrentEncoder:
    """Embedding, attention layers, residual concatenation, a GRU cell a node, one value a node (2.1)."""

    def __init__(self, config: GraphRecurrentConfig, spec: EnvSpec, *, generator: torch.Generator) -> None:
        self._agents = len(spec.agents)
        self._graph = config.graph
        edges = spec.state.get("edges")
        self.module: nn.Module = _GraphRecurrentNetwork(
            config,
            spec,
            edge_features=0 if edges is None else int((edges.shape or (0,))[-1]),
            generator=generator,
        )
        assert isinstance(self.module, _GraphRecurrentNetwork)
        self.value_layers: tuple[StackedLinear, ...] = (self.module.value.last,)
        self._hidden = config.width if config.recurrent else None

    observes = False

    def initial_memory(self, environments: int) -> Tensor | None:
        """Zero memory ``[E, A, H]``; None without recurrence."""
        if self._hidden is None:
            return None
        device = self.value_layers[0].weight.device
        return torch.zeros(environments, self._agents, self._hidden, device=device)

    def encode(self, parameters: Mapping[str, Tensor] | None, inputs: CriticInputs) -> Encoding:
        """See `marl_tr.critic.critic.Encoder`."""
        arguments = (inputs, self._adjacency(inputs))
        if parameters is None:
            values, memories, _ = self.module(*arguments)
        else:
            values, memories, _ = functional_call(self.module, dict(parameters), arguments)
        return Encoding(values=values, memories=memories)

    def observe(self, inputs: CriticInputs, *, first: bool = False) -> None:
        """Nothing: the embedding is followed by a layer norm."""

    @torch.no_grad()
    def diagnostics(self, inputs: CriticInputs) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Attention entropy a layer and head (1 is uniform), and mean attention maps ``[A, A]``."""
        adjacency = self._adjacency(inputs)
        _, _, weights = self.module(inputs, adjacency)
        scalars: dict[str, float] = {}
        maps: dict[str, Tensor] = {}
        for layer, alpha in enumerate(weights):
            for head, entropy in enumerate(attention_entropy(alpha, adjacency).tolist()):
                scalars[f"attention/entropy/layer{layer}_head{head}"] = entropy
            maps[f"attention/map/layer{layer}"] = alpha.mean((0, 1)).transpose(0, 1).flatten(1)
        return scalars, maps

    def _adjacency(self, inputs: CriticInputs) -> Tensor:
        """``[T, E, A, A]`` bool: the environment's graph, complete where it has none, or self-loops alone."""
        steps, environments, _ = inputs.starts.shape
        own = torch.eye(self._agents, dtype=torch.bool, device=inputs.starts.device)
        if not self._graph:
            return own.expand(steps, environments, -1, -1)
        if "adjacency" in inputs.state:
            edges = inputs.state["adjacency"] > 0
        else:
            edges = torch.ones_like(own).expand(steps, environments, -1, -1)
        # The dead neither give nor get attention, but for their own.
        return (edges & inputs.alive.unsqueeze(-1) & inputs.alive.unsqueeze(-2)) | own


class _GraphRecurrentNetwork(nn.Module):
    identity: Tensor

    def __init__(
        self, config: GraphRecurrentConfig, spec: EnvSpec, *, edge_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = config.width
        self._groups = tuple((group.name, len(group.agents)) for group in spec.groups)
        agents = len(spec.agents)
        self._turns = spec.turns
        self.embeddings = NamedModules({})
        for group in spec.groups:
            observed = sum(int(np.prod(space.shape or ())) for space in group.features.values())
            acted = ProductHead({leaf: make_head(space) for leaf, space in group.action.items()}).encoded_size
            features = observed + acted + agents + spec.turns
            self.embeddings[group.name] = StackedLinear(1, features, width, generator=generator)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            _attention(config, width=width, edge_features=edge_features, generator=generator)
            for _ in range(config.layers)
        )
        joined = width * (config.layers + 1)
        self.cell = StackedGRUCell(1, joined, width, generator=generator) if config.recurrent else None
        self.linear = None if config.recurrent else StackedLinear(1, joined, width, generator=generator)
        self.value = StackedMLP(1, [2 * width, width, 1], "relu", generator=generator, last_gain=VALUE_GAIN)
        self.register_buffer("identity", torch.eye(agents), persistent=False)

    def forward(self, inputs: CriticInputs, adjacency: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Values ``[T, E, A]``, memories ``[T, E, A, H]``, attention weights ``[T, E, heads, A, A]`` a layer."""
        embedded = torch.relu(self.norm(self._embed(inputs)))
        features = [embedded]
        weights: list[Tensor] = []
        for layer in self.layers:
            x, alpha = layer(features[-1], adjacency, inputs.state.get("edges"))
            features.append(x)
            weights.append(alpha)
        joined = torch.cat(features, -1)
        steps, environments, agents, _ = joined.shape
        if self.cell is None:
            assert self.linear is not None
            hidden, memories = torch.relu(self.linear(joined.unsqueeze(0)).squeeze(0)), None
        else:
            assert inputs.memory is not None
            outputs, _ = self.cell.sequence(
                joined.reshape(1, steps, environments * agents, -1),
                inputs.memory.reshape(1, environments * agents, -1),
                inputs.starts.flatten(1),
            )
            hidden = outputs.reshape(steps, environments, agents, -1)
            memories = hidden
        values = self.value(torch.cat([hidden, embedded], -1).unsqueeze(0)).squeeze(0)
        return values.squeeze(-1), memories, weights

    def _embed(self, inputs: CriticInputs) -> Tensor:
        """``W_e [o_u ; previous action ; one-hot u]``, group after group: ``[T, E, A, width]``.

        Where agents take turns whether u is to move is a further feature.
        """
        parts = []
        start = 0
        for name, count in self._groups:
            observation = inputs.observation[name]
            one_hot = self.identity[start : start + count].to(observation.dtype)
            one_hot = one_hot.expand(*observation.shape[:-1], -1)
            x = torch.cat([observation, inputs.previous_action[name], one_hot], -1)
            if self._turns:
                x = torch.cat([x, inputs.acting[:, :, start : start + count].unsqueeze(-1)], -1)
            parts.append(self.embeddings[name](x.unsqueeze(0)).squeeze(0))
            start += count
        return torch.cat(parts, 2)


def _attention(
    config: GraphRecurrentConfig, *, width: int, edge_features: int, generator: torch.Generator
) -> nn.Module:
    if config.backend == "pyg":
        return SparseGraphAttention(width, width, config.heads, edge_features, generator=generator)
    return DenseGraphAttention(width, width, config.heads, edge_features, scoring=config.attention, generator=generator)
