"""One natural-gradient step under a bound: conjugate gradients, step length, line search.

Pure mathematics over flat vectors ``[P]``: it knows products ``v -> F v``, a gradient, a bound, and a
function that tries a step. Policies under TRPO, the critic's trust region and consensus updates all use this
solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "ConjugateGradientResult",
    "NaturalStepResult",
    "NotPositiveDefinite",
    "Trial",
    "conjugate_gradient",
    "finite_or_none",
    "flatten",
    "gauss_newton_matvec",
    "natural_step",
    "unflatten",
]

Matvec = Callable[[Tensor], Tensor]

# Below this, x . F x is rounding error of the products and the step length would be noise.
_LEAST_CURVATURE = 1e-12

# Of the length at which a parabola meets the bound: what the divergence is not quite a parabola by.
_INSIDE = 0.99
# Far out divergences grow faster than a parabola, which would then shorten a step too much.
_LEAST_FACTOR = 0.1


class NotPositiveDefinite(ArithmeticError):
    """A product ``v . A v`` was not positive (or not a number), so the solve has no meaning."""


@dataclass(frozen=True)
class ConjugateGradientResult:
    """What `conjugate_gradient` found.

    Attributes:
        solution: ``[P]``.
        relative_residual: ``|b - A x| / |b|`` by the recursion, 0 for ``b = 0``.
        iterations: Products that it took.
    """

    solution: Tensor
    relative_residual: float
    iterations: int


@dataclass(frozen=True)
class Trial:
    """What a caller measured at a proposed step, on its full batch.

    Attributes:
        accepted: The divergence is within the bound and the objective improved.
        divergence: In the bound's unit.
        gain: Improvement of the objective.
    """

    accepted: bool
    divergence: float
    gain: float


@dataclass(frozen=True)
class NaturalStepResult:
    """What `natural_step` did.

    Attributes:
        step: The accepted change of the parameters, ``[P]``, or None: keep the old parameters.
        accepted: Whether there is a step.
        backtracks: How often the step was shortened.
        divergence: Of the last trial (the accepted one, or the shortest that failed); NaN where none was
            made.
        gain: Of the same trial.
        expected_gain: Linear prediction ``gradient . step`` of the same trial.
        cg_residual: Relative residual of the solve; NaN where there was none.
        cg_iterations: Products of the solve.
        reason: Why there is no step; ``"accepted"`` otherwise.
    """

    step: Tensor | None
    accepted: bool
    backtracks: int
    divergence: float
    gain: float
    expected_gain: float
    cg_residual: float
    cg_iterations: int
    reason: str


def natural_step(
    *,
    matvec: Matvec,
    gradient: Tensor,
    bound: float,
    damping: float,
    iterations: int = 10,
    tolerance: float = 1e-10,
    accept: Callable[[Tensor], Trial],
    backtrack: float = 0.8,
    max_backtracks: int = 10,
    cap: float | None = None,
) -> NaturalStepResult:
    """The longest step along ``(F + damping I)^-1 gradient`` that `accept` takes.

    The first trial has length ``sqrt(2 bound / (x . F x))`` with the *undamped* ``F``: the quadratic model of
    the divergence is then exactly `bound`, whatever the damping. A trial beyond the bound is followed by one that is
    just inside of it on the parabola through the divergence that was measured, any other that was not accepted by one
    ``backtrack`` times as long. Nothing is raised for a bad gradient or matrix: the result carries the reason and no
    step.

    Args:
        matvec: ``v -> F v``, ``[P]``, undamped, positive semi-definite.
        gradient: Of the objective that should rise, ``[P]``; pass float64.
        bound: Of the divergence, positive.
        damping: Added to ``F`` inside the solve only, 0 or more.
        iterations: Products of the solve at most.
        tolerance: Squared relative residual at which the solve stops.
        accept: Tries the change ``[P]`` of the parameters; it must leave them as they were.
        backtrack: Factor of the next trial where the bound was kept, in (0, 1).
        max_backtracks: How often the step is shortened; trials are one more.
        cap: Longest multiple of ``x``; 1 never goes beyond the full Gauss-Newton step. None: no limit.

    Source: Schulman et al., arXiv 1502.05477, appendix C; the cap: arXiv 1506.02438, section 5.
    """
    gradient = gradient.detach()
    norm = float(torch.linalg.vector_norm(gradient))
    if not math.isfinite(norm):
        return _no_step("the gradient is not finite")
    if norm == 0:
        return _no_step("the gradient is zero")
    try:
        solve = conjugate_gradient(
            lambda v: matvec(v) + damping * v, gradient, iterations=iterations, tolerance=tolerance
        )
    except NotPositiveDefinite as error:
        return _no_step(str(error))
    x = solve.solution
    curvature = float(x @ matvec(x))
    if not curvature > _LEAST_CURVATURE or not math.isfinite(curvature):
        return _no_step(f"x . F x = {curvature:.3g} gives no step length", solve)
    length = math.sqrt(2 * bound / curvature)
    if cap is not None:
        length = min(length, cap)
    return _line_search(x, gradient, length, bound, accept, backtrack, max_backtracks, solve)


def conjugate_gradient(
    matvec: Matvec,
    b: Tensor,
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> ConjugateGradientResult:
    """Solve ``A x = b`` for a symmetric positive definite ``A`` that is known only by its products.

    Args:
        matvec: ``v -> A v``; `v` and the result have shape ``[P]``.
        b: Right-hand side, ``[P]``. Computed in the dtype of `b`; pass float64 for a Fisher matrix.
        iterations: Upper limit of products.
        tolerance: Stop once the squared residual is at most this fraction of ``|b|^2``.

    Returns:
        The solution, its relative residual, and how many products it took.

    Raises:
        NotPositiveDefinite: ``v . A v <= 0`` or NaN was met. The caller keeps its old parameters.

    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 5.2.
    """
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    start = squared = float(b @ b)
    products = 0
    while products < iterations and squared > tolerance * start:
        image = matvec(direction)
        products += 1
        curvature = float(direction @ image)
        if not curvature > 0:
            raise NotPositiveDefinite(f"v . A v = {curvature:.3g} in product {products} of the solve")
        alpha = squared / curvature
        x = x + alpha * direction
        residual = residual - alpha * image
        previous, squared = squared, float(residual @ residual)
        direction = residual + (squared / previous) * direction
    return ConjugateGradientResult(x, math.sqrt(squared / start) if start > 0 else 0.0, products)


def gauss_newton_matvec(
    function: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    parameters: Mapping[str, Tensor],
    metric: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
) -> tuple[Matvec, int]:
    """Products with ``J^T M J`` at `parameters`, ``J`` the Jacobian of `function`.

    With the law's parameters as outputs and its Fisher information (weighted as the mean divergence weighs
    its samples) as `metric`, this is the Hessian of the mean ``KL(old || .)`` at the old parameters, without
    double backward through a density.

    ``J v`` is the derivative in ``u`` of ``(J^T u) . v``, which is linear in ``u``: one more reverse pass
    over a graph that is kept, so that no product runs the network again. Medians in float64 on one core: 7.7
    ms a product for an MLP 163-128-6 on 1,600 rows (`torch.func.jvp` with the kept reverse pass 17, double
    backward of the KL 9); 92 ms for a GRU of width 128 over 100 steps of 16 (118, 141).
    `torch.func.linearize` is as fast, after 1 and 6 s of set-up.

    Args:
        function: Parameters ``{name: tensor}`` -> outputs, differentiable twice. It runs once, now.
        parameters: Where the Jacobian is taken; detached here.
        metric: Tangents of the outputs -> ``M`` times them, symmetric positive semi-definite and linear.

    Returns:
        ``matvec: [P] -> [P]`` in the order of `flatten`, and ``P``.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    inputs = list(leaves.values())
    with torch.enable_grad():
        outputs = tuple(output for output in function(leaves))
        reached = [i for i, output in enumerate(outputs) if output.requires_grad]
        kept = [outputs[i] for i in reached]
        dual = [torch.zeros_like(output, requires_grad=True) for output in kept]
        pulled = torch.autograd.grad(kept, inputs, dual, create_graph=True, materialize_grads=True)
    used = [i for i, gradient in enumerate(pulled) if gradient.requires_grad]

    def matvec(v: Tensor) -> Tensor:
        tangent = list(unflatten(v, leaves).values())
        pushed = torch.autograd.grad(
            [pulled[i] for i in used],
            dual,
            [tangent[i] for i in used],
            retain_graph=True,
            materialize_grads=True,
        )
        tangents = [torch.zeros_like(output) for output in outputs]
        for i, value in zip(reached, pushed, strict=True):
            tangents[i] = value
        with torch.no_grad():
            weighted = metric(tuple(tangents))
        products = torch.autograd.grad(
            kept, inputs, [weighted[i] for i in reached], retain_graph=True, materialize_grads=True
        )
        return torch.cat([product.reshape(-1) for product in products])

    return matvec, sum(value.numel() for value in inputs)


def flatten(parameters: Mapping[str, Tensor]) -> Tensor:
    """All tensors, in the mapping's order, as one vector ``[P]``."""
    return torch.cat([value.reshape(-1) for value in parameters.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flatten`: pieces of `vector` ``[P]`` in the shapes of `like`.

    Raises:
        ValueError: The sizes do not agree.
    """
    sizes = [value.numel() for value in like.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a vector of shape {tuple(vector.shape)} for {sum(sizes)} parameters")
    pieces = torch.split(vector, sizes)
    return {name: piece.reshape(value.shape) for (name, value), piece in zip(like.items(), pieces, strict=True)}


def finite_or_none(value: float) -> float | None:
    """A number of a `NaturalStepResult`, or None where there was no trial or no solve to give one."""
    return value if math.isfinite(value) else None


def _line_search(
    x: Tensor,
    gradient: Tensor,
    length: float,
    bound: float,
    accept: Callable[[Tensor], Trial],
    backtrack: float,
    max_backtracks: int,
    solve: ConjugateGradientResult,
) -> NaturalStepResult:
    slope = float(gradient @ x)
    multiple = length
    for shortened in range(max_backtracks + 1):
        step = multiple * x
        trial = accept(step)
        # A caller's comparison with NaN could go either way; no step rests on it.
        taken = trial.accepted and math.isfinite(trial.divergence) and math.isfinite(trial.gain)
        if taken or shortened == max_backtracks:
            return NaturalStepResult(
                step=step if taken else None,
                accepted=taken,
                backtracks=shortened,
                divergence=trial.divergence,
                gain=trial.gain,
                expected_gain=multiple * slope,
                cg_residual=solve.relative_residual,
                cg_iterations=solve.iterations,
                reason="accepted" if taken else f"no trial of {max_backtracks + 1} was accepted",
            )
        beyond = bound < trial.divergence < math.inf
        multiple *= max(_LEAST_FACTOR, _INSIDE * math.sqrt(bound / trial.divergence)) if beyond else backtrack
    raise ValueError(f"max_backtracks must be 0 or more, not {max_backtracks}")


def _no_step(reason: str, solve: ConjugateGradientResult | None = None) -> NaturalStepResult:
    return NaturalStepResult(
        step=None,
        accepted=False,
        backtracks=0,
        divergence=math.nan,
        gain=math.nan,
        expected_gain=math.nan,
        cg_residual=math.nan if solve is None else solve.relative_residual,
        cg_iterations=0 if solve is None else solve.iterations,
        reason=reason,
    )
