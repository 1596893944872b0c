"""PPO with an adaptive penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_tr.policy import Capability
from marl_tr.region.family.core_config import PpoPenaltyConfig
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["PpoPenalty"]

_LEAST, _MOST = 1e-6, 1e6
"""Beta stays within these (ours): a weight that fell without limit would be as long in coming back."""


class PpoPenalty(ReshapedGain):
    """``E[w A] - beta E[KL(old || new)]``, and after an update with ``d = E[KL]``, ``x = tolerance``, ``f = factor``:

    ``beta <- beta / f`` if ``d < target / x``; ``beta <- beta f`` if ``d > target x``.

    `beta` is remembered of each learner. Its change takes effect in the next update.

    Source: Schulman et al., arXiv 1707.06347, section 4.
    """

    own_guarantee: str = "soft"
    requires = frozenset({Capability.LOG_PROB, Capability.KL})
    needs = frozenset({Need.OLD_LAW})

    def __init__(self, config: PpoPenaltyConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._target, self._beta = config.target, config.beta
        self._tolerance, self._factor = config.tolerance, config.factor

    def penalty(self, decisions: Decisions, update: Update) -> Tensor:
        """``beta`` times the mean KL."""
        kl = decisions.mean(decisions.whole_chain(decisions.kl, update.turn))
        return kl * torch.tensor(update.remembered("beta", self._beta)).to(kl)

    def finish(self, update: Update) -> None:
        """The multiplier for the next update."""
        beta = torch.tensor(update.remembered("beta", self._beta), dtype=torch.float64)
        with torch.no_grad():
            reached = update.turn.measure(update.parameters).divergence.cpu()
        update.scalars["region/beta"] = beta
        beta = torch.where(reached < self._target / self._tolerance, beta / self._factor, beta)
        beta = torch.where(reached > self._target * self._tolerance, beta * self._factor, beta)
        update.remember("beta", beta.clamp(_LEAST, _MOST).tolist())

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The mean KL."""
        return Reach("mean KL(old||new)", measured.divergence, self._target)
