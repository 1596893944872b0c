"""The loop: collect, value, update the policies one schedule long, fit the critic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_tr.critic.critic import Values, following
from marl_tr.critic.fit import FitReport
from marl_tr.errors import Diverged, UserError
from marl_tr.policy import PolicyBatch
from marl_tr.region.chain_gradients import learners_gradient_norms
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.needs import Need
from marl_tr.rollout import (
    Advantage,
    Collector,
    Rollout,
    cohort_advantage,
    cohort_labels,
    executed_by_all,
    generalised_advantage,
    normalise,
    with_process_scores,
)
from marl_tr.scenario.schema import Scenario
from marl_tr.schedule.assignment import Assignment
from marl_tr.trainer.build import Player, build_critic, build_env, build_players, build_schedule, device_of
from marl_tr.trainer.checkpoint import refusing_misfits
from marl_tr.trainer.seeding import derive_seed, make_generator
from marl_tr.trainer.trials import FreshEpisodes
from marl_tr.vector import VectorEnv

__all__ = ["Iteration", "Trainer", "iterations_of"]


def iterations_of(scenario: Scenario) -> int:
    """Iterations of a whole run: the fewest that reach ``total_steps``."""
    steps = scenario.env.num_envs * scenario.trainer.rollout_steps
    return -(-scenario.trainer.total_steps // steps)


@dataclass(frozen=True)
class Iteration:
    """What one iteration of the loop did.

    Attributes:
        scalars: By tag.
        maps: Pictures ``[H, W]`` in [0, 1] by tag (attention), only where asked for.
        chains: What the updates did to each step of a policy's chain, by learner and measure.
    """

    scalars: dict[str, float]
    maps: dict[str, Tensor] = field(default_factory=dict)
    chains: dict[str, dict[str, list[float]]] = field(default_factory=dict)


class Trainer:
    """All that learns, and the environment it learns in.

    Args:
        scenario: What to build.
        env: Learn in this in place of the scenario's environment.

    Attributes:
        audit: Receives a line for every update of a policy or the critic; to be set before the first iteration.
        began: ``time.perf_counter()`` when building began.
        iteration: Iterations done.
        step: Environment steps done, all copies together.
        seconds: Wall time by part of the loop, for the time split.
    """

    def __init__(self, scenario: Scenario, *, env: VectorEnv | None = None) -> None:
        self.began = time.perf_counter()
        self.scenario = scenario
        self.device = device_of(scenario)
        self.env = build_env(scenario, num_envs=scenario.env.num_envs) if env is None else env
        self.players: tuple[Player, ...] = build_players(scenario, self.env.spec)
        self.critic = build_critic(scenario, self.env.spec)
        self.iteration = 0
        self.step = 0
        self.seconds = {"act": 0.0, "env": 0.0, "learn": 0.0, "critic": 0.0}
        self.collector = Collector(
            self.env,
            [player.team for player in self.players],
            reward=scenario.env.reward,
            generator=make_generator(scenario.seed, "act", self.device),
            device=self.device,
        )
        self._schedule = build_schedule(scenario)
        self._trials = FreshEpisodes(
            self.players, partial(_copies, scenario), reward=scenario.env.reward, device=self.device
        )
        self._generator = make_generator(scenario.seed, "update")
        self.audit: Callable[[Mapping[str, Any]], None]
        self._guard = Guard(self._audited)
        self._losses: dict[str, list[float]] = {}

    @property
    def learners(self) -> tuple[str, ...]:
        """Every learner's name, as in the tags and in the audit."""
        return tuple(name for player in self.players for name in player.learners.names)

    @property
    def iterations(self) -> int:
        """Iterations of the whole run."""
        return iterations_of(self.scenario)

    def non_finite(self) -> dict[str, list[str]]:
        """Names of the parameters that hold NaN or an infinity: by team, and under ``critic``."""
        modules = {player.team.name: player.team.policy.module for player in self.players}
        return {
            owner: [name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
            for owner, module in {**modules, "critic": self.critic.encoder.module}.items()
        }

    def start(self) -> None:
        """First episodes; where inputs are normalised, after a rollout that tells their scale and nothing else.

        That rollout is not learned from and not counted. Without it networks would start on inputs of any scale,
        and later changes of the statistics keep what a network does, saturation included.
        """
        seed = derive_seed(self.scenario.seed, "env")
        self.collector.reset(seed)
        if self.critic.encoder.observes or any(player.team.policy.observes for player in self.players):
            rollout = self.collector.collect(self.scenario.trainer.rollout_steps)
            self._observe(rollout, first=True)
            self.critic.warm_up(rollout)
            self.collector.reset(seed)

    def iterate(self, *, diagnose: bool = False) -> Iteration:
        """One rollout and everything that is learned from it.

        Args:
            diagnose: Also compute what costs more: the critic's diagnostics (attention), and gradient norms by step of
                a policy's chain.

        Raises:
            Diverged: Something is not finite; the message says what and the likely cause.
        """
        started = time.perf_counter()
        before = dict(self.collector.seconds)
        rollout, failed = self._usable(self.collector.collect(self.scenario.trainer.rollout_steps))
        collected = time.perf_counter()
        values = self.critic.evaluate(rollout)
        valued = time.perf_counter()
        advantage = self._advantage(rollout, values)
        self._check_finite(values, advantage)
        reports, norms = self._update(rollout, advantage, diagnose=diagnose)
        learned = time.perf_counter()
        fit = self._fit(rollout, values, advantage)
        self._check_parameters()
        self.iteration += 1
        self.step += rollout.steps
        scalars, maps = self._diagnostics(values) if diagnose else ({}, {})
        ended = time.perf_counter()
        seconds = {name: value - before[name] for name, value in self.collector.seconds.items()}
        seconds["learn"] = learned - valued
        seconds["critic"] = (ended - learned) + (valued - collected)
        for name, value in seconds.items():
            self.seconds[name] += value
        scalars |= self._scalars(rollout, reports, fit)
        scalars |= {f"perf/{name}_s": value for name, value in seconds.items()}
        scalars["charts/SPS"] = rollout.steps / (ended - started)
        if self.scenario.advantage.failed == "exclude":
            scalars["charts/failed_episodes"] = failed
        chains = {report.learner: report.chain | norms.get(report.learner, {}) for report in reports if report.chain}
        return Iteration(scalars=scalars, maps=maps, chains=chains)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later iteration depends on."""
        return {
            "iteration": self.iteration,
            "step": self.step,
            "collector": self.collector.state_dict(),
            "critic": self.critic.state_dict(),
            "players": {
                player.team.name: {
                    "learners": player.learners.state_dict(),
                    "region": player.region.state_dict(),
                }
                for player in self.players
            },
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: The state is of other networks.
            UserError: The environment does not repeat itself.
        """
        with refusing_misfits():
            self.iteration, self.step = int(state["iteration"]), int(state["step"])
            for player in self.players:
                saved = state["players"][player.team.name]
                player.learners.load_state_dict(saved["learners"])
                player.region.load_state_dict(saved["region"])
            self.critic.load_state_dict(state["critic"])
            self._generator.set_state(state["generator"])
        # Outside: what a user's environment raises while it is replayed is shown as it is.
        self.collector.load_state_dict(state["collector"])

    def _usable(self, rollout: Rollout) -> tuple[Rollout, int]:
        """The rollout without episodes whose reward failed, where the scenario says so, and their number."""
        if self.scenario.advantage.failed == "exclude":
            rollout, failed = rollout.without_failed()
            if not any(bool(group.alive.any()) for group in rollout.groups.values()):
                raise Diverged(
                    "every episode of this rollout has a reward that is not finite: nothing is left to learn"
                )
            return rollout, failed
        for name, group in rollout.groups.items():
            if not bool(torch.isfinite(group.reward).all()):
                raise Diverged(
                    f"group {name!r}: a reward is not finite; the environment paid it ('marl-tr check-env'), or its "
                    "reward model failed on a sample ('advantage: {failed: exclude}' leaves such episodes out)"
                )
        return rollout, 0

    def _advantage(self, rollout: Rollout, values: Values) -> Advantage:
        """Of all agents ``[T, E, A]``, by the scenario's estimator; the critic's targets are always GAE's."""
        settings = self.scenario.advantage
        estimated = self._generalised(rollout, values)
        if settings.estimator == "gae":
            return estimated
        alive = _all(rollout, "alive")
        relative = cohort_advantage(
            reward=self._compared_reward(rollout),
            alive=alive,
            starts=rollout.starts,
            done=rollout.done,
            cohort=rollout.cohort,
            clip=settings.cohort_clip,
        )
        if settings.estimator == "cohort":
            return Advantage(raw=relative, target=estimated.target)
        own = normalise(estimated.raw.movedim(-1, 0), _all(rollout, "acting").movedim(-1, 0)).movedim(0, -1)
        w = settings.cohort_weight
        mixed = w * relative + (1 - w) * (own if settings.normalise else estimated.raw)
        return Advantage(raw=mixed, target=estimated.target)

    def _compared_reward(self, rollout: Rollout) -> Tensor:
        """What cohorts are compared by ``[T, E, A]``: the reward, transformed where the scenario says so."""
        reward, transform = _all(rollout, "reward"), self.scenario.advantage.transform
        if transform is None:
            return reward
        process = rollout.metrics.get(transform.process)
        if process is None:
            known = ", ".join(rollout.metrics) or "none"
            raise UserError(
                f"advantage.transform.process: the environment measures no {transform.process!r}; its metrics: {known}"
            )
        return with_process_scores(
            reward=reward,
            process=process,
            alive=_all(rollout, "alive"),
            starts=rollout.starts,
            done=rollout.done,
            cohort=rollout.cohort,
            weight=transform.alpha * math.exp(-self.iteration / (transform.decay or self.iterations)),
            right=transform.right,
            released=transform.released,
        )

    def _generalised(self, rollout: Rollout, values: Values) -> Advantage:
        """GAE; one joint value where the reward is shared (specification 2.1)."""
        value, next_value = values.value, values.next_value
        if self.scenario.env.reward != "own":
            cut = rollout.bootstrap
            value = _team_mean(value, _all(rollout, "alive"))
            # Over who lives then: some have gone meanwhile, and others joined.
            next_value = following(value, _team_mean(values.beyond, cut.living), cut)
        return generalised_advantage(
            reward=_all(rollout, "reward"),
            value=value,
            next_value=next_value,
            terminated=_all(rollout, "terminated"),
            truncated=_all(rollout, "truncated"),
            alive=_all(rollout, "alive"),
            gamma=self.scenario.advantage.gamma,
            lam=self.scenario.advantage.lam,
        )

    def _update(
        self, rollout: Rollout, advantage: Advantage, *, diagnose: bool
    ) -> tuple[list[UpdateReport], dict[str, dict[str, list[float]]]]:
        """Reports, and gradient norms by learner where they are asked for and policies have chains."""
        self._losses = {}
        offsets = dict(
            zip(
                (group.name for group in self.env.spec.groups),
                np.cumsum([0, *(len(group.agents) for group in self.env.spec.groups)]),
                strict=False,
            )
        )
        labels = self._labels(rollout, advantage.raw)
        assignments = [
            self._assignment(player, rollout, advantage.raw, labels, int(offsets[player.team.group.name]))
            for player in self.players
        ]
        norms: dict[str, dict[str, list[float]]] = {}
        for assignment in assignments if diagnose else ():
            norms |= learners_gradient_norms(assignment.learners, assignment.batch)
        progress = min(1.0, self.iteration / self.iterations)
        reports = self._schedule.update(assignments, self._guard, self._generator, progress)
        self._observe(rollout, first=False)
        return reports, norms

    def _observe(self, rollout: Rollout, *, first: bool) -> None:
        for player in self.players:
            group = rollout.groups[player.team.group.name]
            player.learners.observe(
                {leaf: player.team.select(x, axis=2) for leaf, x in group.observation.items()},
                player.team.select(group.alive, axis=2),
                first=first,
            )

    def _labels(self, rollout: Rollout, raw: Tensor) -> dict[str, Tensor]:
        """What regions ask to know, of all agents ``[T, E, A]``."""
        needs = frozenset[str]().union(*(getattr(player.region, "needs", ()) for player in self.players))
        labels = {"raw_advantage": raw} if Need.RAW_ADVANTAGE in needs else {}
        if needs & {Need.COHORT, Need.WHOLE_COHORTS}:
            labels |= cohort_labels(
                reward=self._compared_reward(rollout),
                alive=_all(rollout, "alive"),
                starts=rollout.starts,
                done=rollout.done,
                cohort=rollout.cohort,
            )
        return labels

    def _assignment(
        self, player: Player, rollout: Rollout, raw: Tensor, labels: dict[str, Tensor], offset: int
    ) -> Assignment:
        team, rows = player.team, player.team.policy.rows
        group, record = rollout.groups[team.group.name], rollout.records[team.name]
        columns = torch.tensor([offset + i for i in team.index], device=raw.device)
        joint = getattr(team.policy, "scope", "own") == "joint"
        batch = PolicyBatch(
            observation={leaf: rows.to_rows(team.select(x, axis=2)) for leaf, x in group.observation.items()},
            record=executed_by_all([p.team for p in self.players], rollout, team) if joint else record.record,
            memory=record.memory,
            starts=rows.to_rows(team.select(group.starts, axis=2)),
            mask=rows.to_rows(team.select(group.acting, axis=2)),
        )
        return Assignment(
            learners=player.learners,
            batch=batch,
            advantage=rows.to_rows(raw.index_select(2, columns)),
            normalise=self.scenario.advantage.normalise and self.scenario.advantage.estimator == "gae",
            objective=player.objective,
            region=player.region,
            log=self._log,
            trials=self._trials,
            labels={name: rows.to_rows(x.index_select(2, columns)) for name, x in labels.items()},
        )

    def _fit(self, rollout: Rollout, values: Values, advantage: Advantage) -> FitReport:
        report = self.critic.fit(values, advantage.target, _all(rollout, "alive"))
        self._audited(report.audit_line())
        if not math.isfinite(report.loss_after):
            raise Diverged(
                "the critic's loss is not finite; likely cause: rewards of a scale whose squares overflow (see "
                "charts/episodic_return), in the environment or through env.reward"
            )
        return report

    def _audited(self, line: Mapping[str, Any]) -> None:
        self.audit({"iteration": self.iteration, "step": self.step, **line})

    def _log(self, losses: Mapping[str, float]) -> None:
        for tag, value in losses.items():
            self._losses.setdefault(tag, []).append(value)

    def _check_finite(self, values: Values, advantage: Advantage) -> None:
        if not bool(torch.isfinite(values.value).all() & torch.isfinite(values.next_value).all()):
            raise Diverged(
                "the critic's values are not finite; likely causes: observations of a very large scale, or a fit that "
                "went too far (lower critic.fit.bound or critic.fit.learning_rate)"
            )
        if not bool(torch.isfinite(advantage.raw).all() & torch.isfinite(advantage.target).all()):
            raise Diverged("advantages are not finite; likely cause: rewards of a scale whose sums overflow")

    def _check_parameters(self) -> None:
        broken = {owner: names for owner, names in self.non_finite().items() if names}
        if broken:
            where = "; ".join(f"{owner}: {', '.join(names)}" for owner, names in broken.items())
            raise Diverged(
                f"parameters are not finite after an update ({where}); likely cause: a learning rate that is too high"
            )

    def _diagnostics(self, values: Values) -> tuple[dict[str, float], dict[str, Tensor]]:
        environments = min(16, values.inputs.starts.shape[1])
        index = torch.arange(environments, device=values.inputs.starts.device)
        return self.critic.encoder.diagnostics(values.inputs.environments(index))

    def _scalars(self, rollout: Rollout, reports: list[UpdateReport], fit: FitReport) -> dict[str, float]:
        scalars = {tag: float(np.mean(series)) for tag, series in self._losses.items()}
        if len(rollout.episodes.lengths):
            returns = rollout.episodes.returns
            counted = np.isfinite(returns).all(1)
            if counted.any():
                scalars["charts/episodic_return"] = float(returns[counted].mean())
            scalars["charts/episodic_length"] = float(rollout.episodes.lengths.mean())
        scalars |= {f"env/{name}": value for name, value in rollout.episodes.metrics.items()}
        entropies = [report.entropy for report in reports if report.entropy is not None]
        if entropies:
            scalars["losses/entropy"] = float(np.mean(entropies))
        scalars["losses/value_loss"] = fit.loss_after
        scalars["losses/explained_variance"] = fit.explained_variance
        scalars["critic/divergence"] = fit.divergence
        if fit.bound is not None:
            scalars["critic/bound"] = fit.bound
        for report in reports:
            scalars |= _region_scalars(report) | report.measures
        for player in self.players:
            scalars |= player.team.policy.diagnostics()
        return scalars


def _copies(scenario: Scenario, copies: int) -> VectorEnv:
    return build_env(scenario, num_envs=copies)


def _region_scalars(report: UpdateReport) -> dict[str, float]:
    values: dict[str, float | None] = {
        "divergence": report.accepted,
        "bound": report.bound,
        "backtracks": report.backtracks,
        "accepted": float(report.outcome == "accepted"),
        "surrogate_gain": report.surrogate_gain,
        "cg_residual": report.cg_residual,
    }
    values |= report.regularisers
    return {f"region/{key}/{report.learner}": value for key, value in values.items() if value is not None}


def _team_mean(value: Tensor, alive: Tensor) -> Tensor:
    """``[..., A]``: the mean over the living in every place; zero where nobody lives."""
    weight = alive.to(value.dtype)
    mean = (value * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp_min(1)
    return mean.expand_as(value)


def _all(rollout: Rollout, name: str) -> Tensor:
    """One array of every group side by side, ``[T, E, A of all groups]``."""
    return torch.cat([getattr(group, name) for group in rollout.groups.values()], -1)
