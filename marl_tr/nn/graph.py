"""Graph attention over small, dense graphs, and the same layer over PyTorch Geometric's sparse one.

``U`` nodes, ``D`` features a node, ``De`` features an edge, ``H`` heads of width ``C``. ``adjacency[u, v]``
says that receiver ``u`` sees sender ``v``; a self-loop exists where the diagonal says so. A node that sees
nobody gives zeros.

Both layers are ``x' = ReLU(W_O m + b_O)`` of messages ``m_u = concat_h sum_v alpha_uv W_V x_v``; they differ in how
``alpha`` is scored. The dense ones support forward-mode differentiation and double backward, and have the scores with
an edge bias, for which torch-geometric has no layer. On 256 complete graphs of 4 nodes the dense GATv2 is 1.1 to 1.5
times as fast as ``GATv2Conv`` (`benchmarks/graph_attention.py`): a convenience, not the reason to prefer it.
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
# 2 MiB of float32, and where softmax along the last axis becomes the faster one: both measured on one core.
_CACHE_ELEMENTS = 2**19
_FEW_NODES = 8


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
        scores = _inner_products(query, key) / math.sqrt(query.shape[-1])
        if self.edge is not None and edges is not None:
            scores = scores + self.edge(edges)
        alpha = _masked_softmax(scores, adjacency)
        return _gather(alpha, _by_head(self.value(x), self.heads)), alpha.movedim(-1, -3)


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
        pairs = _by_head(leaky_relu(pairs, _NEGATIVE_SLOPE), self.heads)
        alpha = _masked_softmax((pairs * self.score).sum(-1), adjacency)
        return _gather(alpha, _by_head(sent, self.heads)) + self.bias, alpha.movedim(-1, -3)


class _UniformAttention(nn.Module):
    def __init__(
        self, in_features: int, width: int, heads: int, edge_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.value = _linear(in_features, width, generator, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor | None) -> tuple[Tensor, Tensor]:
        value = _by_head(self.value(x), self.heads)
        nodes = x.shape[-2]
        alpha = _masked_softmax(x.new_zeros(*x.shape[:-2], nodes, nodes, self.heads), adjacency)
        return _gather(alpha, value), alpha.movedim(-1, -3)


def _by_head(features: Tensor, heads: int) -> Tensor:
    """``[..., H C] -> [..., H, C]``."""
    return features.reshape(*features.shape[:-1], heads, features.shape[-1] // heads)


def _inner_products(receiver: Tensor, sender: Tensor) -> Tensor:
    """``[..., U, H, C]`` twice -> ``[..., U, V, H]``."""
    if _fits_in_cache(receiver):
        return (receiver.unsqueeze(-3) * sender.unsqueeze(-4)).sum(-1)
    products = receiver.transpose(-2, -3) @ sender.movedim(-3, -1)
    return products.movedim(-3, -1)


def _gather(alpha: Tensor, value: Tensor) -> Tensor:
    """``sum_v alpha_uv value_v``, heads side by side: ``[..., U, V, H], [..., V, H, C] -> [..., U, H C]``."""
    if _fits_in_cache(value):
        return (alpha.unsqueeze(-1) * value.unsqueeze(-4)).sum(-3).flatten(-2)
    return (alpha.movedim(-1, -3) @ value.transpose(-2, -3)).transpose(-2, -3).flatten(-2)


def _fits_in_cache(features: Tensor) -> bool:
    """Whether a tensor over all pairs of nodes of ``[..., U, H, C]`` is small.

    Products of thousands of 4x4 matrices are slower than multiplying and summing, twice as slow for 256
    graphs of width 64, until the tensor of all pairs leaves the cache (half at 1,600 graphs of width 128).
    """
    return features.numel() * features.shape[-3] <= _CACHE_ELEMENTS


def _masked_softmax(scores: Tensor, adjacency: Tensor) -> Tensor:
    """Softmax over the senders of ``[..., U, V, H]``, exactly 0 where there is no edge."""
    mask = adjacency.unsqueeze(-1)
    # A row of nothing but -inf would be NaN, in the gradient too; it is left open, then emptied.
    closed = ~mask & mask.any(-2, keepdim=True)
    open_scores = scores.masked_fill(closed, -torch.inf)
    if scores.shape[-2] > _FEW_NODES:
        alpha = torch.softmax(open_scores.movedim(-1, -3), -1).movedim(-3, -1)
    else:
        # Along a short last axis torch's softmax is 3 to 8 times as slow as along this one.
        alpha = torch.softmax(open_scores.contiguous(), -2)
    return alpha.masked_fill(~mask, 0.0)


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
