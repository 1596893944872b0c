"""How probable an action was: what the mechanisms read that go by probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.policy import Capability, Policy
from marl_tr.region.family.shaping_config import MassConfig
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.region.turn import Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["MassGain", "as_score", "tail_mass"]


class MassGain(ReshapedGain):
    """Base of mechanisms that read the old policy's probability of the action taken.

    Of choices that is ``exp(log pi_old(a))``. A density is no probability: of Gaussian laws (a flow's steps are) the
    option ``mass: tail`` takes the old policy's probability of an action less likely than the one taken,
    ``1 - F_d(m)`` with ``m`` the squared Mahalanobis distance and ``F_d`` the chi-squared distribution. It is uniform
    on (0, 1) under the old policy, near 1 at the mean. This reading is ours.
    """

    def __init__(self, config: MassConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._tail = config.mass == "tail"
        self.requires = frozenset(Capability(name) for name in config.requires)
        self.needs = self.needs | {Need(name) for name in config.needs}

    def mass(self, decisions: Decisions) -> Tensor:
        """``p``, ``[R, T, N, k]`` in [0, 1], without gradient."""
        return self._mass(decisions.policy, decisions.samples.law, decisions.old_log_prob)

    def mass_of(self, turn: Turn) -> Tensor:
        """The same of a turn's whole batch."""
        return self._mass(turn.learners.policy, turn.old.law, turn.old.log_prob)

    @torch.no_grad()
    def _mass(self, policy: Policy, law: object, log_prob: Tensor) -> Tensor:
        return tail_mass(policy, law, log_prob) if self._tail else log_prob.exp()


def tail_mass(policy: Policy, law: object, log_prob: Tensor) -> Tensor:
    """`policy`'s probability under `law` of an action less likely than the one of `log_prob` ``[R, T, N, k]``."""
    found: Tensor = policy.tail_mass(law, log_prob)  # type: ignore[attr-defined]  # an optional hook
    return found


def as_score(weight: Tensor, decisions: Decisions) -> Tensor:
    """`weight` ``[R, T, N, k]``, whose gradient is ``weight grad log w`` wherever the ratio ``w`` is: REINFORCE."""
    scale = decisions.evaluation.dimensions if decisions.objective.reduction == "mean" else 1
    score = (decisions.log_prob - decisions.log_prob.detach()) / scale
    return weight.detach() * (1 + score)
