"""What only building a run can tell, before the first one starts: agents, environments and regions that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from marl_tr.comparison.sweep import Cell
from marl_tr.errors import UserError
from marl_tr.trainer.build import build_env, build_players
from marl_tr.vector.contract import EnvSpec

__all__ = ["BadVariants", "rehearse"]


class BadVariants(UserError):
    """Variants that cannot be built; the message names each with its reason."""


def rehearse(cells: Sequence[Cell]) -> None:
    """Build the environment of every cell once, and its policies.

    Raises:
        BadVariants: All that cannot be.
    """
    specs: dict[str, EnvSpec] = {}
    told: dict[str, list[str]] = {}
    for cell in cells:
        scenario = cell.scenario
        try:
            key = scenario.env.model_dump_json()
            if key not in specs:
                env = build_env(scenario, num_envs=scenario.env.num_envs)
                specs[key] = env.spec
                env.close()
            build_players(scenario, specs[key])
        except UserError as error:
            told.setdefault(str(error), []).append(cell.label)
        except Exception:
            # What an environment's own code raises is told, with its traceback, by the log of the run that it ends;
            # the other variants go on.
            continue
    if told:
        raise BadVariants("\n".join(f"{', '.join(labels)}: {reason}" for reason, labels in told.items()))
