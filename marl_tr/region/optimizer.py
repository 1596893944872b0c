"""One learner's copy of its parameters and the optimizer that moves it: Adam, AdamW or Muon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from marl_tr.errors import Diverged
from marl_tr.policy import Parameters
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["RowOptimizer", "hidden_matrices"]

_ADAM_EPS = 1e-5
"""The value that PPO implementations share (Huang et al., 2022, detail 3)."""
_ADAMW_EPS = 1e-8
"""torch's own: gradients of losses that are means over an action's dimensions are far below 1e-5."""


def hidden_matrices(parameters: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the parameters that Muon moves.

    A learner's parameter counts as a matrix where it has two axes longer than 1. The first and the last matrix, in the
    module's order, and whatever has ``embed`` in its name are left out (Jordan et al., 2024: Muon is for hidden
    layers).

    Args:
        parameters: Stacked, ``[L, ...]`` each, in the module's order.
    """
    matrices = [name for name, p in parameters.items() if p.ndim == 3 and min(p.shape[1:]) > 1]
    return frozenset(name for name in matrices[1:-1] if "embed" not in name.lower())


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
        rate = settings.learning_rate * decay
        if settings.kind == "adam":
            adam = torch.optim.Adam(list(self._leaves.values()), lr=rate, eps=_ADAM_EPS, fused=True)
            return dict.fromkeys(self._leaves, adam)
        hidden = hidden_matrices(self.parameters) if settings.kind == "muon" else frozenset()
        adamw = torch.optim.AdamW(
            [p for name, p in self.parameters.items() if name not in hidden],
            lr=(settings.adamw_learning_rate or settings.learning_rate) * decay,
            eps=_ADAMW_EPS,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        owners: dict[str, torch.optim.Optimizer] = dict.fromkeys(self._leaves, adamw)
        if hidden:
            # Muon takes matrices; each is a view of the row's one, so that its step moves the row.
            views = {name: self.parameters[name].detach()[0] for name in self.parameters if name in hidden}
            self._leaves |= views
            muon = torch.optim.Muon(
                list(views.values()),
                lr=rate,
                weight_decay=settings.weight_decay,
                # Steps as long as AdamW's (arXiv 2502.16982), whichever of the two axes is the input.
                adjust_lr_fn="match_rms_adamw",
            )
            owners |= dict.fromkeys(views, muon)
        return owners
