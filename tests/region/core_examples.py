"""Decisions with given ratios, and policies whose every choice is in the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from learning_examples import FEATURES, make_policy, make_turn
from torch import Tensor

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Evaluation, Policy, PolicyBatch
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Turn


def decisions_of(ratio: Tensor, advantage: Tensor, **labels: Tensor) -> Decisions:
    """Decisions ``[n]`` of one learner with these ratios to the old policy; differentiable in `ratio`."""
    shape = (1, 1, len(ratio))
    true = torch.ones(shape, dtype=torch.bool)
    batch = PolicyBatch(observation={}, record={}, memory=None, starts=true, mask=true)
    log_prob = ratio.log().reshape(*shape, 1)
    return Decisions(
        evaluation=Evaluation(log_prob=log_prob, entropy=None, law=None),
        samples=Samples(
            batch,
            torch.zeros_like(log_prob.detach()),
            advantage.reshape(shape),
            labels={name: x.reshape(shape) for name, x in labels.items()},
        ),
        policy=cast(Policy, None),
        objective=Surrogate(SurrogateConfig()),
    )


def gain_of(region: ReshapedGain, ratio: Tensor, advantage: Tensor) -> Tensor:
    """What a region maximises of each decision, ``[n]``; of regions that look at ratio and advantage alone."""
    return region.gain(decisions_of(ratio, advantage), cast(Any, None)).flatten()


def slope_of(region: ReshapedGain, ratio: Tensor, advantage: Tensor) -> Tensor:
    """Its derivative in the ratio, ``[n]``."""
    leaf = ratio.clone().requires_grad_()
    (slope,) = torch.autograd.grad(gain_of(region, leaf, advantage).sum(), leaf)
    return slope


def every_choice(policy: Policy, advantage: Tensor) -> Turn:
    """A turn of a policy of choices for one agent at one observation: each choice is in the batch once."""
    count = len(advantage)
    true = torch.ones(1, 1, count, dtype=torch.bool)
    batch = PolicyBatch(
        observation={"observation": torch.full((1, 1, count, FEATURES), 0.3)},
        record={"action": torch.arange(count).reshape(1, 1, count)},
        memory=None,
        starts=true,
        mask=true,
    )
    turn = make_turn(policy, batch, advantage=advantage.reshape(1, 1, count))
    return replace(turn, labels={"raw_advantage": turn.advantage})


def choice_policy(seed: int = 0) -> Policy:
    """Of five choices."""
    return make_policy("categorical", agents=1, seed=seed, head_gain=1.0)
