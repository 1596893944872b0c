"""What can be wrong with somebody's environment: one name each, and a cure in every message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from marl_tr.errors import UserError
from marl_tr.foreign import mark

__all__ = [
    "BadEnvironmentConfig",
    "BadEnvironmentData",
    "EnvironmentFault",
    "MissingDependency",
    "NotAnEnvironment",
    "NotFiniteData",
    "ReplayMismatch",
    "UnsupportedSpace",
    "WorkerCrashed",
    "WorkerRestarted",
    "environment_code",
]


class EnvironmentFault(UserError):
    """An environment cannot be used as it is; the base of all errors of this package."""


class NotAnEnvironment(EnvironmentFault, TypeError):
    """A factory returned neither a ParallelEnv, nor a gymnasium.Env, nor (where native) a VectorEnv."""


class BadEnvironmentConfig(EnvironmentFault, ValueError):
    """A factory does not take the settings that it was given."""


class MissingDependency(EnvironmentFault, ImportError):
    """A factory needs a package that is not installed."""


class UnsupportedSpace(EnvironmentFault, TypeError):
    """An observation or action space of a kind that no adapter exists for."""


class BadEnvironmentData(EnvironmentFault, ValueError):
    """An environment returned what its spaces or its API do not allow; names copy, agent, step and field."""


class NotFiniteData(BadEnvironmentData):
    """An environment paid or showed NaN or an infinity; in training, that is a divergence (exit code 3)."""


class ReplayMismatch(EnvironmentFault, RuntimeError):
    """An environment that was reset with its seed and given its actions again did not repeat itself."""


class WorkerCrashed(EnvironmentFault, RuntimeError):
    """A worker process died, and so did the one that replaced it; names copies, step and how it died."""


class WorkerRestarted(RuntimeWarning):
    """A worker process died and was replaced; its copies went on where they were."""


@contextmanager
def environment_code(where: str, env_id: str, *, called: str = "") -> Iterator[None]:
    """Let whatever an environment's own code raises say where, and what to do next.

    A fault that one of our views found is told with the place; anything else keeps its class and its traceback, and
    gets a note (`marl_tr.foreign.RaisedInside`).

    Args:
        where: Environment, copy and step, or what was being done.
        env_id: The environment's name.
        called: The method that is called, as ``"step()"``.
    """
    try:
        yield
    except BadEnvironmentData as error:
        raise BadEnvironmentData(f"{where}, {error}") from error
    except Exception as error:
        mark(error, f"{where}, {called}" if called else where, env_id=env_id)
        raise
