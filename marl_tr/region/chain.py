"""What an update did to each step of a policy's chain, for figures."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.region.turn import Measurement, Turn

__all__ = ["chain_measures"]


@torch.no_grad()
def chain_measures(turn: Turn, measured: Measurement) -> dict[str, list[float]]:
    """Measures of one learner's update by chain step, each a list of ``K`` numbers; nothing where ``K`` is 1.

    Args:
        turn: Of one row.
        measured: What is now in force.

    Returns:
        Means over decisions:

        - ``log_ratio_mean``, ``log_ratio_std``: of new to old log-probability, summed over dimensions;
        - ``clip_fraction``: share of ratios, as the objective takes them, outside its clip (where it has one);
        - ``divergence``: KL(old || new), nats; ``kl_anchor`` (by a term's name): KL(anchor || new), nats;
        - ``weight``: what the objective weighs the step by; ``std``: the law's deviation (where it has one a step).
    """
    old, new, mask, policy = turn.old, measured.evaluation, turn.batch.mask, turn.learners.policy
    if new.log_prob.shape[-1] == 1:
        return {}
    moved = (new.log_prob - old.log_prob).double()
    mean = _by_step(moved, mask)
    law = new.law.map(lambda x: x.double() if x.is_floating_point() else x)
    before = old.law.map(lambda x: x.double() if x.is_floating_point() else x)
    measures = {
        "log_ratio_mean": mean,
        "log_ratio_std": _by_step((moved - mean).square(), mask).sqrt(),
        "divergence": _by_step(policy.divergence(before, law), mask),
    }
    clipped = getattr(turn.objective, "clipped", None)
    if clipped is not None:
        measures["clip_fraction"] = _by_step(clipped(new.log_prob, old.log_prob, new.dimensions).double(), mask)
    for term, reference in zip(turn.terms, turn.references, strict=True):
        if term.kind == "anchor":
            measures[f"kl_{term.name}"] = _by_step(policy.divergence(reference, law), mask)
    if old.weight is not None:
        measures["weight"] = _by_step(old.weight.double(), mask)
    std = getattr(law, "std", None)
    if isinstance(std, Tensor) and std.shape == new.log_prob.shape:
        measures["std"] = _by_step(std, mask)
    return {name: values.tolist() for name, values in measures.items()}


def _by_step(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the decisions of the one row: ``[1, T, N, K]`` to ``[K]``."""
    kept: Tensor = x[mask]
    return kept.mean(0) if len(kept) else torch.zeros_like(x[0, 0, 0])
