"""Log-ratios of whole trajectories, cohorts and the like."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from marl_tr.objective.ratio import LOG_RATIO_LIMIT, Surrogate
from marl_tr.region.needs import trajectories
from marl_tr.region.reshaped import Decisions, segment_mean
from marl_tr.region.turn import Measurement, Turn

__all__ = ["level_mean", "log_ratio", "measured_log_ratio", "turn_trajectories"]


def log_ratio(decisions: Decisions) -> Tensor:
    """``log w``, ``[R, T, N, k]``, cut off at +-20; scaled as `Surrogate.ratio` scales it."""
    return _scaled(decisions.objective, decisions.log_prob - decisions.old_log_prob, decisions.evaluation.dimensions)


def measured_log_ratio(turn: Turn, measured: Measurement) -> Tensor:
    """The same of the whole batch, for `Region.reach`."""
    objective = cast(Surrogate, turn.objective)
    return _scaled(objective, measured.log_prob - turn.old.log_prob, measured.evaluation.dimensions)


def turn_trajectories(turn: Turn) -> Tensor:
    """Label ``trajectory`` of the whole batch, ``[R, T, N]``."""
    return trajectories(turn.batch.starts)


def level_mean(x: Tensor, segment: Tensor, mask: Tensor) -> Tensor:
    """Mean over decisions and chain steps of each one's segment: ``[R, T, N, k]`` to ``[R, T, N, 1]``."""
    return segment_mean(x.mean(-1, keepdim=True), segment, mask)


def _scaled(objective: Surrogate, gap: Tensor, dimensions: int) -> Tensor:
    scale = dimensions if objective.reduction == "mean" else 1
    return (gap / scale).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
