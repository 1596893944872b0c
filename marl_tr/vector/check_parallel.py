"""Questions to one ParallelEnv or gymnasium.Env: first the ecosystem's own tests, then stronger ones."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable

import numpy as np

from marl_tr.vector.check_spaces import (
    allowed_actions,
    first_step,
    inside,
    is_finite,
    keeps_observations,
    masks,
    same_spaces,
)
from marl_tr.vector.check_turns import turn_checks
from marl_tr.vector.recorder import Answer, CornerRecorder, Recorder, first_difference, play
from marl_tr.vector.report import Check, Outcome
from marl_tr.vector.subject import SEED, USE_NP_RANDOM, Subject

__all__ = ["parallel_checks"]

_PETTINGZOO = "see pettingzoo.farama.org/content/environment_tests for what this test asks"
_RUNS = "run the environment by hand up to this line"
_DICTS = (
    "give every agent that was alive before the step an entry in all five dicts, one that joins an observation, and "
    "nobody else anything"
)


def parallel_checks(subject: Subject) -> list[Check]:
    """The questions, in the order in which they are asked."""

    def ask(name: str, run: Callable[[Subject], Outcome], cure: str, *after: str) -> Check:
        return Check(name, lambda: run(subject), cure, after)

    if subject.single:
        ecosystem = [ask("gymnasium check_env", _gymnasium, "see gymnasium.utils.env_checker.check_env")]
    else:
        ecosystem = [
            ask("pettingzoo api test", _pettingzoo_api, _PETTINGZOO),
            ask("pettingzoo seed test", _pettingzoo_seed, USE_NP_RANDOM),
        ]
    masked = [
        ask("action masks", masks, "give every agent that is to move an action_mask", "first step"),
        ask("allowed actions", allowed_actions, "let the mask follow the rules of step", "action masks"),
    ]
    turns = turn_checks(subject) if subject.turns else []
    before = [check.name for check in turns if check.name != "observe() changes nothing"]
    return [
        *ecosystem,
        ask("same space objects", same_spaces, "build the spaces once, in __init__"),
        *turns,
        ask("first step", first_step, "take every action of action_space(agent)", *before),
        *(masked if subject.masked else []),
        ask("episode runs", _runs, _RUNS, "first step", *(check.name for check in masked if subject.masked)),
        ask("entries of the dicts", _entries, _DICTS, "episode runs"),
        ask("rewards are numbers", _rewards, "return float(reward)", "episode runs"),
        ask("finite values", _finite, "look for a division by zero", "episode runs"),
        ask("inside the spaces", inside, "return what observation_space(agent) promises", "episode runs"),
        ask("observations are kept", keeps_observations, "return copies", "episode runs"),
        ask("leaving and returning", _leaving, "remove an agent when it ends, and say why it leaves", "episode runs"),
        ask("state()", _state, "let state() have one shape", "episode runs"),
        ask("repeats itself", _repeats, USE_NP_RANDOM, "episode runs"),
        ask("reset forgets", _forgets, "let reset set every attribute again", "episode runs", "repeats itself"),
        ask("seed 0", _seed_zero, "write 'if seed is not None', not 'if seed'", "episode runs", "repeats itself"),
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


_UNMASKED = "it draws actions without regard to these masks"


def _pettingzoo_api(subject: Subject) -> Outcome:
    from pettingzoo.test import api_test, parallel_api_test

    if subject.masked == "info" and not subject.turns:
        return Outcome(True, f"Not asked: {_UNMASKED}.", "see the questions below", warning=True)
    try:
        if subject.turns:
            return _quietly(lambda: api_test(subject.factory(), num_cycles=subject.cycles))
        return _quietly(lambda: parallel_api_test(subject.factory(), num_cycles=subject.cycles))
    except AssertionError as error:
        if "resurect" in str(error) or "revived" in str(error):
            # Which may be right, or the mistake of one that never leaves: the question of ours tells them apart.
            return Outcome(
                True, f"Stopped at an agent that came back ({error}).", "see 'leaving and returning'", warning=True
            )
        raise
    except TypeError as error:
        if "argument 'options'" in str(error) or "argument 'seed'" in str(error):
            return Outcome(False, f"{error}.", "write reset(self, seed=None, options=None)")
        raise


def _pettingzoo_seed(subject: Subject) -> Outcome:
    from pettingzoo.test import parallel_seed_test, seed_test

    if subject.masked and not subject.turns:
        return Outcome(True, f"Not asked: {_UNMASKED}.", "see 'repeats itself'", warning=True)
    if subject.turns:
        return _quietly(lambda: seed_test(subject.factory, num_cycles=subject.cycles))
    return _quietly(lambda: parallel_seed_test(subject.factory, num_cycles=subject.cycles))


def _runs(subject: Subject) -> Outcome:
    steps = len(subject.episode.answers) - 1
    kinds = ", ".join(f"{len(group.agents)} x {group.name}" for group in subject.groups)
    return Outcome(True, f"{steps} steps with {kinds}.")


def _entries(subject: Subject) -> Outcome:
    everybody = {agent for group in subject.groups for agent in group.agents}
    for step, answer in enumerate(subject.episode.answers):
        names = ("observations", "infos") if step == 0 else (*_FIELDS, "infos")
        for name in names:
            keys = set(getattr(answer, name))
            wanted = answer.after if step == 0 else answer.before
            if name == "observations":
                wanted |= answer.after
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
                if not is_finite(value):
                    return Outcome(
                        False,
                        f"Step {step}, agent {agent!r}: {name} are not finite ({value}).",
                        "look for a division by zero, the logarithm or square root of a negative number, or "
                        "a "
                        "position without a limit; np.seterr(all='raise') stops at the place",
                    )
    return Outcome(True, "")


def _leaving(subject: Subject) -> Outcome:
    """Whoever ends leaves at once, nobody leaves without an end, and who comes back is told of."""
    gone: set[str] = set()
    returned: tuple[int, str] | None = None
    for step, answer in enumerate(subject.episode.answers):
        vanished = sorted(answer.before - answer.after - answer.ended)
        if vanished:
            return Outcome(
                False,
                f"Step {step}: agent {vanished[0]!r} left env.agents, and was neither terminated nor truncated.",
                "say in terminations or truncations why an agent leaves, in the step in which it leaves",
            )
        stayed = sorted(answer.ended & answer.after)
        if stayed and not answer.before <= answer.ended:
            return Outcome(
                False,
                f"Step {step}: agent {stayed[0]!r} is still in env.agents though its episode ended.",
                "remove an agent from self.agents in the step that terminates or truncates it",
            )
        back = sorted(answer.after & gone)
        returned = returned or ((step, back[0]) if back else None)
        gone = (gone | answer.ended) - answer.after
    if returned is not None:
        step, agent = returned
        return Outcome(
            True,
            f"Step {step}: agent {agent!r} is in env.agents again after its episode ended. Training takes it as a new "
            "life; PettingZoo's rules forbid it (its api test fails on it), and other trainers may refuse it.",
            "where that matters give the newcomer a name of its own, listed in possible_agents",
            warning=True,
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
        if not is_finite(state):
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
            return Outcome(False, f"Two copies with the same seed and actions, {how}, part at {place}.", USE_NP_RANDOM)
    return Outcome(True, f"{len(subject.episode.answers) - 1} steps, the reset included.")


def _forgets(subject: Subject) -> Outcome:
    env = subject.make()
    place = None
    for seed in (SEED + 1, SEED + 2, SEED + 3):  # more than once: a timer may take some steps to run out
        play(env, subject.groups, seed=seed, cycles=subject.cycles)
        again = play(env, subject.groups, seed=SEED, cycles=subject.cycles)
        place = place or first_difference(subject.episode, again)
    if place is not None:
        return Outcome(
            True,
            f"A copy that has played an episode differs from a fresh one with the same seed at {place}. Episodes then "
            "depend on those before, and a run cannot be resumed exactly; in what follows every episode has an "
            "environment made anew.",
            "something outlives reset: set every attribute that step changes in reset too (counters, timers, buffers, "
            "the generator), and never write into an array that __init__ made. Where the environment is not yours, say "
            "'env: {rebuild: true}' in the scenario",
            warning=True,
        )
    return Outcome(True, "")


def _seed_zero(subject: Subject) -> Outcome:
    cure = "0 is a seed: write 'if seed is not None:' and not 'if seed:' or 'seed or default'"
    zero = subject.play(0)
    if place := first_difference(zero, subject.play(0)):
        return Outcome(False, f"Two copies reset with seed=0 differ at {place}.", cure)
    random = first_difference(zero, subject.play(1)) is not None
    # Several times: where few things can happen, two seeds may well give one episode.
    if random and all(first_difference(zero, subject.play(None)) is None for _ in range(12)):
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
    return all(is_finite(value) for part in (answer.observations, answer.rewards) for value in part.values())


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
