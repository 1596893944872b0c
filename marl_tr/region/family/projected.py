"""What mechanisms share whose loss sees the law projected into a region around the old one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from marl_tr.policy import Evaluation, Parameters
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import ReshapedGain
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Estimate

__all__ = ["Projected", "ProjectedGain"]


@dataclass(frozen=True)
class Projected:
    """A minibatch after projection.

    Attributes:
        evaluation: Under the projected law: ratio and entropy of the loss are its.
        distance: From the network's law to the projected one, which is held fixed: ``[R, T, N, k]``, 0 inside.
        acting: Under the law that acts, for regularisers and stops.
    """

    evaluation: Evaluation
    distance: Tensor
    acting: Evaluation


class ProjectedGain(ReshapedGain, ABC):
    """``w~ A - alpha distance(law, sg(projected law))``, with ``w~`` the projected law's ratio, unclipped.

    Subclasses say what the projection is.
    """

    needs = frozenset({Need.OLD_LAW})
    alpha: float = 1.0

    @abstractmethod
    def project(self, update: Update, parameters: Parameters, samples: Samples) -> Projected:
        """Differentiable in `parameters`."""

    def estimate(self, update: Update, parameters: Parameters, samples: Samples) -> Estimate:
        """See the class; entropy bonus included."""
        turn = update.turn
        found = self.project(update, parameters, samples)
        decisions = self.decisions(update, found.evaluation, samples)
        gain = self.mean_gain(decisions, update)
        # Chain steps that are seen stand for all.
        length = turn.old.log_prob.shape[-1] / samples.old_log_prob.shape[-1]
        pull = self.alpha * length * decisions.mean(found.distance)
        share = decisions.mean((found.distance.detach() > 0).to(gain)) * length / turn.old.log_prob.shape[-1]
        return Estimate(gain - pull.to(gain), evaluation=found.acting, scalars={"region/projected": share.detach()})
