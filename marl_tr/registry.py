"""Names to factories, for everything that a scenario can name.

Built-in and third-party parts come in by the same road: an entry point (groups ``marl_tr.envs``, ``.agents``,
``.critics``, ``.models``, ``.objectives``, ``.regions``, ``.schedules``, ``.commands``) that exposes a table
``{name: Entry}``. A process adds its own with `register` / `register_env`; a scenario may name
``my_package.module:factory`` directly, and ``gymnasium/CartPole-v1`` leads to Gymnasium's own registry.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from marl_tr.errors import UserError

__all__ = [
    "KINDS",
    "BadTarget",
    "DuplicateName",
    "Entry",
    "UnknownName",
    "find",
    "here_only",
    "names",
    "register",
    "register_env",
    "resolve",
]

KINDS = ("envs", "agents", "critics", "models", "objectives", "regions", "schedules", "commands")


@dataclass(frozen=True)
class Entry:
    """One registered thing.

    Attributes:
        target: The factory, or ``"module:attribute"`` of it; a string is imported only when it is used.
        summary: One line for the listing commands.
        config: Pydantic model of its settings, or ``"module:attribute"`` of it, or None where the factory's
            own keyword arguments are the settings.
        native: Environments only: the factory takes ``num_envs=`` and returns a `VectorEnv`.
    """

    target: str | Callable[..., Any]
    summary: str = ""
    config: str | type | None = None
    native: bool = False

    def load(self) -> Callable[..., Any]:
        """The factory itself."""
        factory: Callable[..., Any] = resolve(self.target) if isinstance(self.target, str) else self.target
        return factory

    def load_config(self) -> type | None:
        """The settings' model, or None."""
        if isinstance(self.config, str):
            model: type = resolve(self.config)
            return model
        return self.config


class UnknownName(UserError, LookupError):
    """Nothing of that kind has that name; the message suggests the nearest."""


class DuplicateName(UserError, ValueError):
    """Two packages claim one name."""


class BadTarget(UserError, ImportError):
    """A ``module:attribute`` string does not lead to anything; the message says which half failed."""


_registered: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, entry: Entry) -> None:
    """Add `entry` under `name` for this process.

    Raises:
        DuplicateName: The name is taken by something else.
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; one of {', '.join(KINDS)}")
    taken = _registered[kind].get(name) or _discovered(kind).get(name)
    if taken is not None and taken != entry:
        raise DuplicateName(f"{name!r} is already registered among {kind} (as {taken.target!r})")
    _registered[kind][name] = entry


def register_env(
    name: str,
    factory: str | Callable[..., Any],
    *,
    summary: str = "",
    config: str | type | None = None,
    native: bool = False,
) -> None:
    """Make `factory` available to scenarios as environment `name`.

    Args:
        name: Such as ``"team/my_env-v0"``.
        factory: Returns a PettingZoo ``ParallelEnv``, a ``gymnasium.Env``, or (with `native`) a `VectorEnv`.
        summary: One line for ``marl-tr envs``.
        config: Optional pydantic model of its keyword arguments.
        native: The factory takes ``num_envs=`` and returns a `VectorEnv`.

    Example:
        >>> from marl_tr import register_env
        >>> register_env("docs/cartpole-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    """
    register("envs", name, Entry(target=factory, summary=summary, config=config, native=native))


def names(kind: str) -> dict[str, Entry]:
    """Every name of `kind`, sorted, from entry points and from `register`."""
    return dict(sorted({**_discovered(kind), **_registered[kind]}.items()))


def find(kind: str, name: str) -> Entry:
    """The entry called `name`, or the one that ``module:attribute`` or a foreign registry's prefix leads to.

    Raises:
        UnknownName: With the nearest names and the command that lists all.
        BadTarget: `name` looks like ``module:attribute`` and leads nowhere.
    """
    known = names(kind)
    if name in known:
        return known[name]
    if ":" in name:
        target = resolve(name)
        return target if isinstance(target, Entry) else Entry(target=target)
    prefix, slash, rest = name.partition("/")
    if slash and prefix in _FOREIGN.get(kind, {}):
        return _FOREIGN[kind][prefix](rest)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or _abroad(kind, name)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownName(f"no {kind.removesuffix('s')} {name!r}{hint} ('marl-tr {kind}' lists all)")


def here_only(kind: str, name: str) -> bool:
    """Whether `name` was registered in this process (`register`), so that another one does not know it."""
    return name in _registered[kind]


def resolve(path: str) -> Any:
    """Import ``"module:attribute"``.

    Raises:
        BadTarget: The module or the attribute does not exist, or an import in the module fails. Whatever else the
            module raises is its author's, and goes on with its traceback.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise BadTarget(f"{path!r} is not of the form 'package.module:attribute'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadTarget(f"{path!r}: cannot import module {module_name!r}: {error}") from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadTarget(f"{path!r}: module {module_name!r} has no {part!r}{hint}")
        value = getattr(value, part)
    return value


def _from_gymnasium(name: str) -> Entry:
    """Gymnasium's environment `name`; its settings are what ``gymnasium.make`` takes besides."""
    import gymnasium

    try:
        spec = gymnasium.spec(name)
        creator = resolve(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except gymnasium.error.Error as error:
        raise UnknownName(f"no Gymnasium environment {name!r}: {error}") from error

    def make(**config: Any) -> Any:
        return gymnasium.make(name, **config)

    if creator is not None:
        # So that a misspelt setting is found when a scenario is read, not when it runs.
        own = [p for p in inspect.signature(creator).parameters.values() if p.kind is not p.VAR_POSITIONAL]
        limit = inspect.Parameter("max_episode_steps", inspect.Parameter.KEYWORD_ONLY, default=None)
        named = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD}
        rest = [p for p in own if p.kind is p.VAR_KEYWORD]
        make.__signature__ = inspect.Signature([*({limit.name: limit} | named).values(), *rest])  # type: ignore[attr-defined]
    return Entry(target=make, summary="Gymnasium")


def _abroad(kind: str, name: str) -> list[str]:
    """`name` with the prefix of a foreign registry that knows it."""
    found = []
    for prefix, lookup in _FOREIGN.get(kind, {}).items():
        with contextlib.suppress(UserError):
            lookup(name)
            found.append(f"{prefix}/{name}")
    return found


_FOREIGN: dict[str, dict[str, Callable[[str], Entry]]] = {"envs": {"gymnasium": _from_gymnasium}}
"""``{kind: {prefix: name after the prefix -> entry}}``: registries of others."""


def _discovered(kind: str) -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    for point in entry_points(group=f"marl_tr.{kind}"):
        try:
            table = point.load()
            _check_table(table)
        except Exception as error:
            # One broken package must not take the others away, whatever its import raises.
            message = f"entry point {point.name} = {point.value!r} of {kind} is left out: {_told(error)}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            continue
        for name, entry in table.items():
            if name in found and found[name] != entry:
                raise DuplicateName(
                    f"two installed packages register {name!r} among {kind}: {found[name].target!r} and "
                    f"{entry.target!r} (entry point {point.value!r}); uninstall one"
                )
            found[name] = entry
    return found


def _check_table(table: object) -> None:
    if not isinstance(table, Mapping) or not all(isinstance(entry, Entry) for entry in table.values()):
        raise TypeError(f"it leads to a {type(table).__name__}, not to a table {{name: Entry}}")


def _told(error: Exception) -> str:
    """What went wrong while a module was imported, and in which line: its traceback is not shown."""
    if isinstance(error, ImportError | SyntaxError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
