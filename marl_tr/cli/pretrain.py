"""``marl-tr pretrain``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["pretrain"]


def pretrain(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="Name of a shipped scenario, or path of a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file: pretraining.steps=100."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The .safetensors to write; log and checkpoint lie beside it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16: half the size.")] = False,
) -> None:
    """Train a scenario's flow on its environment's own data, before any reward."""
    from marl_tr.scenario import load_scenario, scenario_warnings

    loaded = load_scenario(scenario, overrides or [])
    for warning in scenario_warnings(loaded):
        print(f"warning: {warning}", file=sys.stderr)
    from marl_tr.trainer.pretrain import pretrain_scenario

    pretrain_scenario(loaded, out=out, resume=resume, half=half, say=lambda line: print(line, flush=True))
