"""The command line: ``marl-tr COMMAND``, one module a command, each imported only when it is called."""

from __future__ import annotations

from collections.abc import Sequence

from marl_tr.registry import Entry

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": Entry("marl_tr.cli.run:run", "train what a scenario says"),
    "resume": Entry("marl_tr.cli.resume:resume", "go on with a run, exactly where it stopped"),
    "eval": Entry("marl_tr.cli.evaluate:evaluate", "evaluate a run's newest checkpoint on held-out episodes"),
    "audit": Entry("marl_tr.cli.audit:audit", "verify that every accepted update kept its bound"),
    "nash-gap": Entry("marl_tr.cli.nash_gap:nash_gap", "measure what agents of a run gain by deviating alone"),
    "compare": Entry("marl_tr.cli.compare:compare", "run variants over tasks and seeds, and tell them apart"),
    "pretrain": Entry("marl_tr.cli.pretrain:pretrain", "train a flow on its environment's data, before any reward"),
    "tb": Entry("marl_tr.cli.tb:tb", "open a run, or a folder of runs, in TensorBoard"),
    "check-env": Entry("marl_tr.cli.check_env:check_env", "test an environment; says how to cure what fails"),
    "new-env": Entry("marl_tr.cli.new_env:new_env", "write a package with an environment of your own"),
    "scenarios": Entry("marl_tr.cli.scenarios:scenarios", "list the scenarios that come with the package"),
    "schema": Entry("marl_tr.cli.schema:schema", "print the JSON Schema of scenarios, for editors"),
    "envs": Entry("marl_tr.cli.parts:envs", "list environments, or one environment's settings"),
    "agents": Entry("marl_tr.cli.parts:agents", "list agents, or one agent's settings"),
    "critics": Entry("marl_tr.cli.parts:critics", "list critics, or one critic's settings"),
    "models": Entry("marl_tr.cli.parts:models", "list pretrained and closed-form flow models"),
    "objectives": Entry("marl_tr.cli.parts:objectives", "list objectives, or one objective's settings"),
    "regions": Entry("marl_tr.cli.parts:regions", "list trust regions, or one region's settings"),
    "schedules": Entry("marl_tr.cli.parts:schedules", "list schedules, or one schedule's settings"),
}
"""Built-in commands. A package adds its own through the entry-point group ``marl_tr.commands``: a table like
this one, whose targets are functions that Typer understands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; by default those of the process.

    Returns:
        The exit code: 0 done, 1 crash (raised, not returned, so that the traceback is seen) or a check that
        failed, 2 bad configuration or arguments, 3 diverged, 130 interrupted after saving.
    """
    from marl_tr.cli.app import invoke

    return invoke(arguments)
