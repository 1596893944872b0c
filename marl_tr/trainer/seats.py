"""Games against opponents: the learned policies in one seat of an environment, somebody else in all the others.

In a game that is played against oneself returns say little of how well it is played: their mean over both sides of a
zero-sum game is 0 from the first step to the last. Against an opponent that does not change they tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from marl_tr.analysis.statistics import ConfidenceInterval, stratified_bootstrap_ci
from marl_tr.errors import UserError
from marl_tr.trainer.evaluation import Act, Episodes
from marl_tr.vector.contract import Actions, EnvSpec, Step
from marl_tr.vector.sampling import random_actions

__all__ = ["Match", "Seat", "against", "match_of", "random_opponent", "seated", "seats_of"]


@dataclass(frozen=True)
class Seat:
    """Agents that one player has.

    Attributes:
        name: For tags.
        agents: Their names.
    """

    name: str
    agents: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """Held-out episodes with the learned policies in one seat.

    Attributes:
        opponent: Who had all other seats.
        seat: Ours.
        returns: ``[n]``: mean over the seat's agents of the undiscounted sum of each one's own reward.
        won: ``[n]`` bool: it is larger than that of every other seat.
    """

    opponent: str
    seat: str
    returns: NDArray[np.float64]
    won: NDArray[np.bool_]

    def interval(self, *, seed: int) -> ConfidenceInterval:
        """The mean return with its 95 % bootstrap interval; not an IQM, which of wins and losses tells next to
        nothing."""
        return stratified_bootstrap_ci(self.returns, lambda x: x.mean(axis=-1), seed=seed)


def seats_of(spec: EnvSpec, given: Mapping[str, Sequence[str]]) -> tuple[Seat, ...]:
    """The seats that a scenario names, else the groups where there are several, else the agents.

    Args:
        spec: The environment's groups and agents.
        given: Agent names or shell patterns by name of seat; an agent takes the first seat that matches it.

    Raises:
        UserError: Fewer than two seats, one without agents, or an agent without a seat.
    """
    if not given:
        if len(spec.groups) > 1:
            return tuple(Seat(group.name, group.agents) for group in spec.groups)
        if len(spec.agents) < 2:
            raise UserError(f"evaluation.opponents: {spec.id!r} has one agent alone, and nobody to play against")
        return tuple(Seat(agent, (agent,)) for agent in spec.agents)
    owners = {agent: _owner(given, agent) for agent in spec.agents}
    seats = tuple(Seat(name, tuple(agent for agent, owner in owners.items() if owner == name)) for name in given)
    lost = [agent for agent, owner in owners.items() if owner is None]
    if lost:
        raise UserError(f"evaluation.seats: no seat matches {', '.join(lost)}")
    empty = [seat.name for seat in seats if not seat.agents]
    if empty:
        raise UserError(f"evaluation.seats: {', '.join(empty)} is left with no agent of {', '.join(spec.agents)}")
    if len(seats) < 2:
        raise UserError("evaluation.seats: a match needs two seats, ours and another")
    return seats


def random_opponent(spec: EnvSpec, *, seed: int) -> Act:
    """Uniformly random actions among those that are allowed, with draws of its own."""
    generator = np.random.default_rng(seed)
    return lambda step: random_actions(spec, generator, step)


def seated(ours: Act, theirs: Act, seat: Seat, spec: EnvSpec) -> Act:
    """`ours` acts for the agents of `seat`, `theirs` for all others; both see every step."""
    mine = {group.name: np.array([agent in seat.agents for agent in group.agents]) for group in spec.groups}

    def act(step: Step) -> Actions:
        own, other = ours(step), theirs(step)
        return {
            name: {leaf: np.where(_along(mine[name], x), x, other[name][leaf]) for leaf, x in leaves.items()}
            for name, leaves in own.items()
        }

    return act


def match_of(episodes: Episodes, seats: Sequence[Seat], *, at: int, opponent: str) -> Match:
    """What episodes with ours in seat `at` came to."""
    by_agent = episodes.by_agent
    returns = np.stack([np.mean([by_agent[agent] for agent in seat.agents], axis=0) for seat in seats], axis=1)
    others = np.delete(returns, at, axis=1)
    return Match(opponent, seats[at].name, returns[:, at], returns[:, at] > others.max(1))


def against(matches: Sequence[Match], *, seed: int) -> dict[str, float]:
    """Scalars: ``eval/vs_<opponent>/<seat>`` the mean return, its interval's ends, and the share that was won."""
    scalars: dict[str, float] = {}
    for match in matches:
        tag, interval = f"eval/vs_{match.opponent}/{match.seat}", match.interval(seed=seed)
        scalars |= {tag: interval.estimate, f"{tag}/ci_low": interval.low, f"{tag}/ci_high": interval.high}
        scalars[f"{tag}/won"] = float(match.won.mean())
    return scalars


def _owner(given: Mapping[str, Sequence[str]], agent: str) -> str | None:
    return next((name for name, patterns in given.items() if any(fnmatchcase(agent, p) for p in patterns)), None)


def _along(mask: NDArray[np.bool_], x: NDArray[np.generic]) -> NDArray[np.bool_]:
    """``[A]`` in the shape of ``[E, A, ...]``."""
    return mask.reshape(1, -1, *(1,) * (x.ndim - 2))
