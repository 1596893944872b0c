"""Questions to one ParallelEnv or gymnasium.Env: first the ecosystem's own tests, then stronger ones."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_tr.vector.block import probe
from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.copies import SingleAgentView, as_parallel
from marl_tr.vector.recorder import Answer, CornerRecorder, Episode, Recorder, first_difference, play
from marl_tr.vector.report import Check, Outcome
from marl_tr.vector.turns import TurnBasedView

__all__ = ["Subject", "parallel_checks"]

_USE_NP_RANDOM = (
    "use self.np_random, not np.random or random: in reset(seed=...) call super().reset(seed=seed) "
    "(Gymnasium) or 'if seed is not None: self.np_random, _ = gymnasium.utils.seeding.np_random(seed)' "
    "(PettingZoo), and draw every random number from it"
)
_PETTINGZOO = "see pettingzoo.farama.org/content/environment_tests for what this test asks"
_RUNS = "run the environment by hand up to this line"
_DICTS = "give every agent that was alive before the step an entry in all five dicts, and nobody else"

SEED = 11
"""Of the episode that most checks look at."""


class Subject:
    """The environment under test.

    Args:
        env_id: Its name.
        factory: Makes one environment as the user wrote it.
        cycles: Steps after which an episode is left.
    """

    def __init__(self, env_id: str, factory: Callable[[], Any], cycles: int) -> None:
        self.id = env_id
        self.factory = factory
        self.cycles = cycles

    def make(self) -> Any:
        """A fresh copy behind the parallel interface."""
        return as_parallel(self.factory(), env_id=self.id)

    @cached_property
    def groups(self) -> tuple[GroupCodec, ...]:
        """Agents and codecs."""
        groups, _ = probe(self.make(), self.id)
        return groups

    @cached_property
    def single(self) -> bool:
        """Whether it is a `gymnasium.Env`."""
        return isinstance(self.make(), SingleAgentView)

    @cached_property
    def turns(self) -> bool:
        """Whether it is an ``AECEnv``."""
        return isinstance(self.make(), TurnBasedView)

    @cached_property
    def episode(self) -> Episode:
        """One recorded episode of a fresh copy, reset with `SEED`."""
        return self.play(SEED)

    def play(self, seed: int | None) -> Episode:
        """An episode of a fresh copy; always with the same actions."""
        return play(self.make(), self.groups, seed=seed, cycles=self.cycles)


def parallel_checks(subject: Subject) -> list[Check]:
    """The questions, in the order in which they are asked."""

    def ask(name: str, run: Callable[[Subject], Outcome], cure: str, *after: str) -> Check:
        return Check(name, lambda: run(subject), cure, after)

    if subject.single:
        ecosystem = [ask("gymnasium check_env", _gymnasium, "see gymnasium.utils.env_checker.check_env")]
    else:
        ecosystem = [
            ask("pettingzoo api test", _pettingzoo_api, _PETTINGZOO),
            ask("pettingzoo seed test", _pettingzoo_seed, _USE_NP_RANDOM),
        ]
    return [
        *ecosystem,
        ask("episode runs", _runs, _RUNS),
        ask("same space objects", _same_spaces, "build the spaces once, in __init__"),
        ask("entries of the dicts", _entries, _DICTS, "episode runs"),
        ask("rewards are numbers", _rewards, "return float(reward)", "episode runs"),
        ask("finite values", _finite, "look for a division by zero", "episode runs"),
        ask("inside the spaces", _inside, "return what observation_space(agent) promises", "episode runs"),
        ask("nobody is revived", _revived, "remove an agent from self.agents for good", "episode runs"),
        ask("state()", _state, "let state() have one shape", "episode runs"),
        ask("repeats itself", _repeats, _USE_NP_RANDOM, "episode runs"),
        ask("reset forgets", _forgets, "let reset set every attribute again", "episode runs", "repeats itself"),
        ask(
            "seed 0",
            _seed_zero,
            "write 'if seed is not None', not 'if seed'",
            "episode runs",
            "repeats itself",
        ),
        ask("seeds differ", _seeds_differ, "", "episode runs", "repeats itself"),
        ask("actions at the bounds", _bounds, "accept every action in action_space(agent)", "finite values"),
        ask("episode ends", _ends, "", "episode runs"),
    ]


def _quietly(test: Callable[[], None]) -> Outcome:
    """Run somebody else's test; its warnings become the message."""
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        test()
    remarks = list(dict.fromkeys(" ".join(str(w.message).split()) for w in caught))
    # Gymnasium writes its own in colour.
    remarks = [re.sub(r"\x1b\[\d+m|WARN: ", "", remark) for remark in remarks]
    return Outcome(True, "; ".join(remarks[:3]), warning=bool(remarks))


def _gymnasium(subject: Subject) -> Outcome:
    from gymnasium.utils.env_checker import check_env

    # The wrappers of gymnasium.make are not the user's; rendering may need a display.
    return _quietly(lambda: check_env(subject.factory().unwrapped, skip_render_check=True))


def _pettingzoo_api(subject: Subject) -> Outcome:
    from pettingzoo.test import api_test, parallel_api_test

    if subject.turns:
        return _quietly(lambda: api_test(subject.factory(), num_cycles=subject.cycles))
    try:
        return _quietly(lambda: parallel_api_test(subject.factory(), num_cycles=subject.cycles))
    except TypeError as error:
        if "argument 'options'" in str(error) or "argument 'seed'" in str(error):
            return Outcome(False, f"{error}.", "write reset(self, seed=None, options=None)")
        raise


def _pettingzoo_seed(subject: Subject) -> Outcome:
    from pettingzoo.test import parallel_seed_test, seed_test

    if subject.turns:
        return _quietly(lambda: seed_test(subject.factory, num_cycles=subject.cycles))
    return _quietly(lambda: parallel_seed_test(subject.factory, num_cycles=subject.cycles))


def _runs(subject: Subject) -> Outcome:
    steps = len(subject.episode.answers) - 1
    kinds = ", ".join(f"{len(group.agents)} x {group.name}" for group in subject.groups)
    return Outcome(True, f"{steps} steps with {kinds}.")


def _same_spaces(subject: Subject) -> Outcome:
    env = subject.make()
    for agent in env.possible_agents:
        for name in ("observation_space", "action_space"):
            if getattr(env, name)(agent) is not getattr(env, name)(agent):
                return Outcome(
                    False,
                    f"{name}({agent!r}) returns a new object at each call, so that seeding it has no effect.",
                    "build the spaces once in __init__ and return those, or decorate the method with "
                    "functools.lru_cache(maxsize=None)",
                )
    return Outcome(True, "")


def _entries(subject: Subject) -> Outcome:
    everybody = {agent for group in subject.groups for agent in group.agents}
    for step, answer in enumerate(subject.episode.answers):
        names = ("observations", "infos") if step == 0 else (*_FIELDS, "infos")
        for name in names:
            keys = set(getattr(answer, name))
            wanted = answer.after if step == 0 else answer.before
            missing = sorted(wanted - keys)
            extra = sorted((keys & everybody) - wanted - answer.after)
            if missing or extra:
                what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which was not alive"
                return Outcome(False, f"Step {step}: {name} {what}.", _DICTS)
    return Outcome(True, "")


_FIELDS = ("observations", "rewards", "terminated", "truncated")


def _rewards(subject: Subject) -> Outcome:
    for step, answer in enumerate(subject.episode.answers):
        for agent, reward in answer.rewards.items():
            if isinstance(reward, bool | np.bool_) or not isinstance(reward, int | float | np.number):
                kind = f"{type(reward).__name__}{getattr(reward, 'shape', '')}"
                return Outcome(
                    False,
                    f"Step {step}, agent {agent!r}: the reward is {reward!r} ({kind}), not a number.",
                    "return one float an agent: float(reward), or reward.item() for an array of one",
                )
    return Outcome(True, "")


def _finite(subject: Subject) -> Outcome:
    for step, answer in enumerate(subject.episode.answers):
        for name in ("observations", "rewards"):
            for agent, value in getattr(answer, name).items():
                if not _is_finite(value):
                    return Outcome(
                        False,
                        f"Step {step}, agent {agent!r}: {name} are not finite ({value}).",
                        "look for a division by zero, the logarithm or square root of a negative number, or "
                        "a "
                        "position without a limit; np.seterr(all='raise') stops at the place",
                    )
    return Outcome(True, "")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping | tuple):
        return all(_is_finite(part) for part in (value.values() if isinstance(value, Mapping) else value))
    array = np.asarray(value)
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def _inside(subject: Subject) -> Outcome:
    env = subject.make()
    for step, answer in enumerate(subject.episode.answers):
        for agent, value in answer.observations.items():
            space = env.observation_space(agent)
            # Values that are not finite have a check of their own.
            if _is_finite(value) and (problem := _outside(space, value)):
                return Outcome(
                    False,
                    f"Step {step}, agent {agent!r}: the observation {problem}.",
                    "return np.asarray(observation, dtype=space.dtype) of the space's shape, and widen the "
                    "space's "
                    "low and high (-np.inf, np.inf where there is no limit) or clip the value",
                )
    return Outcome(True, "")


def _outside(space: spaces.Space[Any], value: Any) -> str | None:
    if not isinstance(space, spaces.Box):
        return None if space.contains(value) else f"{value!r} is not in {space}"
    if not isinstance(value, np.ndarray | np.generic):
        return f"is a {type(value).__name__}, not a NumPy array"
    if value.shape != space.shape:
        return f"has shape {value.shape}, its space {space.shape}"
    if not np.can_cast(value.dtype, space.dtype):
        return f"has dtype {value.dtype}, its space {space.dtype}"
    wrong = (value < space.low) | (value > space.high)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return f"has {np.asarray(value)[at]} at {list(at)}, its space [{space.low[at]}, {space.high[at]}] there"
    return None


def _revived(subject: Subject) -> Outcome:
    ended: set[str] = set()
    for step, answer in enumerate(subject.episode.answers):
        ended |= answer.ended
        back = sorted(answer.after & ended)
        if back and not answer.before <= ended:
            return Outcome(
                False,
                f"Step {step}: agent {back[0]!r} is in env.agents after its episode ended.",
                "remove an agent from self.agents in the step that terminates or truncates it, and add it "
                "again only "
                "in reset",
            )
    return Outcome(True, "")


def _state(subject: Subject) -> Outcome:
    first = subject.episode.answers[0].state
    if first is None:
        return Outcome(True, "No state(); the critic sees all observations.")
    for step, answer in enumerate(subject.episode.answers):
        state = np.asarray(answer.state)
        if state.shape != np.shape(first):
            return Outcome(
                False,
                f"Step {step}: state() has shape {state.shape}, {np.shape(first)} after the reset.",
                "let state() have one shape always: fill the places of dead agents with zeros, loop over "
                "possible_agents and not over agents",
            )
        if not (np.issubdtype(state.dtype, np.number) or state.dtype == np.bool_):
            return Outcome(False, f"state() has dtype {state.dtype}.", "return one array of numbers")
        if not _is_finite(state):
            return Outcome(False, f"Step {step}: state() is not finite.", "look for a division by zero in state()")
    return Outcome(True, f"Shape {np.shape(first)}.")


def _repeats(subject: Subject) -> Outcome:
    # In lockstep: copies that share a generator (np.random, seeded or not) take each other's draws.
    pair = [Recorder(subject.make(), subject.groups) for _ in range(2)]
    for recorder in pair:
        recorder.reset(SEED)
    for _ in range(subject.cycles):
        if any(recorder.episode.over for recorder in pair):
            break
        for recorder in pair:
            recorder.step()
    for other, how in ((pair[1].episode, "stepped in turns"), (subject.episode, "played alone")):
        if place := first_difference(pair[0].episode, other):
            return Outcome(False, f"Two copies with the same seed and actions, {how}, part at {place}.", _USE_NP_RANDOM)
    return Outcome(True, f"{len(subject.episode.answers) - 1} steps, the reset included.")


def _forgets(subject: Subject) -> Outcome:
    env = subject.make()
    play(env, subject.groups, seed=SEED + 1, cycles=subject.cycles)
    again = play(env, subject.groups, seed=SEED, cycles=subject.cycles)
    if place := first_difference(subject.episode, again):
        return Outcome(
            False,
            f"A copy that has played an episode differs from a fresh one with the same seed at {place}.",
            "something outlives reset: set every attribute that step changes in reset too (counters, "
            "buffers, the "
            "generator), and never write into an array that __init__ made",
        )
    return Outcome(True, "")


def _seed_zero(subject: Subject) -> Outcome:
    cure = "0 is a seed: write 'if seed is not None:' and not 'if seed:' or 'seed or default'"
    zero = subject.play(0)
    if place := first_difference(zero, subject.play(0)):
        return Outcome(False, f"Two copies reset with seed=0 differ at {place}.", cure)
    random = first_difference(zero, subject.play(1)) is not None
    if random and first_difference(zero, subject.play(None)) is None:
        return Outcome(
            False,
            "reset(seed=0) gives the same episode as reset() without a seed, while seed=1 gives another.",
            f"{cure}; without a seed, a fresh environment draws one from the operating system",
        )
    return Outcome(True, "")


def _seeds_differ(subject: Subject) -> Outcome:
    others = [subject.play(seed) for seed in (SEED + 1, SEED + 2, SEED + 3)]
    if all(first_difference(subject.episode, other) is None for other in others):
        return Outcome(
            True,
            "Four seeds gave one and the same episode: either the environment has no randomness, or it "
            "ignores the "
            "seed.",
            "where the start should vary, draw it from self.np_random in reset",
            warning=True,
        )
    return Outcome(True, "")


def _bounds(subject: Subject) -> Outcome:
    for end in ("lowest", "highest"):
        env = subject.make()
        recorder = CornerRecorder(env, subject.groups, end)
        recorder.reset(SEED)
        try:
            while not recorder.episode.over and len(recorder.episode.answers) <= 5:
                recorder.step()
        except Exception as error:
            return Outcome(
                False,
                f"The {end} action of every agent's space raises {type(error).__name__}: {error}.",
                "accept every action in action_space(agent), its bounds included, or make the space smaller",
            )
        bad = [step for step, answer in enumerate(recorder.episode.answers) if not _all_finite(answer)]
        if bad:
            return Outcome(
                False,
                f"After the {end} action of every agent's space, step {bad[0]} is not finite.",
                "guard the place where an extreme action divides by zero or overflows",
            )
    return Outcome(True, "")


def _all_finite(answer: Answer) -> bool:
    return all(_is_finite(value) for part in (answer.observations, answer.rewards) for value in part.values())


def _ends(subject: Subject) -> Outcome:
    if subject.episode.over:
        return Outcome(True, f"After {len(subject.episode.answers) - 1} steps.")
    return Outcome(
        True,
        f"No episode ended within {subject.cycles} steps.",
        "if it never ends, truncate it after a time limit (gymnasium.wrappers.TimeLimit, or a max_cycles of "
        "your own): "
        "returns are counted an episode",
        warning=True,
    )
