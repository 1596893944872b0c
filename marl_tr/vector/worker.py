"""A worker process: some copies of an environment, and what it does when it is told.

A worker answers every message with exactly one. What its environments raise is an answer; only the death of the
process itself is not. It ignores Ctrl-C, which is its parent's to handle, and never outlives its parent.

Shared arrays: ``now/...`` and ``final/...`` (see `Batch.layout`), ``action/<group's number>/<leaf>``, ``done`` and
``digest`` (of each copy's newest answer), all ``[E, ...]``. A worker writes the rows of its own copies.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from marl_tr.foreign import own_traceback
from marl_tr.registry import Entry, find
from marl_tr.vector.batch import Batch
from marl_tr.vector.block import CopyBlock
from marl_tr.vector.contract import Actions
from marl_tr.vector.copies import call_factory, load_factory
from marl_tr.vector.shared import SharedArrays

__all__ = ["Assignment", "Failure", "serve"]


@dataclass(frozen=True)
class Assignment:
    """What one worker is for.

    Attributes:
        id: The environment's name.
        entry: Its registry entry; None: found by its name.
        arguments: Its factory's keyword arguments.
        first: Index of its first copy in the whole batch.
        count: How many copies it has.
        render: Its first copy renders.
        rebuild: See `CopyBlock`.
        rewards_may_fail: See `CopyBlock`.
    """

    id: str
    entry: Entry | None
    arguments: Mapping[str, Any]
    first: int = 0
    count: int = 1
    render: bool = False
    rebuild: bool = False
    rewards_may_fail: bool = False

    def build(self) -> CopyBlock:
        """Its copies."""
        entry = find("envs", self.id) if self.entry is None else self.entry
        factory = load_factory(entry, env_id=self.id)
        first = {**self.arguments, "render_mode": "rgb_array"} if self.render else self.arguments
        block = CopyBlock(
            self.id,
            lambda: call_factory(factory, self.arguments, env_id=self.id),
            self.count,
            first_index=self.first,
            first=lambda: call_factory(factory, first, env_id=self.id),
            rebuild=self.rebuild,
        )
        block.rewards_may_fail = self.rewards_may_fail
        return block


@dataclass(frozen=True)
class Failure:
    """An exception that a worker's environment raised: itself where it can travel, and its traceback as text."""

    error: BaseException | None
    text: str
    trace: str


def serve(connection: Connection, assignment: Assignment, shared: SharedArrays) -> None:
    """The worker's whole life; the target of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back since before this process began
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    worker: _Worker | None = None
    while True:
        try:
            command, payload = connection.recv()
        except EOFError:  # the parent is gone
            return
        if command == "close":
            if worker is not None:
                worker.block.close()
            connection.send(None)
            return
        try:
            # Built here, where exceptions are answers: importing a user's module may fail.
            worker = worker or _Worker(assignment, shared)
            answer = worker.obey(command, payload)
        except Exception as error:
            answer = _failure(error)
        connection.send(answer)


class _Worker:
    def __init__(self, assignment: Assignment, shared: SharedArrays) -> None:
        self.block = assignment.build()
        self._shared = shared
        self._copies = slice(assignment.first, assignment.first + assignment.count)
        self._now = Batch.over(self.block.groups, shared.under("now/")).part(assignment.first, assignment.count)

    def obey(self, command: str, payload: Any) -> Any:
        """Do what is asked; of a step, answer whether there are final observations."""
        if command == "reset":
            self._now.clear()
            self.block.reset(payload, self._now)
            self._shared["digest"][self._copies] = self.block.digests
            return None
        if command == "step":
            return self._step()
        if command == "load":
            return self.block.load_state_dict(payload)
        if command == "render":
            return self.block.render()
        raise ValueError(f"no command {command!r}")

    def _step(self) -> bool:
        self._now.clear()
        done = self.block.advance(self._actions(), self._now)
        final = self._now.final(done)
        if final is not None:
            observations, state = final
            for g, leaves in enumerate(observations):
                for leaf, array in leaves.items():
                    self._shared[f"final/{g}/observation/{leaf}"][self._copies] = array
            if state is not None:
                self._shared["final/state"][self._copies] = state
        self.block.renew(done, self._now)
        self._shared["done"][self._copies] = done
        self._shared["digest"][self._copies] = self.block.digests
        return final is not None

    def _actions(self) -> Actions:
        return {
            group.name: {leaf: self._shared[f"action/{g}/{leaf}"][self._copies] for leaf in group.spec.action}
            for g, group in enumerate(self.block.groups)
        }


def _failure(error: Exception) -> Failure:
    trace = own_traceback(error)
    text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    try:
        # An exception whose __init__ takes something else than its args cannot be made again on the other side.
        again = pickle.loads(pickle.dumps(error))
        travels = type(again) is type(error) and str(again) == str(error)
    except Exception:  # whatever a user's __reduce__ or __init__ raises means the same: it stays here
        travels = False
    return Failure(error if travels else None, text, trace)


def _leave_with_parent() -> None:
    """End the process as soon as the parent ends, also in the middle of an environment's step."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
