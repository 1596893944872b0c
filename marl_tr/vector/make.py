"""From a name in a scenario to a `VectorEnv`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from marl_tr.registry import Entry, find, here_only
from marl_tr.vector.contract import VectorEnv
from marl_tr.vector.copies import call_factory, factory_arguments, load_factory
from marl_tr.vector.errors import BadEnvironmentConfig, NotAnEnvironment
from marl_tr.vector.in_process import InProcessVectorEnv, RenderedVectorEnv
from marl_tr.vector.workers import RenderedWorkerVectorEnv, WorkerVectorEnv

__all__ = ["make_vector_env"]


def make_vector_env(
    id: str,
    *,
    num_envs: int,
    config: Mapping[str, Any] | BaseModel | None = None,
    render: bool = False,
    rebuild: bool = False,
    backend: Literal["in_process", "workers"] = "in_process",
    workers: int | None = None,
    entry: Entry | None = None,
) -> VectorEnv:
    """Build ``E`` copies of the environment registered as `id`.

    Args:
        id: A registered name, or ``"package.module:factory"``.
        num_envs: ``E``, at least 1.
        config: The factory's keyword arguments, or a validated instance of the entry's model.
        render: Make copy 0 with ``render_mode="rgb_array"`` and give the result a ``render()`` method. Native
            environments render or do not by themselves.
        rebuild: Make every copy anew for each episode, where an environment remembers something beyond its reset.
            Native environments forget by themselves.
        backend: Step the copies one after the other in this process, or side by side in worker processes; results are
            the same. Workers import the factory, so it must lie in a module; close the batch to end them.
        workers: How many processes, at most `num_envs`; None: one a core that this process may use.
        entry: Use this in place of the registry's.

    Raises:
        UnknownName, BadTarget: See `marl_tr.registry.find`.
        BadEnvironmentConfig: The factory does not take `config`.
        NotAnEnvironment: The factory returned something else; with the cure.
        UnsupportedSpace: A space that no adapter exists for.

    Example:
        >>> env = make_vector_env("mpe2.simple_spread_v3:parallel_env", num_envs=4, config={"N": 3})
        >>> env.spec.groups[0].name, env.spec.groups[0].agents
        ('agent', ('agent_0', 'agent_1', 'agent_2'))
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    # What other processes find by name need not travel to them, and often cannot.
    sent = entry if entry is not None or not here_only("envs", id) else find("envs", id)
    entry = find("envs", id) if entry is None else entry
    arguments = factory_arguments(entry, {} if config is None else config, env_id=id)
    factory = load_factory(entry, env_id=id)
    if entry.native:
        if backend == "workers":
            raise BadEnvironmentConfig(
                f"environment {id!r} simulates all copies at once and has no use for worker processes; use in_process"
            )
        env = call_factory(factory, {"num_envs": num_envs, **arguments}, env_id=id)
        if isinstance(env, VectorEnv):
            return env
        raise NotAnEnvironment(
            f"environment {id!r} is registered with native=True, but its factory returned "
            f"{type(env).__qualname__}; return a marl_tr.vector.VectorEnv, or leave native out for a "
            "ParallelEnv or gymnasium.Env"
        )
    if backend == "workers":
        kind = RenderedWorkerVectorEnv if render else WorkerVectorEnv
        count = min(num_envs, len(os.sched_getaffinity(0))) if workers is None else workers
        return kind(id, sent, arguments, num_envs, workers=count, render=render, rebuild=rebuild)
    if not render:
        return InProcessVectorEnv(id, lambda: call_factory(factory, arguments, env_id=id), num_envs, rebuild=rebuild)
    return RenderedVectorEnv(
        id,
        lambda: call_factory(factory, arguments, env_id=id),
        num_envs,
        first=lambda: call_factory(factory, {**arguments, "render_mode": "rgb_array"}, env_id=id),
        rebuild=rebuild,
    )
