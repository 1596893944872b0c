"""Batches of environments behind one contract."""

from marl_tr.vector.batch import Batch
from marl_tr.vector.block import CopyBlock
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
from marl_tr.vector.workers import WorkerVectorEnv

__all__ = [
    "Actions",
    "BadEnvironmentConfig",
    "BadEnvironmentData",
    "Batch",
    "CopyBlock",
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
    "WorkerVectorEnv",
    "make_vector_env",
]
