"""Flow matching of a velocity on given data, one optimizer step at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marl_tr.errors import Diverged
from marl_tr.nn.flow_matching import flow_matching_loss, random_levels
from marl_tr.scenario.schema import PretrainingSection
from marl_tr.trainer.checkpoint import refusing_misfits

__all__ = ["Demonstrations", "Pretraining", "share_of_rate"]

Demonstrations = Callable[[int, torch.Generator], tuple[Mapping[str, Tensor], Tensor]]
"""``(count, generator) -> ({leaf: [count, ...]}, [count, *event])``: random conditions and data, on the CPU."""

_WARM_UP = 0.02
_BETAS = (0.9, 0.99)


class Pretraining:
    """The state of a pretraining, one optimizer step at a time.

    Args:
        velocity: The network; its parameters that require a gradient are trained, in place.
        demonstrations: Where the data comes from.
        settings: How.
        generator: Of data, noise, levels and left-out conditions; on the CPU.

    Attributes:
        velocity: The network that learns.
        average: Its moving average, which is what counts in the end.
        step: Optimizer steps done.
    """

    def __init__(
        self,
        velocity: nn.Module,
        demonstrations: Demonstrations,
        settings: PretrainingSection,
        *,
        generator: torch.Generator,
    ) -> None:
        self.velocity = velocity
        self.average = copy.deepcopy(velocity).requires_grad_(False)
        self.step = 0
        self._demonstrations, self._settings, self._generator = demonstrations, settings, generator
        named = [(name, parameter) for name, parameter in velocity.named_parameters() if parameter.requires_grad]
        self._trained: list[Tensor] = [parameter for _, parameter in named]
        averaged = dict(self.average.named_parameters())
        self._averaged: list[Tensor] = [averaged[name] for name, _ in named]
        self._optimizers = _optimizers(named, settings)

    def advance(self) -> float:
        """One optimizer step; returns the loss before it.

        Raises:
            Diverged: The loss or its gradient is not finite; the weights are those before the step.
        """
        settings = self._settings
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share_of_rate(self.step, settings)
        loss = self._loss()
        self.velocity.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._trained, settings.max_grad_norm)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise Diverged(
                f"pretraining step {self.step + 1:,}: the loss is {value}, its gradient's norm {float(norm)}; the "
                "likely cause is a pretraining.learning_rate that is too high, or data that is not finite"
            )
        for optimizer in self._optimizers:
            optimizer.step()
        # The warm-up forgets the random start, which a long average would remember.
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._trained, 1 - decay)
        self.step += 1
        return value

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on exactly."""
        return {
            "step": self.step,
            "velocity": self.velocity.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: It is of another network.
        """
        with refusing_misfits():
            self.velocity.load_state_dict(state["velocity"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self._generator.set_state(state["generator"])
            self.step = int(state["step"])

    def _loss(self) -> Tensor:
        settings, generator, device = self._settings, self._generator, self._trained[0].device
        observation, x0 = self._demonstrations(settings.batch, generator)
        keep = torch.rand(settings.batch, generator=generator) >= settings.drop_condition
        noise = torch.randn(x0.shape, generator=generator)
        sigma = random_levels(settings.batch, settings.shift, generator)
        condition = {
            leaf: (values * keep.view(-1, *(1,) * (values.ndim - 1)).to(values.dtype)).to(device)
            for leaf, values in observation.items()
        }
        return flow_matching_loss(self.velocity, x0.to(device), noise.to(device), sigma.to(device), condition)


def share_of_rate(step: int, settings: PretrainingSection) -> float:
    """Of the learning rates at optimizer step `step` (from 0): a linear warm-up, a plateau, a linear fall to 0."""
    warm = max(1, round(_WARM_UP * settings.steps))
    fall = settings.decay * settings.steps
    left = 1.0 if fall == 0 else min(1.0, (settings.steps - step) / fall)
    return min(1.0, (step + 1) / warm) * left


def _optimizers(named: Sequence[tuple[str, nn.Parameter]], settings: PretrainingSection) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon before it for the matrices of numbered layers where that is wanted."""
    matrices = {
        name
        for name, p in named
        if settings.optimizer == "muon" and p.ndim == 2 and any(part.isdigit() for part in name.split("."))
    }
    rest = [p for name, p in named if name not in matrices]
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(
            torch.optim.Muon(
                [p for name, p in named if name in matrices],
                lr=settings.muon_learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if rest:
        made.append(
            torch.optim.AdamW(
                rest, lr=settings.learning_rate, betas=_BETAS, weight_decay=settings.weight_decay, fused=True
            )
        )
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made
