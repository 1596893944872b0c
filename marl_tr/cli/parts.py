"""The listing commands, one for each kind of thing that a scenario can name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from marl_tr import registry
from marl_tr.cli.tables import print_table

__all__ = ["agents", "critics", "envs", "models", "objectives", "regions", "schedules"]

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


def models(name: Name = None) -> None:
    """List flow models: pretrained, or in closed form."""
    _show("models", name)


def objectives(name: Name = None) -> None:
    """List objectives, or one objective's settings with their defaults."""
    _show("objectives", name)


def regions(name: Name = None) -> None:
    """List trust regions with what they guarantee, or one region's settings with their defaults."""
    if name is not None:
        _show("regions", name)
        return
    rows = []
    for known, entry in registry.names("regions").items():
        model = entry.load_config()
        paper = getattr(model, "paper", "")
        rows.append(
            (
                known,
                getattr(model, "guarantee", ""),
                f"arxiv:{paper}" if paper else "",
                getattr(model, "status", ""),
                entry.summary,
            )
        )
    print_table(("name", "guarantee", "paper", "formula", "what it is"), rows)


def schedules(name: Name = None) -> None:
    """List schedules, or one schedule's settings with their defaults."""
    _show("schedules", name)


def _show(kind: str, name: str | None) -> None:
    if name is None:
        print_table(("name", "what it is"), [(known, entry.summary) for known, entry in registry.names(kind).items()])
        return
    entry = registry.find(kind, name)
    model = entry.load_config()
    rows = _arguments(entry) if model is None else _fields(model)
    if rows:
        print_table(("setting", "default", "allowed", "meaning"), rows)
    elif model is None and _hides_arguments(entry):
        print(f"{name} takes keyword arguments that its factory does not name; see its own documentation")
    else:
        print(f"{name} has no settings")


def _fields(model: Any, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """A row a setting; below one that is a mapping by default, the settings of that mapping."""
    from marl_tr.cli.fields import allowed

    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        nested = hasattr(type(default), "model_fields")
        shown = "" if nested else default if field.is_required() else _shown(default)
        rows.append((prefix + name, shown, allowed(field), field.description or ""))
        if nested:
            rows += _fields(type(default), f"{prefix}{name}.")
    return rows


def _arguments(entry: registry.Entry) -> list[tuple[str, str, str, str]]:
    """Name and default of the factory's arguments, where there is no model."""
    return [
        (p.name, "required" if p.default is p.empty else _shown(p.default), "", "")
        for p in _parameters(entry)
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def _hides_arguments(entry: registry.Entry) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(entry))


def _parameters(entry: registry.Entry) -> list[Any]:
    import inspect

    try:
        return list(inspect.signature(entry.load()).parameters.values())
    except (TypeError, ValueError):
        return []


def _shown(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "(empty)", True: "true", False: "false"}[value]
    return str(value)
