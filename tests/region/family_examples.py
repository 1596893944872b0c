"""Turns for every registered region, whatever it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from learning_examples import generator, make_flow, make_learners, make_policy, make_region, make_turn, play
from torch import Tensor

from marl_tr.policy import Policy, PolicyBatch
from marl_tr.region.gradient import GradientRegion
from marl_tr.region.turn import Turn
from marl_tr.registry import find, names
from marl_tr.scenario.schema import OptimizerSection

POLICIES = ("gaussian", "categorical", "flow")


def policy_of(name: str, *, seed: int = 0, **settings: Any) -> Policy:
    """A small policy with two learners, or one for a flow of four steps."""
    if name == "flow":
        return make_flow(shared=True, agents=2, seed=seed)
    return make_policy(name, agents=2, hidden=[6], seed=seed, **settings)


def gradient_regions() -> list[str]:
    """Every registered region that takes gradient steps."""
    return [name for name in names("regions") if isinstance(make_region(name), GradientRegion)]


def serves(region: Any, policy: Policy) -> bool:
    """Whether a policy can say what the region requires."""
    return bool(region.requires <= policy.capabilities)


def pairs() -> list[tuple[str, str]]:
    """Every region that takes gradient steps with every kind of policy that it can bound."""
    policies = {kind: policy_of(kind) for kind in POLICIES}
    return [
        (name, kind)
        for name in [*gradient_regions(), *_of_densities()]
        for kind, policy in policies.items()
        if serves(region_of(name), policy)
    ]


def _of_densities() -> list[str]:
    """Those that go by the probability of an action, told to take tail masses of densities."""
    found = []
    for name in gradient_regions():
        config = find("regions", name).load_config()
        if config is not None and "mass" in getattr(config, "model_fields", {}):
            found.append(f"{name}+mass=tail")
    return found


def labels_of(batch: PolicyBatch, *, seed: int = 5) -> dict[str, Tensor]:
    """Cohorts of two neighbouring trajectories, and whole episodes' scores."""
    shape = batch.mask.shape
    cohort = (torch.arange(shape[2]) // 2).expand(shape).clone()
    score = torch.randn(shape[0], 1, shape[2], generator=generator(seed)).expand(shape).clone()
    return {"cohort": cohort, "score": score, "raw_advantage": torch.randn(shape, generator=generator(seed + 1))}


def whole_episodes(batch: PolicyBatch) -> PolicyBatch:
    """The batch with one episode a trajectory."""
    starts = torch.zeros_like(batch.starts)
    starts[:, 0] = True
    return replace(batch, starts=starts)


def turn_for(policy: Policy, *, steps: int = 4, environments: int = 6, seed: int = 1, **settings: Any) -> Turn:
    """A turn with all labels that a region may ask for."""
    batch = whole_episodes(play(policy, steps=steps, environments=environments, seed=seed))
    turn = make_turn(policy, batch, seed=seed, **settings)
    return replace(turn, labels=labels_of(batch, seed=seed + 7))


def region_of(name: str, *, learning_rate: float = 3e-3, **settings: Any) -> Any:
    """A region with steps of one minibatch; ``name+setting=value`` has a setting of its own."""
    name, _, given = name.partition("+")
    if given:
        key, _, value = given.partition("=")
        settings[key] = value
    optimizer = OptimizerSection(learning_rate=learning_rate, epochs=2, minibatches=1, max_grad_norm=None)
    return make_region(name, optimizer=optimizer, **settings)


__all__ = [
    "POLICIES",
    "gradient_regions",
    "labels_of",
    "make_learners",
    "pairs",
    "policy_of",
    "region_of",
    "serves",
    "turn_for",
    "whole_episodes",
]
