"""Stochastic samplers of flow models, as one form.

Conventions of flow matching: a clean sample ``x0``, noise ``e ~ N(0, I)``, a noise level ``s`` in ``[0, 1]`` (1 is pure
noise), ``x = (1 - s) x0 + s e``, and a network that predicts the velocity ``v = e - x0``. Hence its estimates
``x0hat = x - s v`` and ``ehat = x + (1 - s) v``. One step from level ``s`` down to ``s'`` is, for every sampler here,

    x' = (1 - s') x0hat + c ehat + sqrt(V) z,   z ~ N(0, I),

and a sampler is its pair ``(V, c)``. A step keeps the noise level of flow matching exactly when ``c^2 + V = s'^2``:
``cps`` and ``precise`` do; ``dance``, ``flow`` and ``sage`` are Euler steps of an SDE, and exceed it by
``V (1 - s'/s) + V^2 / (4 s^2)``.

Sources: Flow-GRPO (arXiv 2505.05470), DanceGRPO (2505.07818), Flow-CPS (2509.05952), SAGE-GRPO (2603.21872), Precise
(2605.23522). That they share this form is derived here, not taken from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from marl_tr.errors import UserError

__all__ = [
    "KINDS",
    "Coefficients",
    "EtaOutOfRange",
    "InvalidClamp",
    "InvalidGrid",
    "Kind",
    "Sampler",
    "gaussian_kl",
    "log_prob",
    "shift_sigmas",
    "sigma_grid",
    "surrogate_log_prob",
]

Kind = Literal["ode", "dance", "flow", "sage", "cps", "precise"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class EtaOutOfRange(UserError):
    """A noise scale that the sampler has no meaning for."""


class InvalidClamp(UserError):
    """The published clamp of the sage sampler lies below the grid's first levels, where its variance is negative."""


class InvalidGrid(UserError):
    """Noise levels that do not fall strictly within ``[0, 1]``, or settings that give such levels."""


@dataclass(frozen=True)
class Coefficients:
    """All steps of a sampler on one grid, float64. ``n`` steps; a batch of grids adds leading axes.

    Attributes:
        s: Level before each step, ``[n]``.
        s_next: Level after it, ``[n]``.
        variance: ``V``, ``[n]``; zero at a deterministic step.
        c: Factor of the noise estimate, ``[n]``.
        std: ``sqrt(V)``, ``[n]``.
        a: Factor of ``x`` in the mean, ``[n]``.
        b: Factor of ``v`` in the mean, ``[n]``: ``J = d mean / d v``.
    """

    s: Tensor
    s_next: Tensor
    variance: Tensor
    c: Tensor
    std: Tensor
    a: Tensor
    b: Tensor

    @property
    def jacobian(self) -> Tensor:
        """``J = d mean / d v``, ``[n]``, negative at every step."""
        return self.b

    def mean(self, x: Tensor, v: Tensor, step: int | Tensor) -> Tensor:
        """Mean of the next state, ``a x + b v``, in the dtype of `x`.

        Args:
            x: State ``[B, ...]``.
            v: Velocity, of the same shape.
            step: Index of the step, or one for each of the leading axes: ``[B]`` (or ``[L, T, N]``, ...), int64.
        """
        if isinstance(step, int):
            # Not `torch.add(..., alpha=)`: the same roundings as below, so that a rollout made step by step and the
            # trainer's pass over all steps at once give the same log-probabilities, to the bit.
            return x * float(self.a[step]) + v * float(self.b[step])
        shape = (*step.shape, *(1,) * (x.ndim - step.ndim))
        a, b = (factor.to(x)[step].reshape(shape) for factor in (self.a, self.b))
        return a * x + b * v

    @property
    def stochastic(self) -> Tensor:
        """``[n]`` bool: the steps that have a density; the others leave the loss."""
        return self.std > 0


@dataclass(frozen=True)
class Sampler:
    """How a flow model is sampled: with how much noise, and where.

    Attributes:
        kind: ``"ode"`` (Euler, no noise) or one of the stochastic samplers.
        eta: Noise scale, at least 0, and at most 1 for ``"cps"``. Without effect for ``"ode"``; 0 makes any sampler
            the ODE.
        clamp: What stands for ``s`` in the logarithm of ``"sage"``, which is infinite at ``s = 1``.
            ``"published"``: ``min(s, 1 - clamp_eps)``, refused on grids where this makes a variance negative.
            ``"safe"``: the same with ``min(clamp_eps, 0.3 (1 - s'))`` for `clamp_eps`, which never does, and which
            agrees with the published one on coarse grids.
        clamp_eps: In ``(0, 1)``. The published value is 0.003.
        cps_log_prob: ``"gaussian"``, the density, or ``"surrogate"``, ``-|x' - mean|^2``, which is what Flow-CPS
            publishes; for ``"cps"`` only.
        window: ``(start, stop)``: noise only in steps ``start <= i < stop``, ODE steps elsewhere (MixGRPO). None is
            noise everywhere.

    Raises:
        EtaOutOfRange: `eta` is negative, not finite, or above 1 for ``"cps"``.
        UserError: Another setting is none of its choices.
    """

    kind: Kind = "sage"
    eta: float = 0.5
    clamp: Literal["safe", "published"] = "safe"
    clamp_eps: float = 3e-3
    cps_log_prob: Literal["gaussian", "surrogate"] = "gaussian"
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, KINDS)
        _check_choice("clamp", self.clamp, ("safe", "published"))
        _check_choice("cps_log_prob", self.cps_log_prob, ("gaussian", "surrogate"))
        limit = 1.0 if self.kind == "cps" else math.inf
        if not (math.isfinite(self.eta) and 0 <= self.eta <= limit):
            allowed = "between 0 and 1" if self.kind == "cps" else "a finite number of at least 0"
            raise EtaOutOfRange(f"eta of the {self.kind} sampler must be {allowed}, not {self.eta}")
        if not 0 < self.clamp_eps < 1:
            raise UserError(f"clamp_eps must be between 0 and 1, not {self.clamp_eps}")
        if self.window is not None and not 0 <= self.window[0] < self.window[1]:
            raise UserError(f"window must be (start, stop) with 0 <= start < stop, not {self.window}")

    def coefficients(self, sigmas: Tensor) -> Coefficients:
        """Every step of a grid.

        Args:
            sigmas: Strictly falling levels ``[n + 1]`` in ``[0, 1]``; leading axes are a batch of grids.

        Returns:
            The coefficients, float64 on the device of `sigmas`; exact also from ``s = 1`` and to ``s' = 0``.

        Raises:
            InvalidGrid: The levels do not fall within ``[0, 1]``, or the window ends behind the last step.
            InvalidClamp: The published clamp makes a variance of ``"sage"`` zero or negative.
        """
        sigmas = sigmas.to(torch.float64)
        _check_falling(sigmas)
        s, s_next = sigmas[..., :-1], sigmas[..., 1:]
        kind: Kind = "ode" if self.eta == 0 else self.kind
        variance, shrink = _STEPS[kind](self, s, s_next)
        noisy = self._noisy(s)
        if kind == "sage" and self.clamp == "published" and bool((noisy & ~(variance > 0)).any()):
            raise InvalidClamp(self._invalid_clamp(sigmas))
        variance, shrink = torch.where(noisy, variance, 0), torch.where(noisy, shrink, 0)
        # With c = s' + shrink, these are exact where nothing is added: a = 1 and b = s' - s for an ODE step.
        return Coefficients(
            s=s,
            s_next=s_next,
            variance=variance,
            c=s_next + shrink,
            std=variance.sqrt(),
            a=1 + shrink,
            b=(s_next - s) + shrink * (1 - s),
        )

    def log_prob(self, x_next: Tensor, mean: Tensor, std: Tensor, *, batch_dims: int = 1) -> Tensor:
        """`log_prob` of this module, or the published surrogate where ``cps_log_prob`` asks for it."""
        if self.kind == "cps" and self.cps_log_prob == "surrogate":
            return surrogate_log_prob(x_next, mean, batch_dims=batch_dims)
        return log_prob(x_next, mean, std, batch_dims=batch_dims)

    def _noisy(self, s: Tensor) -> Tensor:
        """``[n]`` bool: the steps of the window, or all."""
        step = torch.arange(s.shape[-1], device=s.device)
        start, stop = self.window or (0, s.shape[-1])
        if stop > s.shape[-1]:
            raise InvalidGrid(f"window {self.window} ends behind the last of {s.shape[-1]} steps; shorten it")
        return (start <= step) & (step < stop)

    def _invalid_clamp(self, sigmas: Tensor) -> str:
        grid = sigmas.reshape(-1, sigmas.shape[-1])[0]
        steps = len(grid) - 1
        first = float(grid[1])
        shift = first / (1 - first) / (steps - 1) if steps > 1 else 1.0
        of = f"shift {shift:.4g}" if torch.allclose(grid, sigma_grid(steps, shift).to(grid)) else "these levels"
        return (
            f"the published clamp of the sage sampler, 1 - {self.clamp_eps:g}, gives a variance that is not positive "
            f"with {steps} steps and {of}, whose second level is {first:.6g}. Use clamp='safe', fewer steps, a smaller "
            "shift, or a smaller clamp_eps"
        )


def sigma_grid(steps: int, shift: float = 1.0) -> Tensor:
    """Levels ``shift u / (1 + (shift - 1) u)`` at ``u = 1, 1 - 1/n, ..., 0``.

    Args:
        steps: ``n``, at least 1.
        shift: Above 0; more than 1 spends more of the steps at high noise.

    Returns:
        ``[n + 1]`` float64, exactly 1 first and exactly 0 last.

    Raises:
        InvalidGrid: `steps` or `shift` is out of range.
    """
    if steps < 1:
        raise InvalidGrid(f"a grid needs at least 1 step, not {steps}")
    return shift_sigmas(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def shift_sigmas(u: Tensor, shift: float) -> Tensor:
    """``shift u / (1 + (shift - 1) u)``, elementwise, exact at 0 and 1.

    Raises:
        InvalidGrid: `shift` is not a finite number above 0.
    """
    if not (math.isfinite(shift) and shift > 0):
        raise InvalidGrid(f"shift must be a finite number above 0, not {shift}")
    # Divided by the shift: in this form 1 comes out as 1 in floating point, whatever the shift.
    return u / (u + (1 - u) / shift)


def log_prob(x_next: Tensor, mean: Tensor, std: Tensor, *, batch_dims: int = 1) -> Tensor:
    """Log-density of a step under ``N(mean, std^2 I)``, summed over a sample's dimensions.

    Args:
        x_next: The state that was reached, ``[B, ...]``.
        mean: Of the same shape.
        std: Above 0; a scalar, or one for each sample, ``[B]``.
        batch_dims: How many leading axes index samples; ``[L, T, N, K, D]`` has 4.

    Returns:
        ``[B]``, in the dtype of the inputs. A deterministic step (``std = 0``) has no density; leave it out before.
    """
    std = _per_sample(std, x_next)
    terms = -0.5 * ((x_next - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    return terms.flatten(batch_dims).sum(-1)


def surrogate_log_prob(x_next: Tensor, mean: Tensor, *, batch_dims: int = 1) -> Tensor:
    """``-|x_next - mean|^2``: what Flow-CPS puts in place of the log-density (no variance, no constants); ``[B]``."""
    return -(x_next - mean).square().flatten(batch_dims).sum(-1)


def gaussian_kl(mean_a: Tensor, mean_b: Tensor, std: Tensor, *, batch_dims: int = 1) -> Tensor:
    """KL of ``N(mean_a, std^2 I)`` and ``N(mean_b, std^2 I)``, either way: ``|mean_a - mean_b|^2 / (2 std^2)``.

    Shapes as in `log_prob`; summed over a sample's dimensions, ``[B]``.
    """
    return 0.5 * ((mean_a - mean_b) / _per_sample(std, mean_a)).square().flatten(batch_dims).sum(-1)


def _per_sample(std: Tensor, x: Tensor) -> Tensor:
    """`std` with axes of size 1 for whatever `x` has more."""
    return std.reshape(*std.shape, *(1,) * (x.ndim - std.ndim))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _check_falling(sigmas: Tensor) -> None:
    if sigmas.shape[-1] < 2:
        raise InvalidGrid("a grid needs at least two levels: where its one step begins and ends")
    inside = bool(((sigmas >= 0) & (sigmas <= 1)).all())
    if not (inside and bool((sigmas[..., :-1] > sigmas[..., 1:]).all())):
        raise InvalidGrid(f"noise levels must fall strictly, within [0, 1]: {_abridged(sigmas)}")


def _abridged(sigmas: Tensor) -> str:
    grid = sigmas.reshape(-1, sigmas.shape[-1])[0].tolist()
    shown = grid if len(grid) <= 8 else [*grid[:4], "...", *grid[-3:]]
    return ", ".join(f"{level:.6g}" if isinstance(level, float) else level for level in shown)


# One function a sampler: levels ``s`` and ``s'`` to ``(V, c - s')``, each ``[n]``. The difference rather than ``c``,
# because it is what the mean has more than the ODE step, and small numbers should not be differences of large ones.


def _ode(_: Sampler, s: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(s), torch.zeros_like(s)


def _euler(variance: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """``mean = x + (s' - s) v + (V/2) score`` with ``score = -ehat / s``: ``c = s' - V / (2 s)``."""
    return variance, -variance / (2 * s)


def _dance(sampler: Sampler, s: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
    """Constant diffusion coefficient ``eta`` (DanceGRPO)."""
    return _euler(sampler.eta**2 * (s - s_next), s)


def _flow(sampler: Sampler, s: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
    """``g^2 = eta^2 s / (1 - s)`` at the step's beginning; the next level in the denominator at ``s = 1``."""
    below_one = torch.where(s == 1, s_next, s)
    return _euler(sampler.eta**2 * s / (1 - below_one) * (s - s_next), s)


def _sage(sampler: Sampler, s: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
    """The exact integral of the same ``g^2`` over the step: ``eta^2 (-(s - s') + ln((1 - s') / (1 - s)))``."""
    least = torch.full_like(s, sampler.clamp_eps)
    if sampler.clamp == "safe":
        least = torch.minimum(least, 0.3 * (1 - s_next))
    # The linear term keeps the unclamped s, as in the published code.
    logarithm = torch.log1p((s - s_next) / (1 - s))
    clamped = ((1 - s_next) / least).log()
    return _euler(sampler.eta**2 * (torch.where(1 - s < least, clamped, logarithm) - (s - s_next)), s)


def _cps(sampler: Sampler, s: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
    """The noise of level ``s'`` split by an angle into old and new: no excess."""
    angle = 0.5 * math.pi * sampler.eta
    return (s_next * math.sin(angle)).square(), -s_next * (2 * math.sin(0.5 * angle) ** 2)


def _precise(sampler: Sampler, s: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
    """The SDE of ``_flow`` solved exactly with frozen ``x0hat``: ``rho = (s' (1 - s) / (s (1 - s')))^(eta^2 / 2)``.

    ``rho = 0`` from ``s = 1`` (all noise is drawn anew) and to ``s' = 0`` (none is left): no clamp is needed.
    """
    log_rho = 0.5 * sampler.eta**2 * ((s_next / s).log() - ((1 - s_next) / (1 - s)).log())
    return s_next.square() * -torch.expm1(2 * log_rho), s_next * torch.expm1(log_rho)


_STEPS: dict[Kind, Callable[[Sampler, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "ode": _ode,
    "dance": _dance,
    "flow": _flow,
    "sage": _sage,
    "cps": _cps,
    "precise": _precise,
}
