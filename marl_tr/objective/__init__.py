"""Objectives: what an update wants to improve."""

from marl_tr.registry import Entry

__all__ = ["OBJECTIVES"]

OBJECTIVES = {
    "surrogate": Entry(
        target="marl_tr.objective.ratio:Surrogate",
        config="marl_tr.objective.config:SurrogateConfig",
        summary="importance-weighted advantage, E[w A]",
    ),
    "clip": Entry(
        target="marl_tr.objective.ratio:ClippedRatio",
        config="marl_tr.objective.config:ClippedRatioConfig",
        summary="clipped ratio (PPO, arXiv 1707.06347); not a trust region by itself",
    ),
}
