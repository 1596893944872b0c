"""Batches of environments behind one contract."""

from marl_tr.vector.contract import (
    Actions,
    EnvSpec,
    GroupSpec,
    GroupStep,
    Leaves,
    Reference,
    Step,
    Trajectory,
    VectorEnv,
)

__all__ = [
    "Actions",
    "EnvSpec",
    "GroupSpec",
    "GroupStep",
    "Leaves",
    "Reference",
    "Step",
    "Trajectory",
    "VectorEnv",
]
