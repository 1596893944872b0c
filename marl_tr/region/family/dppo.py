"""Divergence proximal policy optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from marl_tr.nn.discrete import Categorical, choices_of
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Policy
from marl_tr.region.family.mass import MassGain, as_score
from marl_tr.region.family.shaping_config import DppoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, largest
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Dppo", "binary_kl", "binary_tv", "kept", "top_k_divergence"]

_LEAST = 1e-12


class Dppo(MassGain):
    """``A sg(min(w, c) M) log pi``: what has moved away from the old policy, and further than `d`, is masked out.

    ``M = 0`` for good actions with ``w > 1`` and ``D > d_hi``, for bad ones with ``w < 1`` and ``D > d_lo``. ``D`` is a
    divergence of the decision's old and new laws: of *binary* laws (the action taken or not), of the *top-k* ones (the
    old law's K likeliest choices, the one taken, and all others together) or of the *full* ones. Merging outcomes
    lowers a divergence, so binary <= top-k <= full. Nothing pulls back what the mask has let through.

    Of `mass: tail` the binary laws are ``p`` and ``min(w p, 1)``, and full divergences of Gaussians and flows are their
    closed forms (total variation of unlike deviations: Pinsker's bound); both are ours.

    Source: arXiv 2602.04879 and its official code; that one takes ``pi_old`` from the sampler, as here.
    """

    own_guarantee: str = "none"

    def __init__(self, config: DppoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._form, self._measure = config.divergence.rsplit("_", 1)
        self._top_k, self._truncation = config.top_k, config.truncation
        self._high, self._low = config.limits

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        ratio, advantage = decisions.ratio.detach(), decisions.advantage
        record, laws = decisions.batch.record, (decisions.samples.law, decisions.evaluation.law)
        mass = self.mass(decisions) if self._form == "binary" else None
        divergence = self._divergence(decisions.policy, laws, record, mass, ratio)
        mask = kept(divergence, ratio=ratio, advantage=advantage, high=self._high, low=self._low)
        return advantage * as_score(ratio.clamp_max(self._truncation) * mask, decisions)

    @torch.no_grad()
    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest divergence of a decision, as the mask measures it."""
        objective = cast(Surrogate, turn.objective)
        ratio = objective.ratio(measured.log_prob, turn.old.log_prob, measured.evaluation.dimensions)
        mass = self.mass_of(turn) if self._form == "binary" else None
        laws = (turn.old.law, measured.evaluation.law)
        found = self._divergence(turn.learners.policy, laws, turn.batch.record, mass, ratio)
        return Reach(
            f"largest {self._form} {self._measure}", largest(found, turn.batch.mask), max(self._high, self._low)
        )

    @torch.no_grad()
    def _divergence(
        self, policy: Policy, laws: tuple[Any, Any], record: Mapping[str, Tensor], mass: Tensor | None, ratio: Tensor
    ) -> Tensor:
        """``D``, ``[R, T, N, k]``."""
        old, new = laws
        kl = self._measure == "kl"
        if mass is not None:
            after = (mass * ratio).clamp_max(1)
            return binary_kl(mass, after) if kl else binary_tv(mass, after)
        if self._form == "full":
            found: Tensor = policy.divergence(old, new) if kl else policy.total_variation(old, new)  # type: ignore[attr-defined]  # an optional hook
            return found
        pairs = zip(choices_of(old, record), choices_of(new), strict=True)
        parts = [
            top_k_divergence(before, after, taken, count=self._top_k, kl=kl)
            for (before, taken), (after, _) in pairs
            if taken is not None
        ]
        # Of several choices: KLs add up, and total variations do at most.
        total = torch.stack(parts).sum(0).unsqueeze(-1)
        return total if kl else total.clamp_max(1)


def kept(divergence: Tensor, *, ratio: Tensor, advantage: Tensor, high: float, low: float) -> Tensor:
    """``M``: False where a ratio has left 1 on the side that its advantage drives it to, by more than is allowed."""
    over = (advantage > 0) & (ratio > 1) & (divergence > high)
    under = (advantage < 0) & (ratio < 1) & (divergence > low)
    return ~(over | under)


def binary_tv(p: Tensor, q: Tensor) -> Tensor:
    """Total variation of two laws on {taken, not taken}."""
    return (p - q).abs()


def binary_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of the same, in nats; probabilities are kept off 0 and 1, so that it is finite."""
    a, b = (x.double().clamp(_LEAST, 1 - _LEAST) for x in (p, q))
    found = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
    return found.clamp_min(0).to(p.dtype)


def top_k_divergence(old: Categorical, new: Categorical, taken: Tensor, *, count: int, kl: bool) -> Tensor:
    """KL(old || new), or total variation, of the laws whose choices but the old law's `count` likeliest and the one
    `taken` ``[...]`` are one: ``[...]``."""
    before, after = (law.log_probabilities.double().exp() for law in (old, new))
    chosen = torch.zeros_like(before, dtype=torch.bool)
    chosen.scatter_(-1, before.topk(min(count, before.shape[-1]), -1).indices, True)
    chosen.scatter_(-1, taken.unsqueeze(-1), True)
    p, q = (
        torch.cat([torch.where(chosen, x, 0), torch.where(chosen, 0, x).sum(-1, keepdim=True)], -1)
        for x in (before, after)
    )
    if not kl:
        return (0.5 * (p - q).abs().sum(-1)).to(old.logits.dtype)
    log_ratio = p.clamp_min(_LEAST).log() - q.clamp_min(_LEAST).log()
    return (p * log_ratio).sum(-1).clamp_min(0).to(old.logits.dtype)
