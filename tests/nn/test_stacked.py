"""Stacked layers against torch's own, one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from marl_tr.nn import StackedGRUCell, StackedLinear, StackedMLP

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def torch_gru(cell: StackedGRUCell, row: int, kind: type[nn.GRU] | type[nn.GRUCell]) -> nn.Module:
    """torch's GRU with the weights of one row; its gates are ordered reset, update, new."""
    hidden, dtype = cell.hidden, cell.bias.dtype
    theirs = kind(cell.weight_input.shape[1], hidden).to(dtype)
    suffix = "_l0" if kind is nn.GRU else ""
    z, q, n = (slice(i * hidden, (i + 1) * hidden) for i in range(3))

    def reordered(rows: Tensor) -> Tensor:
        return torch.cat([rows[q], rows[z], rows[n]])

    with torch.no_grad():
        getattr(theirs, f"weight_ih{suffix}").copy_(reordered(cell.weight_input[row].T))
        getattr(theirs, f"weight_hh{suffix}").copy_(reordered(cell.weight_memory[row].T))
        getattr(theirs, f"bias_ih{suffix}").copy_(reordered(cell.bias[row]))
        getattr(theirs, f"bias_hh{suffix}").zero_()[2 * hidden :] = cell.bias_memory[row]
    return theirs


def random_cell(dtype: torch.dtype) -> StackedGRUCell:
    cell = StackedGRUCell(2, 3, 5, generator=generator()).to(dtype)
    with torch.no_grad():
        for i, parameter in enumerate(cell.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, dtype=dtype, seed=i))
    return cell


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_gru_equals_torch_gru_and_gru_cell(dtype: torch.dtype, tolerance: float) -> None:
    cell = random_cell(dtype)
    x, memory = normal(2, 7, 4, 3, dtype=dtype, seed=11), normal(2, 4, 5, dtype=dtype, seed=12)
    out, last = cell.sequence(x, memory)
    step = cell(x[:, 0], memory)
    for row in range(2):
        theirs, their_last = torch_gru(cell, row, nn.GRU)(x[row], memory[row : row + 1])
        assert float((out[row] - theirs).detach().abs().max()) < tolerance
        assert float((last[row] - their_last[0]).detach().abs().max()) < tolerance
        one = torch_gru(cell, row, nn.GRUCell)(x[row, 0], memory[row])
        assert float((step[row] - one).detach().abs().max()) < tolerance


@pytest.mark.parametrize("stacked_starts", [False, True])
def test_an_episode_start_forgets_what_was_before(stacked_starts: bool) -> None:
    cell = random_cell(torch.float64)
    x, memory = normal(2, 6, 3, 3, seed=1), normal(2, 3, 5, seed=2)
    starts = torch.zeros(6, 3, dtype=torch.bool)
    starts[2, 1] = starts[4, 1] = starts[0, 0] = True
    out, last = cell.sequence(x, memory, starts.expand(2, 6, 3) if stacked_starts else starts)
    fresh = torch.zeros(2, 1, 5, dtype=torch.float64)
    pieces = [
        (0, 0, 6, fresh),
        (1, 0, 2, memory[:, 1:2]),
        (1, 2, 4, fresh),
        (1, 4, 6, fresh),
        (2, 0, 6, memory[:, 2:3]),
    ]
    for n, begin, end, before in pieces:
        alone, _ = cell.sequence(x[:, begin:end, n : n + 1], before)
        torch.testing.assert_close(out[:, begin:end, n : n + 1], alone, rtol=0, atol=1e-12)
    assert torch.equal(last, out[:, -1])


def test_gru_supports_forward_mode_and_double_backward() -> None:
    cell = random_cell(torch.float64)
    x, starts = normal(2, 4, 3, 3, seed=1), torch.tensor([[True, False, True]] * 4)
    zero = torch.zeros(2, 3, 5, dtype=torch.float64)
    names = [name for name, _ in cell.named_parameters()]
    values = tuple(parameter.detach() for parameter in cell.parameters())
    directions = tuple(normal(*value.shape, seed=30 + i) for i, value in enumerate(values))

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, inputs: Tensor) -> Tensor:
            return self.cell.sequence(inputs, zero, starts)[0]

    def run(*parameters: Tensor) -> Tensor:
        renamed = {f"cell.{name}": p for name, p in zip(names, parameters, strict=True)}
        return functional_call(Sequence(), renamed, (x,))

    _, forward = jvp(run, values, directions)
    step = 1e-6
    moved = [run(*(v + s * d for v, d in zip(values, directions, strict=True))) for s in (step, -step)]
    torch.testing.assert_close(forward, (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-8)
    leaves = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradgradcheck(lambda *p: run(*p)[:, -1, :1, :1].sum(), leaves)


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4), (3, 2, 5, 4)])
def test_stacked_mlp_rows_equal_separate_networks(shape: tuple[int, ...]) -> None:
    stacked = StackedMLP(3, [4, 6, 2], "relu", generator=generator())
    x = normal(*shape, dtype=torch.float32)
    out = stacked(x)
    for row in range(3):
        layers: list[nn.Module] = []
        for layer in stacked.layers:
            linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
            with torch.no_grad():
                linear.weight.copy_(layer.weight[row].T)
                linear.bias.copy_(layer.bias[row])
            layers += [linear, nn.ReLU()]
        torch.testing.assert_close(out[row], nn.Sequential(*layers[:-1])(x[row]))


def test_one_row_of_parameters_runs_one_learner_alone() -> None:
    mlp = StackedMLP(3, [4, 6, 2], generator=generator(), activate_last=True)
    x = normal(3, 5, 4, dtype=torch.float32)
    cell = StackedGRUCell(3, 4, 5, generator=generator())
    for row in range(3):
        only = slice(row, row + 1)
        alone = {name: parameter[only] for name, parameter in mlp.named_parameters()}
        torch.testing.assert_close(functional_call(mlp, alone, (x[only],)), mlp(x)[only])
        alone = {name: parameter[only] for name, parameter in cell.named_parameters()}
        memory = torch.zeros(1, 5, 5)
        expected = cell(x, torch.zeros(3, 5, 5))[only]
        torch.testing.assert_close(functional_call(cell, alone, (x[only], memory)), expected)


def test_start_is_orthogonal_by_row_and_reproducible() -> None:
    first = StackedLinear(2, 4, 6, generator=generator(3), gain=2.0)
    second = StackedLinear(2, 4, 6, generator=generator(3), gain=2.0)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight[0], first.weight[1])
    gram = first.weight @ first.weight.transpose(-1, -2)
    torch.testing.assert_close(gram, 4 * torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)
    assert bool((first.bias == 0).all())


def test_wrong_number_of_rows_is_named() -> None:
    layer = StackedLinear(2, 4, 6, generator=generator())
    with pytest.raises(ValueError, match="has 3 rows, the parameters 2"):
        layer(torch.zeros(3, 5, 4))
    with pytest.raises(ValueError, match="an MLP needs"):
        StackedMLP(1, [4], generator=generator())
