"""``marl-tr check-env``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["check_env"]


def check_env(
    id: Annotated[str, typer.Argument(metavar="ID", help="Registered name, or 'package.module:factory'.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="The environment's settings: num_uavs=4."),
    ] = None,
) -> None:
    """Test an environment: PettingZoo's own tests, then stronger ones. Each failure comes with its cure."""
    import shutil

    config = _config(settings or [])
    from marl_tr.vector.check import check_env as check

    report = check(id, config)
    print(report.render(width=shutil.get_terminal_size((110, 24)).columns))
    raise typer.Exit(0 if report.passed else 1)


def _config(settings: list[str]) -> dict[str, Any]:
    from marl_tr.scenario.document import Document
    from marl_tr.scenario.overrides import apply_overrides
    from marl_tr.scenario.problems import ScenarioError

    document = Document("settings", data={})
    apply_overrides(document, settings, form="key=value")
    if document.problems:
        raise ScenarioError(document.problems)
    config: dict[str, Any] = document.data
    return config
