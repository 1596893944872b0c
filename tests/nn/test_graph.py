"""Graph attention against torch-geometric and against a loop over nodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jvp

from marl_tr.nn.graph import (
    DenseGraphAttention,
    SparseGraphAttention,
    attention_entropy,
    copy_gatv2conv,
)
from marl_tr.region.natural_step import gauss_newton_matvec

torch.set_num_threads(1)
SCORINGS = ["dot", "gatv2", "uniform"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def graph(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(5)
    x = torch.randn(3, 2, 4, 6, generator=g, dtype=dtype)
    edges = torch.randn(3, 2, 4, 4, 5, generator=g, dtype=dtype)
    adjacency = torch.rand(3, 2, 4, 4, generator=g) < 0.6
    adjacency[0, 0, 1] = False
    return x, adjacency, edges


@pytest.mark.parametrize("with_edges", [True, False])
def test_dense_gatv2_equals_torch_geometric(with_edges: bool) -> None:
    x, adjacency, edges = graph()
    width = 5 if with_edges else 0
    sparse = SparseGraphAttention(6, 8, 2, width, generator=generator())
    dense = DenseGraphAttention(6, 8, 2, width, "gatv2", generator=generator(1))
    torch.nn.init.normal_(sparse.convolution.bias, generator=generator(2))
    copy_gatv2conv(sparse.convolution, dense)
    dense.output.load_state_dict(sparse.output.state_dict())
    used = edges if with_edges else None
    for ours, theirs in zip(dense(x, adjacency, used), sparse(x, adjacency, used), strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max()) < 1e-5
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for layer, leaf in zip((dense, sparse), inputs, strict=True):
        layer(leaf, adjacency, used)[0].square().sum().backward()
    assert float((inputs[0].grad - inputs[1].grad).abs().max()) < 1e-5


def test_dot_attention_equals_the_equations_node_by_node() -> None:
    x, adjacency, edges = graph(torch.float64)
    layer = DenseGraphAttention(6, 8, 2, 5, "dot", generator=generator()).double()
    out, alpha = layer(x, adjacency, edges)
    parts = layer.attention
    for b in range(3):
        nodes, seen = x[b, 1], adjacency[b, 1]
        for u in range(4):
            neighbours = [v for v in range(4) if seen[u, v]]
            if not neighbours:
                continue
            message = []
            for h, head in enumerate((slice(0, 4), slice(4, 8))):
                query = parts.query.weight[head] @ nodes[u]
                scores = torch.stack(
                    [
                        query @ (parts.key.weight[head] @ nodes[v]) / math.sqrt(4)
                        + parts.edge.weight[h] @ edges[b, 1, u, v]
                        for v in neighbours
                    ]
                )
                weights = scores.softmax(0)
                torch.testing.assert_close(alpha[b, 1, h, u, neighbours], weights)
                message.append(
                    sum(w * (parts.value.weight[head] @ nodes[v]) for w, v in zip(weights, neighbours, strict=True))
                )
            expected = torch.relu(layer.output(torch.cat(message)))
            torch.testing.assert_close(out[b, 1, u], expected)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_node_without_neighbours_gives_zeros_and_finite_gradients(scoring: str) -> None:
    x, adjacency, edges = graph()
    x.requires_grad_()
    layer = DenseGraphAttention(6, 8, 2, 5, scoring, generator=generator())
    torch.nn.init.ones_(layer.output.bias)
    out, alpha = layer(x, adjacency, edges)
    assert bool((out[0, 0, 1] == 0).all())
    assert bool((alpha[0, 0, :, 1] == 0).all())
    out.sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_weights_sum_to_one_over_the_neighbours_and_nobody_else_counts(scoring: str) -> None:
    x, adjacency, edges = graph()
    layer = DenseGraphAttention(6, 8, 2, 5, scoring, generator=generator())
    out, alpha = layer(x, adjacency, edges)
    assert alpha.shape == (3, 2, 2, 4, 4)
    assert bool((alpha.masked_select(~adjacency.unsqueeze(-3)) == 0).all())
    torch.testing.assert_close(alpha.sum(-1), adjacency.any(-1).float().unsqueeze(-2).expand(3, 2, 2, 4))
    if scoring == "uniform":
        torch.testing.assert_close(
            alpha.amax(-1), (1 / adjacency.sum(-1)).nan_to_num(posinf=0).unsqueeze(-2).expand(3, 2, 2, 4)
        )
    hidden = torch.zeros(4, 4, dtype=torch.bool).fill_diagonal_(True)
    moved = x.clone()
    moved[..., 1:, :] += 3
    alone, _ = layer(x, hidden, edges)
    torch.testing.assert_close(layer(moved, hidden, edges)[0][..., 0, :], alone[..., 0, :])
    assert not torch.allclose(out[..., 1:, :], layer(moved, adjacency, edges)[0][..., 1:, :])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_dense_layers_support_forward_mode(scoring: str) -> None:
    x, adjacency, edges = graph(torch.float64)
    layer = DenseGraphAttention(6, 8, 2, 5, scoring, generator=generator()).double()
    values = {name: p.detach() for name, p in layer.named_parameters()}
    g = generator(9)
    along = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in values.items()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x, adjacency, edges))[0]

    _, tangent = jvp(run, (values,), (along,))
    step = 1e-6
    ahead, behind = (run({n: p + s * along[n] for n, p in values.items()}) for s in (step, -step))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


def test_entropy_is_one_for_uniform_zero_for_one_neighbour_and_skips_rows_without_a_choice() -> None:
    adjacency = torch.tensor([[True, True, True], [False, True, False], [True, True, False]])
    uniform = (adjacency.float() / adjacency.sum(-1, keepdim=True)).unsqueeze(0)
    sharp = torch.tensor([[[0.0, 1, 0], [0, 1, 0], [1, 0, 0]]])
    alpha = torch.stack([uniform, sharp], 1).squeeze(0)
    torch.testing.assert_close(attention_entropy(alpha, adjacency), torch.tensor([1.0, 0.0]))
    half = torch.tensor([[[0.5, 0.5, 0], [0, 1, 0], [0.5, 0.5, 0]]])
    expected = (math.log(2) / math.log(3) + 1) / 2
    assert float(attention_entropy(half, adjacency)) == pytest.approx(expected)
    lonely = torch.eye(3, dtype=torch.bool)
    assert attention_entropy(torch.eye(3).expand(2, 3, 3), lonely).tolist() == [0, 0]


def test_making_a_layer_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first = SparseGraphAttention(6, 8, 2, 5, generator=generator(4))
    second = SparseGraphAttention(6, 8, 2, 5, generator=generator(4))
    for scoring in SCORINGS:
        DenseGraphAttention(6, 8, 2, 5, scoring, generator=generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_impossible_widths_and_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="width 9 is not divisible by 2 heads"):
        DenseGraphAttention(6, 9, 2, generator=generator())
    sparse = SparseGraphAttention(6, 8, 2, generator=generator())
    with pytest.raises(ValueError, match="scoring='gatv2'"):
        copy_gatv2conv(sparse.convolution, DenseGraphAttention(6, 8, 2, generator=generator()))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_large_batch_of_larger_graphs_equals_its_parts_one_by_one(scoring: str) -> None:
    # 700 x 9 x 9 x 16 pair features: beyond what is multiplied out, where one graph alone is not.
    g = generator(6)
    x, edges = torch.randn(700, 9, 6, generator=g), torch.randn(700, 9, 9, 5, generator=g)
    adjacency = torch.rand(700, 9, 9, generator=g) < 0.4
    layer = DenseGraphAttention(6, 16, 2, 5, scoring, generator=generator())
    with torch.no_grad():
        out, alpha = layer(x, adjacency, edges)
        for i in (0, 350, 699):
            one, weights = layer(x[i], adjacency[i], edges[i])
            assert float((one - out[i]).abs().max()) < 1e-5
            assert float((weights - alpha[i]).abs().max()) < 1e-6


@pytest.mark.parametrize("scoring", SCORINGS)
def test_nodes_that_nobody_sees_change_nothing(scoring: str) -> None:
    x, adjacency, edges = graph()
    wide_x, wide_edges = torch.full((3, 2, 12, 6), 7.0), torch.full((3, 2, 12, 12, 5), 7.0)
    wide = torch.zeros(3, 2, 12, 12, dtype=torch.bool)
    wide_x[..., :4, :], wide[..., :4, :4], wide_edges[..., :4, :4, :] = x, adjacency, edges
    layer = DenseGraphAttention(6, 8, 2, 5, scoring, generator=generator())
    out, alpha = layer(x, adjacency, edges)
    wide_out, wide_alpha = layer(wide_x, wide, wide_edges)
    torch.testing.assert_close(wide_out[..., :4, :], out)
    torch.testing.assert_close(wide_alpha[..., :4, :4], alpha)


def test_gauss_newton_products_run_through_both_layers_alike() -> None:
    x, adjacency, edges = graph(torch.float64)
    sparse = SparseGraphAttention(6, 8, 2, 5, generator=generator()).double()
    dense = DenseGraphAttention(6, 8, 2, 5, "gatv2", generator=generator(1)).double()
    copy_gatv2conv(sparse.convolution, dense)
    dense.output.load_state_dict(sparse.output.state_dict())
    names = {
        "output.weight": "output.weight",
        "output.bias": "output.bias",
        "attention.sender.weight": "convolution.lin_l.weight",
        "attention.receiver.weight": "convolution.lin_r.weight",
        "attention.edge.weight": "convolution.lin_edge.weight",
    }
    products = []
    for layer, chosen in ((dense, names.keys()), (sparse, names.values())):
        own = dict(layer.named_parameters())
        parameters = {name: own[name] for name in chosen}
        matvec, size = gauss_newton_matvec(
            lambda p, layer=layer: (functional_call(layer, p, (x, adjacency, edges))[0],), parameters, lambda t: t
        )
        direction = torch.randn(size, generator=generator(3), dtype=torch.float64)
        products.append(matvec(direction))
    assert float(products[0].norm()) > 1
    torch.testing.assert_close(products[0], products[1], rtol=1e-8, atol=1e-8)
