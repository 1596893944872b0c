"""Batches of environments behind one contract."""

from marl_tr.vector.contract import (
    Actions,
    EnvSpec,
    GroupSpec,
    GroupStep,
    Leaves,
    Reference,
    Step,
    Table,
    Trajectory,
    VectorEnv,
)
from marl_tr.vector.errors import (
    BadEnvironmentConfig,
    BadEnvironmentData,
    EnvironmentFault,
    NotAnEnvironment,
    ReplayMismatch,
    UnsupportedSpace,
)
from marl_tr.vector.in_process import InProcessVectorEnv
from marl_tr.vector.make import make_vector_env

__all__ = [
    "Actions",
    "BadEnvironmentConfig",
    "BadEnvironmentData",
    "EnvSpec",
    "EnvironmentFault",
    "GroupSpec",
    "GroupStep",
    "InProcessVectorEnv",
    "Leaves",
    "NotAnEnvironment",
    "Reference",
    "ReplayMismatch",
    "Step",
    "Table",
    "Trajectory",
    "UnsupportedSpace",
    "VectorEnv",
    "make_vector_env",
]
