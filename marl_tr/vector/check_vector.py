"""Questions to a `VectorEnv`, native or adapted: the contract, auto-reset, independence of ``E``, resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from marl_tr.vector.contract import EnvSpec, GroupSpec, GroupStep, Leaves, Step, VectorEnv
from marl_tr.vector.report import Check, Outcome
from marl_tr.vector.sampling import random_actions

__all__ = ["Make", "contract_problems", "step_digest", "vector_checks", "vector_digests"]

Make = Callable[[int], VectorEnv]
"""From the number of copies ``E`` to a fresh batch."""

SEED = 11
COPIES = 3


def vector_checks(make: Make, cycles: int, *after: str) -> list[Check]:
    """The questions; `after` names checks that must have passed before them."""

    def ask(name: str, run: Callable[[Make, int], Outcome], cure: str, *more: str) -> Check:
        return Check(name, lambda: run(make, cycles), cure, (*after, *more))

    contract = "see the docstrings of marl_tr.vector.contract"
    return [
        ask("batch: contract", _contract, contract),
        ask("batch: inside the spaces", _inside, "widen the spaces of the spec", "batch: contract"),
        ask("batch: same seed", _same_seed, "draw every random number from the seed", "batch: contract"),
        ask("batch: seeds differ", _seeds_differ, "", "batch: contract"),
        ask("batch: any size", _any_size, _PER_COPY, "batch: contract", "batch: same seed"),
        ask("batch: resume", _resume, _WHOLE_STATE, "batch: contract", "batch: same seed"),
    ]


_PER_COPY = "key random streams by (seed, index of the copy, step), and let no copy read another's row"
_WHOLE_STATE = "put everything that the next steps depend on into state_dict: positions, counters, stream positions"


def vector_digests(env: VectorEnv, *, seed: int, steps: int) -> list[str]:
    """A digest of the reset and of each of `steps` steps with drawn actions; equal in every process."""
    generator = np.random.default_rng(seed)
    step = env.reset(seed)
    digests = [step_digest(step)]
    for _ in range(steps):
        step = env.step(random_actions(env.spec, generator, step))
        digests.append(step_digest(step))
    return digests


def step_digest(step: Step) -> str:
    """A digest of everything in `step` that is specified (rows of `final_*` only where an episode ended)."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, array in _named_arrays(step):
        hashed.update(f"{name}{array.dtype}{array.shape}".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def contract_problems(spec: EnvSpec, step: Step, before: Step | None = None) -> list[str]:
    """What in `step` breaks the contract, in words.

    Args:
        spec: The environment's.
        step: What ``reset`` or ``step`` returned.
        before: The `Step` before it; None where `step` is a reset's.

    Returns:
        One sentence a problem; empty where all is well.
    """
    problems = _wrong(step.done, (spec.num_envs,), np.dtype(bool), "done")
    problems += _wrong_leaves(step.state, spec.state, (spec.num_envs,), "state")
    for name, metric in step.metrics.items():
        if metric.shape != (spec.num_envs,):
            problems.append(f"metric {name!r} has shape {metric.shape}, expected {(spec.num_envs,)}")
    if step.groups.keys() != {group.name for group in spec.groups}:
        return [
            *problems,
            f"groups are {sorted(step.groups)}, the spec names {[g.name for g in spec.groups]}",
        ]
    for group in spec.groups:
        problems += _group_problems(spec, group, step.groups[group.name])
        if before is not None and not problems:
            problems += _course_problems(group.name, step, step.groups[group.name], before.groups[group.name])
    if step.done.any() and spec.state and step.final_state is None:
        problems.append("final_state is None though an episode ended")
    if step.final_state is not None:
        problems += _wrong_leaves(step.final_state, spec.state, (spec.num_envs,), "final_state")
    if before is not None and not problems:
        problems += _done_problems(step, before)
    return problems


def _group_problems(spec: EnvSpec, group: GroupSpec, part: GroupStep) -> list[str]:
    batch = (spec.num_envs, len(group.agents))
    problems = _wrong(part.reward, batch, np.dtype(np.float32), f"{group.name}: reward")
    for name in ("terminated", "truncated", "alive", "acting"):
        problems += _wrong(getattr(part, name), batch, np.dtype(bool), f"{group.name}: {name}")
    problems += _wrong_leaves(part.observation, group.observation, batch, f"{group.name}: observation")
    if part.final_observation is not None:
        problems += _wrong_leaves(part.final_observation, group.observation, batch, f"{group.name}: final_observation")
    elif part.truncated.any():
        problems.append(f"{group.name}: final_observation is None though agents were truncated")
    if not problems and (part.acting & ~part.alive).any():
        problems.append(f"{group.name}: acting is True for an agent that is not alive")
    return problems


def _course_problems(name: str, step: Step, part: GroupStep, before: GroupStep) -> list[str]:
    """What depends on who was alive before the step."""
    problems = []
    dead = ~before.alive
    if (part.reward[dead] != 0).any():
        problems.append(f"{name}: an agent that was not alive has a reward")
    if ((part.terminated | part.truncated) & dead).any():
        problems.append(f"{name}: an agent that was not alive is terminated or truncated again")
    ended = (part.terminated | part.truncated) & ~step.done[:, None]
    if (part.alive & ended).any():
        problems.append(f"{name}: an agent is alive after its end, in an episode that goes on")
    if step.done.any() and part.final_observation is None:
        problems.append(f"{name}: final_observation is None though an episode ended")
    return problems


def _done_problems(step: Step, before: Step) -> list[str]:
    """An episode is over exactly where everybody who was alive has ended, and the next one has begun."""
    left = np.zeros_like(step.done)
    begun = np.zeros_like(step.done)
    for name, part in step.groups.items():
        ended = part.terminated | part.truncated
        left |= (before.groups[name].alive & ~ended).any(axis=1)
        begun |= part.alive.any(axis=1)
    problems = []
    if (left & step.done).any():
        problems.append("done is True though an agent is neither terminated nor truncated")
    if not begun.all():
        problems.append("nobody is alive in some environment: it was not reset in the step in which it ended")
    return problems


def _wrong(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> list[str]:
    if not isinstance(array, np.ndarray):
        return [f"{name} is a {type(array).__name__}, not an array"]
    problems = []
    if array.shape != shape:
        problems.append(f"{name} has shape {array.shape}, expected {shape}")
    if array.dtype != dtype:
        problems.append(f"{name} has dtype {array.dtype}, expected {dtype}")
    if not array.flags.c_contiguous:
        problems.append(f"{name} is not C-contiguous")
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        problems.append(f"{name} is not finite")
    return problems


def _wrong_leaves(leaves: Leaves, expected: Mapping[str, Any], batch: tuple[int, ...], name: str) -> list[str]:
    if leaves.keys() != expected.keys():
        return [f"{name} has the leaves {sorted(leaves)}, the spec {sorted(expected)}"]
    problems = []
    for leaf, space in expected.items():
        problems += _wrong(leaves[leaf], (*batch, *space.shape), space.dtype, f"{name} {leaf!r}")
    return problems


def _contract(make: Make, cycles: int) -> Outcome:
    env = make(COPIES)
    generator = np.random.default_rng(SEED)
    step, before = env.reset(SEED), None
    lengths = np.zeros(COPIES, dtype=np.int64)
    ends = 0
    for index in range(_steps(env, cycles) + 1):
        if problems := contract_problems(env.spec, step, before):
            at = "the reset" if index == 0 else f"step {index}"
            return Outcome(False, f"At {at}: {'; '.join(problems[:3])}.", "see marl_tr.vector.contract.Step")
        ends += int(step.done.sum())
        if env.spec.horizon is not None and (lengths[step.done] != env.spec.horizon).any():
            length = int(lengths[step.done][0])
            return Outcome(
                False,
                f"An episode had {length} steps, spec.horizon is {env.spec.horizon}.",
                "make them agree",
            )
        lengths[step.done] = 0
        lengths += 1
        before, step = step, env.step(random_actions(env.spec, generator, step))
    return Outcome(True, f"E={COPIES}, {ends} episodes ended.")


def _inside(make: Make, cycles: int) -> Outcome:
    """Observations of the living, and the state, are within the bounds of the spec's spaces."""
    env = make(COPIES)
    generator = np.random.default_rng(SEED)
    step = env.reset(SEED)
    for index in range(_steps(env, cycles) + 1):
        for group in env.spec.groups:
            part = step.groups[group.name]
            for leaf, space in group.observation.items():
                for copy, agent in np.argwhere(part.alive):
                    if problem := _beyond(space, part.observation[leaf][copy, agent]):
                        who = f"Step {index}, copy {copy}, agent {group.agents[agent]!r}"
                        return Outcome(False, f"{who}: observation {leaf!r} {problem}.", _WIDEN)
        for leaf, space in env.spec.state.items():
            for copy in range(COPIES):
                if problem := _beyond(space, step.state[leaf][copy]):
                    return Outcome(False, f"Step {index}, copy {copy}: state {leaf!r} {problem}.", _WIDEN)
        step = env.step(random_actions(env.spec, generator, step))
    return Outcome(True, "")


_WIDEN = "widen low and high of its space in the spec (-np.inf, np.inf where there is no limit), or clip the value"


def _beyond(space: Any, value: NDArray[Any]) -> str | None:
    if not isinstance(space, spaces.Box) or ((value >= space.low) & (value <= space.high)).all():
        return None
    at = tuple(int(i) for i in np.argwhere((value < space.low) | (value > space.high))[0])
    return f"has {value[at]} at {list(at)}, its space [{space.low[at]}, {space.high[at]}] there"


def _same_seed(make: Make, cycles: int) -> Outcome:
    env = make(COPIES)
    steps = _steps(env, cycles)
    for seed in (SEED, 0):
        first = vector_digests(env, seed=seed, steps=steps)
        for other, how in ((env, "The same batch, reset again"), (make(COPIES), "A fresh batch")):
            place = _parting(first, vector_digests(other, seed=seed, steps=steps))
            if place is not None:
                return Outcome(
                    False,
                    f"{how} with seed {seed}, answers otherwise at step {place}.",
                    "draw every random number from the seed given to reset, and let nothing outlive a reset (or say "
                    "'env: {rebuild: true}' in the scenario, where the environment is not yours)",
                )
    return Outcome(True, f"{steps} steps, also with seed 0.")


def _seeds_differ(make: Make, cycles: int) -> Outcome:
    env = make(1)
    digests = {tuple(vector_digests(env, seed=seed, steps=0)) for seed in range(4)}
    if len(digests) > 1:
        return Outcome(True, "")
    return Outcome(True, "Seeds 0 to 3 start with the same observation.", "fine if the start is fixed", warning=True)


def _any_size(make: Make, cycles: int) -> Outcome:
    # Native simulators work in blocks of about 64; for copies stepped one by one a few are enough.
    sizes = (1, 2, 65) if make(1).spec.own_state else (1, 3)
    envs = {size: make(size) for size in sizes}
    largest = max(sizes)
    generator = np.random.default_rng(SEED)
    steps = {size: env.reset(SEED) for size, env in envs.items()}
    for index in range(min(_steps(envs[1], cycles), 150) + 1):
        for size in sizes[:-1]:
            whole = dict(_named_arrays(steps[largest], size))
            for name, array in _named_arrays(steps[size], size):
                if name not in whole or array.tobytes() != whole[name].tobytes():
                    return Outcome(
                        False,
                        f"Step {index}: {name} of the first {size} of {largest} is not that of {size} alone.",
                        _PER_COPY,
                    )
        actions = random_actions(envs[largest].spec, generator, steps[largest])
        for size, env in envs.items():
            mine = {g: {leaf: a[:size].copy() for leaf, a in leaves.items()} for g, leaves in actions.items()}
            steps[size] = env.step(mine)
    return Outcome(True, f"E in {sizes}.")


def _resume(make: Make, cycles: int) -> Outcome:
    env, other = make(COPIES), make(COPIES)
    steps = _steps(env, cycles)
    generator = np.random.default_rng(SEED)
    step = env.reset(SEED)
    for _ in range(max(1, (2 * steps) // 3)):
        step = env.step(random_actions(env.spec, generator, step))
    other.load_state_dict(env.state_dict())
    for index in range(1, max(1, steps // 2) + 1):
        actions = random_actions(env.spec, generator, step)
        step = env.step(actions)
        if step_digest(step) != step_digest(other.step(actions)):
            return Outcome(False, f"{index} steps after load_state_dict the answers part.", _WHOLE_STATE)
    return Outcome(True, "Bit for bit.")


def _steps(env: VectorEnv, cycles: int) -> int:
    """Enough to see an auto-reset where the horizon is known."""
    return cycles if env.spec.horizon is None else min(cycles, env.spec.horizon + 3)


def _parting(a: list[str], b: list[str]) -> int | None:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def _named_arrays(step: Step, copies: int | None = None) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every specified array of the first `copies` copies by name, in a fixed order."""
    done = step.done[:copies]
    yield "done", done
    for name, leaf in sorted(step.state.items()):
        yield f"state {name!r}", leaf[:copies]
    for name, leaf in sorted(step.metrics.items()):
        yield f"metric {name!r}", leaf[:copies]
    if done.any():
        for name, leaf in sorted((step.final_state or {}).items()):
            yield f"final state {name!r}", leaf[:copies][done]
    for group, part in sorted(step.groups.items()):
        for field in ("reward", "terminated", "truncated", "alive", "acting"):
            yield f"{group}: {field}", getattr(part, field)[:copies]
        for name, leaf in sorted(part.observation.items()):
            yield f"{group}: observation {name!r}", leaf[:copies]
        if done.any():
            for name, leaf in sorted((part.final_observation or {}).items()):
                yield f"{group}: final observation {name!r}", leaf[:copies][done]
