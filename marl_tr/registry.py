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
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from marl_tr.errors import UserError
from marl_tr.foreign import foreign_code, last_place

__all__ = [
    "KINDS",
    "BadTarget",
    "BrokenPackage",
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

_PAPER = "arxiv:"

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


class BrokenPackage(RuntimeWarning):
    """An installed package's entry point cannot be used; what it registers is left out."""


_registered: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, entry: Entry) -> None:
    """Add `entry` under `name` for this process.

    Raises:
        DuplicateName: The name is taken by something else.
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; one of {', '.join(KINDS)}")
    taken = _registered[kind].get(name) or _discovered(kind)[0].get(name)
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
    found, broken = _discovered(kind)
    for package in broken:
        warnings.warn(package, BrokenPackage, stacklevel=2)
    return dict(sorted({**found, **_registered[kind]}.items()))


def find(kind: str, name: str) -> Entry:
    """The entry called `name`, or the one that ``module:attribute``, ``arxiv:ID`` or a foreign registry's prefix leads
    to.

    Raises:
        UnknownName: With the nearest names, the command that lists all, and the packages that were left out.
        BadTarget: `name` looks like ``module:attribute`` and leads nowhere.
    """
    found, broken = _discovered(kind)
    known = dict(sorted({**found, **_registered[kind]}.items()))
    if name in known:
        return known[name]
    if name.startswith(_PAPER):
        return _by_paper(kind, name, known)
    if ":" in name:
        target = resolve(name)
        return target if isinstance(target, Entry) else Entry(target=target)
    prefix, slash, rest = name.partition("/")
    if slash and prefix in _FOREIGN.get(kind, {}):
        return _FOREIGN[kind][prefix](rest)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or _abroad(kind, name)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    left_out = "".join(f"; {package}" for package in broken)
    raise UnknownName(f"no {kind.removesuffix('s')} {name!r}{hint} ('marl-tr {kind}' lists all){left_out}")


def _by_paper(kind: str, name: str, known: Mapping[str, Entry]) -> Entry:
    """What is built from the paper ``arxiv:ID``, as settings models say (``paper``)."""
    wanted = name.removeprefix(_PAPER)
    found = [own for own, entry in known.items() if getattr(entry.load_config(), "paper", "") == wanted]
    if len(found) != 1:
        several = f"{' and '.join(map(repr, found))} are of {name}; say which" if found else f"no {kind} of {name}"
        raise UnknownName(f"{several} ('marl-tr {kind}' lists all)")
    return known[found[0]]


def here_only(kind: str, name: str) -> bool:
    """Whether `name` was registered in this process (`register`), so that another one does not know it."""
    return name in _registered[kind]


def resolve(path: str) -> Any:
    """Import ``"module:attribute"``.

    Raises:
        BadTarget: The module or the attribute does not exist, or an import in the module fails; says which and where.
            Whatever else the module raises is its author's, and goes on with its traceback.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise BadTarget(f"{path!r} is not of the form 'package.module:attribute'")
    try:
        with foreign_code(f"the import of module {module_name!r} for {path!r}"):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadTarget(f"{path!r}: {_unimportable(module_name, error)}") from error
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


def _unimportable(module_name: str, error: ImportError) -> str:
    """Why a module cannot be imported: it is not there, or it is, and something in it is not."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
        parent, _, last = error.name.rpartition(".")
        siblings = _modules_of(parent)
        near = difflib.get_close_matches(last, siblings, n=1, cutoff=0.7)
        hint = f"did you mean {'.'.join(filter(None, (parent, near[0])))!r}?" if near else "is it installed here?"
        return f"cannot import module {module_name!r}: {error}; {hint}"
    return f"cannot import module {module_name!r}: {error}{last_place(error)}; install or mend what it imports"


def _modules_of(package: str) -> list[str]:
    """Names of the modules in `package`, or of all that can be imported at the top."""
    path = getattr(sys.modules.get(package), "__path__", None) if package else None
    return [module.name for module in pkgutil.iter_modules(path)] if path or not package else []


def _discovered(kind: str) -> tuple[dict[str, Entry], list[str]]:
    """What installed packages register, and a sentence for each that cannot be used.

    Raises:
        DuplicateName: Two of them register one name.
    """
    found: dict[str, Entry] = {}
    of: dict[str, EntryPoint] = {}
    broken: list[str] = []
    for point in _points(kind, _installed()):
        try:
            table = point.load()
            _check_table(table)
        except Exception as error:
            # One broken package must not take the others away, whatever its import raises.
            broken.append(f"{_told(point)} is left out: {_reason(error)}")
            continue
        for name, entry in table.items():
            if name in found and found[name] != entry:
                raise DuplicateName(
                    f"two installed packages register {name!r} among {kind}: {_told(of[name])} and {_told(point)}; "
                    "uninstall one, or rename it in one"
                )
            found[name], of[name] = entry, point
    return found, broken


@lru_cache(maxsize=64)
def _points(kind: str, installed: object) -> tuple[EntryPoint, ...]:
    """The entry points of `kind`, read once as long as `installed` is the same: all packages' metadata take 10 ms, and
    loading a scenario asks ten times. The tables that they lead to are looked at anew each time, and may grow.
    """
    return tuple(entry_points(group=f"marl_tr.{kind}"))


def _installed() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when each folder last got or lost one (ns; 0 where there is none)."""
    found = []
    for folder in sys.path:
        place = folder or os.getcwd()
        try:
            found.append((place, os.stat(place).st_mtime_ns))
        except OSError:
            found.append((place, 0))
    return tuple(found)


def _check_table(table: object) -> None:
    if not isinstance(table, Mapping):
        raise TypeError(f"it leads to a {type(table).__name__}, not to a table {{name: Entry}}")
    for name, entry in table.items():
        if not isinstance(name, str) or not isinstance(entry, Entry):
            raise TypeError(
                f"it leads to a table in which {name!r} is a {type(entry).__name__}, not to a table {{name: Entry}}"
            )


def _told(point: EntryPoint) -> str:
    package = f"package {point.dist.name!r}, " if point.dist is not None else ""
    return f"{package}entry point {point.name} = {point.value!r}"


def _reason(error: Exception) -> str:
    """What went wrong while a module was imported, and in which line: its traceback is not shown."""
    if isinstance(error, SyntaxError):
        return str(error)
    return f"{type(error).__name__}: {error}{last_place(error)}"
