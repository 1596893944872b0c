"""Questions to an ``AECEnv`` as it is: whose turn it is, the turns of the dead, what ``last()`` pays, ``observe()``.

They are asked of one episode, played as PettingZoo's own loop does: ``last()`` at every turn, then ``step`` with an
action, or with None where the agent's episode is over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.contract import Leaves
from marl_tr.vector.recorder import same
from marl_tr.vector.report import Check, Outcome, told
from marl_tr.vector.sampling import sample
from marl_tr.vector.subject import SEED, Subject

__all__ = ["turn_checks"]

_DEAD = (
    "begin step with 'if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]: "
    "self._was_dead_step(action); return'"
)
_TABLES = ("rewards", "terminations", "truncations", "infos")


@dataclass(frozen=True)
class Turn:
    """One call of ``step``.

    Attributes:
        agent: Whose turn it was.
        dead: It was stepped with None.
        seen: What ``last()`` showed it.
        paid: What ``last()`` said it earned.
        before: ``agents`` before.
        after: ``agents`` after.
        selected: ``agent_selection`` after; None where nobody is left.
        rewards: After.
        tables: Of each dict by agent, the agents in it, after.
        idle: What agents that were not to move saw, before; None where they cannot be observed.
    """

    agent: str
    dead: bool
    seen: Any
    paid: float
    before: tuple[str, ...]
    after: tuple[str, ...]
    selected: str | None
    rewards: Mapping[str, float]
    tables: Mapping[str, frozenset[str]]
    idle: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Turns:
    """An episode.

    Attributes:
        turns: In order.
        error: What stopped it, if anything did.
        dead: It was raised by a step with None.
    """

    turns: list[Turn] = field(default_factory=list)
    error: Exception | None = None
    dead: bool = False


def turn_checks(subject: Subject) -> list[Check]:
    """The questions, in the order in which they are asked."""
    played = _Played(subject)
    return [
        Check("whose turn", partial(_selection, played), "select an agent in self.agents"),
        Check("dead steps", partial(_dead_steps, played), _DEAD, ("whose turn",)),
        Check(
            "last() adds up",
            partial(_adds_up, played),
            "call self._accumulate_rewards() at the end of step",
            ("whose turn", "dead steps"),
        ),
        Check("observe() changes nothing", partial(_observes, played), "draw nothing in observe", ("whose turn",)),
    ]


class _Played:
    """The episode that all of these questions look at, with and without observing those who are not to move."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._turns: dict[bool, Turns] = {}

    def turns(self, *, observing: bool = False) -> Turns:
        if observing not in self._turns:
            self._turns[observing] = _play(self.subject, observing=observing)
        return self._turns[observing]


def _play(subject: Subject, *, observing: bool) -> Turns:
    played = Turns()
    env = subject.factory()
    groups = {agent: group for group in subject.groups for agent in group.agents}
    generator = np.random.default_rng(7)
    env.reset(seed=SEED)
    while env.agents and len(played.turns) < subject.cycles:
        agent, before = env.agent_selection, tuple(env.agents)
        if agent not in before:
            break
        dead = False
        try:
            idle = {other: _observed(env, other) for other in before if other != agent} if observing else {}
            seen, paid, terminated, truncated, info = env.last()
            seen = copy.deepcopy(seen)
            dead = bool(terminated or truncated)
            env.step(None if dead else _drawn(groups[agent], seen, info, generator))
            turn = Turn(
                agent=agent,
                dead=dead,
                seen=seen,
                paid=float(paid),
                before=before,
                after=tuple(env.agents),
                selected=env.agent_selection if env.agents else None,
                rewards={name: float(reward) for name, reward in env.rewards.items()},
                tables={name: frozenset(getattr(env, name, ())) for name in _TABLES},
                idle=idle,
            )
        except Exception as error:  # the questions say what it means
            played.error, played.dead = error, dead
            break
        played.turns.append(turn)
        if dead and agent in turn.after and turn.selected == agent:
            break  # it would be asked for ever
    return played


def _observed(env: Any, agent: str) -> Any:
    try:
        first, again = copy.deepcopy(env.observe(agent)), env.observe(agent)
    except Exception:  # many environments observe the agent to move only; that is told as a warning
        return None
    return first if same(first, again) else _Differs(agent)


@dataclass(frozen=True)
class _Differs:
    """Two calls of ``observe`` in a row gave two observations."""

    agent: str


def _drawn(group: GroupCodec, seen: Any, info: Any, generator: np.random.Generator) -> Any:
    masks: Leaves = {
        leaf.name: np.zeros((1, *leaf.space.shape), dtype=np.int8)
        for leaf in (() if group.mask is None else group.mask.leaves)
    }
    group.write_mask(seen, info, masks, 0)
    rows = [
        sample(leaf.space, (1,), generator, masks.get(group.spec.masks.get(leaf.name, "")))[0]
        for leaf in group.action.leaves
    ]
    return group.action.decode(rows)


def _selection(played: _Played) -> Outcome:
    """``agent_selection`` is always one of ``agents``, which are always among ``possible_agents``."""
    turns = played.turns().turns
    possible = {agent for group in played.subject.groups for agent in group.agents}
    for number, turn in enumerate(turns, start=1):
        if turn.selected is not None and turn.selected not in turn.after:
            return Outcome(
                False,
                f"After turn {number}, of agent {turn.agent!r}, agent_selection is {turn.selected!r}, and agents are "
                f"{list(turn.after)}.",
                "select the next agent among self.agents (pettingzoo.utils.agent_selector, reinitialised when an agent "
                "leaves), after whoever ended has left",
            )
        strangers = sorted(set(turn.after) - possible, key=str)
        if strangers:
            return Outcome(
                False,
                f"After turn {number}, agents has {strangers[0]!r}, which is not in possible_agents.",
                "list every agent that can ever exist in possible_agents",
            )
    return Outcome(True, f"{len(turns)} turns.")


def _dead_steps(played: _Played) -> Outcome:
    """An agent that ended is asked once more, takes None, and is gone with all that was kept about it."""
    episode = played.turns()
    if episode.dead and episode.error is not None:
        error = episode.error
        return Outcome(
            False,
            f"step(None), for an agent whose episode is over, raises {told(error)}.",
            _DEAD,
        )
    for number, turn in enumerate(episode.turns, start=1):
        gone = sorted(set(turn.before) - set(turn.after), key=str)
        if turn.dead and turn.agent in turn.after:
            return Outcome(
                False,
                f"Turn {number}: agent {turn.agent!r}, whose episode is over, was given None and is still in agents.",
                _DEAD,
            )
        vanished = [agent for agent in gone if not (turn.dead and agent == turn.agent)]
        if vanished:
            return Outcome(
                False,
                f"Turn {number}, of agent {turn.agent!r}: agent {vanished[0]!r} left agents without a turn of its own.",
                "set terminations or truncations of an agent that leaves, and let it take one more turn: step(None) "
                "removes it (self._was_dead_step)",
            )
        kept = next((name for name, agents in turn.tables.items() if turn.dead and turn.agent in agents), None)
        if kept is not None:
            return Outcome(
                False,
                f"Turn {number}: {kept} still has {turn.agent!r}, which has left agents.",
                _DEAD,
            )
    return Outcome(True, f"{sum(turn.dead for turn in episode.turns)} of them.")


def _adds_up(played: _Played) -> Outcome:
    """At its turn ``last()`` tells an agent the sum of what ``rewards`` paid it since its turn before."""
    owed: dict[str, float] = {}
    for number, turn in enumerate(played.turns().turns, start=1):
        sum_ = owed.get(turn.agent, 0.0)
        if not math.isclose(turn.paid, sum_, rel_tol=1e-6, abs_tol=1e-9) and math.isfinite(sum_):
            twice = turn.paid != 0.0
            return Outcome(
                False,
                f"Turn {number}, agent {turn.agent!r}: last() says that it earned {turn.paid:g}, and rewards paid it "
                f"{sum_:g} since its turn before.",
                "in step, set self._cumulative_rewards[agent] = 0 for the agent that moves before anything is paid, "
                "then set self.rewards, then call self._accumulate_rewards()"
                + (", once; call self._clear_rewards() where a move pays nothing" if twice else ""),
            )
        owed[turn.agent] = 0.0
        for agent, reward in turn.rewards.items():
            owed[agent] = owed.get(agent, 0.0) + reward
    return Outcome(True, "")


def _observes(played: _Played) -> Outcome:
    """Observing those who are not to move is possible, and changes nothing."""
    cure = "let observe read and never write: no random numbers, no counters, no 'seen' flags; compute those in step"
    plain, observing = played.turns().turns, played.turns(observing=True).turns
    for number, (left, right) in enumerate(zip(plain, observing, strict=False), start=1):
        differs = next((seen for seen in right.idle.values() if isinstance(seen, _Differs)), None)
        if differs is not None:
            return Outcome(False, f"Turn {number}: two calls of observe({differs.agent!r}) in a row differ.", cure)
        if not same(left.seen, right.seen) or (left.agent, left.rewards) != (right.agent, right.rewards):
            return Outcome(
                False, f"From turn {number} the episode is another one if every agent is observed at every turn.", cure
            )
    blind = next((agent for turn in observing for agent, seen in turn.idle.items() if seen is None), None)
    if blind is not None:
        return Outcome(
            True,
            f"observe({blind!r}) raises or gives None while it is another's turn; {blind!r} then counts as having seen "
            "what it saw at its last turn.",
            "where possible let observe(agent) say at any time what that agent sees: the critic looks at all of them",
            warning=True,
        )
    return Outcome(True, "")
