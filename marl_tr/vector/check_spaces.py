"""Questions about what an environment shows and takes: its spaces leaf by leaf, its action masks, its own samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_tr.vector.errors import BadEnvironmentData
from marl_tr.vector.recorder import Answer, MaskFault, Recorder, same
from marl_tr.vector.report import Outcome, told
from marl_tr.vector.subject import SEED, Subject

__all__ = ["allowed_actions", "first_step", "inside", "is_finite", "keeps_observations", "masks", "same_spaces"]

MOST_TRIES = 200
"""Allowed actions that are tried, each after a replay of the episode so far."""


def same_spaces(subject: Subject) -> Outcome:
    """``observation_space(agent)`` is one object, as is ``action_space(agent)``."""
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


def first_step(subject: Subject) -> Outcome:
    """``reset`` and ``step`` give what the API says, and take ``action_space(agent).sample()`` in its own dtype."""
    env = subject.make()
    recorder = Recorder(env, subject.groups)
    try:
        recorder.reset(SEED)
        actions = recorder.drawn()
    except MaskFault:
        return Outcome(True, "As far as there is a mask.")  # of which the next question tells
    except BadEnvironmentData as error:
        return Outcome(False, _sentence(error), _API)
    for index, agent in enumerate(actions):
        space = env.action_space(agent)
        if subject.masked is None:  # a mask is none of sample's for a space with parts
            space.seed(SEED + index)
            actions[agent] = space.sample()
    try:
        recorder.give(actions)
    except BadEnvironmentData as error:
        return Outcome(False, _sentence(error), _API)
    except Exception as error:
        shown = ", ".join(f"{agent!r}: {_told(action)}" for agent, action in list(actions.items())[:2])
        return Outcome(
            False,
            f"Step 1 raises {told(error)}, for actions that action_space(agent) contains ({shown}).",
            "take every action that action_space(agent).sample() can give, in its type, shape and dtype; convert it in "
            "step (np.asarray(action, dtype=...)), or give the space the dtype that step needs",
        )
    return Outcome(True, "")


_API = "see pettingzoo.farama.org/api/parallel, or gymnasium.farama.org/api/env"


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _told(action: Any) -> str:
    if isinstance(action, Mapping | tuple):
        return type(action).__name__
    array = np.asarray(action)
    return f"{array.dtype} {list(array.shape)}" if array.shape else f"{type(action).__name__} {action}"


def inside(subject: Subject) -> Outcome:
    """Every agent's every observation has the parts, shapes, dtypes and bounds that its space promises."""
    env = subject.make()
    for step, answer in enumerate(subject.episode.answers):
        for agent, value in answer.observations.items():
            if value is None and subject.turns:
                continue  # nothing seen yet out of turn, of which "observe() changes nothing" tells
            problem = next(_outside(env.observation_space(agent), value), None)
            if problem is not None:
                return Outcome(False, f"Step {step}, agent {agent!r}: the observation {problem[0]}.", problem[1])
    return Outcome(True, "")


_WIDEN = (
    "return np.asarray(observation, dtype=space.dtype) of the space's shape, and widen the space's "
    "low and high (-np.inf, np.inf where there is no limit) or clip the value"
)
_KEYS = "return a value for every key of the Dict in observation_space(agent), and no other, in every reset and step"


def _outside(space: spaces.Space[Any], value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, str]]:
    """What is wrong with `value`, which lies at `path`, and the cure; what is not finite has a question of its own."""
    leaf = f"leaf {'/'.join(map(str, path))!r} " if path else ""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            yield f"{leaf}is a {type(value).__name__}, not a dict", _KEYS
            return
        for key in sorted(space.spaces.keys() - value.keys(), key=str):
            yield f"{leaf}lacks the key {key!r}", _KEYS
        for key in sorted(value.keys() - space.spaces.keys(), key=str):
            yield f"{leaf}has the key {key!r}, which its space has not", _KEYS
        for key, part in space.spaces.items():
            if key in value:
                yield from _outside(part, value[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            what = f"{len(value)} parts" if isinstance(value, tuple | list) else f"the type {type(value).__name__}"
            cure = "return a tuple with one value for every part of the space"
            yield f"{leaf}has {what}, its space {len(space.spaces)} parts", cure
            return
        for index, part in enumerate(space.spaces):
            yield from _outside(part, value[index], (*path, index))
    elif is_finite(value) and (problem := _leaf_outside(space, value)):
        yield f"{leaf}{problem}", _WIDEN


def _leaf_outside(space: spaces.Space[Any], value: Any) -> str | None:
    if not isinstance(space, spaces.Box):
        return None if space.contains(value) else f"is {value!r}, which is not in {space}"
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


def is_finite(value: Any) -> bool:
    """No NaN and no infinity in any part of `value`."""
    if isinstance(value, Mapping | tuple):
        return all(is_finite(part) for part in (value.values() if isinstance(value, Mapping) else value))
    array = np.asarray(value)
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def keeps_observations(subject: Subject) -> Outcome:
    """Observations that were given out stay what they were."""
    for step, answer in enumerate(subject.episode.answers):
        for agent, value in answer.observations.items():
            if not same(value, answer.kept[agent]):
                return Outcome(
                    True,
                    f"The observation of step {step}, agent {agent!r}, was changed by a later step: its array is used "
                    "again. Training here copies at once and is not harmed; a buffer that keeps observations is.",
                    "return a copy (array.copy()), or build the array anew in every step",
                    warning=True,
                )
    return Outcome(True, "")


_MASK_CURE = (
    "give every agent that is to move an action_mask in every reset and step, where the first reset has it: one 0 or 1 "
    "for each choice of its action, at least one of them 1"
)


def masks(subject: Subject) -> Outcome:
    """Whoever is to move has a mask of the right size, of 0 and 1, that allows something."""
    try:
        steps = len(subject.episode.answers) - 1
    except MaskFault as error:
        return Outcome(False, _sentence(error), _MASK_CURE)
    except Exception:  # why it does not run on is another question
        return Outcome(True, "As far as the episode runs.")
    return Outcome(True, f"In {subject.masked}, {steps} steps.")


def allowed_actions(subject: Subject) -> Outcome:
    """``step`` takes every action that a mask allows, at the beginning, at steps 1, 2, 4, 8 ... and near the end."""
    answers, given = _as_far_as_it_runs(subject)
    last = len(given) - 1
    moments = sorted({m for m in (*(2**n - 1 for n in range(12)), last - 1, last) if 0 <= m <= last})
    tried = 0
    for moment in moments:
        refused: list[Outcome] = []
        choices = 0
        for agent, leaf, choice, action in _alternatives(subject, answers[moment], given[moment]):
            if tried == MOST_TRIES:
                return Outcome(True, f"{tried} actions, at {moments.index(moment)} moments of the episode.")
            recorder = Recorder(subject.make(), subject.groups)
            recorder.reset(SEED)
            for actions in given[:moment]:
                recorder.give(actions)
            tried, choices = tried + 1, choices + 1
            try:
                recorder.give({**given[moment], agent: action})
            except Exception as error:
                which = "" if leaf == "action" else f" of leaf {leaf!r}"
                refused.append(
                    Outcome(
                        False,
                        f"Step {moment + 1}, agent {agent!r}: choice {choice}{which} is allowed by the action mask, "
                        f"and step raises {told(error)}.",
                        "let the mask and step follow one rule: compute both from the same list of legal moves",
                    )
                )
        # Where a step fails whatever is chosen, the mask is not to blame; the next question tells of it.
        if refused and len(refused) < choices:
            return refused[0]
    return Outcome(True, f"{tried} actions, at {len(moments)} moments of the episode.")


def _as_far_as_it_runs(subject: Subject) -> tuple[list[Answer], list[dict[str, Any]]]:
    """Answers of the reset and of each step, and the actions given after each; those that failed come last."""
    recorder = Recorder(subject.make(), subject.groups)
    recorder.reset(SEED)
    given: list[dict[str, Any]] = []
    while not recorder.episode.over and len(given) < subject.cycles:
        given.append(recorder.drawn())
        try:
            recorder.give(given[-1])
        except Exception:  # "episode runs" says which
            break
    return recorder.episode.answers, given


def _alternatives(subject: Subject, answer: Answer, given: Mapping[str, Any]) -> Iterator[tuple[str, str, int, Any]]:
    """For each agent that moves and each choice that its mask allows: agent, leaf, choice, and an action with it."""
    for group in subject.groups:
        for agent in (agent for agent in group.agents if agent in given and group.mask is not None):
            assert group.mask is not None
            rows = {leaf.name: np.zeros((1, *leaf.space.shape), dtype=np.int8) for leaf in group.mask.leaves}
            group.write_mask(answer.observations.get(agent), answer.infos.get(agent), rows, 0)
            first = {
                leaf.name: _first_allowed(leaf.space, rows, group.spec.masks.get(leaf.name))
                for leaf in group.action.leaves
            }
            for mask in group.mask.leaves:
                starts = np.cumsum(mask.sizes) - np.array(mask.sizes)
                for choice in np.flatnonzero(rows[mask.name][0]):
                    entry = int(np.searchsorted(starts, choice, side="right")) - 1
                    changed = np.array(first[mask.action])
                    changed[() if changed.ndim == 0 else entry] = int(choice - starts[entry])
                    parts = {**first, mask.action: changed}
                    action = group.action.decode([parts[leaf.name] for leaf in group.action.leaves])
                    yield agent, mask.action, int(choice), action


def _first_allowed(space: spaces.Space[Any], rows: Mapping[str, Any], mask: str | None) -> Any:
    """An action of one leaf: in each entry the first choice that is allowed; of numbers, the middle of their range."""
    if isinstance(space, spaces.Box):
        low, high = (np.nan_to_num(limit, posinf=1.0, neginf=-1.0) for limit in (space.low, space.high))
        return ((low + high) / 2).astype(space.dtype)
    sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec]  # type: ignore[attr-defined]
    if mask is None:
        entries = [0] * len(sizes)
    else:
        starts = np.cumsum(sizes) - sizes
        entries = [int(rows[mask][0][s : s + n].argmax()) for s, n in zip(starts, sizes, strict=True)]
    return np.int64(entries[0]) if isinstance(space, spaces.Discrete) else np.array(entries)
