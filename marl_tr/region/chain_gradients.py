"""How hard each step of a policy's chain pulls on its parameters: an instrument, measured and not predicted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marl_tr.policy import Parameters, Policy, PolicyBatch
from marl_tr.region.learners import Learners

__all__ = ["ChainGradientNorms", "chain_gradient_norms", "learners_gradient_norms"]


@dataclass(frozen=True)
class ChainGradientNorms:
    """Means over decisions, a chain step each.

    Attributes:
        raw: ``[K]`` float64, of the norm of the gradient of a step's log-probability in the parameters.
        weighted: ``[K]`` float64, the same of the log-probability times its weight in the objective.
    """

    raw: Tensor
    weighted: Tensor

    @staticmethod
    def spread(norms: Tensor) -> float:
        """Largest over least of the steps that have a gradient; 1 where none has."""
        stochastic = norms[norms > 0]
        return float(stochastic.max() / stochastic.min()) if len(stochastic) else 1.0


def chain_gradient_norms(
    policy: Policy, parameters: Parameters, batch: PolicyBatch, *, decisions: int = 32
) -> ChainGradientNorms:
    """``E |grad_theta log pi_k|`` and ``E |grad_theta (weight_k log pi_k)|`` for every step ``k`` of the chain.

    Every gradient is a backward pass of its own, through one decision and one step: `decisions` times ``K`` of them.

    Args:
        policy: Without memory.
        parameters: Of one learner, ``[1, ...]`` each; those that the decisions were drawn with, where the norms are
            to be those of a first gradient step.
        batch: Decisions of that learner, ``[1, T, N, ...]``, with their whole chains.
        decisions: How many at most, spread evenly over those that count.

    Raises:
        ValueError: The policy is recurrent, `batch` is not of one learner or asks for some chain steps only, or no
            decision counts.
    """
    if policy.recurrent or batch.chain is not None or batch.mask.shape[0] != 1:
        raise ValueError("gradient norms by chain step are of one learner without memory, and of whole chains")
    flat = batch.flatten_time()
    counted = flat.mask[0, 0].nonzero().squeeze(-1)
    if len(counted) == 0:
        raise ValueError("no decision of this batch counts")
    place = torch.linspace(0, len(counted) - 1, min(decisions, len(counted))).round().long()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    norms, weights = [], []
    for index in counted[place.to(counted.device)]:
        own, weight = _of_decision(policy, leaves, flat.trajectories(index[None]))
        norms.append(own)
        weights.append(weight)
    raw, weight = torch.stack(norms), torch.stack(weights)
    return ChainGradientNorms(raw=raw.mean(0).cpu(), weighted=(raw * weight.abs()).mean(0).cpu())


def learners_gradient_norms(learners: Learners, batch: PolicyBatch) -> dict[str, dict[str, list[float]]]:
    """``gradient_norm`` and ``gradient_norm_weighted`` at the parameters in force, by learner.

    Of learners with a decision in `batch` ``[L, T, N, ...]``; nothing where decisions are no chains.
    """
    policy = learners.policy
    if policy.recurrent or _length(policy, learners, batch) == 1:
        return {}
    found = {}
    for row, name in enumerate(learners.names):
        own = batch.rows([row])
        if bool(own.mask.any()):
            norms = chain_gradient_norms(policy, learners.parameters([row]), own)
            found[name] = {"gradient_norm": norms.raw.tolist(), "gradient_norm_weighted": norms.weighted.tolist()}
    return found


@torch.no_grad()
def _length(policy: Policy, learners: Learners, batch: PolicyBatch) -> int:
    """``K``, from one decision."""
    first = batch.rows([0]).flatten_time().trajectories(torch.zeros(1, dtype=torch.int64, device=batch.mask.device))
    return policy.evaluate(learners.parameters([0]), first).log_prob.shape[-1]


def _of_decision(policy: Policy, leaves: Parameters, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
    """Gradient norms and weights of one decision's steps, ``[K]`` float64 each."""
    with torch.no_grad():
        whole = policy.evaluate(leaves, batch)
    length = whole.log_prob.shape[-1]
    weight = torch.ones(length, dtype=torch.float64, device=whole.log_prob.device)
    if whole.weight is not None:
        weight = whole.weight.reshape(length).double()
    norms = []
    for k in range(length):
        chain = torch.full((1, 1, 1, 1), k, device=batch.mask.device)
        one = policy.evaluate(leaves, batch if length == 1 else replace(batch, chain=chain))
        gradients = torch.autograd.grad(one.log_prob.sum(), list(leaves.values()), allow_unused=True)
        squares = [g.double().square().sum() for g in gradients if g is not None]
        norms.append(torch.stack(squares).sum().sqrt())
    return torch.stack(norms), weight
