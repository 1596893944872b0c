"""``marl-tr run``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["run"]


def run(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="Name of a shipped scenario, or path of a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file: env.num_envs=128."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The run's seed; the same as seed=N.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the complete scenario and the networks' sizes; train nothing."),
    ] = False,
) -> None:
    """Train what a scenario says; the run's folder, its curves and how to look at them are printed."""
    from marl_tr.scenario import load_scenario, scenario_warnings, scenario_yaml

    seeded = [] if seed is None else [f"seed={seed}"]
    loaded = load_scenario(scenario, [*(overrides or []), *seeded])
    for warning in scenario_warnings(loaded):
        print(f"warning: {warning}", file=sys.stderr)
    from marl_tr.trainer import api

    if dry_run:
        # What is not YAML is a comment, so that the output is itself a scenario.
        print(scenario_yaml(loaded), end="")
        for line in api.describe(loaded).splitlines():
            print(f"# {line}".rstrip())
        return
    api.run(loaded)
