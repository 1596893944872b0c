"""``marl-tr nash-gap``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["nash_gap"]


def nash_gap(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="The responders' settings: optimizer.learning_rate=1e-3."),
    ] = None,
    agents: Annotated[
        str | None, typer.Option(help="Who may deviate, names joined by commas; everybody if left out.")
    ] = None,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Let each of --agents stand for its whole group in NashConv.")
    ] = False,
    fresh: Annotated[int, typer.Option(min=0, help="Responders an agent that begin anew.")] = 3,
    warm: Annotated[int, typer.Option(min=0, help="Responders that begin at the agent's own policy.")] = 3,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Environment steps a responder; a quarter of the run's if left out.")
    ] = None,
    doublings: Annotated[int, typer.Option(min=1, help="How often it is doubled at most while a gap grows.")] = 2,
    episodes: Annotated[int, typer.Option(min=2, help="Paired test episodes.")] = 512,
    validation: Annotated[int, typer.Option(min=2, help="Paired episodes that responders are chosen by.")] = 256,
    controls: Annotated[
        str, typer.Option(help="random, references, names of reference policies, joined by commas; '' for none.")
    ] = "random,references",
    deviations: Annotated[
        str, typer.Option(help="Policies that stand beside the responders without having learned, named alike.")
    ] = "random,references",
    omniscient: Annotated[
        bool, typer.Option("--omniscient", help="Also responders that see the global state, as a diagnostic.")
    ] = False,
    payoff: Annotated[
        str | None, typer.Option(help="own, mean or sum: what agents are after; the run's env.reward if left out.")
    ] = None,
    cross: Annotated[
        list[Path] | None, typer.Option(help="Another run of the same environment, for cross-play; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Every random number of the audit follows from it.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an earlier audit left.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether the cost is all right.")] = False,
) -> None:
    """What could each agent gain by deviating alone? Best responses are trained, so that every gap is a lower bound."""
    from marl_tr.cli.folders import run_folder
    from marl_tr.errors import UserError

    folder = run_folder(run)
    others = [run_folder(other) for other in cross or []]
    if payoff not in (None, "own", "mean", "sum"):
        raise UserError(f"--payoff {payoff}: one of own, mean and sum")
    from marl_tr.equilibrium import AuditSettings
    from marl_tr.equilibrium import nash_gap as audit

    settings = AuditSettings(
        agents=None if agents is None else _names(agents),
        symmetric=symmetric,
        fresh=fresh,
        warm=warm,
        budget=budget,
        doublings=doublings,
        validation_episodes=validation,
        episodes=episodes,
        seed=seed,
        payoff=payoff,  # type: ignore[arg-type]
        controls=_names(controls),
        deviations=_names(deviations),
        omniscient=omniscient,
        learner=tuple(overrides or ()),
    )
    audit(
        folder,
        settings,
        cross=others,
        restart=restart,
        dry_run=dry_run,
        confirm=lambda: yes or not sys.stdin.isatty() or typer.confirm("Begin?", default=True),
        say=lambda line: print(line, flush=True),
    )


def _names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",") if name.strip())
