"""From a scenario to the objects of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from marl_tr.critic.critic import Critic
from marl_tr.errors import UserError
from marl_tr.policy import Policy, Rows
from marl_tr.region.optimizer import hidden_matrices
from marl_tr.region.turn import Learners, Objective, Region
from marl_tr.registry import find
from marl_tr.rollout.team import Team
from marl_tr.scenario.checks import explain
from marl_tr.scenario.schema import AgentPart, Scenario
from marl_tr.schedule.assignment import Schedule
from marl_tr.trainer.seats import seats_of
from marl_tr.trainer.seeding import make_generator
from marl_tr.vector import InProcessVectorEnv, VectorEnv, WorkerVectorEnv, make_vector_env
from marl_tr.vector.contract import EnvSpec, GroupSpec

__all__ = ["Player", "build_critic", "build_env", "build_players", "build_schedule", "device_of", "unselected"]


@dataclass(frozen=True)
class Player:
    """A team with what it learns by.

    Attributes:
        team: Who acts.
        learners: Its parameters.
        objective: What its updates want.
        region: What bounds them.
    """

    team: Team
    learners: Learners
    objective: Objective
    region: Region


def device_of(scenario: Scenario) -> torch.device:
    """Where networks and learning live.

    Raises:
        UserError: It is neither the CPU nor CUDA (others lack float64 or hold no numbers), or is not there.
    """
    name = scenario.trainer.device
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"trainer.device: {name!r} is neither 'cpu' nor 'cuda'")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"trainer.device: {name!r} cannot be used here ({reason}); use 'cpu'") from error


def build_env(scenario: Scenario, *, num_envs: int, render: bool = False) -> VectorEnv:
    """The scenario's environment in `num_envs` copies."""
    section = scenario.env
    env = make_vector_env(
        section.id,
        num_envs=num_envs,
        config=section.settings,
        render=render,
        rebuild=section.rebuild,
        backend=section.backend,
        workers=None if section.workers is None else min(section.workers, num_envs),
    )
    if isinstance(env, InProcessVectorEnv | WorkerVectorEnv):
        env.rewards_may_fail = scenario.advantage.failed == "exclude"
    return env


def build_players(scenario: Scenario, spec: EnvSpec) -> tuple[Player, ...]:
    """One player for each agents entry and group that it selects from.

    Raises:
        UserError: Agents that no entry selects, an entry that selects none, or a policy that its objective, region,
            optimizer or regularisers cannot work with. Or seats, where there are opponents, that do not fit the agents.
    """
    device = device_of(scenario)
    players: list[Player] = []
    for group in spec.groups:
        for position in range(len(scenario.agents)):
            index = tuple(i for i, agent in enumerate(group.agents) if _owner(scenario.agents, agent) == position)
            if index:
                unique = len(index) == len(group.agents)
                players.append(_player(scenario, position, spec, group, index, device, unique=unique))
    _check_selection(scenario, spec)
    if scenario.evaluation.opponents:
        seats_of(spec, scenario.evaluation.seats)
    return tuple(players)


def build_critic(scenario: Scenario, spec: EnvSpec) -> Critic:
    """The critic over all agents."""
    encoder = find("critics", scenario.critic.kind).load()(
        scenario.critic.config, spec, generator=make_generator(scenario.seed, "critic/start")
    )
    encoder.module.to(device_of(scenario))
    return Critic(
        scenario.critic.config,
        encoder,
        environments=spec.num_envs,
        generator=make_generator(scenario.seed, "critic/fit"),
    )


def build_schedule(scenario: Scenario) -> Schedule:
    """The schedule."""
    schedule: Schedule = find("schedules", scenario.schedule.kind).load()(scenario.schedule.config)
    return schedule


def unselected(parts: Sequence[AgentPart], agents: Sequence[str]) -> list[str]:
    """Agents that no entry selects."""
    return [agent for agent in agents if _owner(parts, agent) is None]


def _player(
    scenario: Scenario,
    position: int,
    spec: EnvSpec,
    group: GroupSpec,
    index: tuple[int, ...],
    device: torch.device,
    *,
    unique: bool,
) -> Player:
    """The player of the agents `index` of a group, which the entry at `position` of ``scenario.agents`` selects."""
    part = scenario.agents[position]
    agents = tuple(group.agents[i] for i in index)
    name = group.name if unique else f"{group.name}[{','.join(agents)}]"
    rows = Rows(agents=len(agents), shared=part.sharing == "all")
    # Who decides for everybody has to know who that is.
    everybody = {"spec": spec, "agents": agents} if getattr(part.config, "scope", "own") == "joint" else {}
    policy = find("agents", part.kind).load()(
        part.config,
        group,
        rows=rows,
        generator=make_generator(scenario.seed, f"policy/{name}"),
        device=device,
        **everybody,
    )
    wanted, bounded, steps = scenario.objective_of(part), scenario.region_of(part), scenario.optimizer_of(part)
    objective: Any = find("objectives", wanted.kind).load()(wanted.config)
    region: Any = find("regions", bounded.kind).load()(bounded.config, steps)
    _check_capabilities(scenario, position, policy, objective.requires | region.requires)
    deployed = getattr(region, "deployed", None)
    if deployed is not None:
        policy = deployed(policy)
    team = Team(name=name, group=group, index=index, agents=agents, policy=policy)
    learners = Learners(policy, team.learners, scenario.regularisers_of(part), average=scenario.evaluation.ema)
    if steps is not None and steps.kind == "muon":
        _check_muon(learners, "optimizer" if part.optimizer is None else f"agents.{position}.optimizer")
    return Player(team=team, learners=learners, objective=objective, region=region)


def _check_capabilities(scenario: Scenario, position: int, policy: Policy, required: frozenset[str]) -> None:
    part = scenario.agents[position]
    missing = required - policy.capabilities
    if missing:
        parts = (scenario.objective_of(part).config, scenario.region_of(part).config)
        others = [getattr(config, "instead", "") for config in parts if getattr(config, "requires", required) & missing]
        cures = "".join(f"; or {other}" for other in others if other)
        wanted = ", ".join(map(explain, sorted(missing)))
        raise UserError(
            f"agents.{position}: objective {scenario.objective_of(part).kind!r} with region "
            f"{scenario.region_of(part).kind!r} requires {wanted}, which these agents (kind {part.kind!r}) do not have "
            f"with the actions of this environment{cures}"
        )
    for term in scenario.regularisers_of(part):
        missing = term.requires - policy.capabilities
        if missing:
            raise UserError(
                f"regularisers.{scenario.regularisers.index(term)}: agents of kind {part.kind!r} (agents.{position}) "
                f"cannot say {', '.join(sorted(missing))}, which {term.kind!r} requires"
            )


def _check_muon(learners: Learners, where: str) -> None:
    if not hidden_matrices(learners.parameters([0])):
        raise UserError(
            f"{where}.kind: 'muon' moves hidden matrices, and these policies have none between the first and the "
            "last; use 'adamw', or a network with two hidden layers or more"
        )


def _check_selection(scenario: Scenario, spec: EnvSpec) -> None:
    left = unselected(scenario.agents, spec.agents)
    if left:
        raise UserError(
            f"agents: no entry's 'select' matches {', '.join(left)}; add an entry with select: ['*'] at the end"
        )
    for position, part in enumerate(scenario.agents):
        if not any(_owner(scenario.agents, agent) == position for agent in spec.agents):
            raise UserError(
                f"agents.{position}: select {part.select} is left with no agent of {', '.join(spec.agents)}"
            )


def _owner(parts: Sequence[AgentPart], agent: str) -> int | None:
    for position, part in enumerate(parts):
        if any(fnmatchcase(agent, pattern) for pattern in part.select):
            return position
    return None
