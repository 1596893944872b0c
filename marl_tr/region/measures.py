"""What all regions are compared by, whatever each of them bounds."""

from __future__ import annotations

import torch

from marl_tr.objective.ratio import likelihood_ratio
from marl_tr.policy import Capability, in_float64, masked_mean
from marl_tr.region.turn import Measurement, Turn

__all__ = ["likelihood_measures"]


@torch.no_grad()
def likelihood_measures(turn: Turn, measured: Measurement) -> dict[str, float]:
    """Of one learner's update, over the whole batch; nothing of policies without a likelihood.

    Args:
        turn: Of one row.
        measured: What is now in force.

    Returns:
        - ``region/reverse``: mean KL(new || old), nats; ``region/max_divergence``: the largest KL(old || new) of one
          decision of the batch;
        - ``region/ess``: effective sample size ``(sum w)^2 / (n sum w^2)`` of the importance weights, in (0, 1].
    """
    policy, mask = turn.learners.policy, turn.batch.mask
    if not {Capability.LOG_PROB, Capability.KL} <= policy.capabilities or not bool(mask.any()):
        return {}
    old, new = (in_float64(e.law) for e in (turn.old, measured.evaluation))
    weight = likelihood_ratio(measured.log_prob.sum(-1).double(), turn.old.log_prob.sum(-1).double())[mask]
    return {
        "region/reverse": float(masked_mean(policy.divergence(new, old).sum(-1), mask)),
        "region/max_divergence": float(policy.divergence(old, new).sum(-1)[mask].max()),
        "region/ess": float(weight.sum().square() / (len(weight) * weight.square().sum())),
    }
