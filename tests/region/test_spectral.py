"""Steps to the edge of a ball of matrices: the ball, the linear problem that they solve, and what learners keep."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import frozen, generator, make_learners, make_policy, make_region, make_turn, play
from optimizer_examples import HIDDEN, gradients, run, stacked
from pydantic import ValidationError
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.guard import Guard
from marl_tr.region.matrix_steps import (
    NEWTON_SCHULZ_BOUND,
    cosh_normalised,
    frobenius_direction,
    newton_schulz,
    orthogonal_factor,
    sign_direction,
)
from marl_tr.region.optimizer import RowOptimizer
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "newton_schulz": {"kind": "spectral"},
    "svd": {"kind": "spectral", "orthogonalisation": "svd"},
    "l2": {"kind": "spectral", "norm": "l2"},
    "linf": {"kind": "spectral", "norm": "linf"},
    "normalised_momentum": {"kind": "normalised_momentum"},
}
DIRECTIONS = {
    "newton_schulz": newton_schulz,
    "svd": orthogonal_factor,
    "l2": frobenius_direction,
    "linf": sign_direction,
    "normalised_momentum": cosh_normalised,
}
SHAPES = [(64, 128), (7, 5), (6, 6)]


def settings(name: str, **more: Any) -> OptimizerSection:
    return OptimizerSection(learning_rate=1e-2, **KINDS[name], **more)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)


def length(name: str, step: Tensor) -> float:
    """In the ball's own norm, by numpy."""
    x = step.double().numpy()
    if name == "linf":
        return float(np.abs(x).max())
    return float(np.linalg.norm(x, "fro" if name in ("l2", "normalised_momentum") else 2))


def optimizer(name: str, parameters: Parameters, moments: Any = None, **more: Any) -> RowOptimizer:
    copied = {key: p.detach().clone() for key, p in parameters.items()}
    return RowOptimizer("x", copied, moments or {}, settings(name, **more))


# Directions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["svd", "l2", "linf"])
def test_a_direction_has_the_largest_product_of_the_ball(name: str, shape: tuple[int, int]) -> None:
    """The dual norm: nuclear, Frobenius, the sum of absolute values; and no other point of the ball has more."""
    m = matrix(*shape)
    direction = DIRECTIONS[name](m)
    dual = {
        "svd": np.linalg.norm(m.numpy(), "nuc"),
        "l2": np.linalg.norm(m.numpy()),
        "linf": np.abs(m.numpy()).sum(),
    }
    assert length(name, direction) == pytest.approx(1)
    assert float((m * direction).sum()) == pytest.approx(float(dual[name]))
    for seed in range(20):
        other = matrix(*shape, seed=seed + 1)
        other = other / length(name, other)
        assert float((m * other).sum()) < float((m * direction).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectral_direction_is_the_polar_factor(shape: tuple[int, int]) -> None:
    """``U V^T = (M M^T)^(-1/2) M``, by an eigendecomposition."""
    m = matrix(*shape).numpy()
    wide = m if shape[0] <= shape[1] else m.T
    values, vectors = np.linalg.eigh(wide @ wide.T)
    polar = (vectors / np.sqrt(values)) @ vectors.T @ wide
    expected = torch.from_numpy(polar if shape[0] <= shape[1] else polar.T)
    torch.testing.assert_close(orthogonal_factor(torch.from_numpy(m)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_without_a_gradient_are_left_out(dtype: torch.dtype) -> None:
    m = (matrix(8, 3) @ matrix(3, 9, seed=1)).to(dtype)
    values = torch.linalg.svdvals(orthogonal_factor(m).double())
    torch.testing.assert_close(values, torch.tensor([1.0] * 3 + [0.0] * 5, dtype=torch.float64), atol=1e-5, rtol=0)
    assert float((m * orthogonal_factor(m)).sum()) == pytest.approx(float(torch.linalg.svdvals(m).sum()), rel=1e-5)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_no_gradient_is_no_step(name: str) -> None:
    assert not bool(DIRECTIONS[name](torch.zeros(4, 6)).any())


@pytest.mark.parametrize("size", [1e-25, 1e-6, 1e6, 1e25])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_do_not_see_the_size(name: str, size: float) -> None:
    m = matrix(6, 9).float()
    torch.testing.assert_close(DIRECTIONS[name](m * size), DIRECTIONS[name](m), rtol=1e-4, atol=1e-5)


def test_newton_schulz_stays_below_its_supremum() -> None:
    """The map of a singular value, at 200,001 points: 1.20237 (specification 10)."""
    sizes = np.linspace(0, 1, 200_001)
    values = sizes.copy()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert values.max() == pytest.approx(1.20237, abs=1e-5)
    assert values.max() < NEWTON_SCHULZ_BOUND
    # The same, by the iteration itself on a diagonal: a norm of 1 leaves the values as they are.
    for start in range(0, 200_001, 20_000):
        a = float(sizes[start])
        diagonal = torch.diag(torch.tensor([a, (1 - a**2) ** 0.5], dtype=torch.float64))
        found = newton_schulz(diagonal).diagonal()[0]
        assert float(found) == pytest.approx(float(values[start]), abs=1e-9)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (48, 48), (3, 200)])
def test_newton_schulz_of_many_matrices_is_within_the_bound_and_near_the_exact_factor(shape: tuple[int, int]) -> None:
    for seed in range(10):
        m = matrix(*shape, seed=seed).float() @ torch.diag(torch.logspace(-3, 2, shape[1]))
        assert float(torch.linalg.matrix_norm(newton_schulz(m), 2)) <= NEWTON_SCHULZ_BOUND
    values = torch.linalg.svdvals(newton_schulz(matrix(64, 128)))
    assert 0.67 < float(values.min()) < float(values.max()) < 1.14


def test_normalised_momentum_has_norm_one_but_for_the_number_of_entries() -> None:
    """0.9999 on 64 x 128 (specification D2); released, the first normalisation is missing and the size goes through."""
    m = matrix(64, 128)
    u = cosh_normalised(m)
    assert length("l2", u) == pytest.approx(0.9999, abs=5e-5)
    assert length("l2", u) < 1
    # Along the momentum: no shaping of the spectrum.
    torch.testing.assert_close(u / u.norm(), m / m.norm())
    released = [c * m / (1.5 * m / m.norm()).cosh().square().mean().sqrt() for c in (1, 10)]
    assert float(released[0].norm() / m.norm()) == pytest.approx(0.99986, abs=2e-5)
    assert float(released[1].norm() / released[0].norm()) == pytest.approx(10)
    torch.testing.assert_close(cosh_normalised(10 * m), u)


# Steps of a learner


@pytest.mark.parametrize("name", KINDS)
def test_every_step_of_every_hidden_matrix_is_within_the_ball(name: str) -> None:
    """Gradients of all sizes; the radius is exactly reached by those that know no rounding of it."""
    parameters = stacked()
    row = optimizer(name, parameters, step_scale="unit")
    for k, step in enumerate(gradients(parameters, 12)):
        before = {key: p.detach().clone() for key, p in row.parameters.items()}
        run(row, [{key: g * 10.0 ** (k % 7 - 3) for key, g in step.items()}])
        for key in HIDDEN:
            moved = length(name, (row.parameters[key].detach() - before[key])[0]) / 1e-2
            assert moved <= (NEWTON_SCHULZ_BOUND if name == "newton_schulz" else 1) * (1 + 1e-3)
            assert moved > 0.5


@pytest.mark.parametrize("name", ["svd", "l2", "linf", "normalised_momentum"])
def test_the_rms_scale_makes_steps_as_long_as_those_of_adamw(name: str) -> None:
    parameters = stacked()
    row = optimizer(name, parameters)
    run(row, gradients(parameters, 1))
    for key in HIDDEN:
        rms = float((row.parameters[key].detach() - parameters[key]).square().mean().sqrt())
        assert rms == pytest.approx(0.2 * 1e-2, rel=0.02)


@pytest.mark.parametrize("name", KINDS)
def test_the_size_of_all_gradients_together_does_not_matter(name: str) -> None:
    parameters = stacked()
    steps = gradients(parameters, 4)
    small, large = optimizer(name, parameters), optimizer(name, parameters)
    run(small, [{key: g * 1e-3 for key, g in step.items()} for step in steps])
    run(large, [{key: g * 1e3 for key, g in step.items()} for step in steps])
    for key in HIDDEN:
        torch.testing.assert_close(small.parameters[key], large.parameters[key], rtol=1e-4, atol=1e-5)


def test_momentum_and_decay_are_those_of_the_equation() -> None:
    parameters = stacked()
    steps = gradients(parameters, 3)
    row = optimizer("svd", parameters, momentum=0.6, weight_decay=0.5, step_scale="unit")
    run(row, steps)
    for key in HIDDEN:
        x, m = parameters[key][0].double().numpy(), 0.0
        for step in steps:
            m = 0.6 * m + 0.4 * step[key][0].double().numpy()
            u, _, vh = np.linalg.svd(m, full_matrices=False)
            x = (1 - 1e-2 * 0.5) * x - 1e-2 * u @ vh
        torch.testing.assert_close(row.parameters[key][0].detach().double(), torch.from_numpy(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_hidden_matrix_is_adamws(name: str) -> None:
    parameters = stacked()
    steps = gradients(parameters, 3)
    row = optimizer(name, parameters, adamw_learning_rate=3e-3, weight_decay=0.1)
    run(row, steps)
    rest = {key: p[0].clone().requires_grad_() for key, p in parameters.items() if key not in HIDDEN}
    adamw = torch.optim.AdamW(list(rest.values()), lr=3e-3, eps=1e-8, weight_decay=0.1)
    for step in steps:
        for key, p in rest.items():
            p.grad = step[key][0].clone()
        adamw.step()
    for key, p in rest.items():
        torch.testing.assert_close(row.parameters[key][0], p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_momentum_carries_on_exactly_in_another_optimizer(name: str) -> None:
    parameters = stacked()
    steps = gradients(parameters, 6)
    whole, first = optimizer(name, parameters), optimizer(name, parameters)
    run(whole, steps)
    run(first, steps[:3])
    saved = first.moments()
    assert set(saved) == set(parameters)
    second = optimizer(name, first.parameters, saved)
    run(second, steps[3:])
    assert all(torch.equal(second.parameters[key], p) for key, p in whole.parameters.items())
    fresh = optimizer(name, first.parameters)
    run(fresh, steps[3:])
    assert not any(torch.equal(fresh.parameters[key], whole.parameters[key]) for key in HIDDEN)


@pytest.mark.parametrize("name", KINDS)
def test_momentum_is_committed_with_the_step_and_forgotten_after_an_interpolation(name: str) -> None:
    policy = make_policy("gaussian", hidden=[8, 8, 8])
    learners = make_learners(policy)
    steps = settings(name, epochs=2, max_grad_norm=1e6)
    guard = Guard(lambda line: None)
    region = make_region("measured", optimizer=steps)
    turn = make_turn(policy, play(policy), learners=learners, rows=[1])
    guard.accept(region, turn, region.propose(turn))
    buffers = [state["momentum_buffer"] for state in learners.moments[1].values() if "momentum_buffer" in state]
    assert [buffer.shape for buffer in buffers] == [(8, 8)] * 2
    assert all(bool(buffer.any()) for buffer in buffers)
    assert learners.moments[0] == learners.moments[2] == {}

    bounded = make_region("measured", optimizer=steps, bound=1e-7)
    turn = make_turn(policy, play(policy, seed=3), learners=learners, rows=[1])
    (report,) = guard.accept(bounded, turn, bounded.propose(turn))
    assert report.outcome == "interpolated"
    assert learners.moments[1] == {}


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_goes_on_exactly(name: str) -> None:
    region = make_region("measured", optimizer=settings(name, epochs=2))

    def made(seed: int) -> Any:
        return make_learners(make_policy("gaussian", hidden=[8, 8, 8], seed=seed))

    def update(learners: Any, seed: int) -> None:
        turn = make_turn(learners.policy, play(learners.policy, seed=seed), learners=learners, seed=seed)
        Guard(lambda line: None).accept(region, turn, region.propose(turn))

    whole, second = made(0), made(9)
    update(whole, 0)
    second.load_state_dict(copy.deepcopy(whole.state_dict()))
    update(whole, 1)
    update(second, 1)
    expected = frozen(whole.policy)
    assert all(torch.equal(p, expected[key]) for key, p in frozen(second.policy).items())


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_independent(name: str) -> None:
    policy = make_policy("gaussian", hidden=[8, 8, 8])
    batch, region = play(policy), make_region("measured", optimizer=settings(name, epochs=2))
    together = region.propose(make_turn(policy, batch))
    for row in range(3):
        alone = region.propose(make_turn(policy, batch, rows=[row]))
        for key, p in alone.parameters.items():
            torch.testing.assert_close(p[0], together.parameters[key][row], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm": "l2"}, "norm is of 'spectral', and the kind is 'adam'"),
        ({"kind": "muon", "momentum": 0.9}, "momentum is of 'normalised_momentum' and 'spectral'"),
        ({"kind": "adamw", "momentum": 0.0}, "momentum is of 'normalised_momentum' and 'spectral'"),
        ({"kind": "normalised_momentum", "orthogonalisation": "svd"}, "orthogonalisation is of 'spectral'"),
        ({"kind": "spectral", "norm": "linf", "orthogonalisation": "svd"}, "is of norm 'spectral', and the norm is"),
        ({"kind": "adamw", "step_scale": "unit"}, "step_scale is of 'normalised_momentum' and 'spectral'"),
        ({"kind": "spectral", "norm": "frobenius"}, "'spectral', 'l2' or 'linf'"),
    ],
)
def test_a_field_of_another_kind_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OptimizerSection(**fields)
