"""Small policies and data for preference learning; settings are those of a test's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from learning_examples import frozen, generator, make_flow, make_policy, mean_over, play, torch_kl
from torch import Tensor

from marl_tr.policy import Policy, PolicyBatch
from marl_tr.preference.config import PreferenceSettings
from marl_tr.preference.data import Candidates, PreferenceData
from marl_tr.preference.trainer import PreferenceTrainer

POLICIES = ("gaussian", "categorical", "flow")


def policy_of(kind: str, *, seed: int = 0, agents: int = 2) -> Policy:
    if kind == "flow":
        return make_flow(shared=True, agents=agents, seed=seed)
    return make_policy(kind, agents=agents, hidden=[6], seed=seed)


def data_of(policy: Policy, *, steps: int = 2, candidates: int = 12, size: int = 4, seed: int = 1) -> PreferenceData:
    """Groups of `size`, with everything that a loss may ask for."""
    batch = play(policy, steps=steps, environments=candidates, seed=seed)
    starts = torch.zeros_like(batch.starts)
    starts[:, 0] = True
    mask = batch.mask.clone()
    mask[:, 0] = True
    rows, _, count = mask.shape
    noise = generator(seed + 20)
    return PreferenceData(
        replace(batch, starts=starts, mask=mask),
        group=(torch.arange(count) // size).expand(rows, count),
        score=torch.randn(rows, count, generator=noise),
        level=torch.randint(1, 4, (rows, count), generator=noise),
        expert=torch.rand(mask.shape, generator=noise) < 0.7,
    )


def settings_of(loss: dict[str, Any], **settings: Any) -> PreferenceSettings:
    return PreferenceSettings.model_validate({"loss": loss, **settings})


def candidates_of(
    log_prob: Tensor, *, old: Tensor | None = None, reference: Tensor | None = None, **labels: Tensor
) -> Candidates:
    """Of single decisions ``[N]``: one row, one step, no chain."""

    def wide(x: Tensor) -> Tensor:
        return x.reshape(1, 1, -1)

    shaped = wide(log_prob).unsqueeze(-1)
    known = {name: wide(x) for name, x in labels.items()}
    known["reference"] = torch.zeros_like(shaped) if reference is None else wide(reference).unsqueeze(-1)
    before = shaped.detach() if old is None else wide(old).unsqueeze(-1)
    return Candidates(shaped, before, torch.ones(shaped.shape[:3], dtype=torch.bool), known)


__all__ = [
    "POLICIES",
    "PolicyBatch",
    "PreferenceTrainer",
    "candidates_of",
    "data_of",
    "frozen",
    "generator",
    "make_policy",
    "mean_over",
    "play",
    "policy_of",
    "settings_of",
    "torch_kl",
]
