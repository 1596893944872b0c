"""Schedules: how several learners update on one rollout."""

from marl_tr.registry import Entry

__all__ = ["SCHEDULES"]

SCHEDULES = {
    "simultaneous": Entry(
        target="marl_tr.schedule.simultaneous:Simultaneous",
        config="marl_tr.schedule.config:SimultaneousConfig",
        summary="all learners at once, each against the old others (IPPO, MAPPO)",
    ),
    "sequential": Entry(
        target="marl_tr.schedule.sequential:Sequential",
        config="marl_tr.schedule.config:SequentialConfig",
        summary="one after the other in random order, with the factor of those before (HAPPO, HATRPO)",
    ),
}
