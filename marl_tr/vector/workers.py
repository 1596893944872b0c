"""Copies of an environment in worker processes, behind the same contract as in this one.

A batch is split into as many parts as there are workers; copy ``e`` is seeded and named by ``e`` alone, so results are
bit for bit those of `InProcessVectorEnv`, and so are checkpoints: a run may be resumed with another backend.

A worker that dies (a crash in an environment's own C code, a kill for lack of memory) is named and replaced: the new
one resets its copies with their seeds, plays the actions since, and compares every answer with the digest kept here.
Only where it dies again in the same step the run ends, with an error that says which copies, when, and of what.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marl_tr.registry import Entry
from marl_tr.vector.batch import Batch, Layout
from marl_tr.vector.block import stacked
from marl_tr.vector.codec import GroupCodec
from marl_tr.vector.contract import Actions, EnvSpec, Leaves, Reference, Step
from marl_tr.vector.errors import EnvironmentFault, WorkerCrashed, WorkerRestarted
from marl_tr.vector.replay import ReplayLog, pack, unpack
from marl_tr.vector.sampling import random_actions
from marl_tr.vector.shared import SharedArrays
from marl_tr.vector.worker import Assignment, Failure, serve

__all__ = ["RenderedWorkerVectorEnv", "WorkerVectorEnv"]

Array = NDArray[Any]

_PATIENCE_S = 5.0
"""How long workers may take to close their environments before they are ended."""

_FROM_WHERE_IT_IS = ("step", "render")
"""Commands that a new worker can obey only where the one before it was."""


class _Worker:
    """One process and the line to it."""

    def __init__(self, assignment: Assignment, shared: SharedArrays, context: Any) -> None:
        self.assignment = assignment
        ours, theirs = context.Pipe()
        self.connection: Connection = ours
        self.process = context.Process(
            target=serve, args=(theirs, assignment, shared), daemon=True, name=f"marl-tr-worker-{assignment.first}"
        )
        # Ctrl-C reaches the whole group of processes. Held back here, it is held back there as well, until the worker
        # has learned to ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def ask_to_end(self) -> None:
        """Ask."""
        with contextlib.suppress(OSError):  # gone already, which is what we want
            self.connection.send(("close", None))

    def end(self, by: float) -> None:
        """Insist, at the time `by` of ``time.monotonic()``."""
        self.process.join(max(0.0, by - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()

    def how_it_died(self) -> str:
        """In words; waits for the process, whose line is closed already."""
        self.process.join(_PATIENCE_S)
        code = self.process.exitcode
        if code is None:
            return "closed its line"
        if code >= 0:
            return f"exited with code {code}"
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"


class WorkerVectorEnv:
    """``E`` copies in worker processes; see the module's text, and `InProcessVectorEnv` for everything else.

    Args:
        env_id: The environment's name.
        entry: Its registry entry, which must be picklable, as must be `arguments`; None: workers find it by its name.
        arguments: Its factory's keyword arguments.
        num_envs: ``E``.
        workers: Processes, at most ``E``.
        render: Copy 0 renders.
        rebuild: See `CopyBlock`.

    Attributes:
        rewards_may_fail: See `InProcessVectorEnv`; set it before the first reset.
        restarts: Workers replaced so far.

    Raises:
        EnvironmentFault: The factory cannot be sent to another process.
        Others: As `InProcessVectorEnv`.
    """

    def __init__(
        self,
        env_id: str,
        entry: Entry | None,
        arguments: Mapping[str, Any],
        num_envs: int,
        *,
        workers: int,
        render: bool = False,
        rebuild: bool = False,
    ) -> None:
        if not 1 <= workers <= num_envs:
            raise ValueError(f"workers must lie in [1, num_envs = {num_envs}], got {workers}")
        self._whole = Assignment(env_id, entry, dict(arguments), render=render, rebuild=rebuild)
        _check_travels(self._whole)
        # One copy here says what the batch will look like, and refuses what cannot work with the usual words.
        probe = replace(self._whole, render=False).build()
        probe.close()
        self._id = env_id
        self.spec = replace(probe.spec, num_envs=num_envs)
        self._groups = probe.groups
        self._context = multiprocessing.get_context("spawn")
        self._shared = SharedArrays(_layout(self._groups, self.spec), self._context)
        self.rewards_may_fail = False
        self.restarts = 0
        bounds = np.linspace(0, num_envs, workers + 1).astype(int).tolist()
        self._parts = [(first, last - first) for first, last in pairwise(bounds)]
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _end_all, self._workers)
        self._seed: int | None = None
        self._episode = np.zeros(num_envs, dtype=np.int64)
        self._logs = [ReplayLog() for _ in range(num_envs)]

    def reset(self, seed: int) -> Step:
        """See `InProcessVectorEnv.reset`."""
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._seed = int(seed)
        self._episode[:] = 0
        self._ask("reset", [self._seed] * len(self._parts))
        for log, digest in zip(self._logs, self._shared["digest"].tolist(), strict=True):
            log.begin(digest)
        return self._batch().step(np.zeros(self.spec.num_envs, dtype=np.bool_))

    def step(self, actions: Actions) -> Step:
        """See `InProcessVectorEnv.step`.

        Raises:
            WorkerCrashed: A worker died, and its replacement did in the same step.
        """
        if self._seed is None:
            raise RuntimeError(f"environment {self._id!r}: call reset(seed) before step")
        taken = self._share(actions)
        final = any(self._ask("step", [None] * len(self._parts)))
        done = self._shared["done"].copy()
        self._note(taken, done)
        return self._batch().step(done, self._final() if final else None)

    def state_dict(self) -> dict[str, Any]:
        """See `InProcessVectorEnv.state_dict`: the same, bit for bit."""
        return self._state_of(0, self.spec.num_envs)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `InProcessVectorEnv.load_state_dict`; the workers replay side by side."""
        if state["id"] != self._id or len(state["episode"]) != self.spec.num_envs:
            raise ValueError(
                f"state of {len(state['episode'])} copies of {state['id']!r} given to {self.spec.num_envs} "
                f"copies of {self._id!r}"
            )
        seed = int(state["seed"])
        self._seed = None if seed < 0 else seed
        self._episode[:] = state["episode"]
        if self._seed is None:
            return
        self._logs = unpack(state, self._groups)
        self._ask("load", [self._state_of(*part) for part in self._parts])

    def references(self) -> Sequence[Reference]:
        """See `InProcessVectorEnv.references`."""
        generator = np.random.default_rng(0)
        return [Reference("random", lambda step: random_actions(self.spec, generator, step))]

    def close(self) -> None:
        """End the workers; they close their environments first."""
        _end_all(self._workers)

    def _ask(self, command: str, payloads: Sequence[Any]) -> list[Any]:
        """One message to each of the first workers and their answers; who dies meanwhile is replaced, once.

        Where that fails (Ctrl-C, a second death, what an environment raised), all workers end: they have moved on
        unevenly, and an answer that nobody waited for would be taken for that to the next question. New ones go on
        after the last step that was whole.
        """
        self._start(command)
        try:
            answers = self._exchange(command, payloads)
            for index, answer in enumerate(answers):
                if isinstance(answer, Failure):
                    raise self._error(index, answer)
        except BaseException:
            self.close()
            raise
        return answers

    def _exchange(self, command: str, payloads: Sequence[Any]) -> list[Any]:
        for index, payload in enumerate(payloads):
            self._send(index, command, payload)
        answers: list[Any] = [None] * len(payloads)
        waiting = set(range(len(payloads)))
        replaced: set[int] = set()
        while waiting:
            lines = {self._workers[index].connection: index for index in waiting}
            for line in wait(list(lines)):
                assert isinstance(line, Connection)
                index = lines[line]
                try:
                    answers[index] = line.recv()
                except (EOFError, OSError):  # nobody holds the other end
                    self._replace(index, command, payloads[index], again=index in replaced)
                    replaced.add(index)
                    continue
                waiting.discard(index)
        return answers

    def _start(self, command: str) -> None:
        if self._workers:
            return
        for index in range(len(self._parts)):
            self._workers.append(self._worker(index))
        if command in _FROM_WHERE_IT_IS and self._seed is not None:
            self._ask("load", [self._state_of(*part) for part in self._parts])

    def _worker(self, index: int) -> _Worker:
        first, count = self._parts[index]
        assignment = replace(
            self._whole,
            first=first,
            count=count,
            render=self._whole.render and first == 0,
            rewards_may_fail=self.rewards_may_fail,
        )
        return _Worker(assignment, self._shared, self._context)

    def _send(self, index: int, command: str, payload: Any) -> None:
        try:
            self._workers[index].connection.send((command, payload))
        except OSError:
            return  # it is dead: waiting for its answer finds that out

    def _replace(self, index: int, command: str, payload: Any, *, again: bool) -> None:
        """Put a new worker in the place of a dead one, bring it to where that one was, and ask it anew.

        Raises:
            WorkerCrashed: The one before died in the same place.
            ReplayMismatch: The copies did not repeat themselves.
        """
        dead = self._workers[index]
        first, count = self._parts[index]
        where = f"copies {first} to {first + count - 1}" if count > 1 else f"copy {first}"
        steps = [len(self._logs[copy].actions) + 1 for copy in range(first, first + count)]
        at = f"step {min(steps)}" if min(steps) == max(steps) else f"steps {min(steps)} to {max(steps)}"
        when = f"{at} of their episodes" if command == "step" else f"a {command}"
        fact = f"environment {self._id!r}, {where}: the worker process {dead.how_it_died()} in {when}"
        if again:
            unguarded = command == "reset" and dead.process.exitcode == 1
            raise WorkerCrashed(
                f"{fact}, and so did the one that replaced it. "
                + ("If this is a script, put what it does under 'if __name__ == \"__main__\":'. " if unguarded else "")
                + f"The environment itself {'may end' if unguarded else 'ends'} the process; 'marl-tr check-env "
                f"{self._id}' plays it in one process, where a debugger or faulthandler can see it"
            )
        dead.end(by=time.monotonic())
        self.restarts += 1
        warnings.warn(f"{fact}; a new one takes its place", WorkerRestarted, stacklevel=4)
        self._workers[index] = self._worker(index)
        if command in _FROM_WHERE_IT_IS:
            self._send(index, "load", self._state_of(first, count))
            try:
                answer = self._workers[index].connection.recv()
            except (EOFError, OSError):
                return  # it died as well: the next answer, which never comes, says so
            if isinstance(answer, Failure):
                raise self._error(index, answer)
        self._send(index, command, payload)

    def _error(self, index: int, failure: Failure) -> Exception:
        """What a worker's environment raised, with the traceback over there as a note."""
        first, count = self._parts[index]
        error = failure.error
        if not isinstance(error, Exception):
            error = RuntimeError(failure.text)
        if not isinstance(error, EnvironmentFault):
            error.add_note(f"(in the worker process of copies {first} to {first + count - 1})\n{failure.trace}")
        return error

    def _share(self, actions: Actions) -> list[Leaves]:
        """Put actions where the workers read them; returns them a group."""
        taken = stacked(actions, self._groups, self.spec.num_envs)
        for g, leaves in enumerate(taken):
            for leaf, array in leaves.items():
                self._shared[f"action/{g}/{leaf}"][...] = array
        return taken

    def _batch(self) -> Batch:
        """The newest answers, copied: a step is the caller's to keep."""
        return Batch.over(self._groups, {name: array.copy() for name, array in self._shared.under("now/").items()})

    def _final(self) -> tuple[list[Leaves], Array | None]:
        arrays = {name: array.copy() for name, array in self._shared.under("final/").items()}
        observations = [
            {leaf: arrays[f"{g}/observation/{leaf}"] for leaf in group.spec.observation}
            for g, group in enumerate(self._groups)
        ]
        return observations, arrays.get("state")

    def _note(self, taken: Sequence[Leaves], done: Array) -> None:
        """Keep what a later replay needs; a copy whose episode ended begins anew."""
        for copy, (log, digest) in enumerate(zip(self._logs, self._shared["digest"].tolist(), strict=True)):
            if done[copy]:
                self._episode[copy] += 1
                log.begin(digest)
            else:
                log.append([{leaf: array[copy] for leaf, array in leaves.items()} for leaves in taken], digest)

    def _state_of(self, first: int, count: int) -> dict[str, Any]:
        copies = slice(first, first + count)
        return {
            "id": self._id,
            "seed": -1 if self._seed is None else self._seed,
            "episode": self._episode[copies].copy(),
            **pack(self._logs[copies], self._groups),
        }


class RenderedWorkerVectorEnv(WorkerVectorEnv):
    """A `WorkerVectorEnv` whose copy 0 was made with ``render_mode="rgb_array"``."""

    def render(self) -> Array:
        """The first environment now, ``[H, W, 3]`` uint8."""
        picture: Array = self._ask("render", [None])[0]
        return picture


def _layout(groups: Sequence[GroupCodec], spec: EnvSpec) -> Layout:
    """See `marl_tr.vector.worker`."""
    size = spec.num_envs
    now = Batch.layout(groups, size, int(np.prod(spec.state["state"].shape or ())) if spec.state else None)
    layout: Layout = {f"now/{name}": array for name, array in now.items()}
    layout.update({f"final/{name}": a for name, a in now.items() if "/observation/" in name or name == "state"})
    for g, group in enumerate(groups):
        for leaf, space in group.spec.action.items():
            shape = (size, len(group.agents), *(space.shape or ()))
            layout[f"action/{g}/{leaf}"] = (shape, np.dtype(space.dtype))
    return {**layout, "done": ((size,), np.dtype(np.bool_)), "digest": ((size,), np.dtype(np.int64))}


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.ask_to_end()
    by = time.monotonic() + _PATIENCE_S  # of all together
    while workers:
        workers[-1].end(by)
        workers.pop()


def _check_travels(whole: Assignment) -> None:
    try:
        pickle.dumps(whole)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EnvironmentFault(
            f"environment {whole.id!r} cannot be sent to a worker process ({error}); put its factory at the top level "
            "of a module that can be imported and name it 'package.module:factory', or use env.backend: in_process"
        ) from error
