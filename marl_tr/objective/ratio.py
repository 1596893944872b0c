"""Objectives made of the likelihood ratio ``w = pi(a | o) / pi_old(a | o)``."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.objective.config import ClippedRatioConfig, SurrogateConfig
from marl_tr.objective.support_entropy import support_entropy_of
from marl_tr.policy import Capability, Evaluation, Parameters, masked_mean
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Estimate, Turn

__all__ = ["LOG_RATIO_LIMIT", "ClippedRatio", "Surrogate", "likelihood_ratio"]

LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: beyond it a ratio says nothing more and squares of it leave float32."""


def likelihood_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """``w``, finite for every pair of finite log-probabilities; shapes as given."""
    return torch.exp((log_prob - old_log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


class Surrogate:
    """``w A``: its gradient at ``w = 1`` is the policy gradient (arXiv 1502.05477, equation 14).

    The base of objectives that are a function of ratio and advantage: they overwrite `gain`.

    Attributes:
        entropy: Weight of the entropy bonus.
        support: Of which choices; None: of all actions.
        reduction: How gains are brought together over dimensions and over the policy's chain.
        requires: Capabilities of the policy.
    """

    def __init__(self, config: SurrogateConfig) -> None:
        self.entropy = config.entropy
        self.support = config.entropy_support
        self.requires = frozenset(Capability(name) for name in config.requires)
        self.reduction = config.reduction

    def ratio(self, log_prob: Tensor, old_log_prob: Tensor, dimensions: int) -> Tensor:
        """The ratio of each chain step ``[L, T, N, k]``, or its root of that degree where reductions are means."""
        scale = dimensions if self.reduction == "mean" else 1
        return likelihood_ratio(log_prob / scale, old_log_prob / scale)

    def gain(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """What is to be maximised, a decision: shapes ``[L, T, N, K]`` and ``[L, T, N, 1]`` to ``[L, T, N, K]``."""
        return ratio * advantage

    def samples(self, turn: Turn) -> Samples:
        """All of a turn's decisions, single ones where the policy has no memory; then those of the absent and idle are
        left out, so that minibatches hold equally many of the others."""
        samples = Samples(turn.batch, turn.old.log_prob, turn.advantage)
        if turn.learners.policy.recurrent:
            return samples
        samples = samples.flatten_time()
        mask = samples.batch.mask
        return samples if bool(mask.all()) else samples.packed(mask)

    def estimate(self, turn: Turn, parameters: Parameters, samples: Samples) -> Estimate:
        """See `marl_tr.region.turn.Objective`."""
        evaluation = turn.learners.policy.evaluate(parameters, samples.batch)
        length = turn.old.log_prob.shape[-1]
        gain = self.mean_gain(evaluation, samples.old_log_prob, samples.advantage, samples.batch.mask, length)
        return Estimate(gain=gain, evaluation=evaluation)

    def improvement(self, turn: Turn, evaluation: Evaluation) -> Tensor:
        """See `marl_tr.region.turn.Objective`."""
        old, advantage, mask = turn.old, turn.advantage, turn.batch.mask
        length = old.log_prob.shape[-1]
        new = self.mean_gain(evaluation, old.log_prob, advantage, mask, length)
        return new - self.mean_gain(old, old.log_prob, advantage, mask, length)

    def mean_gain(
        self,
        evaluation: Evaluation,
        old_log_prob: Tensor,
        advantage: Tensor,
        mask: Tensor,
        chain_length: int,
        *,
        gain: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Mean objective a row, ``[R]``, entropy bonus included; differentiable in `evaluation`.

        Args:
            evaluation: Of decisions ``[R, T, N]`` and some or all of their chain steps ``[..., k]``.
            old_log_prob: Of the same, ``[R, T, N, k]``.
            advantage: ``[R, T, N]``.
            mask: ``[R, T, N]``.
            chain_length: ``K``: of some chain steps the sum over the chain is estimated.
            gain: ``[R, T, N, k]``, in place of this objective's own.
            weight: ``[R, T, N]``, of the decisions in the mean; None: all alike.
        """
        per_step = gain
        if per_step is None:
            ratio = self.ratio(evaluation.log_prob, old_log_prob, evaluation.dimensions)
            per_step = self.gain(ratio, advantage.unsqueeze(-1))
        if evaluation.weight is not None:
            per_step = per_step * evaluation.weight
        per_decision = per_step.mean(-1)
        if self.reduction == "sum":
            per_decision = per_decision * chain_length
        if weight is not None:
            per_decision = per_decision * weight
        if self.entropy and self.support is not None:
            per_decision = per_decision + self.entropy * support_entropy_of(evaluation.law, self.support)
        elif self.entropy and evaluation.entropy is not None:
            per_decision = per_decision + self.entropy * evaluation.entropy
        return masked_mean(per_decision, mask)


class ClippedRatio(Surrogate):
    """``min(w A, clip(w, 1 - c, 1 + c) A)`` (PPO, arXiv 1707.06347, equation 7).

    Not a trust region: beyond the interval the gradient is zero, so nothing pulls a ratio back.
    """

    def __init__(self, config: ClippedRatioConfig) -> None:
        super().__init__(config)
        self.clip = config.clip

    def gain(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """The pessimistic of the two surrogates; shapes as in `Surrogate.gain`."""
        return torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)

    def clipped(self, log_prob: Tensor, old_log_prob: Tensor, dimensions: int) -> Tensor:
        """Which ratios lie outside the interval, ``[L, T, N, K]`` bool."""
        return (self.ratio(log_prob, old_log_prob, dimensions) - 1).abs() > self.clip
