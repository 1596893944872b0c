"""Bounded policy optimization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from marl_tr.region.family.core_config import BpoConfig
from marl_tr.region.family.median import MedianHead
from marl_tr.region.gradient import Update
from marl_tr.region.needs import Need
from marl_tr.region.reshaped import Decisions, ReshapedGain, largest_deviation
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Bpo", "bounded_target"]


def bounded_target(x: Tensor, *, low: float, high: float, temperature: float) -> Tensor:
    """``1 - low + (low + high) sigmoid(x / temperature)``: the wanted ratio of an action `x` above the quantile.

    With ``x = Q - mu``, where ``mu`` makes the mean over the old policy's actions 1, it is the largest of ``E[rho Q] +
    (low + high) temperature E[H(s)]`` among ratios ``rho = 1 - low + (low + high) s`` with ``E[rho] = 1``; ``H`` is
    the entropy of a coin. Without temperature: ``1 + high`` above the quantile, ``1 - low`` below it.

    Source: arXiv 2604.18578.
    """
    return 1 - low + (low + high) * torch.sigmoid(x / temperature)


class Bpo(ReshapedGain):
    """``-|w - rho*| |A|`` with ``rho* = 1 - e_lo + (e_lo + e_hi) sigmoid((A - m(o)) / lambda)``, `A` not normalised.

    ``A - m(o)`` is ``Q - mu``: the paper's heads V and U are here the critic that made the advantages, and ``m = U -
    V``, an MLP a learner (`marl_tr.region.family.median`) that takes a step after every step of the policy. Consistent
    heads are fitted to the quantile where ``E[rho*] = 1``: ``E sigmoid = e_lo / (e_lo + e_hi)``, the median of equal
    bounds; the official code's always to ``E sigmoid(A - m) = 1/2``, at temperature 1.

    Inside the bounds the gradient is PPO's, up to its sign where ``A`` and ``A - m(o)`` differ in theirs; outside it
    points back.

    Source: arXiv 2604.18578 and the official code; V of the rollout in place of a fresh one is ours.
    """

    own_guarantee: str = "soft"
    unit_gradient: ClassVar[float | None] = None
    needs = frozenset({Need.RAW_ADVANTAGE})

    def __init__(self, config: BpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._low = config.epsilon
        self._high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        self._temperature, self._weighted = config.temperature, config.weighted
        consistent = config.mu_temp == "consistent"
        self._head_temperature = config.temperature if consistent else 1.0
        self._head_share = self._low / (self._low + self._high) if consistent else 0.5
        self._hidden = config.hidden
        self._head_steps = OptimizerSection(learning_rate=config.head_learning_rate)

    def prepare(self, update: Update) -> None:
        """The head, as it is remembered."""
        super().prepare(update)
        update.scratch["head"] = MedianHead(
            [memory.get("head", {}) for memory in update.memory],
            update.turn.names,
            update.samples,
            hidden=self._hidden,
            settings=self._head_steps,
            generator=update.turn.generator,
        )

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        raw = decisions.label("raw_advantage")
        with torch.no_grad():
            above = raw - update.scratch["head"](decisions.batch)
            wanted = bounded_target(above, low=self._low, high=self._high, temperature=self._temperature)
        distance = (decisions.ratio - wanted.unsqueeze(-1)).abs()
        return -distance * raw.abs().unsqueeze(-1) if self._weighted else -distance

    def after_step(self, update: Update, seen: Sequence[Samples]) -> None:
        """The head's own step."""
        update.scratch["head"].step(seen, temperature=self._head_temperature, share=self._head_share)

    def finish(self, update: Update) -> None:
        """Keep the head, and say what the wanted ratios are on average: 1 where it is well fitted."""
        head, samples = update.scratch["head"], update.samples
        for memory, kept in zip(update.memory, head.state(), strict=True):
            memory["head"] = kept
        with torch.no_grad():
            above = samples.labels["raw_advantage"] - head(samples.batch)
            wanted = bounded_target(above, low=self._low, high=self._high, temperature=self._temperature)
            mask = samples.batch.mask
            mean = torch.where(mask, wanted, 0).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
        update.scalars["region/wanted_ratio"] = mean.cpu()

    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest ``|w - 1|`` of the batch."""
        return Reach("largest |ratio - 1|", largest_deviation(turn, measured), max(self._low, self._high))
