"""Preference data from an environment: groups of a policy's own samples, scored by the environment's return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from marl_tr.errors import UserError
from marl_tr.policy import PolicyBatch
from marl_tr.preference.data import BadPreferences, PreferenceData
from marl_tr.rollout import Collector, cohort_labels
from marl_tr.rollout.container import Rollout
from marl_tr.rollout.team import Team
from marl_tr.scenario import load_scenario
from marl_tr.scenario.schema import Scenario
from marl_tr.trainer.build import Player, build_env, build_players, device_of
from marl_tr.trainer.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, refusing_misfits
from marl_tr.trainer.run import CHECKPOINTS, SCENARIO_FILE
from marl_tr.trainer.seeding import derive_seed, make_generator
from marl_tr.vector import VectorEnv

__all__ = ["Sampler", "opened", "preferences_of"]


@contextmanager
def opened(source: Scenario | Path) -> Iterator[Sampler]:
    """The environment and the policies of a scenario as they start, or of a run's newest checkpoint (its folder).

    Example:
        >>> with opened(Path("runs/...")) as sampler:
        ...     data = sampler.sample(seed=1)
        ...     train_preferences(sampler.player().learners.policy, data, settings)

    Raises:
        UserError: No run, no checkpoint, or one of other networks.
    """
    scenario = source if isinstance(source, Scenario) else _scenario_of(source)
    env = build_env(scenario, num_envs=scenario.env.num_envs)
    try:
        players = build_players(scenario, env.spec)
        if not isinstance(source, Scenario):
            _load(players, source)
        yield Sampler(scenario, env, players)
    finally:
        env.close()


class Sampler:
    """Plays policies in their environment, and makes preference data of what they do.

    Args:
        scenario: Says how rewards are shared, and how long episodes are: ``trainer.rollout_steps`` is one episode.
        env: Of cohorts: copies that are given the same episode.
        players: Who acts.
    """

    def __init__(self, scenario: Scenario, env: VectorEnv, players: Sequence[Player]) -> None:
        self._scenario, self._env, self.players = scenario, env, tuple(players)

    def player(self, name: str | None = None) -> Player:
        """One by its team's name; by default the only one."""
        chosen = [player for player in self.players if name in (None, player.team.name)]
        if len(chosen) != 1:
            known = ", ".join(player.team.name for player in self.players)
            raise UserError(f"there is no one team {name or ''!r}; one of {known}")
        return chosen[0]

    def sample(self, *, team: str | None = None, rounds: int = 1, seed: int = 0) -> PreferenceData:
        """Groups of the policies' samples, scored by the return that is learned from.

        Args:
            team: Whose; by default the only one's.
            rounds: Episodes of every copy, one after the other.
            seed: Of episodes and actions.

        Raises:
            BadCohorts: The environment forms no cohorts of two or more.
            BadPreferences: Episodes are not as long as a rollout.
        """
        device = device_of(self._scenario)
        collector = Collector(
            self._env,
            [player.team for player in self.players],
            reward=self._scenario.env.reward,
            generator=make_generator(seed, "preference/act", device),
            device=device,
        )
        collector.reset(derive_seed(seed, "preference/env"))
        wanted = self.player(team).team
        steps = self._scenario.trainer.rollout_steps
        return PreferenceData.joined([preferences_of(collector.collect(steps), wanted) for _ in range(rounds)])


def preferences_of(rollout: Rollout, team: Team) -> PreferenceData:
    """A rollout of one episode a copy as candidates: group is the cohort, score the episode's undiscounted return.

    Candidates whose agent was never alive have no decision, and are compared with nobody.
    """
    if bool(rollout.starts[1:].any()):
        raise BadPreferences("a candidate is one episode: let trainer.rollout_steps be the length of an episode")
    group, record, rows = rollout.groups[team.group.name], rollout.records[team.name], team.policy.rows
    labels = cohort_labels(
        reward=group.reward, alive=group.alive, starts=rollout.starts, done=rollout.done, cohort=rollout.cohort
    )
    of_rows = {name: rows.to_rows(team.select(x, axis=2))[:, 0] for name, x in labels.items()}
    batch = PolicyBatch(
        observation={leaf: rows.to_rows(team.select(x, axis=2)) for leaf, x in group.observation.items()},
        record=record.record,
        memory=record.memory,
        starts=rows.to_rows(team.select(group.starts, axis=2)),
        mask=rows.to_rows(team.select(group.acting, axis=2)),
    )
    return PreferenceData(batch, group=of_rows["cohort"], score=of_rows["score"])


def _scenario_of(folder: Path) -> Scenario:
    file = folder / SCENARIO_FILE
    if not file.is_file():
        raise UserError(f"{folder} is not the folder of a run: it holds no {SCENARIO_FILE}")
    return load_scenario(file)


def _load(players: Sequence[Player], folder: Path) -> None:
    path = latest_checkpoint(folder / CHECKPOINTS)
    if path is None:
        raise CheckpointError(f"{folder / CHECKPOINTS} holds no checkpoint")
    state = load_checkpoint(path)
    with refusing_misfits():
        for player in players:
            player.learners.load_state_dict(state["trainer"]["players"][player.team.name]["learners"])
