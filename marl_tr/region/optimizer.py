"""One learner's copy of its parameters and the optimizers that move it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_tr.errors import Diverged
from marl_tr.policy import Parameters
from marl_tr.region.matrix_steps import (
    MatrixSteps,
    cosh_normalised,
    frobenius_direction,
    newton_schulz,
    orthogonal_factor,
    sign_direction,
)
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["RowOptimizer", "hidden_matrices", "matrices"]

_ADAM_EPS = 1e-5
"""The value that PPO implementations share (Huang et al., 2022, detail 3)."""
_ADAMW_EPS = 1e-8
"""torch's own: gradients of losses that are means over an action's dimensions are far below 1e-5."""


def matrices(parameters: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters of which a learner's part has two axes, both longer than 1, in the module's order.

    Args:
        parameters: Stacked, ``[L, ...]`` each, in the module's order.
    """
    return [name for name, p in parameters.items() if p.ndim == 3 and min(p.shape[1:]) > 1]


def hidden_matrices(parameters: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the parameters that are moved as matrices.

    Of the `matrices` the first and the last, in the module's order, and whatever has ``embed`` in its name are left out
    (Jordan et al., 2024: Muon is for hidden layers).

    Args:
        parameters: Stacked, ``[L, ...]`` each, in the module's order.
    """
    return frozenset(name for name in matrices(parameters)[1:-1] if "embed" not in name.lower())


class RowOptimizer:
    """A learner's parameters ``[1, ...]`` with moments of its own.

    Args:
        name: Of the learner, for messages.
        parameters: A copy of its parameters; moved in place.
        moments: Of `state`, or empty at the start and after an interpolation.
        settings: Kind and rates.
        decay: Factor of the rates (annealing).
        previous: The learner's parameters before its last step, where they are wanted.

    Attributes:
        parameters: As they are now; leaves that require gradients.
        previous: As they were before the last step that was taken, at first as given; None: they are not kept.
        stopped: Steps are no longer taken.
        steps: How many were.
    """

    def __init__(
        self,
        name: str,
        parameters: Parameters,
        moments: Mapping[str, Any],
        settings: OptimizerSection,
        *,
        decay: float = 1.0,
        previous: Parameters | None = None,
    ) -> None:
        self.name = name
        self.parameters = {key: p.requires_grad_() for key, p in parameters.items()}
        self.previous = previous
        self.stopped = False
        self.steps = 0
        self._leaves = dict(self.parameters)
        self._owners = self._build(settings, decay)
        for key, saved in moments.items():
            # A checkpoint is read onto the CPU, and the optimizer takes its state as it comes.
            leaf = self._leaves[key]
            self._owners[key].state[leaf] = {slot: x.to(leaf.device, copy=True) for slot, x in saved.items()}

    def step(self, max_norm: float | None) -> None:
        """Clip the row's own gradient norm (None: do not) and step, unless it has stopped.

        Raises:
            Diverged: The gradient is not finite; nothing was committed.
        """
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.parameters.values()), math.inf if max_norm is None else max_norm
        )
        if not bool(torch.isfinite(norm)):
            raise Diverged(
                f"learner {self.name!r}: its policy gradient is not finite; likely causes: an exploding reward, a "
                "learning rate that is too high, or a law that collapsed (see losses/entropy)"
            )
        if not self.stopped:
            if self.previous is not None:
                self.previous = {key: p.detach().clone() for key, p in self.parameters.items()}
            for key, leaf in self._leaves.items():
                gradient = self.parameters[key].grad
                if leaf is not self.parameters[key] and gradient is not None:
                    leaf.grad = gradient[0]
            for optimizer in dict.fromkeys(self._owners.values()):
                optimizer.step()
            self.steps += 1
        self.skip()

    def skip(self) -> None:
        """Forget the gradient and stand still."""
        for p in (*self.parameters.values(), *self._leaves.values()):
            p.grad = None

    def moments(self) -> dict[str, Any]:
        """The optimizers' state by parameter name."""
        return {
            name: {key: value.clone() for key, value in self._owners[name].state[leaf].items()}
            for name, leaf in self._leaves.items()
            if leaf in self._owners[name].state
        }

    def _build(self, settings: OptimizerSection, decay: float) -> dict[str, torch.optim.Optimizer]:
        """Who moves which parameter."""
        kind = _KINDS[settings.kind]
        hidden = frozenset() if kind.matrices is None else hidden_matrices(self.parameters)
        rest = kind.rest([p for name, p in self.parameters.items() if name not in hidden], settings, decay)
        owners = dict.fromkeys(self._leaves, rest)
        if hidden and kind.matrices is not None:
            # They take matrices; each is a view of the row's one, so that its step moves the row.
            views = {name: self.parameters[name].detach()[0] for name in self.parameters if name in hidden}
            self._leaves |= views
            owners |= dict.fromkeys(views, kind.matrices(list(views.values()), settings, decay))
        return owners


_Builder = Callable[[list[Tensor], OptimizerSection, float], torch.optim.Optimizer]


def _adam(parameters: list[Tensor], settings: OptimizerSection, decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=settings.learning_rate * decay, eps=_ADAM_EPS, fused=True)


def _adamw(parameters: list[Tensor], settings: OptimizerSection, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=(settings.adamw_learning_rate or settings.learning_rate) * decay,
        eps=_ADAMW_EPS,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _muon(hidden: list[Tensor], settings: OptimizerSection, decay: float) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        hidden,
        lr=settings.learning_rate * decay,
        weight_decay=settings.weight_decay,
        # Steps as long as AdamW's (arXiv 2502.16982), whichever of the two axes is the input.
        adjust_lr_fn="match_rms_adamw",
    )


@dataclass(frozen=True)
class _Ball:
    """A unit ball of matrices.

    Attributes:
        direction: Of a momentum, to the ball's edge.
        rms: What makes the root mean square entry of a step at the edge 1.
    """

    direction: Callable[[Tensor], Tensor]
    rms: Callable[[int, int], float]


_SPECTRAL = {"newton_schulz": newton_schulz, "svd": orthogonal_factor}
_BALLS = {
    **{
        f"spectral/{how}": _Ball(direction, lambda rows, columns: max(rows, columns) ** 0.5)
        for how, direction in _SPECTRAL.items()
    },
    "l2": _Ball(frobenius_direction, lambda rows, columns: (rows * columns) ** 0.5),
    "linf": _Ball(sign_direction, lambda rows, columns: 1.0),
    "cosh": _Ball(cosh_normalised, lambda rows, columns: (rows * columns) ** 0.5),
}
_ADAM_RMS = 0.2
"""Root mean square of an entry of Adam's steps, over its rate (arXiv 2502.16982)."""
_MOMENTUM = 0.95


def _spectral(hidden: list[Tensor], settings: OptimizerSection, decay: float) -> torch.optim.Optimizer:
    norm = settings.norm or "spectral"
    how = f"/{settings.orthogonalisation or 'newton_schulz'}" if norm == "spectral" else ""
    return _to_the_edge(_BALLS[norm + how], hidden, settings, decay)


def _normalised_momentum(hidden: list[Tensor], settings: OptimizerSection, decay: float) -> torch.optim.Optimizer:
    return _to_the_edge(_BALLS["cosh"], hidden, settings, decay)


def _to_the_edge(ball: _Ball, hidden: list[Tensor], settings: OptimizerSection, decay: float) -> MatrixSteps:
    def scale(shape: torch.Size) -> float:
        return 1.0 if settings.step_scale == "unit" else _ADAM_RMS * ball.rms(shape[0], shape[1])

    return MatrixSteps(
        hidden,
        direction=ball.direction,
        scale=scale,
        lr=settings.learning_rate * decay,
        momentum=_MOMENTUM if settings.momentum is None else settings.momentum,
        weight_decay=settings.weight_decay,
    )


@dataclass(frozen=True)
class _Kind:
    """An optimizer of hidden matrices, and one of all the rest; the rest is everything where there is no other."""

    rest: _Builder
    matrices: _Builder | None = None


_KINDS = {
    "adam": _Kind(_adam),
    "adamw": _Kind(_adamw),
    "muon": _Kind(_adamw, _muon),
    "spectral": _Kind(_adamw, _spectral),
    "normalised_momentum": _Kind(_adamw, _normalised_momentum),
}
