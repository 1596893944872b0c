"""Anchored policy optimization: what a bad action loses goes to choices that a reference holds likely."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from marl_tr.nn.discrete import choices_of
from marl_tr.objective.ratio import likelihood_ratio
from marl_tr.policy import Capability
from marl_tr.region.family.shaping_config import ApoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Apo", "anchor_ratio", "supported"]

_SAFE = "apo/reference"


class Apo(ReshapedGain):
    """PPO's clipped gain of good actions; of bad ones ``lambda min(w A, clip(w) A) - beta w_anc A``.

    ``w_anc = sum_S pi / sum_S pi_ref`` over ``S``, the reference's K likeliest choices without the one taken: a bad
    action is pushed down, and what it loses is pulled to those choices in place of spreading over everything. Of
    several choices at once the mean over them.

    The reference (`reference`): the policy that acted, or a regulariser's anchor, evaluated on the same observations.

    Source: arXiv 2602.05717, by others' accounts. They do not say whether the clip stays; here it acts on the bad
    action's own ratio alone. Anchored *preference* optimization goes by the same letters and is something else.
    """

    requires = frozenset({Capability.LOG_PROB, Capability.MASS})
    needs = frozenset({Need.OLD_LAW})
    own_guarantee: str = "soft"
    # The pull is there from the first step on.
    unit_gradient: ClassVar[float | None] = None

    def __init__(self, config: ApoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._settings = config
        self._low, self._high = config.clip, config.clip if config.clip_high is None else config.clip_high

    def prepare(self, update: Update) -> None:
        """Find the reference's likeliest choices of every decision."""
        super().prepare(update)
        samples, turn = update.samples, update.turn
        law = samples.law
        if self._settings.reference == "anchor":
            anchors = [term.reference for term in turn.terms if term.kind == "anchor"]
            (law,) = turn.laws_of(anchors[:1], samples.batch)
        samples.labels[_SAFE] = torch.cat(
            [supported(choice.log_probabilities, self._settings.top_k) for choice, _ in choices_of(law)], -1
        )

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a, settings = decisions.ratio, decisions.advantage, self._settings
        clipped = torch.minimum(w * a, w.clamp(1 - self._low, 1 + self._high) * a)
        choices = choices_of(decisions.evaluation.law, decisions.batch.record)
        references = decisions.label(_SAFE).split([choice.logits.shape[-1] for choice, _ in choices], -1)
        ratios = [
            anchor_ratio(choice.log_probabilities, reference, taken)
            for (choice, taken), reference in zip(choices, references, strict=True)
            if taken is not None
        ]
        anchor = torch.stack(ratios).mean(0).unsqueeze(-1)
        return torch.where(a < 0, settings.push * clipped - settings.pull * anchor * a, clipped)


def supported(log_probabilities: Tensor, count: int) -> Tensor:
    """The log-probabilities ``[..., C]`` with all but the `count` likeliest, and the forbidden, at minus infinity."""
    found = log_probabilities.topk(min(count, log_probabilities.shape[-1]), -1).indices
    kept = torch.full_like(log_probabilities, -torch.inf).scatter(-1, found, log_probabilities.gather(-1, found))
    return kept.masked_fill(kept <= torch.finfo(kept.dtype).min, -torch.inf)


def anchor_ratio(log_probabilities: Tensor, reference: Tensor, taken: Tensor) -> Tensor:
    """``w_anc`` of one choice, ``[...]``; 0 where nothing but the choice taken is safe.

    Args:
        log_probabilities: ``[..., C]``, differentiable.
        reference: The same of the reference, minus infinity where a choice is not safe.
        taken: ``[...]`` int64.
    """
    safe = torch.isfinite(reference).scatter(-1, taken.unsqueeze(-1), False)
    least = torch.finfo(reference.dtype).min / 2
    new, old = (
        torch.logsumexp(x.masked_fill(~safe, least).clamp_min(least), -1) for x in (log_probabilities, reference)
    )
    return torch.where(safe.any(-1), likelihood_ratio(new, old), 0)
