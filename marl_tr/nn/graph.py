"""Graph attention over small, dense graphs, and the same layer over PyTorch Geometric's sparse one.

``U`` nodes, ``D`` features a node, ``De`` features an edge, ``H`` heads of width ``C``. ``adjacency[u, v]``
says that receiver ``u`` sees sender ``v``; a self-loop exists where the diagonal says so. A node that sees
nobody gives zeros.

Both layers are ``x' = ReLU(W_O m + b_O)`` of messages ``m_u = concat_h sum_v alpha_uv W_V x_v``; they differ
in how ``alpha`` is scored. The dense ones support forward-mode differentiation and double backward.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

if TYPE_CHECKING:
    from torch_geometric.nn import GATv2Conv

__all__ = [
    "DenseGraphAttention",
    "Scoring",
    "SparseGraphAttention",
    "attention_entropy",
    "copy_gatv2conv",
]

Scoring = Literal["dot", "gatv2", "uniform"]

# The slope of GATv2Conv's default.
_NEGATIVE_SLOPE = 0.2


class DenseGraphAttention(nn.Module):
    """Attention among the nodes of a graph given as a mask.

    Args:
        in_features: ``D``.
        width: Width of the output, ``H C``; divisible by `heads`.
        heads: ``H``.
        edge_features: ``De``; 0 for none.
        scoring: ``"dot"``: ``(W_Q x_u) . (W_K x_v) / sqrt(C) + w_E . edge_uv``; ``"gatv2"``: GATv2 (Brody et
            al., arXiv 2105.14491), equal to torch-geometric's ``GATv2Conv`` without added self-loops;
            ``"uniform"``: ``alpha = 1 / |N(u)|``, an ablation.
        generator: Source of the start.

    Raises:
        ValueError: `width` is not divisible by `heads`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        heads: int,
        edge_features: int = 0,
        scoring: Scoring = "dot",
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        kinds = {"dot": _DotAttention, "gatv2": _GATv2Attention, "uniform": _UniformAttention}
        self.attention = kinds[scoring](in_features, width, heads, edge_features, generator)
        self.output = _linear(width, width, generator, gain=math.sqrt(2))

    def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """New node features and the attention weights.

        Args:
            x: ``[..., U, D]``.
            adjacency: Bool ``[..., U, U]``, row = receiver.
            edges: ``[..., U, U, De]``, or None for no edge term.

        Returns:
            ``[..., U, width]``, and ``alpha [..., H, U, U]``, whose rows sum to 1 (to 0 without a neighbour).
        """
        messages, alpha = self.attention(x, adjacency, edges)
        return _emit(self.output, messages, adjacency), alpha


class SparseGraphAttention(nn.Module):
    """The ``"gatv2"`` layer over torch-geometric's ``GATv2Conv``, for graphs of few edges.

    Same arguments, inputs and results as `DenseGraphAttention`; needs `torch_geometric`, imported here.
    """

    def __init__(
        self, in_features: int, width: int, heads: int, edge_features: int = 0, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        # Seconds to import; only who asks for this layer pays.
        from torch_geometric.nn import GATv2Conv

        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        # Its constructor draws from the global generator; what it draws is replaced below.
        with torch.random.fork_rng(devices=[]):
            self.convolution: Any = GATv2Conv(
                in_features,
                width // heads,
                heads=heads,
                edge_dim=edge_features or None,
                negative_slope=_NEGATIVE_SLOPE,
                add_self_loops=False,
            )
        self.output = _linear(width, width, generator, gain=math.sqrt(2))
        for parameter in self.convolution.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)

    def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `DenseGraphAttention.forward`."""
        nodes, heads = x.shape[-2], self.convolution.heads
        mask = adjacency.expand(*x.shape[:-1], nodes).reshape(-1, nodes, nodes)
        graph, receiver, sender = mask.nonzero(as_tuple=True)
        edge_index = torch.stack([graph * nodes + sender, graph * nodes + receiver])
        features = None
        if edges is not None:
            wide = edges.expand(*x.shape[:-1], *edges.shape[-2:]).reshape(-1, nodes, nodes, edges.shape[-1])
            features = wide[graph, receiver, sender]
        messages, (_, weights) = self.convolution(
            x.reshape(-1, x.shape[-1]), edge_index, features, return_attention_weights=True
        )
        alpha = weights.new_zeros(mask.shape[0], nodes, nodes, heads)
        alpha = alpha.index_put((graph, receiver, sender), weights)
        alpha = alpha.movedim(-1, -3).reshape(*x.shape[:-2], heads, nodes, nodes)
        return _emit(self.output, messages.reshape(*x.shape[:-1], -1), adjacency), alpha


def copy_gatv2conv(source: GATv2Conv, target: DenseGraphAttention) -> None:
    """Give `target` (scoring ``"gatv2"``) the attention weights of a torch-geometric ``GATv2Conv``.

    Args:
        source: Built with ``share_weights=False``, ``concat=True``, a bias, and the sizes of `target`.
        target: Its messages equal those of `source` afterwards; its output layer is not touched.

    Raises:
        ValueError: `target` scores in another way.
    """
    attention = target.attention
    if not isinstance(attention, _GATv2Attention):
        raise ValueError("the target must be a DenseGraphAttention with scoring='gatv2'")
    with torch.no_grad():
        attention.sender.load_state_dict(source.lin_l.state_dict())
        attention.receiver.load_state_dict(source.lin_r.state_dict())
        if attention.edge is not None:
            attention.edge.load_state_dict(source.lin_edge.state_dict())
        attention.score.copy_(source.att[0])
        attention.bias.copy_(source.bias)


@torch.no_grad()
def attention_entropy(alpha: Tensor, adjacency: Tensor) -> Tensor:
    """How evenly each head looks around: 1 is uniform over the neighbours, 0 a single one.

    Args:
        alpha: Attention weights ``[..., H, U, U]``.
        adjacency: Bool ``[..., U, U]``.

    Returns:
        Entropy of each row divided by ``log |N(u)|``, averaged over the rows that have a choice (two
        neighbours or more), ``[H]``; 0 where no row has one.
    """
    neighbours = adjacency.sum(-1).expand(*alpha.shape[:-3], alpha.shape[-1])
    choice = neighbours >= 2
    entropy = -torch.special.xlogy(alpha, alpha).sum(-1)
    share = entropy / neighbours.clamp_min(2).to(alpha.dtype).log().unsqueeze(-2)
    share = torch.where(choice.unsqueeze(-2), share, 0.0)
    heads, nodes = alpha.shape[-3], alpha.shape[-1]
    return share.reshape(-1, heads, nodes).sum((0, 2)) / choice.sum().clamp_min(1)


class _DotAttention(nn.Module):
    def __init__(
        self, in_features: int, width: int, heads: int, edge_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = _linear(in_features, width, generator, bias=False)
        self.key = _linear(in_features, width, generator, bias=False)
        self.value = _linear(in_features, width, generator, bias=False)
        self.edge = _linear(edge_features, heads, generator, bias=False) if edge_features else None

    def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key = _by_head(self.query(x), self.heads), _by_head(self.key(x), self.heads)
        scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        if self.edge is not None and edges is not None:
            scores = scores + self.edge(edges).movedim(-1, -3)
        alpha = _masked_softmax(scores, adjacency)
        return _gather(alpha, _by_head(self.value(x), self.heads)), alpha


class _GATv2Attention(nn.Module):
    def __init__(
        self, in_features: int, width: int, heads: int, edge_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.sender = _linear(in_features, width, generator)
        self.receiver = _linear(in_features, width, generator)
        self.edge = _linear(edge_features, width, generator, bias=False) if edge_features else None
        channels = width // heads
        self.score = nn.Parameter(torch.randn(heads, channels, generator=generator) / math.sqrt(channels))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor | None) -> tuple[Tensor, Tensor]:
        sent = self.sender(x)
        pairs = self.receiver(x).unsqueeze(-2) + sent.unsqueeze(-3)
        if self.edge is not None and edges is not None:
            pairs = pairs + self.edge(edges)
        pairs = _split_heads(leaky_relu(pairs, _NEGATIVE_SLOPE), self.heads)
        scores = (pairs * self.score).sum(-1).movedim(-1, -3)
        alpha = _masked_softmax(scores, adjacency)
        return _gather(alpha, _by_head(sent, self.heads)) + self.bias, alpha


class _UniformAttention(nn.Module):
    def __init__(
        self, in_features: int, width: int, heads: int, edge_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.value = _linear(in_features, width, generator, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor | None) -> tuple[Tensor, Tensor]:
        value = _by_head(self.value(x), self.heads)
        alpha = _masked_softmax(x.new_zeros(*value.shape[:-1], x.shape[-2]), adjacency)
        return _gather(alpha, value), alpha


def _by_head(features: Tensor, heads: int) -> Tensor:
    """``[..., U, H C] -> [..., H, U, C]``."""
    return _split_heads(features, heads).transpose(-2, -3)


def _split_heads(features: Tensor, heads: int) -> Tensor:
    return features.reshape(*features.shape[:-1], heads, features.shape[-1] // heads)


def _gather(alpha: Tensor, value: Tensor) -> Tensor:
    """``sum_v alpha_uv value_v``, heads side by side: ``[..., H, U, U], [..., H, U, C] -> [..., U, H C]``."""
    return (alpha @ value).transpose(-2, -3).flatten(-2)


def _masked_softmax(scores: Tensor, adjacency: Tensor) -> Tensor:
    mask = adjacency.unsqueeze(-3)
    # A row of nothing but -inf would be NaN, in the gradient too; it is left open, then emptied.
    closed = ~mask & mask.any(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(closed, -torch.inf), -1).masked_fill(~mask, 0.0)


def _emit(output: nn.Module, messages: Tensor, adjacency: Tensor) -> Tensor:
    features: Tensor = torch.relu(output(messages))
    return features.masked_fill(~adjacency.any(-1, keepdim=True), 0.0)


def _linear(
    in_features: int, out_features: int, generator: torch.Generator, *, gain: float = 1.0, bias: bool = True
) -> nn.Linear:
    # Made without values: the usual constructor would draw them from the global generator.
    layer = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device="cpu")
    nn.init.orthogonal_(layer.weight, gain=gain, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
