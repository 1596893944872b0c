"""Environments of a harbour, registered with marl-tr by the entry point in ``pyproject.toml``.

The table's targets are strings, so that ``marl-tr envs`` lists them without importing any simulator.
"""

from marl_tr.registry import Entry

__all__ = ["ENVIRONMENTS"]

ENVIRONMENTS = {
    "harbour/tugs-v0": Entry(
        target="harbour.tugs:Tugs",
        summary="tugs with little fuel bring a barge to its berth (ParallelEnv, continuous)",
    ),
    "harbour/cranes-v0": Entry(
        target="harbour.cranes:Cranes",
        summary="two cranes in turn, who takes the last container wins (AECEnv, action masks)",
    ),
    "harbour/berths-v0": Entry(
        target="harbour.berths:make",
        summary="berths share the ships of several lanes (native batch)",
        config="harbour.berths:BerthsConfig",
        native=True,
    ),
}
