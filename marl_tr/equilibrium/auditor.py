"""The protocol: responders of growing budgets, the best of them by validation, its gap on fresh paired episodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marl_tr.equilibrium.episodes import crossed_returns, joint_returns
from marl_tr.equilibrium.exact import exact_gaps
from marl_tr.equilibrium.game import Game
from marl_tr.equilibrium.gaps import Interval, joint_gap
from marl_tr.equilibrium.plays import RandomSubject, Subject
from marl_tr.equilibrium.responder import WAYS, Responder, learns_by_ratio
from marl_tr.equilibrium.settings import AuditSettings
from marl_tr.trainer.seeding import derive_seed

__all__ = ["AgentAudit", "Auditor", "Level", "SubjectAudit"]

Array = NDArray[np.float64]
_ERRORS = 2.0
"""A growth within this many of its standard errors is not told from none."""


@dataclass(frozen=True)
class Level:
    """The best responder after one level of the budget, on the validation episodes.

    Attributes:
        steps: Environment steps that each responder had learned from.
        gap: Of the best so far, in the mean; chosen as the largest of several, it leans upwards.
        growth: What the level added to the best; None of the first.
        growth_error: Its standard error, over paired episodes.
    """

    steps: int
    gap: float
    growth: float | None
    growth_error: float | None


@dataclass(frozen=True)
class AgentAudit:
    """What one agent gains by deviating alone, on the test episodes.

    Attributes:
        agent: Who.
        gap: Signed.
        kept: ``J_i(pi)``.
        random: ``J_i`` where all play at random.
        relative: The gap over ``J_i(pi) - J_i(random)``; None where that is not positive.
        responder: The one that was chosen, with its way of acting and steps.
        learned: False where a policy that was there is the better response.
        levels: What the budget bought.
        converged: Whether the last doubling added nothing that could be told, and no policy that did not learn is a
            better response than all that did.
        resolution: The least growth that would have been told; None where the budget was never doubled.
        noise_share: Variance of the paired differences over that of unpaired ones; below 1 common random numbers help.
        exact: The true gap, where the environment can compute it.
    """

    agent: str
    gap: Interval
    kept: float
    random: float
    relative: float | None
    responder: str
    learned: bool
    levels: tuple[Level, ...]
    converged: bool
    resolution: float | None
    noise_share: float | None
    exact: float | None


@dataclass(frozen=True)
class SubjectAudit:
    """The audit of one joint policy.

    Attributes:
        name: Of the subject.
        omniscient: Whether the responders saw the global state, which the agents do not.
        agents: Those that were audited.
        nash_conv: None where not every agent was, and none stands for others.
        symmetric: Whether agents stand for their groups in it.
        epsilon: The largest gap of those that were audited.
        exact_nash_conv: The true one, where the environment can compute it.
    """

    name: str
    omniscient: bool
    agents: tuple[AgentAudit, ...]
    nash_conv: Interval | None
    symmetric: bool
    epsilon: Interval
    exact_nash_conv: float | None

    @property
    def converged(self) -> bool:
        """Whether every agent's gap stopped growing."""
        return all(agent.converged for agent in self.agents)

    @property
    def found(self) -> bool:
        """Whether some agent's gap is told from 0."""
        return any(agent.gap.low > 0 for agent in self.agents)


@dataclass(frozen=True)
class _Best:
    """The best response so far, by validation.

    Attributes:
        name: For the reader.
        gains: ``[n]`` on the validation episodes.
        test: Plays the test episodes: returns ``[n]``.
        learned: Whether it is a responder; else a policy that was there.
    """

    name: str
    gains: Array
    test: Callable[[], Array]
    learned: bool


@dataclass(frozen=True)
class _Search:
    """What the search for one agent's best response came to; see `AgentAudit`."""

    best: _Best
    levels: tuple[Level, ...]
    converged: bool
    resolution: float | None


class Auditor:
    """Looks for best responses in one game.

    Args:
        game: What is played.
        settings: How hard, and how it is measured.
        folder: For the responders; what is in it already is gone on with.
        budget: Environment steps of a responder before the first doubling.
        stop: Asked after every iteration of a responder whether to save and stop.
        tick: Told of environment steps as they are done.
        say: Takes a line for the reader.
    """

    def __init__(
        self,
        game: Game,
        settings: AuditSettings,
        folder: Path,
        *,
        budget: int,
        stop: Callable[[], bool] = lambda: False,
        tick: Callable[[int], None] = lambda steps: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        settings.check()
        self.game, self.settings, self.budget = game, settings, budget
        self._folder, self._stop, self._tick, self._say = folder, stop, tick, say
        self._random: dict[str, dict[str, Array]] = {}

    def names(self, subject: Subject, agent: str, *, omniscient: bool = False) -> tuple[str, ...]:
        """Responders to `agent` of `subject`; none begins at a policy that there is not, or that sees less."""
        fresh = tuple(f"fresh_{number}" for number in range(self.settings.fresh))
        warm = tuple(f"warm_{number}" for number in range(self.settings.warm))
        if not subject.teams or omniscient or not learns_by_ratio(self.game, agent):
            return fresh or ("fresh_0",)
        return fresh + warm

    def responder(self, subject: Subject, agent: str, name: str, *, omniscient: bool = False) -> Responder:
        """One responder with its files."""
        owner = f"{_file_name(subject.name)}{'-omniscient' if omniscient else ''}"
        return Responder(
            self.game,
            subject,
            agent,
            name,
            settings=self.settings,
            budget=self.budget,
            folder=self._folder / owner / _file_name(agent) / name,
            omniscient=omniscient,
        )

    def audit(self, subject: Subject, agents: Sequence[str], *, omniscient: bool = False) -> SubjectAudit:
        """Train responders to `subject`, choose, measure.

        Raises:
            Interrupted: After saving; called again, it goes on.
            UserError: The responders' scenario does not fit, or the environment fails.
        """
        kept = {purpose: self._joint(subject, purpose) for purpose in ("validation", "test")}
        found = {agent: self._search(subject, agent, kept["validation"][agent], omniscient) for agent in agents}
        responded = {agent: search.best.test() for agent, search in found.items()}
        differences = {agent: responded[agent] - kept["test"][agent] for agent in agents}
        weights = {
            agent: float(self.game.group_size(agent)) / self._audited_of_group(agents, agent) for agent in agents
        }
        symmetric = self.settings.symmetric and set(agents) != set(self.game.spec.agents)
        joint = joint_gap(
            differences,
            seed=derive_seed(self.settings.seed, "nash_gap/bootstrap"),
            weights=weights if symmetric else None,
        )
        exact = None if omniscient else exact_gaps(self.game, subject)
        random = self._joint(RandomSubject(), "test")
        complete = symmetric or set(agents) == set(self.game.spec.agents)
        return SubjectAudit(
            name=subject.name,
            omniscient=omniscient,
            agents=tuple(
                AgentAudit(
                    agent=agent,
                    gap=joint.agents[agent],
                    kept=float(kept["test"][agent].mean()),
                    random=float(random[agent].mean()),
                    relative=_relative(joint.agents[agent].estimate, kept["test"][agent], random[agent]),
                    responder=search.best.name,
                    learned=search.best.learned,
                    levels=search.levels,
                    converged=search.converged,
                    resolution=search.resolution,
                    noise_share=_noise_share(responded[agent], kept["test"][agent]),
                    exact=None if exact is None else exact[agent],
                )
                for agent, search in found.items()
            ),
            nash_conv=joint.nash_conv if complete else None,
            symmetric=symmetric,
            epsilon=joint.epsilon,
            exact_nash_conv=None if exact is None else sum(exact.values()),
        )

    def _search(self, subject: Subject, agent: str, kept: Array, omniscient: bool) -> _Search:
        responders = [
            self.responder(subject, agent, name, omniscient=omniscient)
            for name in self.names(subject, agent, omniscient=omniscient)
        ]
        random = self._joint(RandomSubject(), "validation")[agent]
        ready_made = self._ready_made(subject, agent, kept)
        best: _Best | None = None
        levels: list[Level] = []
        resolution: float | None = None
        stopped = False
        for level in range(self.settings.doublings + 1):
            before = best
            for responder in responders:
                responder.train(level, stop=self._stop, tick=self._tick)
                best = self._better(best, responder, level, kept)
            assert best is not None
            gap = float(best.gains.mean())
            growth = error = None
            if before is not None:
                growth, error = _mean_and_error(best.gains - before.gains)
                scale = max(abs(float(kept.mean() - random.mean())), abs(gap))
                resolution = max(self.settings.tolerance * scale, _ERRORS * error)
                stopped = growth <= resolution
            levels.append(Level(responders[0].scored(level).step, gap, growth, error))
            self._say(_progress(subject, agent, omniscient, levels[-1], best))
            if stopped:
                break
        assert best is not None
        if ready_made is None:
            return _Search(best, tuple(levels), stopped, resolution)
        ahead, error = _mean_and_error(ready_made.gains - best.gains)
        behind = ahead > max(resolution or 0.0, _ERRORS * error)
        return _Search(ready_made if ahead > 0 else best, tuple(levels), stopped and not behind, resolution)

    def _ready_made(self, subject: Subject, agent: str, kept: Array) -> _Best | None:
        """The best response among policies that need no learning; None where none is asked for."""
        best: _Best | None = None
        for known in self.game.named(self.settings.deviations, "deviations"):
            gains = self._crossed(subject, known, agent, "validation") - kept
            if best is None or gains.mean() > best.gains.mean():
                best = _Best(
                    f"not learned: {known.name}",
                    gains,
                    functools.partial(self._crossed, subject, known, agent, "test"),
                    learned=False,
                )
        return best

    def _better(self, best: _Best | None, responder: Responder, level: int, kept: Array) -> _Best:
        scored = responder.scored(level)
        for way in WAYS:
            gains = scored.returns[way] - kept
            if best is None or gains.mean() > best.gains.mean():
                name = f"{responder.name}, {way}, after {scored.step:,} steps"
                best = _Best(name, gains, functools.partial(responder.test, level, way), learned=True)
        assert best is not None
        return best

    def _crossed(self, subject: Subject, own: Subject, agent: str, purpose: str) -> Array:
        return crossed_returns(
            self.game.make,
            subject,
            own,
            agent,
            episodes=self._episodes(purpose),
            seed=derive_seed(self.settings.seed, f"nash_gap/{purpose}"),
            payoff=self.game.payoff,
        )

    def _episodes(self, purpose: str) -> int:
        return self.settings.validation_episodes if purpose == "validation" else self.settings.episodes

    def _joint(self, subject: Subject, purpose: str) -> dict[str, Array]:
        if isinstance(subject, RandomSubject) and purpose in self._random:
            return self._random[purpose]
        returns = joint_returns(
            self.game.make,
            subject,
            episodes=self._episodes(purpose),
            seed=derive_seed(self.settings.seed, f"nash_gap/{purpose}"),
            payoff=self.game.payoff,
        )
        if isinstance(subject, RandomSubject):
            self._random[purpose] = returns
        return returns

    def _audited_of_group(self, agents: Sequence[str], agent: str) -> int:
        group = next(group for group in self.game.spec.groups if agent in group.agents)
        return sum(other in group.agents for other in agents)


def _mean_and_error(x: Array) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))


def _relative(gap: float, kept: Array, random: Array) -> float | None:
    learned = float(kept.mean() - random.mean())
    return gap / learned if learned > 0 else None


def _noise_share(responded: Array, kept: Array) -> float | None:
    apart = responded.var() + kept.var()
    return float((responded - kept).var() / apart) if apart > 0 else None


def _progress(subject: Subject, agent: str, omniscient: bool, level: Level, best: _Best) -> str:
    who = f"{subject.name}{' (omniscient)' if omniscient else ''}, {agent}"
    grew = "" if level.growth is None else f", grew by {level.growth:.4g} +- {level.growth_error:.2g}"
    return f"{who}: {level.steps:,} steps, validation gap {level.gap:.4g} ({best.name}){grew}"


def _file_name(name: str) -> str:
    """A name that any file system takes, different for different names."""
    plain = "".join(c if c.isalnum() or c in "_.-" else "_" for c in name)
    return plain if plain == name else f"{plain}-{derive_seed(0, name) % 16**6:06x}"
