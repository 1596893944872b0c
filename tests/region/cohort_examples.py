"""Decisions made of log-ratios that are given, in float64."""

from __future__ import annotations

from typing import Any

import torch
from family_examples import region_of
from torch import Tensor

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Evaluation, PolicyBatch
from marl_tr.region.reshaped import Decisions
from marl_tr.region.samples import Samples


def decisions_of(
    log_ratio: Tensor,
    advantage: Tensor | float = 1.0,
    *,
    mask: Tensor | None = None,
    labels: dict[str, Tensor] | None = None,
) -> Decisions:
    """Of log-ratios ``[R, T, N, k]``; each column is a trajectory unless `labels` say otherwise."""
    shape = log_ratio.shape[:3]
    mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    batch = PolicyBatch({}, {}, None, torch.zeros(shape, dtype=torch.bool), mask)
    advantage = torch.as_tensor(advantage, dtype=torch.float64).expand(shape)
    known = {"trajectory": torch.arange(shape[2]).expand(shape)} | (labels or {})
    samples = Samples(batch, torch.zeros_like(log_ratio).detach(), advantage, labels=known)
    policy: Any = None
    return Decisions(Evaluation(log_ratio, None, law=None), samples, policy, Surrogate(SurrogateConfig()))


def gain_and_gradient(name: str, log_ratio: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    """Gains of a region's decisions, and the derivative of their sum in the log-ratios.

    Arguments of `decisions_of` by position or name; what it does not know are the region's settings.
    """
    own = {key: settings.pop(key) for key in ("mask", "labels", "advantage") if key in settings}
    leaf = log_ratio.double().clone().requires_grad_()
    region, update = region_of(name, **settings), Any
    gain = region.gain(decisions_of(leaf, *args, **own), update)
    (gradient,) = torch.autograd.grad(gain.sum(), leaf)
    return gain.detach(), gradient


def column(*values: float) -> Tensor:
    """One learner's one trajectory of these log-ratios, ``[1, T, 1, 1]``."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
