"""Trust region aware minimization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from marl_tr.policy import Capability, Parameters, masked_mean
from marl_tr.region.family.parameter_config import TramConfig
from marl_tr.region.gradient import GradientRegion, Update
from marl_tr.region.optimizer import RowOptimizer
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Estimate, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Tram", "ascent"]


class Tram(GradientRegion):
    """Sharpness-aware steps whose radius is a distance between policies.

    With the gradient ``g`` of the loss at ``w`` and ``d = mean KL(target || policy)`` on what the step sees, the step
    takes the gradient at ``w + e``, ``e = d g / ||g||``, from ``w``. Where the policy is its target the step is the
    plain one; such is the first of a rollout (but for target ``previous`` beside a velocity regulariser, which
    remembers the policy before it).

    Source: Sherborne et al., arXiv 2310.03646; the formula as it is commonly restated. Their released code adds
    ``d / ||g||`` to every weight, without ``g``, which is no ascent. A target within a rollout is ours: the paper
    fine-tunes without one.
    """

    own_guarantee: str = "none"
    requires = frozenset({Capability.KL})

    def __init__(self, config: TramConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._target = config.target
        self._adaptive = config.adaptive

    def gradients(
        self, update: Update, seen: Sequence[Samples], shares: Tensor, *, stops: bool = True
    ) -> list[Estimate]:
        """Twice: where the policy is, and where the first gradient leads. What is logged is of the first."""
        estimates = super().gradients(update, seen, shares, stops=stops)
        radii = self._distance(update, seen, shares)
        if bool(radii.any()):
            steps = [
                ascent(row.parameters, radius, adaptive=self._adaptive)
                for row, radius in zip(update.rows, radii.tolist(), strict=True)
            ]
            with _displaced(update.rows, steps):
                super().gradients(update, seen, shares, stops=False)
        return [replace(e, scalars=e.scalars | {"region/ascent": radii}) for e in estimates]

    @torch.no_grad()
    def _distance(self, update: Update, seen: Sequence[Samples], shares: Tensor) -> Tensor:
        """``[R]``, over all that the step sees."""
        turn, policy = update.turn, update.turn.learners.policy
        target = turn.learners.parameters(turn.rows) if self._target == "old" else _previous(update.rows)
        now = update.parameters
        total = torch.zeros_like(shares[0])
        for part, share in zip(seen, shares, strict=True):
            laws = [policy.evaluate(p, part.batch).law for p in (target, now)]
            divergence = policy.divergence(*laws)
            # Of some chain steps, what all of them would give.
            whole = divergence.mean(-1) * turn.old.log_prob.shape[-1]
            total += share * masked_mean(whole, part.batch.mask).to(total)
        return total.clamp_min(0)

    def _rows(self, turn: Turn, decay: float) -> list[RowOptimizer]:
        rows = super()._rows(turn, decay)
        for row in rows:
            if row.previous is None:
                row.previous = {name: p.detach().clone() for name, p in row.parameters.items()}
        return rows


def ascent(parameters: Parameters, radius: float, *, adaptive: bool) -> Parameters:
    """``e = radius g / ||g||`` of one row, by the gradients that its parameters hold; zero where there is none.

    Args:
        parameters: ``[1, ...]`` each, with gradients.
        radius: Length of `e`.
        adaptive: ``e = radius w^2 g / ||w g||``, whose length in units of the weights is the radius.
    """
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    if adaptive:
        gradients = {name: parameters[name].detach() * g for name, g in gradients.items()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    scale = torch.where(norm > 0, radius / norm, 0)
    if adaptive:
        return {name: scale * parameters[name].detach() * g for name, g in gradients.items()}
    return {name: scale * g for name, g in gradients.items()}


@contextmanager
def _displaced(rows: Sequence[RowOptimizer], steps: Sequence[Parameters]) -> Iterator[None]:
    """Inside, every row's parameters are its step farther, without gradients; then to the bit as they were."""
    own = [{name: p.detach().clone() for name, p in row.parameters.items()} for row in rows]
    with torch.no_grad():
        for row, step in zip(rows, steps, strict=True):
            for name, p in row.parameters.items():
                p += step[name]
            row.skip()
    try:
        yield
    finally:
        with torch.no_grad():
            for row, saved in zip(rows, own, strict=True):
                for name, p in row.parameters.items():
                    p.copy_(saved[name])


def _previous(rows: Sequence[RowOptimizer]) -> Parameters:
    """The rows' parameters before their last steps, stacked."""
    kept = [row.previous or row.parameters for row in rows]
    return {name: torch.cat([previous[name].detach() for previous in kept]) for name in kept[0]}
