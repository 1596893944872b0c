"""Directional alignment: later updates within the directions of the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.family.parameter_config import DirectionalConfig
from marl_tr.region.gradient import GradientRegion, Update
from marl_tr.region.optimizer import matrices
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Directional", "leading_directions", "projected"]

_ROUNDING = 1e-2
"""Share of a step that single precision may leave outside the span: 1e-5 of steps beside weights of 1."""


class Directional(GradientRegion):
    """Project onto the trusted directions: ``G <- U U^T G``, of each weight matrix, and ``V V^T`` from the right.

    Trusted are the directions of a learner's first committed updates ``D_1 .. D_n``: the left (right) singular vectors
    of ``[D_1 .. D_n]``, eigenvectors of ``sum D D^T`` (``sum D^T D``), whose sums alone are remembered. Until then
    updates are free. Vectors are never projected.

    Source: arXiv 2605.25189, reconstructed from its abstract: which updates, of which run, and the energy's share are
    our reading. Its projection is of gradients, which an optimizer with a rate for each entry turns out of the span;
    the update's, which stays in it, is ours.
    """

    def __init__(self, config: DirectionalConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._settings = config
        if config.apply == "update":
            # Nothing turns a projected update out of the span any more; the Guard looks.
            self.own_guarantee = "hard"

    def prepare(self, update: Update) -> None:
        """Take note of what has been committed since the last proposal."""
        for row, memory in zip(update.rows, update.memory, strict=True):
            self._learn(memory, row.parameters)

    def transform_gradients(self, update: Update) -> None:
        """The paper's reading."""
        if self._settings.apply == "gradient":
            for row, memory in zip(update.rows, update.memory, strict=True):
                for name, p in row.parameters.items():
                    if p.grad is not None:
                        p.grad.copy_(_onto_span(memory, name, p.grad))

    @torch.no_grad()
    def after_step(self, update: Update, seen: Sequence[Samples]) -> None:
        """``W <- W_old + U U^T (W - W_old)``."""
        if self._settings.apply == "gradient":
            return
        for row, number, memory in zip(update.rows, update.turn.rows, update.memory, strict=True):
            old = update.turn.learners.parameters([number])
            for name, p in row.parameters.items():
                if _held(memory, name):
                    p.copy_(old[name] + _onto_span(memory, name, p - old[name]))

    @torch.no_grad()
    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The share of the matrices' step that is outside the span, by the Frobenius norm; 0 while updates are free."""
        shares = []
        for k, row in enumerate(turn.rows):
            old, memory = turn.learners.parameters([row]), dict(turn.learners.memory[row])
            self._learn(memory, old)
            steps = {name: measured.parameters[name][k : k + 1] - p for name, p in old.items() if _held(memory, name)}
            outside = _norm([step - _onto_span(memory, name, step) for name, step in steps.items()])
            length = _norm(list(steps.values()))
            shares.append(outside / length if length else 0.0)
        limit = _ROUNDING if self._settings.apply == "update" else 1.0
        return Reach("share of the step outside the span", measured.divergence.new_tensor(shares), limit)

    def _learn(self, memory: dict[str, Any], parameters: Parameters) -> None:
        """What a learner with these parameters ``[1, ...]`` now remembers."""
        settings = self._settings
        commits = int(memory.get("commits", -1))
        if commits >= settings.commits:
            return
        # What is remembered was written by the proposal that has been committed since: one more.
        memory["commits"] = float(commits + 1)
        learned = commits + 1 >= settings.commits
        for name in matrices(parameters):
            now = parameters[name].detach()[0].clone()
            last = memory.pop(f"last/{name}", None)
            for side in _sides(settings):
                gram = memory.pop(f"gram/{side}/{name}", None)
                if last is not None:
                    step = (now - last.to(now)).double()
                    new = step @ step.mT if side == "first" else step.mT @ step
                    gram = new if gram is None else gram.to(new) + new
                if learned and gram is not None:
                    basis = leading_directions(gram, rank=settings.rank, energy=settings.energy)
                    memory[f"basis/{side}/{name}"] = basis.to(now)
                elif gram is not None:
                    memory[f"gram/{side}/{name}"] = gram
            if not learned:
                memory[f"last/{name}"] = now


def leading_directions(gram: Tensor, *, rank: int | None, energy: float) -> Tensor:
    """Eigenvectors of a symmetric matrix ``[m, m]`` with its largest eigenvalues, in falling order: ``[m, k]``.

    Args:
        gram: ``sum D D^T``, positive semidefinite.
        rank: ``k``, at most ``m``; None: as few as hold the energy.
        energy: Share of the trace.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    if rank is None:
        shares = values.cumsum(-1) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
        # The last share is 1 but for rounding.
        rank = 1 + int((shares[:-1] < energy).sum())
    leading: Tensor = vectors[:, :rank].contiguous()
    return leading


def projected(x: Tensor, *, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
    """``U U^T x V V^T`` of matrices ``[..., m, n]`` with orthonormal ``first = U [m, k]`` and ``second = V [n, k]``."""
    if first is not None:
        x = first @ (first.mT @ x)
    return x if second is None else (x @ second) @ second.mT


def _sides(settings: DirectionalConfig) -> tuple[str, ...]:
    return ("first", "second") if settings.sides == "both" else (settings.sides,)


def _held(memory: dict[str, Any], name: str) -> bool:
    return f"basis/first/{name}" in memory or f"basis/second/{name}" in memory


def _onto_span(memory: dict[str, Any], name: str, x: Tensor) -> Tensor:
    bases = {side: memory.get(f"basis/{side}/{name}") for side in ("first", "second")}
    return projected(x, **{side: basis.to(x) for side, basis in bases.items() if basis is not None})


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([part.double().norm() for part in parts]).norm()) if parts else 0.0
