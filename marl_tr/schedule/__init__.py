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
    "meta_game": Entry(
        target="marl_tr.schedule.meta_game:MetaGame",
        config="marl_tr.schedule.config:MetaGameConfig",
        summary="all at once by an equilibrium of who moves, and a best response to it (MATRL)",
    ),
    "consensus": Entry(
        target="marl_tr.schedule.consensus:Consensus",
        config="marl_tr.schedule.config:ConsensusConfig",
        summary="policies over joint actions whose ratios agree on the edges of a graph (MATRPO)",
    ),
}
