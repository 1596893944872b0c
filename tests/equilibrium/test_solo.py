"""The game of one agent, on an environment with masks, turns, two groups, and agents that die and come back."""

from __future__ import annotations

import numpy as np
import pytest
from turn_examples import Crowd

from marl_tr.equilibrium.plays import RandomSubject
from marl_tr.equilibrium.solo import GLOBAL_STATE, SoloEnv
from marl_tr.errors import UserError
from marl_tr.vector.contract import Step
from marl_tr.vector.sampling import random_actions

AGENTS = ("m0", "m2", "p1")


def solo(agent: str, *, omniscient: bool = False) -> SoloEnv:
    env = Crowd(5)
    return SoloEnv(env, agent, RandomSubject().bind(env, seed=3), omniscient=omniscient)


def played(env: SoloEnv, step: Step, generator: np.random.Generator, steps: int) -> list[Step]:
    told = []
    for _ in range(steps):
        step = env.step(random_actions(env.spec, generator, step))
        told.append(step)
    return told


def arrays(step: Step) -> list[np.ndarray]:
    (part,) = step.groups.values()
    final = part.final_observation or {}
    rows = [part.reward, part.terminated, part.truncated, part.alive, part.acting, step.done]
    return [*rows, *part.observation.values(), *final.values()]


@pytest.mark.parametrize("agent", AGENTS)
def test_the_agent_sees_and_is_paid_what_it_is_in_the_whole_game(agent: str) -> None:
    # Crowd draws without regard to what is done, but for one leaf: the whole game can be played beside it.
    env, whole = solo(agent), Crowd(5)
    step, beside = env.reset(8), whole.reset(8)
    (group,) = env.spec.groups
    at = next(g.agents.index(agent) for g in whole.spec.groups if agent in g.agents)
    generator = np.random.default_rng(1)
    for _ in range(25):
        own = random_actions(env.spec, generator, step)
        step = env.step(own)
        beside = whole.step(random_actions(whole.spec, np.random.default_rng(0), beside))
        mine, theirs = step.groups[group.name], beside.groups[group.name]
        for name in ("reward", "terminated", "truncated", "alive", "acting"):
            assert np.array_equal(getattr(mine, name)[:, 0], getattr(theirs, name)[:, at])
        assert np.array_equal(step.done, beside.done)
        assert mine.observation["near"].shape[:2] == (5, 1)
        if group.name == "mixed":
            assert np.array_equal(mine.observation["map"][:, 0], theirs.observation["map"][:, at])
            # What it did is what arrived.
            moved = mine.observation["near"][:, 0, :2][mine.alive[:, 0]]
            assert np.allclose(moved, own["mixed"]["move"][:, 0][mine.alive[:, 0]])


@pytest.mark.parametrize("agent", AGENTS)
def test_it_goes_on_exactly_where_it_was_saved(agent: str) -> None:
    whole, parts, resumed = solo(agent), solo(agent), solo(agent)
    generators = np.random.default_rng(2), np.random.default_rng(2)
    expected = played(whole, whole.reset(4), generators[0], 20)
    first = played(parts, parts.reset(4), generators[1], 7)
    resumed.load_state_dict(parts.state_dict())
    second = played(resumed, first[-1], generators[1], 13)
    for found, wanted in zip(first + second, expected, strict=True):
        for x, y in zip(arrays(found), arrays(wanted), strict=True):
            assert np.array_equal(x, y)


def test_the_omniscient_see_the_state_and_its_last_one() -> None:
    env = solo("p0", omniscient=True)
    assert env.spec.groups[0].observation[GLOBAL_STATE].shape == (2,)
    step = env.reset(1)
    for t in range(1, 12):
        step = env.step(random_actions(env.spec, np.random.default_rng(t), step))
        (part,) = step.groups.values()
        clock = [0, 0] if t == 11 else [t, t * t]
        assert part.observation[GLOBAL_STATE][0, 0].tolist() == clock
    assert part.final_observation is not None
    assert part.final_observation[GLOBAL_STATE][0, 0].tolist() == [11, 121]


def test_an_unknown_agent_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(UserError, match="'crowd' has no agent 'm7'; it has m0, m1, m2, p0, p1"):
        solo("m7")
