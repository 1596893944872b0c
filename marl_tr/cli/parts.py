"""The listing commands, one for each kind of thing that a scenario can name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from marl_tr import registry
from marl_tr.cli.tables import print_table

__all__ = ["agents", "critics", "envs", "objectives", "regions", "schedules"]

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Show the settings of this one.")]


def envs(name: Name = None) -> None:
    """List environments, or one environment's settings with their defaults."""
    _show("envs", name)


def agents(name: Name = None) -> None:
    """List agents, or one agent's settings with their defaults."""
    _show("agents", name)


def critics(name: Name = None) -> None:
    """List critics, or one critic's settings with their defaults."""
    _show("critics", name)


def objectives(name: Name = None) -> None:
    """List objectives, or one objective's settings with their defaults."""
    _show("objectives", name)


def regions(name: Name = None) -> None:
    """List trust regions, or one region's settings with their defaults."""
    _show("regions", name)


def schedules(name: Name = None) -> None:
    """List schedules, or one schedule's settings with their defaults."""
    _show("schedules", name)


def _show(kind: str, name: str | None) -> None:
    if name is None:
        rows = [(known, entry.summary) for known, entry in registry.names(kind).items()]
        print_table(("name", "what it is"), rows)
        return
    entry = registry.find(kind, name)
    model = entry.load_config()
    rows3 = _arguments(entry) if model is None else _fields(model)
    if rows3:
        print_table(("setting", "default", "meaning"), rows3)
    else:
        print(f"{name} has no settings")


def _fields(model: Any) -> list[tuple[str, str, str]]:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        rows.append((name, default, field.description or ""))
    return rows


def _arguments(entry: registry.Entry) -> list[tuple[str, str, str]]:
    """Name and default of the factory's arguments, where there is no model."""
    import inspect

    try:
        parameters = inspect.signature(entry.load()).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        (p.name, "required" if p.default is p.empty else _shown(p.default), "")
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def _shown(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "(empty)", True: "true", False: "false"}[value]
    return str(value)
