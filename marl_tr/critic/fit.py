"""Fitting a critic: Gauss-Newton inside a trust region, or Adam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from marl_tr.critic.config import AdamFitConfig, TrustRegionFitConfig
from marl_tr.critic.inputs import CriticInputs, cut_windows
from marl_tr.errors import Diverged
from marl_tr.region.natural_step import Trial, finite_or_none, flatten, gauss_newton_matvec, natural_step, unflatten

if TYPE_CHECKING:
    from marl_tr.critic.critic import Encoder

__all__ = ["AdamFit", "FitReport", "TrustRegionFit", "make_fit"]

_MIN_VARIANCE = 1e-6
"""Floor of an agent's residual variance in normalised units: a perfect head must not divide by zero."""
_SPENT = 0.9
"""Share of the bound beyond which a fit takes no other step: ``1 / sqrt(0.9) - 1``, a twentieth of a way, is left."""


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        loss_before: ``F`` at the old values, mean (V - target)^2 / (2 sigma_u^2): one half by construction.
        loss_after: ``F`` now.
        divergence: ``D``, mean (V - V_old)^2 / (2 sigma_u^2).
        bound: Of ``D``, or None where there is none.
        backtracks: Halvings, all steps together.
        expected_gain: First-order prediction of the first step, or None.
        cg_residual: Relative residual of the first solve, or None.
        explained_variance: ``1 - var(target - V_old) / var(target)``.
        reason: Why a step was not taken, or empty.
    """

    loss_before: float
    loss_after: float
    divergence: float
    bound: float | None
    backtracks: int
    expected_gain: float | None
    cg_residual: float | None
    explained_variance: float
    reason: str

    def audit_line(self) -> dict[str, Any]:
        """The report for ``audit.jsonl``."""
        return {
            "learner": "critic",
            "kind": "critic",
            "guarantee": "none" if self.bound is None else "hard",
            "bound": self.bound,
            "direction": "value_shift",
            "proposed": self.divergence,
            "accepted": self.divergence,
            "outcome": "rejected" if self.reason and self.divergence == 0 else "accepted",
            "backtracks": self.backtracks,
            "surrogate_gain": self.loss_before - self.loss_after,
            "expected_gain": self.expected_gain,
            "cg_residual": self.cg_residual,
            "reason": self.reason,
        }


class Fit(Protocol):
    """How a critic's parameters move."""

    def fit(
        self, inputs: CriticInputs, old: Tensor, target: Tensor, alive: Tensor, generator: torch.Generator
    ) -> FitReport:
        """Move towards `target` from `old`, both ``[T, E, A]`` in normalised units, where `alive`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must survive a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        ...


def make_fit(config: TrustRegionFitConfig | AdamFitConfig, encoder: Encoder) -> Fit:
    """The fit that `config` describes."""
    if isinstance(config, TrustRegionFitConfig):
        return TrustRegionFit(config, encoder)
    return AdamFit(config, encoder)


@dataclass(frozen=True)
class _Error:
    """``F`` and ``D`` of the specification, one variance an agent."""

    old: Tensor
    target: Tensor
    alive: Tensor
    variance: Tensor

    @classmethod
    def at(cls, old: Tensor, target: Tensor, alive: Tensor) -> _Error:
        weight = alive.to(old.dtype)
        count = weight.sum((0, 1)).clamp_min(1)
        variance = ((old - target).square() * weight).sum((0, 1)) / count
        return cls(old=old, target=target, alive=alive, variance=variance.clamp_min(_MIN_VARIANCE))

    def mean(self, a: Tensor, b: Tensor) -> Tensor:
        """``mean_{n,u} (a - b)^2 / (2 sigma_u^2)`` over the living."""
        error = (a - b).square() / (2 * self.variance)
        return torch.where(self.alive, error, 0).sum() / self.alive.sum().clamp_min(1)

    def report(self, new: Tensor, **rest: Any) -> FitReport:
        target = self.target[self.alive].double()
        residual = target - self.old[self.alive].double()
        spread = float(target.var(correction=0))
        explained = 1 - float(residual.var(correction=0)) / spread if spread > 0 else 0.0
        return FitReport(
            loss_before=float(self.mean(self.old, self.target)),
            loss_after=float(self.mean(new, self.target)),
            divergence=float(self.mean(new.double(), self.old.double())),
            explained_variance=explained,
            **rest,
        )


class TrustRegionFit:
    """Minimise ``F`` subject to ``D <= bound`` (specification 2.4; arXiv 1506.02438, equations 29-31, one variance
    an agent).

    Gauss-Newton products in float64 on a subsample of short windows; a step is never longer than the
    full Gauss-Newton step (a good critic would be made worse) and is accepted on the whole batch where ``F`` falls
    and ``D``, always from the same ``V_old``, stays within the bound.
    """

    def __init__(self, config: TrustRegionFitConfig, encoder: Encoder) -> None:
        self._config = config
        self._encoder = encoder

    def fit(
        self, inputs: CriticInputs, old: Tensor, target: Tensor, alive: Tensor, generator: torch.Generator
    ) -> FitReport:
        """See `Fit.fit`."""
        error = _Error.at(old, target, alive)
        value = old
        backtracks, reason = 0, ""
        expected: float | None = None
        residual: float | None = None
        for _ in range(self._config.steps):
            result, value = self._step(inputs, error, value, generator)
            backtracks += result.backtracks
            if expected is None:
                expected, residual = finite_or_none(result.expected_gain), finite_or_none(result.cg_residual)
            if result.step is None:
                reason = result.reason
                break
            if float(error.mean(value.double(), old.double())) > _SPENT * self._config.bound:
                break
        return error.report(
            value,
            bound=self._config.bound,
            backtracks=backtracks,
            expected_gain=expected,
            cg_residual=residual,
            reason=reason,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the network."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _step(
        self, inputs: CriticInputs, error: _Error, value: Tensor, generator: torch.Generator
    ) -> tuple[Any, Tensor]:
        module = self._encoder.module
        parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
        loss = float(error.mean(value, error.target))
        gradient, memories = self._gradient(inputs, error, parameters)
        accepted_value = value

        def accept(step: Tensor) -> Trial:
            nonlocal accepted_value
            with torch.no_grad():
                new = self._encoder.encode(_moved(parameters, step), inputs).values
            gain = loss - float(error.mean(new, error.target))
            divergence = float(error.mean(new.double(), error.old.double()))
            accepted = gain > 0 and divergence <= self._config.bound
            if accepted:
                accepted_value = new
            return Trial(accepted=accepted, divergence=divergence, gain=gain)

        result = natural_step(
            matvec=self._products(inputs, memories, error, parameters, generator),
            gradient=-gradient.double(),
            bound=self._config.bound,
            damping=self._config.damping,
            iterations=self._config.iterations,
            tolerance=self._config.tolerance,
            accept=accept,
            backtrack=0.5,
            max_backtracks=self._config.max_backtracks,
            cap=1.0,
        )
        if result.step is not None:
            moved = _moved(parameters, result.step)
            with torch.no_grad():
                for name, p in module.named_parameters():
                    p.copy_(moved[name])
        return result, accepted_value

    def _gradient(
        self, inputs: CriticInputs, error: _Error, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Of ``F`` on the whole batch, through all of time; and the critic's memories ``[T, E, A, H]``."""
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        encoding = self._encoder.encode(leaves, inputs)
        loss = error.mean(encoding.values, error.target)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        flat = flatten(
            {
                name: torch.zeros_like(p) if g is None else g
                for (name, p), g in zip(leaves.items(), gradients, strict=True)
            }
        )
        if not bool(torch.isfinite(flat).all()):
            raise Diverged(
                "the critic's gradient is not finite; likely causes: rewards that explode, or observations of a very "
                "large scale (try normalise_value, or a normalised observation)"
            )
        return flat, None if encoding.memories is None else encoding.memories.detach()

    def _products(
        self,
        inputs: CriticInputs,
        memories: Tensor | None,
        error: _Error,
        parameters: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> Any:
        """``v -> H v`` with ``H = mean j j^T / sigma_u^2`` on a random subsample of windows."""
        length = min(self._config.window, len(inputs.starts)) if memories is not None else 1
        windows, living = inputs.windows(length, memories), cut_windows(error.alive, length)
        # Windows in which nobody lives say nothing; where all are such, any will do.
        inhabited = living.any(-1).any(0).nonzero().flatten()
        inhabited = inhabited if len(inhabited) else torch.arange(living.shape[1], device=living.device)
        count = max(1, round(self._config.subsample * len(inhabited)))
        chosen = torch.randperm(len(inhabited), generator=generator)[:count].sort().values
        index = inhabited[chosen.to(inhabited.device)]
        part = windows.environments(index).to(torch.float64)
        alive = living[:, index]
        weight = alive.double() / error.variance.double() / alive.sum().clamp_min(1)
        matvec, _ = gauss_newton_matvec(
            lambda p: (self._encoder.encode(p, part).values,),
            {name: p.double() for name, p in parameters.items()},
            lambda tangents: (weight * tangents[0],),
        )
        return matvec


class AdamFit:
    """Epochs of minibatch Adam on ``max(huber(V), huber(clip(V, V_old +- c)))``, whole environments a minibatch."""

    def __init__(self, config: AdamFitConfig, encoder: Encoder) -> None:
        self._config = config
        self._encoder = encoder
        self._adam = torch.optim.Adam(encoder.module.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)

    def fit(
        self, inputs: CriticInputs, old: Tensor, target: Tensor, alive: Tensor, generator: torch.Generator
    ) -> FitReport:
        """See `Fit.fit`."""
        config = self._config
        for _ in range(config.epochs):
            order = torch.randperm(old.shape[1], generator=generator).to(old.device)
            for index in order.chunk(min(config.minibatches, len(order))):
                value = self._encoder.encode(None, inputs.environments(index)).values
                loss = self._loss(value, old[:, index], target[:, index], alive[:, index])
                self._adam.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self._encoder.module.parameters(), config.max_grad_norm)
                if not bool(torch.isfinite(norm)):
                    raise Diverged(
                        "the critic's gradient is not finite; likely causes: rewards that explode, or a learning "
                        "rate that is too high"
                    )
                self._adam.step()
        with torch.no_grad():
            new = self._encoder.encode(None, inputs).values
        return _Error.at(old, target, alive).report(
            new, bound=None, backtracks=0, expected_gain=None, cg_residual=None, reason=""
        )

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments by the parameter's position; one that never had a gradient has none."""
        moments = self._adam.state_dict()["state"]
        return {"moments": {k: dict(moments[k]) for k in sorted(moments)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        fresh = self._adam.state_dict()
        fresh["state"] = {int(k): dict(slots) for k, slots in state["moments"].items()}
        self._adam.load_state_dict(fresh)

    def _loss(self, value: Tensor, old: Tensor, target: Tensor, alive: Tensor) -> Tensor:
        def huber(x: Tensor) -> Tensor:
            return torch.nn.functional.huber_loss(x, target, reduction="none", delta=self._config.huber)

        loss = huber(value)
        if self._config.value_clip is not None:
            c = self._config.value_clip
            loss = torch.maximum(loss, huber(old + (value - old).clamp(-c, c)))
        return torch.where(alive, loss, 0).sum() / alive.sum().clamp_min(1)


def _moved(parameters: Mapping[str, Tensor], step: Tensor) -> dict[str, Tensor]:
    shift = unflatten(step, dict(parameters))
    return {name: p + shift[name].to(p.dtype) for name, p in parameters.items()}
