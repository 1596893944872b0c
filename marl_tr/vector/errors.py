"""What can be wrong with somebody's environment: one name each, and a cure in every message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from marl_tr.errors import UserError

__all__ = [
    "BadEnvironmentConfig",
    "BadEnvironmentData",
    "EnvironmentFault",
    "NotAnEnvironment",
    "NotFiniteData",
    "ReplayMismatch",
    "UnsupportedSpace",
    "raised_inside",
]


class EnvironmentFault(UserError):
    """An environment cannot be used as it is; the base of all errors of this package."""


class NotAnEnvironment(EnvironmentFault, TypeError):
    """A factory returned neither a ParallelEnv, nor a gymnasium.Env, nor (where native) a VectorEnv."""


class BadEnvironmentConfig(EnvironmentFault, ValueError):
    """A factory does not take the settings that it was given."""


class UnsupportedSpace(EnvironmentFault, TypeError):
    """An observation or action space of a kind that no adapter exists for."""


class BadEnvironmentData(EnvironmentFault, ValueError):
    """An environment returned what its spaces or its API do not allow; names copy, agent, step and field."""


class NotFiniteData(BadEnvironmentData):
    """An environment paid or showed NaN or an infinity; in training, that is a divergence (exit code 3)."""


class ReplayMismatch(EnvironmentFault, RuntimeError):
    """An environment that was reset with its seed and given its actions again did not repeat itself."""


@contextmanager
def raised_inside(where: str, env_id: str) -> Iterator[None]:
    """Let whatever a user's code raises say where, and what to do next.

    A fault that one of our views found is told with the place; anything else keeps its class and its traceback, and
    gets a note.

    Args:
        where: Environment, copy and step, or what was being done.
        env_id: The environment's name.
    """
    try:
        yield
    except BadEnvironmentData as error:
        raise BadEnvironmentData(f"{where}, {error}") from error
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"(raised inside {where}; 'marl-tr check-env {env_id}' looks for the cause)")
        raise
