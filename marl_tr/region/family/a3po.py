"""A-3PO: clipped ratios to an anchor that goes along with the policy, at no further forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from marl_tr.region.family.shaping_config import A3poConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["A3po", "proximal"]


class A3po(ReshapedGain):
    """``sg(w_b) min(r A, clip(r, 1 - e_lo, 1 + e_hi) A)`` with ``r = pi / pi_prox`` and ``w_b = pi_prox / pi_old``.

    ``log pi_prox = log pi_old / d + (1 - 1 / d) sg(log pi)``: of the ratio to the policy that acted only the ``d``-th
    root is clipped, and the rest is a weight, capped at `cap`. So a policy ``d`` versions away is held near the one
    before it, not near the one that acted.

    A version here is an optimizer step of the update: ``d`` steps since the rollout (0 and 1: ordinary PPO). That
    reading is ours, for a trainer that collects anew before every update; the source counts the trainer's versions that
    an asynchronous sampler lags behind.

    Source: arXiv 2512.06547 and its official code, whose anchor at ``d = 0`` is the policy that acted.
    """

    own_guarantee: str = "none"

    def __init__(self, config: A3poConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._settings = config
        self._low, self._high = config.clip, config.clip if config.clip_high is None else config.clip_high

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        a, objective, dimensions = decisions.advantage, decisions.objective, decisions.evaluation.dimensions
        anchor = proximal(
            decisions.log_prob.detach(),
            decisions.old_log_prob,
            [row.steps for row in update.rows],
            linear=self._settings.interpolation == "linear",
        )
        r = objective.ratio(decisions.log_prob, anchor, dimensions)
        weight = objective.ratio(anchor, decisions.old_log_prob, dimensions).clamp_max(self._settings.cap)
        return weight * torch.minimum(r * a, r.clamp(1 - self._low, 1 + self._high) * a)


def proximal(log_prob: Tensor, old_log_prob: Tensor, versions: Sequence[int], *, linear: bool = False) -> Tensor:
    """``log pi_prox``, shapes as given, without gradient.

    Args:
        log_prob: ``[R, ...]``, of the policy that learns.
        old_log_prob: Of the policy that acted.
        versions: ``d`` of each row.
        linear: Interpolate probabilities in place of their logarithms.
    """
    share = log_prob.new_tensor([1 / max(1, d) for d in versions]).reshape(-1, *(1,) * (log_prob.ndim - 1))
    now = log_prob.detach()
    if not linear:
        return share * old_log_prob + (1 - share) * now
    # log(1 - 1) is minus infinity, as it is to be.
    return torch.logaddexp(old_log_prob + share.log(), now + (1 - share).log())
