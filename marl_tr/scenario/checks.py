"""What no single section can know: combinations that cannot work, and those that deserve a word.

Nothing here knows a name. Config models say what they are by class attributes, all optional:

- a region's: ``takes_own_step: bool``; ``refuses_objectives: Mapping[name, reason]``; ``requires:
  frozenset[str]``;
- an objective's: ``requires``; a schedule's: ``needs_own_parameters: bool``, ``requires``,
  ``wants_shared_reward: bool``;
- an agent's: ``capabilities: frozenset[str]`` out of `log_prob`, `kl`, `mass`, `sample_distance` (not
  declared: not
  checked);
- an environment's: ``shared_reward: bool`` (a property): all agents already get the same reward; ``cohort: int``:
  how many of its copies, training's or an evaluation's, are compared with each other.
"""

from __future__ import annotations

from typing import Any

from marl_tr.scenario.document import Document
from marl_tr.scenario.problems import Path, Problem
from marl_tr.scenario.schema import Scenario
from marl_tr.scenario.validation import Validated

__all__ = ["cross_checks", "scenario_warnings"]


def cross_checks(document: Document, checked: Validated) -> list[Problem]:
    """Impossible combinations, each with its reason and a way out; parts wrong by themselves are left out."""
    return [
        *_step(document, checked),
        *_objective(document, checked),
        *_sharing(document, checked),
        *_capabilities(document, checked),
        *_regularisers(document, checked),
        *_cohorts(document, checked),
    ]


def scenario_warnings(scenario: Scenario) -> list[str]:
    """What is possible and probably not meant; one sentence each."""
    told = []
    shared = bool(getattr(scenario.env.settings, "shared_reward", False))
    wants = getattr(scenario.schedule.config, "wants_shared_reward", False)
    if wants and scenario.env.reward == "own" and not shared:
        told.append(
            f"schedule {scenario.schedule.kind!r} rests on a reward that all agents share, and env.reward is "
            "'own': an update may improve one agent at the cost of others; 'env: {reward: mean}' shares it"
        )
    return told


def _step(document: Document, checked: Validated) -> list[Problem]:
    region = checked.configs.get(("region",))
    if region is None:
        return []
    name = document.data["region"]["kind"]
    own_step = getattr(region, "takes_own_step", False)
    given = document.data.get("optimizer") is not None
    if own_step and given:
        message = f"region {name!r} takes its own step and leaves an optimizer nothing to do; remove the section"
        return [document.problem(("optimizer",), message, key=True)]
    if not own_step and not given:
        message = f"region {name!r} needs gradient steps: add a section 'optimizer: {{}}' (all defaults)"
        return [document.problem(("region", "kind"), message)]
    return []


def _objective(document: Document, checked: Validated) -> list[Problem]:
    region = checked.configs.get(("region",))
    if region is None or ("objective",) not in checked.configs:
        return []
    objective = document.data["objective"]["kind"]
    reason = getattr(region, "refuses_objectives", {}).get(objective)
    if reason is None:
        return []
    message = f"region {document.data['region']['kind']!r} cannot work with objective {objective!r}: {reason}"
    return [document.problem(("objective", "kind"), message)]


def _sharing(document: Document, checked: Validated) -> list[Problem]:
    schedule = checked.configs.get(("schedule",))
    if not getattr(schedule, "needs_own_parameters", False):
        return []
    name = document.data["schedule"]["kind"]
    message = (
        f"schedule {name!r} updates one agent after the other, so each needs its own parameters; "
        "set 'sharing: none' or a schedule that updates all at once"
    )
    return [
        document.problem((*path, "sharing"), message)
        for path, agent in _agents(document)
        if agent.get("sharing") == "all"
    ]


def _capabilities(document: Document, checked: Validated) -> list[Problem]:
    problems = []
    for path, agent in _agents(document):
        offered = getattr(checked.configs.get(path), "capabilities", None)
        if offered is None:
            continue
        for section in ("objective", "region", "schedule"):
            needed: frozenset[str] = getattr(checked.configs.get((section,)), "requires", frozenset())
            if needed - offered:
                message = (
                    f"{section} {document.data[section]['kind']!r} needs {_listed(needed - offered)}, "
                    f"which agents of kind {agent['kind']!r} do not have "
                    f"(they have {_listed(offered) or 'nothing to offer'})"
                )
                problems.append(document.problem((*path, "kind"), message))
    return problems


def _regularisers(document: Document, checked: Validated) -> list[Problem]:
    if checked.scenario is None:
        return []
    problems = []
    for path, agent in _agents(document):
        offered = getattr(checked.configs.get(path), "capabilities", None)
        for position, regulariser in enumerate(checked.scenario.regularisers):
            if offered is not None and regulariser.requires - offered:
                message = (
                    f"{regulariser.kind!r} needs {_listed(regulariser.requires - offered)}, which agents of kind "
                    f"{agent['kind']!r} do not have (they have {_listed(offered) or 'nothing to offer'})"
                )
                problems.append(document.problem(("regularisers", position), message))
    return problems


def _cohorts(document: Document, checked: Validated) -> list[Problem]:
    """Numbers of copies that cohorts do not fit into; the last of them would be met at the end of the run."""
    cohort, scenario = getattr(checked.env_config, "cohort", 1), checked.scenario
    if scenario is None:
        return []
    evaluation = scenario.evaluation
    numbers: dict[Path, int] = {
        ("env", "num_envs"): scenario.env.num_envs,
        ("evaluation", "episodes"): evaluation.episodes,
        ("evaluation", "final_episodes"): evaluation.final_episodes,
    }
    return [
        document.problem(path, f"{number} copies cannot be split into cohorts of {cohort}; choose a multiple of it")
        for path, number in numbers.items()
        if number % cohort
    ]


def _agents(document: Document) -> list[tuple[Path, dict[str, Any]]]:
    entries = document.data.get("agents")
    if not isinstance(entries, list):
        return []
    return [(("agents", index), entry) for index, entry in enumerate(entries) if isinstance(entry, dict)]


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
