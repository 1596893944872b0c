"""FiberPO: log-ratios with a budget for every level."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from marl_tr.region.family.cohort_config import FiberPoConfig
from marl_tr.region.family.levels import level_mean, log_ratio, measured_log_ratio, turn_trajectories
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest, segment_sum
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["FiberPo", "gated_by_apc", "residuals"]


class FiberPo(ReshapedGain):
    """``w~ A`` with ``log w~ = sum_L clip(a_L - a_parent(L), +- delta_L)``; ``pessimistic``: ``min(w A, w~ A)``.

    ``a_L`` is the mean log-ratio over the decision's segment of level ``L``: the trajectory, then the decision itself;
    or domain, cohort, trajectory, decision. Residuals are taken against the mean *before* its gate, so the budgets are
    apart from each other: a drift of a whole trajectory by 0.5 leaves 0.2 of it. (An implementation that is around
    subtracts the gated mean, and lets 0.2 more through at the decisions.) At the old policy the derivative of ``w~`` in
    the log-ratios is the identity; ``|log w~|`` never exceeds the sum of the budgets.

    Both sides are shut without ``pessimistic``, the one that would lead back as well.

    A domain is what the label ``domain`` says; where there is none, all of a learner's decisions of the minibatch.

    Source: arXiv 2603.08239; the gates and their widths after an unofficial implementation, `gated_by_apc` after the
    paper's censoring objective, with log-ratios in place of ``w - 1``: reconstructed.
    """

    own_guarantee: str = "none"

    def __init__(self, config: FiberPoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        whole = Need.WHOLE_TRAJECTORIES if config.levels == "trajectory" else Need.WHOLE_COHORTS
        self.needs = self.needs | {whole, Need.TRAJECTORY}
        self._names: tuple[str, ...] = ("trajectory",)
        self._budgets: tuple[float, ...] = (config.delta, config.epsilon)
        if config.levels == "domain":
            self._names = ("domain", "cohort", "trajectory")
            self._budgets = (config.delta_domain, config.delta_cohort, *self._budgets)
        self._apc = config.base_gate == "apc"
        self._pessimistic = config.pessimistic

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        x, mask = log_ratio(decisions), decisions.mask
        segments = self._segments(decisions.samples.labels, mask)
        *above, own = residuals(x, segments, mask)
        parts = [part.clamp(-budget, budget) for part, budget in zip(above, self._budgets, strict=False)]
        if self._apc:
            parts = [gated_by_apc(x, segments[0], mask, budget=self._budgets[0])]
        gated = torch.exp(sum(parts) + own.clamp(-self._budgets[-1], self._budgets[-1]))
        gain = gated * decisions.advantage
        return torch.minimum(decisions.ratio * decisions.advantage, gain) if self._pessimistic else gain

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest residual of any level, as a share of its budget."""
        mask = turn.batch.mask
        segments = self._segments(turn.labels | {"trajectory": turn_trajectories(turn)}, mask)
        levels = residuals(measured_log_ratio(turn, measured), segments, mask)
        shares = [largest(part, mask) / budget for part, budget in zip(levels, self._budgets, strict=True)]
        return Reach("largest log-ratio of a level, of its budget", torch.stack(shares).amax(0), 1.0)

    def _segments(self, labels: dict[str, Tensor], mask: Tensor) -> list[Tensor]:
        one = torch.zeros_like(mask, dtype=torch.int64)
        return [labels.get("domain", one) if name == "domain" else labels[name] for name in self._names]


def residuals(x: Tensor, segments: list[Tensor], mask: Tensor) -> list[Tensor]:
    """What each level adds to the mean of the one above, and last what a decision does; they sum up to `x`.

    Args:
        x: ``[R, T, N, k]``.
        segments: ``[R, T, N]`` of each level, from above.
        mask: ``[R, T, N]``.
    """
    means = [level_mean(x, segment, mask) for segment in segments]
    parts = [means[0], *(below - above for above, below in pairwise(means))]
    return [*parts, x - means[-1]]


def gated_by_apc(x: Tensor, segment: Tensor, mask: Tensor, *, budget: float) -> Tensor:
    """``mean_t clip(x_t, -B_t, B_t)``, ``B_t = max(0, T budget - sum_{s != t} |x_s|)``: ``[R, T, N, 1]``.

    While a trajectory's mean ``|x|`` is within the budget it is the mean; beyond, each decision keeps what the others
    leave, and has no gradient. Its magnitude never exceeds the budget. What others use is a limit, not learned through.
    """
    with torch.no_grad():
        size = x.abs()
        steps = torch.full_like(size[..., :1], size.shape[-1])
        total = segment_sum(steps, segment, mask) * budget
        left = (total - (segment_sum(size.sum(-1, keepdim=True), segment, mask) - size)).clamp_min(0)
    return level_mean(torch.minimum(torch.maximum(x, -left), left), segment, mask)
