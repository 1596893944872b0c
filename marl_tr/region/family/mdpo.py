"""Mirror descent policy optimization, on-policy."""

from __future__ import annotations

from torch import Tensor

from marl_tr.policy import Capability
from marl_tr.region.family.core_config import MdpoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Mdpo", "mirror_weight"]


def mirror_weight(progress: float, *, weight: float, ceiling: float) -> float:
    """``weight / t`` with ``t = 1 - progress``, at most `ceiling`.

    In update ``k = 1 .. K`` of a run ``progress = (k - 1) / K``, so that the published ``t_k = 1 - (k - 1) / K`` is
    reproduced, whose last value is ``1 / K``: without a ceiling the last weight is ``K`` times the first.
    """
    return min(ceiling, weight / max(1 - progress, 1e-9))


class Mdpo(ReshapedGain):
    """``E[w A] - (1 / t_k) E[KL(new || old)]``, several gradient steps an update.

    At the old policy the penalty has no gradient: one step an update is the plain policy gradient.

    Source: Tomar et al., arXiv 2005.09814, on-policy algorithm, with the official code's schedule of ``t_k``; its
    Tsallis variant and the off-policy algorithm are left out.
    """

    own_guarantee: str = "soft"
    requires = frozenset({Capability.LOG_PROB, Capability.KL})
    needs = frozenset({Need.OLD_LAW})

    def __init__(self, config: MdpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._weight, self._ceiling, self._linear = config.weight, config.ceiling, config.schedule == "linear"

    def penalty(self, decisions: Decisions, update: Update) -> Tensor:
        """The weighted mean KL(new || old)."""
        progress = update.turn.progress if self._linear else 0.0
        weight = mirror_weight(progress, weight=self._weight, ceiling=self._ceiling)
        return weight * decisions.mean(decisions.whole_chain(decisions.reverse_kl, update.turn))
