"""Collecting experience, and what is made of it before learning."""

from marl_tr.rollout.advantage import (
    Advantage,
    BadCohorts,
    cohort_advantage,
    cohort_labels,
    generalised_advantage,
    normalise,
)
from marl_tr.rollout.collector import Collector
from marl_tr.rollout.container import Bootstrap, EpisodeStatistics, GroupRollout, PolicyRecord, Rollout
from marl_tr.rollout.executed import executed_by_all
from marl_tr.rollout.team import Team
from marl_tr.rollout.transforms import with_process_scores

__all__ = [
    "Advantage",
    "BadCohorts",
    "Bootstrap",
    "Collector",
    "EpisodeStatistics",
    "GroupRollout",
    "PolicyRecord",
    "Rollout",
    "Team",
    "cohort_advantage",
    "cohort_labels",
    "executed_by_all",
    "generalised_advantage",
    "normalise",
    "with_process_scores",
]
