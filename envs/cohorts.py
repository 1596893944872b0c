"""Copies that are given the same episode, so that their samples can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.vector.errors import BadEnvironmentConfig

__all__ = ["UnequalCohorts", "copy_indices"]

Array = NDArray[Any]


class UnequalCohorts(BadEnvironmentConfig):
    """The number of copies is not a multiple of the cohort's size."""


def copy_indices(env_id: str, *, num_envs: int, env_offset: int, cohort: int) -> tuple[Array, Array]:
    """Index of each copy in the random streams, and of its cohort, ``[E]`` int64 each.

    Args:
        env_id: The environment's name, for messages.
        num_envs: ``E``.
        env_offset: Index of the first copy.
        cohort: Copies of a cohort.

    Raises:
        UnequalCohorts: `num_envs` is not a multiple of `cohort`.
        ValueError: `num_envs` is below 1.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if num_envs % cohort:
        raise UnequalCohorts(
            f"environment {env_id!r}: {num_envs} copies cannot be split into cohorts of {cohort}; choose num_envs "
            f"(and the episodes of evaluations) as a multiple of env.config.cohort"
        )
    copies = np.arange(env_offset, env_offset + num_envs, dtype=np.int64)
    return copies, copies // cohort
