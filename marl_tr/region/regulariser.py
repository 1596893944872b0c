"""Regularisers: what holds learners near an anchor, or near the policy they were a moment ago.

After SAGE-GRPO's dual trust region (arXiv 2603.21872; specification 4.2 to 4.5): a *position* term to an anchor that
may move, and a *velocity* term to the policy before. A *smoothness* term holds a policy's decisions at neighbouring
observations together (`marl_tr.region.smoothness`). All serve every policy that can say a divergence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from marl_tr.policy import Evaluation, Parameters, Policy, masked_mean
from marl_tr.scenario.regularisers import (
    ControllerWeight,
    PeriodAnchor,
    PositionConfig,
    RegulariserConfig,
    SmoothConfig,
    SoftAnchor,
    TwoStageWeight,
    VelocityConfig,
    WeightConfig,
)

__all__ = ["Regularisers", "Term", "controlled_weight", "two_stage_weight"]


def two_stage_weight(progress: float, *, early: float, late: float, switch: float, ramp: float) -> float:
    """`early` until `progress` reaches `switch`, `late` from ``switch + ramp`` on, a straight line between.

    Args:
        progress: Share of the run that is done, in [0, 1].
        early: First weight.
        late: Last weight.
        switch: Share of the run.
        ramp: Share of the run; 0 is a jump.
    """
    if progress < switch:
        return early
    if ramp == 0 or progress >= switch + ramp:
        return late
    return early + (late - early) * (progress - switch) / ramp


def controlled_weight(
    weight: float, measured: float, *, target: float, least: float, most: float, rate: float
) -> float:
    """The next weight: higher where `measured` is above `target`, lower where it is below.

    ``weight exp(rate e)`` in [least, most], ``e = clip(measured / target - 1, -1, 1)``: the proportional controller
    of Ziegler et al. (arXiv 1909.08593, section 2.2), whose error is clipped to 0.2. The published controller of
    SAGE-GRPO has the sign the other way round (specification 4.5), which pulls hardest where nothing is to be held.
    """
    error = min(1.0, max(-1.0, measured / target - 1))
    return min(most, max(least, weight * math.exp(rate * error)))


Kind = Literal["anchor", "before", "rollout", "smooth"]


@dataclass(frozen=True)
class Term:
    """One regulariser in one turn.

    Attributes:
        name: ``anchor``, ``step`` or ``smooth``, numbered from the second of a kind on (``anchor_2``).
        kind: The reference is an ``anchor``, the policy ``before`` the last optimizer step, the ``rollout``'s
            recorded log-probabilities, or the same policy at observations nearby (``smooth``).
        weight: ``[R]`` float64, of the term in the loss.
        reduction: ``"sum"`` over dimensions and chain, in nats; or the ``"mean"``.
        bound: Mean KL(anchor || new) in nats that the Guard keeps, or None.
        reference: Parameters ``[R, ...]`` of the reference; None for the rollout's, and for the same policy's.
        symmetric: The divergence is KL(new || reference) + KL(reference || new).
        ball: Where a ``smooth`` term looks for observations.
    """

    name: str
    kind: Kind
    weight: Tensor
    reduction: Literal["sum", "mean"]
    bound: float | None
    reference: Parameters | None
    symmetric: bool = False
    ball: SmoothConfig | None = None

    @property
    def active(self) -> bool:
        """Whether it enters the loss."""
        return bool(self.weight.any())

    def rows(self, index: list[int]) -> Term:
        """The term of some of its rows."""
        reference = None if self.reference is None else {name: p[index] for name, p in self.reference.items()}
        return replace(self, weight=self.weight[index], reference=reference)

    def value(
        self,
        policy: Policy,
        evaluation: Evaluation,
        reference: Any,
        old_log_prob: Tensor,
        mask: Tensor,
        *,
        chain_length: int,
    ) -> Tensor:
        """The term's mean over decisions a row, ``[R]``, differentiable in `evaluation`.

        Args:
            policy: Says the divergence: exact KL(new || reference), or the symmetric one.
            evaluation: Of decisions ``[R, T, N]`` and ``k`` chain steps.
            reference: The reference's law on the same, without gradient (but of ``smooth``); None for the rollout's.
            old_log_prob: ``[R, T, N, k]`` of the same chain steps, as recorded.
            mask: ``[R, T, N]``.
            chain_length: ``K``; of ``k < K`` steps the sum over the chain is estimated.
        """
        if self.kind == "rollout":
            per_step = old_log_prob - evaluation.log_prob
        else:
            per_step = policy.divergence(evaluation.law, reference)
            if self.symmetric:
                per_step = per_step + policy.divergence(reference, evaluation.law)
        scale = 1 / evaluation.dimensions if self.reduction == "mean" else chain_length
        return masked_mean(per_step.mean(-1) * scale, mask)


@dataclass(frozen=True)
class _Part:
    """A regulariser of the scenario with the name it goes by."""

    name: str
    settings: RegulariserConfig

    @property
    def kind(self) -> Kind:
        if isinstance(self.settings, PositionConfig):
            return "anchor"
        if isinstance(self.settings, SmoothConfig):
            return "smooth"
        return "before" if self.settings.form == "exact" else "rollout"

    @property
    def bound(self) -> float | None:
        return self.settings.bound if isinstance(self.settings, PositionConfig) else None

    @property
    def symmetric(self) -> bool:
        return self.kind == "smooth" or getattr(self.settings, "direction", "new_anchor") == "symmetric"

    @property
    def ball(self) -> SmoothConfig | None:
        return self.settings if isinstance(self.settings, SmoothConfig) else None


class Regularisers:
    """The regularisers of a policy's learners, and all that they remember.

    Anchors refresh by a learner's committed updates: ``period`` after every ``every``-th (published: before the next
    one, which is the same policy). A rejected update is none.

    Args:
        settings: Of the scenario.
        parameters: The learners' at the start of the run, ``[L, ...]``: the first anchors, copied.
    """

    def __init__(self, settings: Sequence[RegulariserConfig], parameters: Parameters) -> None:
        self._parts = tuple(_Part(name, part) for name, part in zip(_names(settings), settings, strict=True))
        rows = len(next(iter(parameters.values())))
        self._anchors = {part.name: _copy(parameters) for part in self._parts if part.kind == "anchor"}
        self._before = _copy(parameters) if self.remembers_steps else None
        self._updates = [0] * rows
        self._weights = {
            part.name: [part.settings.weight.initial] * rows
            for part in self._parts
            if isinstance(part.settings.weight, ControllerWeight)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The terms' names, as in tags and in the audit."""
        return tuple(part.name for part in self._parts)

    @property
    def remembers_steps(self) -> bool:
        """Whether a term needs the policy before the last optimizer step."""
        return any(part.kind == "before" for part in self._parts)

    def copies(self) -> list[Parameters]:
        """Every stored set of parameters ``[L, ...]``, itself."""
        return [*self._anchors.values(), *([] if self._before is None else [self._before])]

    def terms(self, rows: Sequence[int], progress: float) -> tuple[Term, ...]:
        """The terms of some rows; their references are copies."""
        index = list(rows)
        return tuple(
            Term(
                name=part.name,
                kind=part.kind,
                weight=torch.tensor([self._weight(part, row, progress) for row in index], dtype=torch.float64),
                reduction=part.settings.reduction,
                bound=part.bound,
                reference=self._reference(part, index),
                symmetric=part.symmetric,
                ball=part.ball,
            )
            for part in self._parts
        )

    def commit(self, row: int, new: Parameters, before: Parameters, measured: Mapping[str, float]) -> None:
        """Take note of an update that is now in force.

        Args:
            row: Of which learner.
            new: Its parameters, ``[1, ...]``.
            before: Those before the last optimizer step, ``[1, ...]``.
            measured: Each term's value, in its own unit, under `new`.
        """
        self._updates[row] += 1
        if self._before is not None:
            _write(self._before, row, before)
        for part in self._parts:
            weight = part.settings.weight
            if isinstance(weight, ControllerWeight):
                now = self._weights[part.name]
                now[row] = controlled_weight(
                    now[row],
                    measured[part.name],
                    target=weight.target,
                    least=weight.least,
                    most=weight.most,
                    rate=weight.rate,
                )
            if isinstance(part.settings, PositionConfig):
                self._move(self._anchors[part.name], part.settings, row, new)

    def state_dict(self) -> dict[str, Any]:
        """Anchors, previous policies, counters, controlled weights."""
        return {
            "anchors": self._anchors,
            "before": self._before,
            "updates": list(self._updates),
            "weights": {name: list(weights) for name, weights in self._weights.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        for name, anchor in self._anchors.items():
            _fill(anchor, state["anchors"][name])
        if self._before is not None:
            _fill(self._before, state["before"])
        self._updates = [int(count) for count in state["updates"]]
        self._weights = {name: [float(w) for w in state["weights"][name]] for name in self._weights}

    def _weight(self, part: _Part, row: int, progress: float) -> float:
        weight: WeightConfig = part.settings.weight
        if isinstance(weight, TwoStageWeight):
            return two_stage_weight(
                progress, early=weight.early, late=weight.late, switch=weight.switch, ramp=weight.ramp
            )
        return self._weights[part.name][row] if isinstance(weight, ControllerWeight) else weight

    def _reference(self, part: _Part, index: list[int]) -> Parameters | None:
        source = self._anchors[part.name] if part.kind == "anchor" else self._before if part.kind == "before" else None
        return None if source is None else {name: p[index] for name, p in source.items()}

    def _move(self, anchor: Parameters, settings: PositionConfig, row: int, new: Parameters) -> None:
        match settings.anchor:
            case PeriodAnchor(every=every) if self._updates[row] % every == 0:
                _write(anchor, row, new)
            case SoftAnchor(rate=rate, every=every) if self._updates[row] % every == 0:
                for name, p in anchor.items():
                    p[row].lerp_(new[name][0].detach(), rate)


def _names(settings: Sequence[RegulariserConfig]) -> list[str]:
    bases: dict[type[Any], str] = {VelocityConfig: "step", PositionConfig: "anchor", SmoothConfig: "smooth"}
    names: list[str] = []
    for part in settings:
        base = bases[type(part)]
        count = sum(name.partition("_")[0] == base for name in names)
        names.append(f"{base}_{count + 1}" if count else base)
    return names


def _copy(parameters: Parameters) -> Parameters:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _write(stored: Parameters, row: int, values: Parameters) -> None:
    for name, p in stored.items():
        p[row] = values[name][0].detach()


def _fill(stored: Parameters, values: Parameters) -> None:
    if stored.keys() != values.keys():
        raise KeyError(f"parameters {sorted(stored.keys() ^ values.keys())}")
    for name, p in stored.items():
        p.copy_(values[name])
