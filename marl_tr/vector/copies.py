"""Copies of one environment, made by a user's factory, behind the PettingZoo parallel interface."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
from pydantic import BaseModel, ValidationError

from marl_tr.errors import UserError
from marl_tr.foreign import last_place
from marl_tr.registry import BadTarget, Entry
from marl_tr.vector.contract import VectorEnv
from marl_tr.vector.errors import (
    BadEnvironmentConfig,
    BadEnvironmentData,
    MissingDependency,
    NotAnEnvironment,
    environment_code,
)
from marl_tr.vector.turns import TurnBasedView

__all__ = [
    "SINGLE_AGENT",
    "SingleAgentView",
    "amount",
    "as_parallel",
    "call_factory",
    "factory_arguments",
    "load_factory",
]

SINGLE_AGENT = "agent_0"
"""The name of the one agent of a `gymnasium.Env`."""


class SingleAgentView:
    """A `gymnasium.Env` with the methods of a PettingZoo ``ParallelEnv`` that the adapter calls."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.env = env
        self.possible_agents = [SINGLE_AGENT]
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        """The environment's own observation space."""
        return self.env.observation_space

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        """The environment's own action space."""
        return self.env.action_space

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``ParallelEnv.reset``.

        Raises:
            BadEnvironmentData: It gives no pair.
        """
        answer: Any = self.env.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise BadEnvironmentData(f"reset returned {amount(answer)}; return (observation, info)")
        observation, info = answer
        self.agents = [SINGLE_AGENT]
        return {SINGLE_AGENT: observation}, {SINGLE_AGENT: info}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """See ``ParallelEnv.step``.

        Raises:
            BadEnvironmentData: It gives no five values, such as the four of before 2022.
        """
        answer: Any = self.env.step(actions[SINGLE_AGENT])
        if not isinstance(answer, tuple) or len(answer) != 5:
            expected = "(observation, reward, terminated, truncated, info)"
            raise BadEnvironmentData(f"step returned {amount(answer)}; return {expected}")
        observation, reward, terminated, truncated, info = answer
        if terminated or truncated:
            self.agents = []
        values = (observation, reward, terminated, truncated, info)
        return tuple({SINGLE_AGENT: value} for value in values)

    def state(self) -> Any:
        """No global state beyond what the one agent sees.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a gymnasium.Env has no state()")

    def render(self) -> Any:
        """See ``gymnasium.Env.render``."""
        return self.env.render()

    def close(self) -> None:
        """See ``gymnasium.Env.close``."""
        self.env.close()


def amount(answer: Any) -> str:
    """``"4 values"``, or the type of what is no tuple."""
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"


def as_parallel(env: Any, *, env_id: str) -> Any:
    """`env` behind the parallel interface.

    Raises:
        NotAnEnvironment: It is neither a PettingZoo ``ParallelEnv`` or ``AECEnv``, nor a `gymnasium.Env`; with the
            cure.
    """
    if isinstance(env, gymnasium.Env):
        return SingleAgentView(env)
    turns = hasattr(env, "agent_iter")  # agent_selection is hidden until the first reset
    needed = ("possible_agents", "observation_space", "action_space", "reset", "step", *(("observe",) if turns else ()))
    missing = [name for name in needed if not hasattr(env, name)]
    if not missing and not inspect.isclass(env):
        return TurnBasedView(env) if turns else env
    raise NotAnEnvironment(f"environment {env_id!r}: {_what_it_is(env, missing)}")


def _what_it_is(env: Any, missing: list[str]) -> str:
    kind = f"its factory returned {type(env).__module__}.{type(env).__qualname__}"
    if isinstance(env, gymnasium.vector.VectorEnv):
        return f"{kind}, which is a batch already; return one gymnasium.Env, marl-tr makes the copies"
    if isinstance(env, VectorEnv):
        return f"{kind}, a native VectorEnv; register it with register_env(name, factory, native=True)"
    if inspect.isclass(env):
        return f"the factory returned the class {env.__qualname__} itself; return an instance of it"
    if inspect.ismodule(env):
        return f"{kind}; name a function in it, for example '{env.__name__}:parallel_env'"
    return (
        f"{kind}, which lacks {', '.join(missing)}; a factory returns a PettingZoo ParallelEnv or AECEnv, or a "
        "gymnasium.Env (see docs/environments.md)"
    )


def factory_arguments(entry: Entry, config: Mapping[str, Any] | BaseModel, *, env_id: str) -> dict[str, Any]:
    """The keyword arguments that `config` stands for, validated by the entry's model where it has one.

    Raises:
        BadEnvironmentConfig: The model refuses `config`; with every reason.
    """
    model = entry.load_config()
    if model is not None and not isinstance(config, BaseModel):
        try:
            config = model.model_validate(dict(config))  # type: ignore[attr-defined]
        except ValidationError as error:
            reasons = "; ".join(_reason(problem, model) for problem in error.errors())
            raise BadEnvironmentConfig(f"environment {env_id!r}: {reasons}") from error
    if isinstance(config, BaseModel):
        # Not model_dump(): nested models stay what the factory's signature says they are.
        return {name: getattr(config, name) for name in type(config).model_fields}
    return dict(config)


def _reason(problem: Any, model: Any) -> str:
    """One of pydantic's complaints; a misspelt setting gets the nearest name."""
    path = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{path} is required and missing"
    if problem["type"] == "value_error":
        # A rule of the model's own: it says what it is about, and the value may be all settings.
        reason = problem["msg"].removeprefix("Value error, ")
        return f"{path}: {reason}" if path else f"{reason}"
    if problem["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        key, tag = problem["ctx"]["discriminator"].strip("'"), str(problem["ctx"]["tag"])
        return f"{path}.{key}: no {key} {tag!r}{_nearest(tag, tags)} (one of {', '.join(tags)})"
    if problem["type"] != "extra_forbidden":
        return f"{path}: {problem['msg'].replace('Input should be', 'must be')}, not {problem['input']!r}"
    # Of a section's own fields only the section's model knows.
    return f"no setting {path!r}" + (_nearest(path, model.model_fields) if len(problem["loc"]) == 1 else "")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def call_factory(factory: Any, arguments: Mapping[str, Any], *, env_id: str) -> Any:
    """``factory(**arguments)``, with arguments that it does not take named beforehand.

    Raises:
        NotAnEnvironment: `factory` cannot be called.
        BadEnvironmentConfig: It does not take these arguments.
        MissingDependency: It needs a package that is not installed.
        Exception: Whatever `factory` raises, with a note that names the environment.
    """
    if not callable(factory):
        hint = f"; name a function in it: '{factory.__name__}:parallel_env'" if inspect.ismodule(factory) else ""
        raise NotAnEnvironment(f"environment {env_id!r}: {factory!r} is not a factory{hint}")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # builtins without a signature say so themselves
        return _called(factory, arguments, env_id)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        unknown = [name for name in arguments if name not in known]
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known) or 'nothing'}"
        raise BadEnvironmentConfig(f"environment {env_id!r}: its factory: {error}{hint}") from error
    try:
        return _called(factory, arguments, env_id)
    except TypeError as error:
        # A factory with **kwargs (gymnasium.make is one) finds out only when it passes them on.
        if "unexpected keyword argument" in str(error):
            raise BadEnvironmentConfig(f"environment {env_id!r}: {error}") from error
        raise


def _called(factory: Any, arguments: Mapping[str, Any], env_id: str) -> Any:
    try:
        with environment_code(f"the factory of environment {env_id!r}", env_id):
            return factory(**arguments)
    except UserError:
        raise
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise MissingDependency(f"environment {env_id!r}: {error}{last_place(error)}; install what it needs") from error


def load_factory(entry: Entry, *, env_id: str) -> Any:
    """The entry's factory.

    Raises:
        BadTarget: Its target leads nowhere; names the environment.
    """
    try:
        return entry.load()
    except BadTarget as error:
        raise BadTarget(f"environment {env_id!r}: {error}") from error
