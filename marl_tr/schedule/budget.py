"""A bound of all learners together, and how it is split among them.

The idea is that of HATRPO-W and HATRPO-G (Shek et al., arXiv 2508.10340): thresholds by the Karush-Kuhn-Tucker
conditions of a joint constraint, or greedily by the ratio of improvement to divergence. Only the paper's abstract was
read; what gain is predicted, the limits of shares and the order of events are assumed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from marl_tr.region.guard import Guard
from marl_tr.region.turn import bound_at
from marl_tr.schedule.assignment import Assignment, Budget
from marl_tr.schedule.config import BudgetConfig

__all__ = ["budget_of", "greedy", "water_filling"]


def budget_of(
    config: BudgetConfig,
    assignments: Sequence[Assignment],
    guard: Guard,
    generator: torch.Generator,
    progress: float,
) -> Budget | None:
    """The iteration's budget, logged as ``region/budget/<learner>``; None where the settings ask for none.

    The joint bound is of the sum over learners of each one's mean divergence: of agents that all act at every step,
    the mean KL of the joint policy. Shares but equal ones need one proposal more of each learner: what it gains
    within an equal share on the old policies, ``G_i``, and its divergence ``d_i`` there give the slope ``c_i = G_i /
    sqrt(d_i)`` of the gain that a longer or shorter step is predicted to have, ``c_i sqrt(share)`` (to the first
    order in the step, whose square the divergence is). A learner whose proposal is rejected, or gains nothing that
    can be said, has slope 0.
    """
    if config.budget is None:
        return None
    learners = [(a, name) for a in assignments for name in a.learners.names]
    bound = config.joint_bound or math.fsum(bound_at(a.region, progress) or math.nan for a, _ in learners)
    shares = np.full(len(learners), bound / len(learners))
    if config.budget != "equal":
        even = Budget(bound, dict(zip((name for _, name in learners), shares.tolist(), strict=True)))
        slopes = np.array(
            [slope for a in assignments for slope in _slopes(a, even, guard, generator=generator, progress=progress)]
        )
        split = water_filling if config.budget == "water_filling" else greedy
        shares = split(slopes, bound=bound, least=config.least_share, most=config.most_share)
    found = Budget(bound, dict(zip((name for _, name in learners), shares.tolist(), strict=True)))
    for assignment, name in learners:
        assignment.log({f"region/budget/{name}": found.shares[name]})
    return found


def water_filling(slopes: NDArray[np.float64], *, bound: float, least: float, most: float) -> NDArray[np.float64]:
    """The split that maximises ``sum_i c_i sqrt(d_i)`` subject to ``sum_i d_i = bound``.

    ``d_i = t c_i^2`` between the limits, at one level ``t`` for all (the multiplier of the joint bound).

    Args:
        slopes: ``c_i >= 0``, ``[n]``.
        bound: Of the sum.
        least: A learner's share at least, in equal shares ``bound / n``; at most 1.
        most: At most; 1 or more.

    Returns:
        ``[n]``, with the sum `bound`. What no learner with a slope may take is divided equally among the others.
    """
    n = len(slopes)
    low, high = least * bound / n, min(bound, most * bound / n)
    wanted = slopes.astype(np.float64) ** 2
    some = wanted > 0
    rest = bound - high * int(some.sum())
    if rest >= low * int((~some).sum()) or not some.any():
        return np.where(some, high, max(rest, 0) / max(int((~some).sum()), 1))
    wanted = wanted / wanted.max()

    # The sum grows with the level; between two of its kinks it is linear, so that the level is exact.
    def split(level: float) -> NDArray[np.float64]:
        return np.where(some, np.clip(level * wanted, low, high), low)

    kinks = np.unique(np.concatenate([low / wanted[some], high / wanted[some]]))
    sums = [float(split(level).sum()) for level in kinks]
    level = float(np.interp(bound, sums, kinks))
    return split(level)


def greedy(slopes: NDArray[np.float64], *, bound: float, least: float, most: float) -> NDArray[np.float64]:
    """The most for the steepest, then the next, while there is something left; everybody else the least.

    That maximises ``sum_i c_i d_i``, the gain if a nat were worth as much wherever it is spent: the ratio of
    improvement to divergence at equal shares is ``c_i`` but for a common factor. Arguments and limits as of
    `water_filling`; ties go to the first.
    """
    n = len(slopes)
    low, high = least * bound / n, min(bound, most * bound / n)
    shares = np.full(n, low)
    left = bound - n * low
    for i in np.argsort(-slopes, kind="stable"):
        given = min(left, high - low)
        shares[i] += given
        left -= given
    return shares


def _slopes(
    assignment: Assignment, even: Budget, guard: Guard, *, generator: torch.Generator, progress: float
) -> list[float]:
    rows = tuple(range(len(assignment.learners.names)))
    turn = assignment.turn(rows, weight=None, generator=generator, progress=progress, budget=even)
    within = guard.within(assignment.region, turn, assignment.region.propose(turn))
    slopes = []
    for row in rows:
        measured = turn.only(row).measure(within.only(row).parameters)
        gain = 0.0 if within.reasons[row] or measured.gain is None else float(measured.gain)
        divergence = float(measured.divergence)
        slopes.append(gain / math.sqrt(divergence) if gain > 0 and divergence > 0 else 0.0)
    return slopes
