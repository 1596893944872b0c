"""What no single section can know: combinations that cannot work, and those that deserve a word.

Nothing here knows a name. Config models say what they are by class attributes, all optional:

- a region's: ``takes_own_step: bool``; ``refuses_objectives: Mapping[name, reason]``; ``only_objective: str``, with
  a gain of its own in place of that one's; ``requires: frozenset[str]`` (it may hang on the settings, and
  ``instead: str`` say which would need less, or something else); ``needs: frozenset[str]`` of
  `marl_tr.region.needs.Need`; ``needs_anchor: bool``, of a regulariser; ``refuses_settings: Mapping[setting,
  (value, reason)]`` of ``"agents.<field>"`` and ``"optimizer.<field>"``; ``wants_cohort_advantage: bool``;
- an objective's: ``requires``, ``instead``; a schedule's: ``needs_own_parameters: bool``, ``requires``, ``instead``,
  ``needs_bounds: bool``, ``needs_scope: str`` (of every agent's ``scope``), ``needs_own_step: bool`` (of every region),
  ``wants_shared_reward: bool``;
- an agent's: ``capabilities: frozenset[str]`` out of `log_prob`, `kl`, `mass`, `sample_distance` (not
  declared: not checked);
- an environment's: ``shared_reward: bool`` (a property): all agents already get the same reward; ``cohort: int``:
  how many of its copies, training's or an evaluation's, are compared with each other.

An entry of `agents` is checked with its own objective, region and optimizer where it has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from marl_tr import registry
from marl_tr.scenario.document import Document
from marl_tr.scenario.problems import Path, Problem
from marl_tr.scenario.schema import Scenario
from marl_tr.scenario.validation import Validated

__all__ = ["cross_checks", "explain", "scenario_warnings"]


def cross_checks(document: Document, checked: Validated) -> list[Problem]:
    """Impossible combinations, each with its reason and a way out; parts wrong by themselves are left out.

    What is wrong with a section that several entries share is listed once for each of them; `ScenarioError` says
    equal problems once.
    """
    return [
        *_step(document, checked),
        *_objective(document, checked),
        *_settings(document, checked),
        *_sharing(document, checked),
        *_budget(document, checked),
        *_scope(document, checked),
        *_capabilities(document, checked),
        *_regularisers(document, checked),
        *_anchors(document, checked),
        *_cohorts(document, checked),
        *_needs(document, checked),
        *_backend(document, checked),
    ]


def scenario_warnings(scenario: Scenario) -> list[str]:
    """What is possible and probably not meant; one sentence each."""
    told = []
    for entry in scenario.agents:
        region = scenario.region_of(entry)
        if getattr(region.config, "wants_cohort_advantage", False) and scenario.advantage.estimator == "gae":
            told.append(
                f"region {region.kind!r} is made for advantages relative to a cohort, and advantage.estimator is "
                "'gae'; 'advantage: {estimator: cohort}' compares episodes"
            )
    told = list(dict.fromkeys(told))
    shared = bool(getattr(scenario.env.settings, "shared_reward", False))
    wants = getattr(scenario.schedule.config, "wants_shared_reward", False)
    if wants and scenario.env.reward == "own" and not shared:
        told.append(
            f"schedule {scenario.schedule.kind!r} rests on a reward that all agents share, and env.reward is "
            "'own': an update may improve one agent at the cost of others; 'env: {reward: mean}' shares it"
        )
    for position, entry in enumerate(scenario.agents):
        served = scenario.regularisers_of(entry)
        for number, term in enumerate(scenario.regularisers):
            if term not in served:
                told.append(
                    f"regularisers.{number}: {term.kind!r} needs {_listed(term.requires - entry.config.capabilities)}, "
                    f"which the agents of agents.{position} ({entry.kind!r}) do not have: they learn without it"
                )
    return told


@dataclass(frozen=True)
class _Entry:
    """An entry of `agents`, with its own sections where it has them and the scenario's where it has not.

    Attributes:
        path: Of the entry; empty for a scenario without entries, which is checked as far as it goes.
        own: What the entry says.
        document: Of the whole.
        checked: The same, validated.
    """

    path: Path
    own: dict[str, Any]
    document: Document
    checked: Validated

    def owns(self, section: str) -> bool:
        """Whether the entry has the section of its own."""
        return self.own.get(section) is not None

    def where(self, section: str) -> Path:
        """Where the section that holds for the entry is."""
        return (*self.path, section) if self.owns(section) else (section,)

    def config(self, section: str) -> Any:
        """Its settings; None where it has problems of its own."""
        return self.checked.configs.get(self.where(section))

    def kind(self, section: str) -> str:
        """Its kind, where there is a `config`."""
        source = self.own if self.owns(section) else self.document.data
        return str(source[section]["kind"])

    def setting(self, section: str, field: str) -> Any:
        """A field of the agents, defaults included, or of the optimizer, as it is written; None where there is none."""
        if section == "agents":
            return getattr(self.checked.configs.get(self.path), field, None)
        given = (self.own if self.owns(section) else self.document.data).get(section)
        return given.get(field) if isinstance(given, dict) else None

    @property
    def capabilities(self) -> frozenset[str] | None:
        """What the agents can say of themselves; None where their kind does not declare it."""
        offered: frozenset[str] | None = getattr(self.checked.configs.get(self.path), "capabilities", None)
        return offered

    def lack(self, missing: frozenset[str]) -> str:
        """``mass, which agents of kind 'x' do not have (they have kl)``."""
        has = _listed(self.capabilities or frozenset()) or "nothing to offer"
        wanted = _listed(missing, explained=True)
        return f"{wanted}, which agents of kind {self.own['kind']!r} do not have (they have {has})"


def _step(document: Document, checked: Validated) -> list[Problem]:
    problems = []
    given = document.data.get("optimizer") is not None
    regions = [(entry, entry.config("region")) for entry in _entries(document, checked)]
    for entry, region in regions:
        if region is None:
            continue
        own_step, owns = getattr(region, "takes_own_step", False), entry.owns("optimizer")
        if own_step and owns:
            problems.append(document.problem((*entry.path, "optimizer"), _idle(entry.kind("region")), key=True))
        elif not own_step and not owns and not given:
            beside = " beside it, or at the top of the scenario" if entry.owns("region") else ""
            message = (
                f"region {entry.kind('region')!r} needs gradient steps: add a section 'optimizer: {{}}' "
                f"(all defaults){beside}"
            )
            problems.append(document.problem((*entry.where("region"), "kind"), message))
    if given and all(getattr(region, "takes_own_step", False) for _, region in regions):
        kinds = dict.fromkeys(entry.kind("region") for entry, _ in regions)
        problems.append(document.problem(("optimizer",), _idle(*kinds), key=True))
    return problems


def _idle(*regions: str) -> str:
    takes = "takes its own step and leaves" if len(regions) == 1 else "take their own steps and leave"
    return f"region {' and '.join(map(repr, regions))} {takes} an optimizer nothing to do; remove the section"


def _objective(document: Document, checked: Validated) -> list[Problem]:
    problems = []
    for entry in _entries(document, checked):
        region = entry.config("region")
        if region is None or entry.config("objective") is None:
            continue
        objective = entry.kind("objective")
        reason = getattr(region, "refuses_objectives", {}).get(objective)
        only = getattr(region, "only_objective", objective)
        if objective != only:
            reason = f"it has a gain of its own in place of w A; use {only!r}"
        if reason is None:
            continue
        # An entry's own region that the scenario's objective does not suit is the entry's to put right.
        section = "region" if entry.owns("region") and not entry.owns("objective") else "objective"
        cure = ", in an 'objective' beside it" if section == "region" else ""
        message = f"region {entry.kind('region')!r} cannot work with objective {objective!r}: {reason}{cure}"
        problems.append(document.problem((*entry.where(section), "kind"), message))
    return problems


def _settings(document: Document, checked: Validated) -> list[Problem]:
    """Single settings of agents and optimizers that a region cannot work with."""
    problems = []
    for entry in _entries(document, checked):
        refused = getattr(entry.config("region"), "refuses_settings", {})
        where = {"agents": entry.path, "optimizer": entry.where("optimizer")}
        for setting, (value, reason) in refused.items():
            section, _, field = setting.partition(".")
            if entry.setting(section, field) == value:
                shown = str(value).lower() if isinstance(value, bool) else value
                message = f"region {entry.kind('region')!r} cannot work with '{field}: {shown}': {reason}"
                problems.append(document.problem((*where[section], field), message))
    return problems


def _sharing(document: Document, checked: Validated) -> list[Problem]:
    schedule = checked.configs.get(("schedule",))
    if not getattr(schedule, "needs_own_parameters", False):
        return []
    name = document.data["schedule"]["kind"]
    message = (
        f"schedule {name!r} updates each agent apart from the others, so each needs its own parameters; "
        "set 'sharing: none' or a schedule that lets agents share them"
    )
    return [
        document.problem((*path, "sharing"), message)
        for path, agent in _agents(document)
        if agent.get("sharing") == "all"
    ]


def _budget(document: Document, checked: Validated) -> list[Problem]:
    """Learners whose divergences have no bound, or another unit: nothing can be split among them."""
    if not getattr(checked.configs.get(("schedule",)), "needs_bounds", False):
        return []
    problems = []
    for entry in _entries(document, checked):
        region = entry.config("region")
        if region is not None and getattr(region, "bound", None) is None:
            message = (
                f"schedule.budget splits bounds, and region {entry.kind('region')!r} has none here; add 'bound: 0.01' "
                "to it"
            )
            problems.append(document.problem((*entry.where("region"), "kind"), message))
        if entry.capabilities is not None and "kl" not in entry.capabilities:
            message = f"schedule.budget splits nats, so it needs {entry.lack(frozenset({'kl'}))}; leave 'budget' out"
            problems.append(document.problem((*entry.path, "kind"), message))
    return problems


def _scope(document: Document, checked: Validated) -> list[Problem]:
    """Laws over joint actions under a schedule that is not made for them, and the other way about."""
    schedule = checked.configs.get(("schedule",))
    if schedule is None:
        return []
    name, wanted = document.data["schedule"]["kind"], getattr(schedule, "needs_scope", "own")
    problems, laws = [], set()
    for entry in _entries(document, checked):
        agents = checked.configs.get(entry.path)
        if not entry.path or agents is None:
            continue
        scope = getattr(agents, "scope", "own")
        if scope != wanted == "own":
            able = ", ".join(_made_for(scope))
            message = (
                f"schedule {name!r} takes the ratios of each agent's own action, not of a joint one; leave 'scope' "
                f"out, or take schedule {able}"
            )
            problems.append(document.problem((*entry.path, "scope"), message))
        elif scope != wanted:
            able = f"set 'scope: {wanted}'" if hasattr(agents, "scope") else "agents of this kind have none"
            message = (
                f"schedule {name!r} compares what neighbours think of everybody's actions, so each agent needs a "
                f"policy over the joint action: {able}"
            )
            problems.append(document.problem((*entry.path, "kind"), message))
        region = entry.config("region")
        steps = region is None or getattr(region, "takes_own_step", False)
        if getattr(schedule, "needs_own_step", False) and not steps:
            message = (
                f"schedule {name!r} needs a region whose step is of the whole batch, and {entry.kind('region')!r} "
                "goes by minibatches"
            )
            problems.append(document.problem((*entry.where("region"), "kind"), message))
        laws.add(getattr(agents, "law", None))
    if wanted == "joint" and len(laws) > 1:
        message = f"schedule {name!r} needs one 'law' for all agents: each one's raw actions are scored by all others"
        problems.append(document.problem(("agents",), message))
    return problems


def _capabilities(document: Document, checked: Validated) -> list[Problem]:
    problems = []
    for entry in _entries(document, checked):
        if entry.capabilities is None:
            continue
        for section in ("objective", "region", "schedule"):
            needed: frozenset[str] = getattr(entry.config(section), "requires", frozenset())
            missing = needed - entry.capabilities
            if missing:
                path = entry.where(section) if entry.owns(section) else entry.path
                message = f"{section} {entry.kind(section)!r} needs {entry.lack(missing)}"
                # Whether actions are choices the environment says: what needs that is not offered.
                able = _able(f"{section}s", entry.capabilities - {"mass"})
                if able:
                    message += f"; with these agents: {section} {', '.join(able)}"
                instead = getattr(entry.config(section), "instead", "")
                if instead:
                    message += f"; or {instead}"
                problems.append(document.problem((*path, "kind"), message))
    return problems


def _able(kind: str, offered: frozenset[str]) -> list[str]:
    """Registered parts of a kind that need no more than is offered, with default settings where it hangs on them; those
    that do not say what they need left out."""
    models = ((name, entry.load_config()) for name, entry in registry.names(kind).items())
    able = []
    for name, model in models:
        needed: object = None if model is None else getattr(model, "requires", frozenset[str]())
        if model is not None and isinstance(needed, property):
            try:
                needed = model().requires
            except ValueError:  # a setting without a default
                continue
        if isinstance(needed, frozenset) and needed <= offered:
            able.append(name)
    return able


def _made_for(scope: str) -> list[str]:
    """Registered schedules for policies of a scope."""
    models = ((name, entry.load_config()) for name, entry in registry.names("schedules").items())
    return [name for name, model in models if getattr(model, "needs_scope", "own") == scope]


def _regularisers(document: Document, checked: Validated) -> list[Problem]:
    """Regularisers that none of the agents can serve; those that some cannot, `scenario_warnings` tells."""
    if checked.scenario is None:
        return []
    problems = []
    entries = _entries(document, checked)
    for position, term in enumerate(checked.scenario.regularisers):
        lacks = {
            entry.lack(term.requires - entry.capabilities)
            for entry in entries
            if entry.capabilities is not None and term.requires - entry.capabilities
        }
        able = [entry for entry in entries if entry.capabilities is None or term.requires <= entry.capabilities]
        if not able:
            message = f"{term.kind!r} needs {', and '.join(sorted(lacks))}"
            problems.append(document.problem(("regularisers", position), message))
    return problems


def _anchors(document: Document, checked: Validated) -> list[Problem]:
    """Regions that go by an anchor where no regulariser has one."""
    if checked.scenario is None or any(term.kind == "position" for term in checked.scenario.regularisers):
        return []
    message = (
        "region {!r} goes by an anchor here, and no regulariser has one; add "
        "'regularisers: [{{kind: position, weight: 0}}]', which holds the start of the run and pulls nowhere"
    )
    return [
        document.problem((*entry.where("region"), "kind"), message.format(entry.kind("region")))
        for entry in _entries(document, checked)
        if getattr(entry.config("region"), "needs_anchor", False)
    ]


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


def _needs(document: Document, checked: Validated) -> list[Problem]:
    """What regions ask to know of decisions that the environment, or the way of stepping, cannot give."""
    problems = []
    for entry in _entries(document, checked):
        needs: frozenset[str] = getattr(entry.config("region"), "needs", frozenset())
        path = (*entry.where("region"), "kind")
        name = entry.kind("region") if needs else ""
        if needs & {"cohort", "whole_cohorts"} and _cohort_size(document, checked) == 1:
            cure = (
                "its cohorts are of one copy: set env.config.cohort (8, for example)"
                if hasattr(checked.env_config, "cohort")
                else "this environment forms no cohorts; take one that does (flow/mixture-v0, games/bandit-v0; "
                "docs/environments.md says how)"
            )
            message = f"region {name!r} compares episodes with each other, and {cure}, or another region"
            problems.append(document.problem(path, message))
        whole = needs & {"whole_trajectories", "whole_cohorts"}
        if not whole or checked.scenario is None or not entry.path:
            continue
        steps = checked.scenario.optimizer_of(checked.scenario.agents[int(entry.path[1])])
        if steps is not None and (steps.chain_batch is not None or steps.chain_fraction < 1):
            message = (
                f"region {name!r} needs all steps of a chain at once; leave optimizer.chain_batch and chain_fraction "
                "out, and use more minibatches"
            )
            problems.append(document.problem(path, message))
    return problems


def _cohort_size(document: Document, checked: Validated) -> int:
    """How many copies are compared with each other; of an environment without a model of its settings what the
    scenario says of it."""
    if checked.env_config is not None:
        return int(getattr(checked.env_config, "cohort", 1))
    env = document.data.get("env")
    config = env.get("config") if isinstance(env, dict) else None
    size = config.get("cohort", 1) if isinstance(config, dict) else 1
    return size if isinstance(size, int) else 1


def _backend(document: Document, checked: Validated) -> list[Problem]:
    """Worker processes for an environment that has none, or for fewer copies than workers."""
    if checked.scenario is None:
        return []
    env = checked.scenario.env
    if env.backend == "in_process":
        if env.workers is None:
            return []
        message = "workers are of use with 'backend: workers' alone; say that, or leave workers out"
        return [document.problem(("env", "workers"), message)]
    if registry.find("envs", env.id).native:
        message = f"{env.id!r} simulates all copies at once in this process; use 'in_process'"
        return [document.problem(("env", "backend"), message)]
    if env.workers is not None and env.workers > env.num_envs:
        message = f"{env.workers} workers for {env.num_envs} copies (env.num_envs); at most one a copy"
        return [document.problem(("env", "workers"), message)]
    return []


def _agents(document: Document) -> list[tuple[Path, dict[str, Any]]]:
    entries = document.data.get("agents")
    if not isinstance(entries, list):
        return []
    return [(("agents", index), entry) for index, entry in enumerate(entries) if isinstance(entry, dict)]


def _entries(document: Document, checked: Validated) -> list[_Entry]:
    return [_Entry(path, own, document, checked) for path, own in _agents(document) or [((), {})]]


def _listed(names: frozenset[str], *, explained: bool = False) -> str:
    return ", ".join(explain(name) if explained else name for name in sorted(names))


def explain(capability: str) -> str:
    """A capability whose name alone would mislead, in words."""
    words = {"mass": "laws of choices ('mass')", "gaussian": "Gaussian laws ('gaussian')"}
    return words.get(capability, capability)
