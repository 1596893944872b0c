"""``marl-tr new-env``."""

from __future__ import annotations

import keyword
import re
import sys
from enum import StrEnum
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from marl_tr.errors import UserError

__all__ = ["BadPackageName", "Kind", "new_env", "write_package"]


class Kind(StrEnum):
    """What an environment can be; the values are modules of `marl_tr.templates`."""

    parallel = "parallel"
    aec = "aec"
    gymnasium = "gymnasium"
    native = "native"


_WORDS = {
    Kind.parallel: "a PettingZoo ParallelEnv: all agents act at once",
    Kind.aec: "a PettingZoo AECEnv: agents act in turn",
    Kind.gymnasium: "a Gymnasium Env: one agent",
    Kind.native: "a VectorEnv: all copies simulated at once",
}

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "scenario.yaml": "{name}.yaml",
    "table.py": "src/{name}/__init__.py",
    "{kind}.py": "src/{name}/environment.py",
    "tests.py": "tests/test_{name}.py",
}
"""``{template: file of the package}``."""


class BadPackageName(UserError, ValueError):
    """No package can have that name; the message says what would work."""


def new_env(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the package, a new folder: lower-case letters, digits and '_'.")
    ],
    kind: Annotated[
        Kind, typer.Option(help="; ".join(f"{kind}: {words}" for kind, words in _WORDS.items()) + ".")
    ] = Kind.parallel,
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the folder is made.")] = Path("."),
) -> None:
    """Write a package with an environment that runs, a test that passes and a scenario; it says what to do next."""
    folder = write_package(name, kind=kind, into=into)
    print(f"{folder}: {_WORDS[kind]}, registered as {name}/{name}-v0. Next:")
    for command in (
        f"pip install -e {folder}",
        f"marl-tr check-env {name}/{name}-v0",
        f"marl-tr run {folder / name}.yaml",
    ):
        print(f"  {command}")


def write_package(name: str, *, kind: Kind, into: Path) -> Path:
    """Write the package `name` into a new folder of that name, and return the folder.

    Args:
        name: A Python identifier in lower case that nothing importable has.
        kind: Which environment.
        into: The folder that it is made in; made where it does not exist.

    Raises:
        BadPackageName: `name` cannot be a package's, or would hide another one; says what would work.
        UserError: The folder exists already, or cannot be written.
    """
    folder = into / name
    _check_spelling(name)
    if folder.exists():
        raise UserError(f"{folder} exists already and is left as it is; choose another name, or --into another folder")
    _check_free(name)
    try:
        for template, path in _FILES.items():
            written = folder / path.format(name=name)
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(_filled(template.format(kind=kind), name, kind), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _filled(template: str, name: str, kind: Kind) -> str:
    """A template with the name in it."""
    text = files("marl_tr.templates").joinpath(template).read_text("utf-8")
    text = text.replace("new_environment", name).replace("NewEnvironment", _class_name(name))
    if kind is Kind.native and template == "table.py":
        text = text.replace("native=False", "native=True")
    return text


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _check_spelling(name: str) -> None:
    reason = _misspelt(name)
    if reason is None:
        return
    words = re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z0-9]+", name)
    better = "_".join(words).lower().lstrip("_0123456789")
    better = better if _misspelt(better) is None else f"{better or 'my'}_env"
    raise BadPackageName(f"{name!r} cannot be the name of a package: {reason}; {better!r} would work")


def _misspelt(name: str) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith("_"):
        return "it must be lower-case letters, digits and '_', a letter first and no '_' at the end"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "it is a word of Python's"
    if name in sys.stdlib_module_names:
        return "it is a module of Python's own"
    return None


def _check_free(name: str) -> None:
    spec = find_spec(name)
    # A mere folder of that name, such as a project's own, is found too; a package goes before it.
    if spec is not None and spec.origin is not None:
        raise BadPackageName(
            f"{name!r} is importable already ({spec.origin}), and one would hide the other; "
            f"{f'{name}_env'!r} would work"
        )
