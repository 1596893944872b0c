"""Mechanisms that put a gain of their own in the place of ``w A``, decision by decision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Capability, Evaluation, Parameters, Policy, PolicyBatch, masked_mean
from marl_tr.region.config import ReshapedConfig
from marl_tr.region.gradient import GradientRegion, Update
from marl_tr.region.needs import Need
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Estimate, Measurement, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Decisions", "ReshapedGain", "largest", "largest_deviation", "segment_mean", "segment_sum"]


@dataclass(frozen=True)
class Decisions:
    """A minibatch under the parameters that learn, beside what is known of it.

    ``R`` learners, ``T`` steps, ``N`` trajectories (``T = 1`` where minibatches are of single decisions), ``k`` steps
    of a policy's chain (1 unless it is a flow): of a flow each of them counts as a decision with a ratio of its own.

    Attributes:
        evaluation: Differentiable.
        samples: Batch, old law (with `Need.OLD_LAW`), labels.
        policy: Whose.
        objective: How ratios are taken (`Surrogate.reduction`).
    """

    evaluation: Evaluation
    samples: Samples
    policy: Policy
    objective: Surrogate

    @property
    def batch(self) -> PolicyBatch:
        """Observations and raw actions."""
        return self.samples.batch

    @property
    def mask(self) -> Tensor:
        """``[R, T, N]`` bool, which decisions count."""
        return self.samples.batch.mask

    @property
    def advantage(self) -> Tensor:
        """``[R, T, N, 1]``."""
        return self.samples.advantage.unsqueeze(-1)

    @property
    def log_prob(self) -> Tensor:
        """``[R, T, N, k]``, of the action taken; differentiable."""
        return self.evaluation.log_prob

    @property
    def old_log_prob(self) -> Tensor:
        """``[R, T, N, k]``, of the policy that acted."""
        return self.samples.old_log_prob

    @cached_property
    def ratio(self) -> Tensor:
        """``w = pi / pi_old``, ``[R, T, N, k]``; log-ratios beyond +-20 are cut off."""
        return self.objective.ratio(self.log_prob, self.old_log_prob, self.evaluation.dimensions)

    @cached_property
    def kl(self) -> Tensor:
        """KL(old || new), ``[R, T, N, k]`` nats; of regions with `Need.OLD_LAW`."""
        return self.policy.divergence(self.samples.law, self.evaluation.law)

    @cached_property
    def reverse_kl(self) -> Tensor:
        """KL(new || old), ``[R, T, N, k]`` nats; of regions with `Need.OLD_LAW`."""
        return self.policy.divergence(self.evaluation.law, self.samples.law)

    def label(self, name: str) -> Tensor:
        """``[R, T, N]``, see `Need`."""
        return self.samples.labels[name]

    def whole_chain(self, x: Tensor, turn: Turn) -> Tensor:
        """Of values ``[R, T, N, k]`` of some chain steps, values whose sum estimates that of the whole chain."""
        return x * (turn.old.log_prob.shape[-1] / x.shape[-1])

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the decisions of each row: ``[R, T, N]``, or ``[R, T, N, k]`` summed over the chain, to ``[R]``."""
        return masked_mean(x if x.ndim == self.mask.ndim else x.sum(-1), self.mask)


class ReshapedGain(GradientRegion):
    """Base of mechanisms made of `gain`, and perhaps of a `penalty`.

    Where ``config.aggregation`` asks for it, decisions are weighted so that each trajectory counts alike.
    """

    requires = frozenset({Capability.LOG_PROB})

    def __init__(self, config: ReshapedConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._aggregation = config.aggregation
        if self._aggregation != "token_mean":
            self.needs = self.needs | {Need.TRAJECTORY}

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """What is to be maximised, a decision and chain step: ``[R, T, N, k]``; here ``w A``."""
        return decisions.ratio * decisions.advantage

    def penalty(self, decisions: Decisions, update: Update) -> Tensor | None:
        """What is taken off the mean gain, ``[R]``."""
        return None

    def prepare(self, update: Update) -> None:
        """Weights of the decisions; overwritten slots call this one."""
        if self._aggregation != "token_mean":
            update.samples.labels["weight"] = _trajectory_weight(update.samples, self._aggregation)

    def estimate(self, update: Update, parameters: Parameters, samples: Samples) -> Estimate:
        """The mean of `gain` less the `penalty`, entropy bonus included."""
        evaluation = update.turn.learners.policy.evaluate(parameters, samples.batch)
        decisions = self.decisions(update, evaluation, samples)
        gain, penalty = self.mean_gain(decisions, update), self.penalty(decisions, update)
        return Estimate(gain if penalty is None else gain - penalty, evaluation=evaluation)

    def decisions(self, update: Update, evaluation: Evaluation, samples: Samples) -> Decisions:
        """A minibatch under this evaluation."""
        return Decisions(evaluation, samples, update.turn.learners.policy, cast(Surrogate, update.turn.objective))

    def mean_gain(self, decisions: Decisions, update: Update) -> Tensor:
        """The mean of `gain` over a minibatch, entropy bonus included, ``[R]``."""
        samples = decisions.samples
        return decisions.objective.mean_gain(
            decisions.evaluation,
            samples.old_log_prob,
            samples.advantage,
            samples.batch.mask,
            update.turn.old.log_prob.shape[-1],
            gain=self.gain(decisions, update),
            weight=samples.labels.get("weight"),
        )


def segment_sum(x: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
    """Of every decision the sum over all that share its segment: ``[R, T, N, ...]``, differentiable.

    Args:
        x: ``[R, T, N, ...]``.
        segment: ``[R, T, N]`` int64, at least 0, numbered within each row.
        mask: ``[R, T, N]`` bool; what it leaves out counts nothing.
    """
    rows, extra = x.shape[0], x.shape[3:]
    count = int(segment.max()) + 1 if segment.numel() else 1
    index = (segment + count * torch.arange(rows, device=x.device)[:, None, None]).flatten()
    kept = torch.where(mask.reshape(*mask.shape, *(1,) * len(extra)), x, 0).flatten(0, 2)
    sums = kept.new_zeros(rows * count, *extra).index_add(0, index, kept)
    return sums[index].reshape(x.shape)


def segment_mean(x: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
    """The same with the mean; see `segment_sum`."""
    count = segment_sum(mask.to(x.dtype), segment, mask).clamp_min(1)
    return segment_sum(x, segment, mask) / count.reshape(*count.shape, *(1,) * (x.ndim - count.ndim))


def _trajectory_weight(samples: Samples, aggregation: Any) -> Tensor:
    """``[R, T, N]``: what decisions are weighted by, so that the masked mean is the wanted aggregate."""
    mask, segment = samples.batch.mask, samples.labels["trajectory"]
    length = segment_sum(mask.double(), segment, mask).clamp_min(1)
    per_trajectory = mask.sum((-2, -1), keepdim=True) / (mask / length).sum((-2, -1), keepdim=True).clamp_min(1e-9)
    weight = per_trajectory.expand_as(length) if aggregation == "trajectory_sum" else per_trajectory / length
    return weight.to(samples.advantage.dtype)


@torch.no_grad()
def largest_deviation(turn: Turn, measured: Measurement) -> Tensor:
    """The largest ``|w - 1|`` over the decisions and chain steps of the whole batch, ``[R]``; for `Region.reach`."""
    objective = cast(Surrogate, turn.objective)
    ratio = objective.ratio(measured.log_prob, turn.old.log_prob, measured.evaluation.dimensions)
    return largest(ratio - 1, turn.batch.mask)


def largest(x: Tensor, mask: Tensor) -> Tensor:
    """The largest magnitude of ``[R, T, N, k]`` over decisions and chain steps, ``[R]``."""
    return torch.where(mask, x.abs().amax(-1), 0).flatten(1).amax(-1)
