"""The natural step against direct solves, double backward and closed forms, all in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import gymnasium
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from marl_tr.nn import Categorical, Law, StackedGRUCell, StackedLinear, StackedMLP, make_head
from marl_tr.region.natural_step import (
    NaturalStepResult,
    NotPositiveDefinite,
    Trial,
    conjugate_gradient,
    flatten,
    gauss_newton_matvec,
    natural_step,
    unflatten,
)

torch.set_num_threads(1)
BOX = gymnasium.spaces.Box(-1, 1, (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def spd(size: int, condition: float, seed: int = 0) -> Tensor:
    q, _ = torch.linalg.qr(normal(size, size, seed=seed))
    return q @ torch.diag(torch.logspace(0, math.log10(condition), size, dtype=torch.float64)) @ q.T


def quadratic(
    fisher: Tensor, gradient: Tensor, bound: float, *, slack: float = 1 + 1e-9, **settings: float
) -> NaturalStepResult:
    def accept(step: Tensor) -> Trial:
        divergence, gain = float(step @ fisher @ step) / 2, float(gradient @ step)
        return Trial(divergence <= bound * slack and gain > 0, divergence, gain)

    options = {"damping": 0.0, "iterations": 200, "tolerance": 1e-28} | settings
    return natural_step(matvec=lambda v: fisher @ v, gradient=gradient, bound=bound, accept=accept, **options)


# Conjugate gradients


def test_conjugate_gradient_equals_a_direct_solve() -> None:
    matrix, b = spd(12, 1e3), normal(12)
    result = conjugate_gradient(lambda v: matrix @ v, b, iterations=60, tolerance=1e-28)
    torch.testing.assert_close(result.solution, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)
    true = float((b - matrix @ result.solution).norm() / b.norm())
    assert result.relative_residual < 1e-13
    assert true < 1e-10


def test_conjugate_gradient_stops_at_the_tolerance_and_at_the_limit() -> None:
    matrix, b = spd(30, 1e4), normal(30)
    loose = conjugate_gradient(lambda v: matrix @ v, b, iterations=500, tolerance=1e-2)
    assert loose.relative_residual <= 1e-1
    assert loose.iterations < 500
    short = conjugate_gradient(lambda v: matrix @ v, b, iterations=3, tolerance=0.0)
    assert short.iterations == 3
    identity = conjugate_gradient(lambda v: v, b)
    assert identity.iterations == 1
    torch.testing.assert_close(identity.solution, b)


def test_conjugate_gradient_of_zero_is_zero_without_a_product() -> None:
    result = conjugate_gradient(lambda v: v, torch.zeros(3))
    assert result.iterations == 0
    assert result.relative_residual == 0
    assert not result.solution.any()


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan])
def test_an_indefinite_matrix_raises(value: float) -> None:
    matrix = torch.diag(torch.tensor([1.0, value], dtype=torch.float64))
    with pytest.raises(NotPositiveDefinite, match="product"):
        conjugate_gradient(lambda v: matrix @ v, torch.tensor([0.0, 1.0], dtype=torch.float64))


# The step


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_quadratic_divergence_of_the_first_step_is_exactly_the_bound(damping: float, condition: float) -> None:
    fisher, gradient = spd(8, condition) / condition, normal(8)
    result = quadratic(fisher, gradient, 0.01, damping=damping)
    assert result.accepted
    assert result.backtracks == 0
    assert result.divergence == pytest.approx(0.01, rel=1e-9)
    solution = torch.linalg.solve(fisher + damping * torch.eye(8, dtype=torch.float64), gradient)
    cosine = torch.nn.functional.cosine_similarity(result.step, solution, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-8)
    assert result.expected_gain == pytest.approx(float(gradient @ result.step))


def test_undamped_step_is_the_best_of_all_steps_on_the_bound() -> None:
    fisher, gradient = spd(6, 100), normal(6)
    best = quadratic(fisher, gradient, 0.05).gain
    for seed in range(50):
        direction = normal(6, seed=seed + 1)
        other = direction * math.sqrt(2 * 0.05 / float(direction @ fisher @ direction))
        assert float(gradient @ other) <= best + 1e-12


def test_backtracking_shortens_until_the_trial_is_accepted() -> None:
    fisher, gradient = spd(5, 10), normal(5)
    result = quadratic(fisher, gradient, 0.01, slack=0.5, backtrack=0.8)
    # 0.8^(2 j) <= 1/2 first holds at j = 2.
    assert (result.accepted, result.backtracks) == (True, 2)
    assert result.divergence == pytest.approx(0.01 * 0.8**4)
    assert result.expected_gain == pytest.approx(result.gain)


@pytest.mark.parametrize(("curvature", "trials"), [(1.0, 1), (1.2, 2), (50.0, 2), (5000.0, 3)])
def test_a_step_beyond_the_bound_is_followed_by_one_just_inside(curvature: float, trials: int) -> None:
    """The divergence is a parabola, `curvature` times as steep as the matrix says."""
    tried: list[float] = []

    def accept(step: Tensor) -> Trial:
        tried.append(curvature * float(step @ step) / 2)
        return Trial(tried[-1] <= 0.01 * (1 + 1e-12), tried[-1], 1.0)

    result = natural_step(matvec=lambda v: v, gradient=normal(4), bound=0.01, damping=0.0, accept=accept, backtrack=0.5)
    assert result.accepted
    assert len(tried) == trials
    assert 0.98 * 0.01 <= tried[-1] <= 0.01 * (1 + 1e-12)


def test_a_search_in_which_nothing_passes_gives_no_step_and_its_reason() -> None:
    tried: list[float] = []

    def refuse(step: Tensor) -> Trial:
        tried.append(float(step.norm()))
        return Trial(False, 0.009, -1.0)

    result = natural_step(
        matvec=lambda v: v, gradient=normal(4), bound=0.01, damping=0.0, accept=refuse, max_backtracks=3
    )
    assert result.step is None
    assert not result.accepted
    assert result.backtracks == 3
    assert "no trial of 4" in result.reason
    assert [a / tried[0] for a in tried] == pytest.approx([1, 0.8, 0.64, 0.512])


def test_a_trial_that_measures_nan_is_not_taken() -> None:
    result = natural_step(
        matvec=lambda v: v,
        gradient=normal(4),
        bound=0.01,
        damping=0.0,
        accept=lambda step: Trial(True, math.nan, 1.0),
        max_backtracks=1,
    )
    assert result.step is None


def test_cap_never_goes_beyond_the_full_gauss_newton_step() -> None:
    fisher, gradient = spd(5, 10), normal(5)
    newton = torch.linalg.solve(fisher, gradient)
    far = quadratic(fisher, gradient, 1e6, cap=1.0)
    torch.testing.assert_close(far.step, newton, rtol=1e-9, atol=1e-9)
    near = quadratic(fisher, gradient, 1e-4, cap=1.0)
    assert near.divergence == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("gradient", "matrix", "reason"),
    [
        ([0.0, 0.0], [1.0, 1.0], "gradient is zero"),
        ([math.nan, 0.0], [1.0, 1.0], "gradient is not finite"),
        ([math.inf, 0.0], [1.0, 1.0], "gradient is not finite"),
        ([1.0, 1.0], [-1.0, -1.0], "v . A v"),
        ([1.0, 1.0], [math.nan, 1.0], "v . A v"),
        ([1e-7, 0.0], [1.0, 1.0], "no step length"),
    ],
)
def test_what_cannot_give_a_step_gives_a_reason_and_no_trial(
    gradient: list[float], matrix: list[float], reason: str
) -> None:
    diagonal = torch.tensor(matrix, dtype=torch.float64)

    def never(step: Tensor) -> Trial:
        raise AssertionError("a trial was made")

    result = natural_step(
        matvec=lambda v: diagonal * v,
        gradient=torch.tensor(gradient, dtype=torch.float64),
        bound=0.01,
        damping=0.0,
        accept=never,
    )
    assert result.step is None
    assert reason in result.reason
    assert math.isnan(result.divergence)


def test_a_singular_fisher_matrix_gives_a_bounded_step_with_damping() -> None:
    fisher = torch.diag(torch.tensor([1.0, 1e-3, 0.0], dtype=torch.float64))
    result = quadratic(fisher, normal(3), 0.01, damping=0.1)
    assert result.divergence == pytest.approx(0.01)
    assert bool(torch.isfinite(result.step).all())


# Products


class Recurrent(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.encoder = StackedLinear(1, 5, 6, generator=generator(1))
        self.cell = StackedGRUCell(1, 6, 4, generator=generator(2))
        self.head = StackedLinear(1, 4, outputs, generator=generator(3))

    def forward(self, x: Tensor, starts: Tensor) -> Tensor:
        zero = x.new_zeros(1, x.shape[2], 4)
        return self.head(self.cell.sequence(torch.relu(self.encoder(x)), zero, starts)[0])


HEADS = {
    "gaussian": make_head(BOX, "gaussian"),
    "beta": make_head(BOX, "beta"),
    "categorical": make_head(gymnasium.spaces.Discrete(3)),
    "multi": make_head(gymnasium.spaces.MultiDiscrete([2, 3])),
}


def policy(kind: str, network: str) -> tuple[Callable[[dict[str, Tensor]], Law[Tensor]], dict[str, Tensor]]:
    head = HEADS[kind]
    x = normal(1, 4, 3, 5)
    starts = torch.tensor([[True] * 3, [False] * 3, [False, True, False], [False] * 3])
    module: nn.Module = (
        StackedMLP(1, [5, 6, head.size], generator=generator()) if network == "mlp" else Recurrent(head.size)
    ).double()
    inputs = (x,) if network == "mlp" else (x, starts)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    if head.extra_size:
        parameters["log_std"] = normal(1, head.extra_size, seed=8) - 1

    def law(given: dict[str, Tensor]) -> Law[Tensor]:
        own = {name: p for name, p in given.items() if name != "log_std"}
        return head.law(functional_call(module, own, inputs), given.get("log_std"))

    return law, parameters


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("kind", HEADS)
def test_product_equals_double_backward_of_the_mean_kl(kind: str, network: str) -> None:
    law, parameters = policy(kind, network)
    old = law(parameters)
    samples = old.entropy().numel()

    def metric(tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(product / samples for product in old.fisher_product(tangents))

    with torch.no_grad():  # a caller that measures may be in this state
        matvec, size = gauss_newton_matvec(lambda p: law(p).parameters(), parameters, metric)
    assert size == sum(p.numel() for p in parameters.values())
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    gradient = torch.autograd.grad(old.kl(law(leaves)).mean(), list(leaves.values()), create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    for seed in range(3):
        v = normal(size, seed=40 + seed)
        exact = torch.autograd.grad(flat @ v, list(leaves.values()), retain_graph=True)
        torch.testing.assert_close(matvec(v), torch.cat([e.reshape(-1) for e in exact]), rtol=1e-10, atol=1e-10)


def test_product_is_symmetric_and_linear_and_leaves_no_gradient_behind() -> None:
    law, parameters = policy("beta", "gru")
    old = law(parameters)
    matvec, size = gauss_newton_matvec(lambda p: law(p).parameters(), parameters, old.fisher_product)
    u, v = normal(size, seed=1), normal(size, seed=2)
    assert float(u @ matvec(v)) == pytest.approx(float(v @ matvec(u)), rel=1e-10)
    torch.testing.assert_close(matvec(2 * u - v), 2 * matvec(u) - matvec(v))
    assert not matvec(u).requires_grad
    assert all(p.grad is None for p in parameters.values())


def test_outputs_and_parameters_that_do_not_meet_get_zero_products() -> None:
    parameters = {"used": normal(3), "idle": normal(2, seed=1)}

    def function(p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return p["used"].square(), torch.ones(2, dtype=torch.float64)

    matvec, size = gauss_newton_matvec(function, parameters, lambda t: t)
    v = normal(size, seed=2)
    expected = torch.cat([4 * parameters["used"].square() * v[:3], torch.zeros(2, dtype=torch.float64)])
    torch.testing.assert_close(matvec(v), expected)


def test_flatten_and_unflatten_are_inverse_and_check_sizes() -> None:
    like = {"a": normal(2, 3), "b": normal(4), "c": normal(1, seed=2).squeeze()}
    again = unflatten(flatten(like), like)
    assert all(torch.equal(again[name], value) for name, value in like.items())
    with pytest.raises(ValueError, match="11 parameters"):
        unflatten(torch.zeros(10), like)


# Policies and critics


def test_natural_direction_of_a_tabular_softmax_does_not_depend_on_the_parametrisation() -> None:
    mixing = spd(4, 10) / 3
    advantage = normal(6, 4, seed=3)
    logits = normal(6, 4, seed=4)

    def moved_law(transform: Tensor) -> Tensor:
        # theta @ transform are the logits; the point is the same law for every transform.
        theta = {"theta": logits @ torch.linalg.inv(transform)}
        old = Categorical(logits)
        leaf = theta["theta"].clone().requires_grad_()
        surrogate = (Categorical(leaf @ transform).logits.softmax(-1) * advantage).sum()
        (gradient,) = torch.autograd.grad(surrogate, leaf)
        matvec, _ = gauss_newton_matvec(lambda p: (p["theta"] @ transform,), theta, lambda t: old.fisher_product(t))
        result = natural_step(
            matvec=matvec,
            gradient=gradient.reshape(-1),
            bound=0.01,
            damping=0.0,
            iterations=200,
            tolerance=1e-22,
            accept=lambda step: Trial(True, 0.0, 0.0),
        )
        assert result.step is not None
        change = unflatten(result.step, theta)["theta"] @ transform
        # Adding a constant to all logits changes no law.
        return change - change.mean(-1, keepdim=True)

    plain = moved_law(torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(moved_law(mixing), plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("bound", "capped"), [(0.01, False), (0.1, False), (10.0, True)])
def test_linear_critic_with_two_scales_lands_on_its_bound(bound: float, capped: bool) -> None:
    """GA-MATR specification 2.4 on synthetic data: heads of scales 1 and 100, noise floor of 0.1 %."""
    x = normal(400, 5)
    truth = x @ normal(5, 2, seed=1) * torch.tensor([1.0, 100.0], dtype=torch.float64)
    target = truth + truth.std(0) * math.sqrt(1e-3) * normal(400, 2, seed=2)
    weights = {"w": torch.zeros(5, 2, dtype=torch.float64)}
    variance = target.square().mean(0)

    def loss(step: Tensor) -> float:
        return float(((x @ (weights["w"] + unflatten(step, weights)["w"]) - target).square() / variance).mean() / 2)

    def divergence(step: Tensor) -> float:
        return float(((x @ unflatten(step, weights)["w"]).square() / variance).mean() / 2)

    def accept(step: Tensor) -> Trial:
        return Trial(divergence(step) <= bound * (1 + 1e-9), divergence(step), loss(torch.zeros(10)) - loss(step))

    matvec, size = gauss_newton_matvec(
        lambda p: (x @ p["w"],), weights, lambda t: tuple(v / variance / v.numel() for v in t)
    )
    gradient = (x.T @ (target / variance)).reshape(-1) / target.numel()
    result = natural_step(
        matvec=matvec,
        gradient=gradient,
        bound=bound,
        damping=0.0,
        iterations=50,
        tolerance=1e-26,
        accept=accept,
        backtrack=0.5,
        cap=1.0,
    )
    assert size == 10
    assert result.accepted
    assert result.backtracks == 0
    assert loss(torch.zeros(10)) == pytest.approx(0.5)
    full = torch.linalg.lstsq(x, target).solution.reshape(-1)
    # On a linear critic D is quadratic: its length is sqrt(bound / D(full step)), F falls as (1 - alpha)^2.
    alpha = 1.0 if capped else math.sqrt(bound / divergence(full))
    torch.testing.assert_close(result.step, alpha * full, rtol=1e-6, atol=1e-8)
    floor = loss(full)
    assert loss(result.step) == pytest.approx(floor + (1 - alpha) ** 2 * (0.5 - floor))
    if not capped:
        assert result.divergence == pytest.approx(bound)
        # The specification's figures: alpha .1416 at .01, .448 at .1 (there, noise of about 0.2 %).
        assert alpha == pytest.approx(math.sqrt(2 * bound), rel=0.005)
