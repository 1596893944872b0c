"""A run's game and its frozen policies, as an audit needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from marl_tr.equilibrium.plays import PolicySubject, RandomSubject, ReferenceSubject, Subject, reference_names
from marl_tr.equilibrium.settings import ALL_REFERENCES
from marl_tr.equilibrium.solo import Payoff, refuse_cohorts
from marl_tr.errors import UserError
from marl_tr.scenario import load_scenario
from marl_tr.scenario.schema import AgentPart, Scenario
from marl_tr.trainer.build import build_env, build_players, device_of
from marl_tr.trainer.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, refusing_misfits
from marl_tr.trainer.held_out import averaged
from marl_tr.trainer.run import CHECKPOINTS, SCENARIO_FILE
from marl_tr.vector.contract import EnvSpec, VectorEnv

__all__ = ["FrozenRun", "Game", "frozen_run"]


@dataclass(frozen=True)
class Game:
    """An environment in which agents are after something of their own.

    Attributes:
        scenario: Names the environment, and says how its agents are built.
        spec: The environment's.
        payoff: What an agent is after.
        references: The environment's reference policies, but for random play.
    """

    scenario: Scenario
    spec: EnvSpec
    payoff: Payoff
    references: tuple[str, ...]

    @classmethod
    def of(cls, scenario: Scenario, *, payoff: Payoff | None = None) -> Game:
        """The game of a scenario; by default agents are after what they learn from.

        Raises:
            UserError: The environment has one agent, or compares samples of a cohort.
        """
        env = build_env(scenario, num_envs=scenario.env.num_envs)
        try:
            spec = env.spec
            if len(spec.agents) < 2:
                raise UserError(
                    f"environment {spec.id!r} has one agent alone: there is nobody to be in equilibrium with "
                    "('marl-tr eval' tells how well it does)"
                )
            refuse_cohorts(spec, env.reset(0))
            references = reference_names(env)
        finally:
            env.close()
        return cls(scenario, spec, payoff or scenario.env.reward, references)

    def make(self, copies: int) -> VectorEnv:
        """The environment in that many copies."""
        return build_env(self.scenario, num_envs=copies)

    def entry(self, agent: str) -> AgentPart:
        """The scenario's entry of an agent."""
        for part in self.scenario.agents:
            if any(fnmatchcase(agent, pattern) for pattern in part.select):
                return part
        raise UserError(f"agents: no entry's 'select' matches {agent}")

    def named(self, names: Sequence[str], what: str) -> tuple[Subject, ...]:
        """Random play and reference policies by their names, each once.

        Args:
            names: ``random``, `ALL_REFERENCES`, or those of references.
            what: They are wanted for, for messages.

        Raises:
            UserError: There is no such policy.
        """
        chosen: list[Subject] = []
        for name in names:
            if name == "random":
                chosen.append(RandomSubject())
            elif name == ALL_REFERENCES:
                chosen += [ReferenceSubject(known) for known in self.references]
            elif name in self.references:
                chosen.append(ReferenceSubject(name))
            else:
                raise UserError(
                    f"{what}: {name!r} is neither 'random', {ALL_REFERENCES!r} nor a reference policy of the "
                    f"environment, which has {', '.join(map(repr, self.references)) or 'none'}"
                )
        return tuple({subject.name: subject for subject in chosen}.values())

    def group_size(self, agent: str) -> int:
        """How many agents have its spaces."""
        return next(len(group.agents) for group in self.spec.groups if agent in group.agents)

    def check_agents(self, agents: tuple[str, ...] | None) -> tuple[str, ...]:
        """`agents`, or all.

        Raises:
            UserError: One of them does not exist.
        """
        if agents is None:
            return self.spec.agents
        unknown = [agent for agent in agents if agent not in self.spec.agents]
        if unknown:
            raise UserError(
                f"environment {self.spec.id!r} has no agent {', '.join(unknown)}; it has {', '.join(self.spec.agents)}"
            )
        return agents


@dataclass(frozen=True)
class FrozenRun:
    """A run's newest checkpoint.

    Attributes:
        folder: The run's.
        game: What it was trained in.
        subject: Its policies: stochastic, and by the averages of their parameters where the scenario keeps them.
        step: Environment steps that they were trained for.
    """

    folder: Path
    game: Game
    subject: PolicySubject
    step: int


@contextmanager
def frozen_run(folder: Path, *, payoff: Payoff | None = None) -> Iterator[FrozenRun]:
    """Load the newest checkpoint of a run; inside, its policies stay as they are.

    Raises:
        UserError: No run, no checkpoint, one of other networks, or a game that cannot be audited.
    """
    file = folder / SCENARIO_FILE
    if not file.is_file():
        raise UserError(f"{folder} is not the folder of a run: it holds no {SCENARIO_FILE}")
    game = Game.of(load_scenario(file), payoff=payoff)
    path = latest_checkpoint(folder / CHECKPOINTS)
    if path is None:
        raise CheckpointError(f"{folder / CHECKPOINTS} holds no checkpoint; there is nothing to audit")
    state = load_checkpoint(path)
    # As many copies as in training: some policies look at nothing else of the environment, and none at this.
    players = build_players(game.scenario, replace(game.spec, num_envs=game.scenario.env.num_envs))
    try:
        with refusing_misfits():
            step = int(state["trainer"]["step"])
            for player in players:
                player.learners.load_state_dict(state["trainer"]["players"][player.team.name]["learners"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    with ExitStack() as stack:
        stack.enter_context(averaged(players))
        teams = tuple(player.team for player in players)
        subject = PolicySubject("policy", teams, device_of(game.scenario))
        yield FrozenRun(folder, game, subject, step)
