"""``marl-tr check-env``: can this environment be trained on, repeated and resumed?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from marl_tr.registry import find
from marl_tr.vector.check_parallel import parallel_checks
from marl_tr.vector.check_process import two_processes
from marl_tr.vector.check_vector import Make, vector_checks
from marl_tr.vector.contract import VectorEnv
from marl_tr.vector.copies import call_factory, factory_arguments, load_factory
from marl_tr.vector.errors import BadEnvironmentConfig, EnvironmentFault
from marl_tr.vector.make import make_vector_env
from marl_tr.vector.report import Check, CheckReport, Finding, Outcome, run_checks
from marl_tr.vector.subject import Subject
from marl_tr.vector.unchecked import unchecked

__all__ = ["CheckReport", "Finding", "check_env"]

_FOR_THE_BATCH = (
    "entries of the dicts",
    "rewards are numbers",
    "finite values",
    "inside the spaces",
    "leaving and returning",
    "state()",
    "repeats itself",
    "reset forgets",
    "seed 0",
)
"""Where these fail the adapter refuses the environment, or repeats the same complaint."""


def check_env(id: str, config: Mapping[str, Any] | BaseModel | None = None, *, cycles: int = 300) -> CheckReport:
    """Ask an environment everything that training, comparing and resuming rely on.

    A ParallelEnv gets PettingZoo's ``parallel_api_test`` and ``parallel_seed_test``, an ``AECEnv`` its ``api_test`` and
    ``seed_test``, a `gymnasium.Env` Gymnasium's ``check_env``; then come questions that those do not ask, and at last
    the batch that training uses is questioned, which is all that a native `VectorEnv` is asked. What the environment's
    code raises is a finding. The report ends with what was not asked.

    Args:
        id: A registered name, or ``"package.module:factory"``.
        config: The factory's keyword arguments.
        cycles: Steps after which an episode is left.

    Raises:
        UnknownName, BadTarget: `id` leads nowhere.
        BadEnvironmentConfig: The factory does not take `config`.
        ValueError: `cycles` is below 1.

    Example:
        >>> check_env("mpe2.simple_spread_v3:parallel_env", {"continuous_actions": True}).passed
        True
    """
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, got {cycles}")
    entry = find("envs", id)
    settings: Mapping[str, Any] | BaseModel = {} if config is None else config
    arguments = factory_arguments(entry, settings, env_id=id)

    rebuild = False

    def make(num_envs: int) -> VectorEnv:
        return make_vector_env(id, num_envs=num_envs, config=settings, rebuild=rebuild, entry=entry)

    report = run_checks(id, [Check("builds", lambda: _builds(make), "build the environment by hand to see where")])
    after: tuple[str, ...] = ("builds",)
    subject = None
    if report.passed and not entry.native:
        factory = load_factory(entry, env_id=id)
        subject = Subject(id, lambda: call_factory(factory, arguments, env_id=id), cycles)
        report = run_checks(id, parallel_checks(subject), report)
        after = (*after, *_FOR_THE_BATCH)
        rebuild = any(finding.warning for finding in report.findings if finding.check == "reset forgets")
    checks = [
        *vector_checks(make, cycles, *after),
        Check(
            "two processes",
            lambda: two_processes(id, entry, settings, cycles=min(cycles, 150), rebuild=rebuild),
            "make the factory importable",
            (*after, "batch: contract", "batch: same seed"),
        ),
    ]
    report = run_checks(id, checks, report)
    return dataclasses.replace(report, unchecked=unchecked(subject, report, cycles))


def _builds(make: Make) -> Outcome:
    try:
        env = make(1)
    except BadEnvironmentConfig:
        raise
    except EnvironmentFault as error:
        return Outcome(False, str(error))  # ours, with the cure in it
    with contextlib.closing(env):
        groups = ", ".join(f"{len(group.agents)} x {group.name}" for group in env.spec.groups)
    return Outcome(True, f"Agents: {groups}.")
