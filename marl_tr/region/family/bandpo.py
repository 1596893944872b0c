"""BandPO: clips whose width an action's probability decides."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from marl_tr.objective.ratio import Surrogate
from marl_tr.region.family.mass import MassGain
from marl_tr.region.family.shaping_config import BandpoConfig
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions, largest
from marl_tr.region.turn import Measurement, Reach, Turn
from marl_tr.scenario.optimizer import OptimizerSection

__all__ = ["Bandpo", "band", "bisected_band", "two_outcomes"]

Divergence = Literal["kl", "tv", "chi2"]
_LEAST = 1e-9
_BISECTIONS = 60


class Bandpo(MassGain):
    """``min(w A, clip(w, lo(p), hi(p)) A)`` with the ratios that an action of probability ``p`` can have at most.

    ``lo`` and ``hi`` are the ends of ``{w: p f(w) + (1 - p) f((1 - w p) / (1 - p)) <= d}``: the most that an action's
    probability can change within the divergence ``d``, all others being scaled alike. Improbable actions have wide
    intervals, so that they can become probable. As with PPO nothing pulls a ratio back that has left its interval.

    Source: arXiv 2603.04918 and its official code, whose default also relaxes the intervals (`relaxed`).
    """

    own_guarantee: str = "none"

    def __init__(self, config: BandpoConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self._divergence, self._radius, self._relaxed = config.divergence, config.radius, config.relaxed

    def prepare(self, update: Update) -> None:
        """The intervals, which hang on the old policy alone."""
        super().prepare(update)
        samples = update.samples
        mass = self._mass(update.turn.learners.policy, samples.law, samples.old_log_prob)
        low, high = band(mass, self._radius, self._divergence, relaxed=self._relaxed)
        samples.labels.update(low=low, high=high)

    def gain(self, decisions: Decisions, update: Update) -> Tensor:
        """See the class."""
        w, a = decisions.ratio, decisions.advantage
        low, high = decisions.label("low"), decisions.label("high")
        return torch.minimum(w * a, w.clamp(low, high) * a)

    @torch.no_grad()
    def reach(self, turn: Turn, measured: Measurement) -> Reach:
        """The largest divergence that an action's ratio implies."""
        objective = cast(Surrogate, turn.objective)
        ratio = objective.ratio(measured.log_prob, turn.old.log_prob, measured.evaluation.dimensions)
        found = two_outcomes(self.mass_of(turn), ratio, self._divergence)
        return Reach(
            f"largest {self._divergence} of an action", largest(found.to(ratio), turn.batch.mask), self._radius
        )


@torch.no_grad()
def band(p: Tensor, radius: float, divergence: Divergence, *, relaxed: bool = False) -> tuple[Tensor, Tensor]:
    """The least and the largest ratio within `radius`, of actions of probability `p`; shapes as given.

    Total variation and chi-squared have closed forms, ``1 -+ d / p`` and ``1 -+ sqrt(d (1 - p) / p)`` cut off at 0 and
    ``1 / p``; KL(old || new) has none.
    """
    if divergence == "kl":
        low, high = bisected_band(p, radius, divergence)
    else:
        mass = _inside(p)
        width = radius / mass if divergence == "tv" else (radius * (1 - mass) / mass).sqrt()
        low, high = (1 - width).clamp_min(0), torch.minimum(1 + width, 1 / mass)
    if relaxed:
        low, high = low.clamp_max(1 - 0.20), high.clamp_min(1 + 0.28).clamp_max(100.0)
    # Of probabilities that float32 rounds to 0 the interval is as wide as numbers go.
    most = torch.finfo(p.dtype).max
    return low.to(p.dtype), high.clamp_max(most).to(p.dtype)


@torch.no_grad()
def bisected_band(p: Tensor, radius: float, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """The same by bisection on the action's new probability, in float64."""
    mass = _inside(p)
    ends = []
    for end in (torch.zeros_like(mass), torch.ones_like(mass)):
        inner, outer = mass, end
        for _ in range(_BISECTIONS):
            middle = 0.5 * (inner + outer)
            inside = two_outcomes(mass, middle / mass, divergence) <= radius
            inner, outer = torch.where(inside, middle, inner), torch.where(inside, outer, middle)
        # At the very end of the range nothing is clipped.
        whole = _at_end(mass, end, divergence) <= radius
        ends.append(torch.where(whole, end, inner) / mass)
    return ends[0], ends[1]


@torch.no_grad()
def two_outcomes(p: Tensor, ratio: Tensor, divergence: Divergence) -> Tensor:
    """``p f(w) + (1 - p) f((1 - w p) / (1 - p))``, float64, finite: what a ratio implies of the whole law at least."""
    p = _inside(p)
    # By the new probability: at p near 0 or 1 the formula as it stands loses all its digits.
    q = (p * ratio.double()).clamp(1e-15, 1 - 1e-15)
    if divergence == "tv":
        return (q - p).abs()
    if divergence == "chi2":
        return (q - p).square() * (1 / p + 1 / (1 - p))
    return (-p * (q / p).log() - (1 - p) * ((1 - q) / (1 - p)).log()).clamp_min(0)


def _at_end(p: Tensor, end: Tensor, divergence: Divergence) -> Tensor:
    """The divergence at a new probability of exactly 0 or 1."""
    if divergence == "kl":
        return torch.full_like(p, torch.inf)
    return two_outcomes(p, end / p, divergence)


def _inside(p: Tensor) -> Tensor:
    return p.double().clamp(1e-300, 1 - _LEAST)
