"""Steps of matrices that are bounded in a norm of their own, whatever the gradient's size.

With momentum ``m <- (1 - a) m + a g`` a step is the minimiser of the linear model over a ball, ``argmin <m, x' - x>``
subject to ``||x' - x|| <= eta``: a trust region in the space of parameters, with another norm than the Euclidean one
(Kovalev, arXiv 2503.12645). It bounds matrices, not policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "NEWTON_SCHULZ_BOUND",
    "MatrixSteps",
    "cosh_normalised",
    "frobenius_direction",
    "newton_schulz",
    "orthogonal_factor",
    "sign_direction",
]

NEWTON_SCHULZ_BOUND = 1.21
"""No singular value that five iterations make is larger: the map's supremum on [0, 1] is 1.20237."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan et al. (2024): the steepest quintic at 0 whose iterates stay near 1, not one that converges to it."""


def orthogonal_factor(m: Tensor) -> Tensor:
    """``U V^T`` of ``m = U S V^T``: the step of the spectral ball, where ``<m, U V^T>`` is the nuclear norm.

    Directions without a singular value are left out: they gain nothing, and the zero matrix has no direction.

    Args:
        m: ``[..., rows, columns]``.
    """
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    floor = s.amax(-1, keepdim=True) * max(m.shape[-2:]) * torch.finfo(m.dtype).eps
    factor: Tensor = (u * (s > floor).to(m.dtype).unsqueeze(-2)) @ vh
    return factor


def newton_schulz(m: Tensor, *, iterations: int = 5) -> Tensor:
    """`orthogonal_factor` by products alone: singular values of about 0.7 to 1.2 where `m` has a good condition.

    Small singular values of `m` come out smaller; none is beyond `NEWTON_SCHULZ_BOUND` with five iterations.

    Args:
        m: ``[..., rows, columns]``.
        iterations: Of ``X <- a X + b (X X^T) X + c (X X^T)^2 X``.
    """
    a, b, c = _COEFFICIENTS
    x = frobenius_direction(m)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def frobenius_direction(m: Tensor) -> Tensor:
    """``m / ||m||_F``: the step of the Euclidean ball, normalised descent; zero of a zero matrix."""
    # Through the largest entry first: the squares of a small gradient are below what float32 can hold.
    largest = m.abs().amax((-2, -1), keepdim=True)
    x = m / torch.where(largest > 0, largest, 1)
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    return x / torch.where(norm > 0, norm, 1)


def sign_direction(m: Tensor) -> Tensor:
    """``sign(m)``: the step of the ball of the largest entry, where ``<m, sign(m)>`` is the sum of absolute values."""
    return m.sign()


def cosh_normalised(m: Tensor) -> Tensor:
    """``U = X / sqrt(mean cosh(X)^2)`` with ``X = m / ||m||_F``.

    As ``X`` has norm 1 the divisor is ``1 + O(1 / entries)``: normalised momentum, at most 1 in the Frobenius norm, and
    so in the spectral one; the spectrum's shape stays.

    Source: AuON, arXiv 2509.24320, as in the paper; its released code leaves the first normalisation out, and so has
    no bound.
    """
    x = frobenius_direction(m)
    return x / x.cosh().square().mean((-2, -1), keepdim=True).sqrt()


class MatrixSteps(torch.optim.Optimizer):
    """``m <- momentum m + (1 - momentum) g``, ``x <- (1 - lr decay) x - lr scale direction(m)``.

    Args:
        parameters: Matrices.
        direction: Of norm 1 in the ball's norm; it does not see the size of `m`.
        scale: Of a matrix of a shape ``(rows, columns)``.
        lr: Radius before the scale.
        momentum: Share of the old momentum that is kept, ``1 - a``.
        weight_decay: Decoupled, times `lr`.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        direction: Callable[[Tensor], Tensor],
        scale: Callable[[torch.Size], float],
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._direction = direction
        self._scale = scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)

    def _move(self, p: Tensor, gradient: Tensor, group: Mapping[str, float]) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(self._direction(momentum), alpha=group["lr"] * self._scale(p.shape))
