"""An encoder for observations of entities: attention from an agent to the other agents and users that it sees.

The star of a graph: the agent attends to each kind of entity, with weights shared by all entities of the kind, so
that what it does depends neither on their order nor on their number. The reconstruction's actors have no graph
(specification 2.1: "does the actor use the graph too" is an open question); this is an option of ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from marl_tr.agents.gaussian.network import side_by_side
from marl_tr.agents.matr.config import MatrConfig
from marl_tr.errors import UserError
from marl_tr.nn.named import NamedModules
from marl_tr.nn.normaliser import InputNormaliser
from marl_tr.nn.stacked import StackedLinear, StackedMLP
from marl_tr.vector.contract import GroupSpec

__all__ = ["EntityEncoder"]


class EntityEncoder(nn.Module):
    """Own features attend to entities: leaves of two axes ``[n, F]``, a row an entity. All other leaves but masks are
    own features, side by side.

    A row of zeros is an entity that is not seen: it gets no attention. Each kind of entity is pooled with additive
    attention weights ``softmax_j LeakyReLU(a_s . h_i + a_t . h_j)``, several heads (Velickovic et al., arXiv
    1710.10903, equations 3 and 6), ``h_i`` the own embedding and ``h_j`` the entities'.

    Args:
        config: Widths, heads, activation, input statistics.
        group: The observation's leaves.
        rows: Learners ``L``.
        generator: Source of the start.

    Raises:
        UserError: No leaf has two axes, or all have.
    """

    def __init__(self, config: MatrConfig, group: GroupSpec, *, rows: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = {leaf: tuple(space.shape or ()) for leaf, space in group.features.items()}
        self._own = {leaf: len(shape) for leaf, shape in shapes.items() if len(shape) != 2}
        self._kinds = tuple(leaf for leaf, shape in shapes.items() if len(shape) == 2)
        if not self._kinds or not self._own:
            raise UserError(
                f"agents: encoder 'entities' needs an observation with own features and tables of entities, and group "
                f"{group.name!r} shows {shapes}; for uav/downlink-v0 set env.config.observation to entities, elsewhere "
                "use encoder: flat"
            )
        self.width = config.hidden[-1]
        self._heads = config.entity_heads
        width = config.entity_width
        sizes = {"own": sum(int(np.prod(shapes[leaf])) for leaf in self._own), **{k: shapes[k][1] for k in self._kinds}}
        activation = config.activation
        self.embed = NamedModules(
            {
                name: StackedMLP(rows, [size, width], activation, generator=generator, activate_last=True)
                for name, size in sizes.items()
            }
        )
        self.normalisers = NamedModules(
            {name: InputNormaliser(size) for name, size in sizes.items()} if config.normalise_observation else {}
        )
        self.source = NamedModules(
            {kind: StackedLinear(rows, width, self._heads, generator=generator, gain=1.0) for kind in self._kinds}
        )
        self.target = NamedModules(
            {kind: StackedLinear(rows, width, self._heads, generator=generator, gain=1.0) for kind in self._kinds}
        )
        joined = width * (1 + len(self._kinds))
        self.body = StackedMLP(rows, [joined, *config.hidden], activation, generator=generator, activate_last=True)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """``{leaf: [L, T, N, ...]}`` to ``[L, T, N, width]``."""
        own = self._embed("own", self._inputs("own", observation))
        pooled = [self._attend(kind, own, self._inputs(kind, observation)) for kind in self._kinds]
        features: Tensor = self.body(torch.cat([own, *pooled], -1))
        return features

    def observe(self, observation: Mapping[str, Tensor], mask: Tensor, *, first: bool) -> None:
        """See `marl_tr.agents.gaussian.network.ObservationEncoder`; unseen entities do not count."""
        for name, normaliser in self.normalisers.items():
            x = self._inputs(name, observation)
            taken = mask if name == "own" else mask.unsqueeze(-1) & _seen(x)
            embed = self.embed[name]
            assert isinstance(normaliser, InputNormaliser)
            assert isinstance(embed, StackedMLP)
            normaliser.update(x, taken)
            normaliser.adopt() if first else normaliser.apply_update(embed.first)

    def _inputs(self, name: str, observation: Mapping[str, Tensor]) -> Tensor:
        """Own features ``[..., D]``, or the entities of a kind ``[..., n, F]``."""
        ranks = self._own if name == "own" else {name: 1}
        return side_by_side(observation, ranks, self.body.first.weight.dtype)

    def _embed(self, name: str, x: Tensor) -> Tensor:
        embedded: Tensor = self.embed[name](x, self.normalisers.get(name))
        return embedded

    def _attend(self, kind: str, own: Tensor, entities: Tensor) -> Tensor:
        """Own ``[L, T, N, W]`` and entities ``[L, T, N, n, F]`` to ``[L, T, N, W]``; a head pools its part of ``W``."""
        embedded = self._embed(kind, entities)
        scores = leaky_relu(self.source[kind](own).unsqueeze(-2) + self.target[kind](embedded), 0.2)
        # Heads before entities, ``[L, T, N, H, n]``: small beside the embeddings, and what the product below wants.
        scores = scores.transpose(-1, -2)
        seen = _seen(entities)
        everybody = bool(seen.all())
        if not everybody:
            # The lowest finite score, not -inf: where nobody is seen, a softmax of -inf alone would be NaN.
            scores = scores.masked_fill(~seen.unsqueeze(-2), torch.finfo(scores.dtype).min)
        pooled = _pooled(scores.softmax(-1), embedded)
        return pooled if everybody else pooled.masked_fill(~seen.any(-1, keepdim=True), 0)


def _pooled(weights: Tensor, embedded: Tensor) -> Tensor:
    """Weights ``[..., H, n]`` and entities ``[..., n, W]`` to ``[..., W]``: a head pools its part of ``W``.

    Every head pools all of ``W`` in one batched product, and its own part is kept: H times the arithmetic, which is
    little, but no tensor of weights times entities ``[..., n, W]`` is written and read, forwards or backwards.
    """
    lead, (heads, entities), width = embedded.shape[:-2], weights.shape[-2:], embedded.shape[-1]
    everything = torch.bmm(weights.reshape(-1, heads, entities), embedded.reshape(-1, entities, width))
    parts = everything.reshape(*lead, heads, heads, width // heads)
    return parts.diagonal(0, -3, -2).transpose(-1, -2).flatten(-2)


def _seen(entities: Tensor) -> Tensor:
    """``[..., n, F]`` to ``[..., n]`` bool: rows that are not all zero."""
    return (entities != 0).any(-1)
