"""Two trainers in processes of their own that take turns: what either side of a pipe says.

A worker builds what it trains, tells that it is `Turns.ready`, and after each iteration is `Turns.done`: it then waits
for its next turn. Processor and wall time of an iteration are those between two such waits, so that building and
waiting are in neither. This module needs the standard library and NumPy alone, for a peer's interpreter reads it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from typing import IO, Any, Self

import numpy as np

__all__ = ["Turns", "Worker", "stepping_rate"]


class Turns:
    """A worker's side."""

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self._commands, self._answers = commands, answers
        self._since = 0.0, 0.0

    def ready(self, **facts: Any) -> None:
        """Say so, and wait for the first turn."""
        self._answer(facts)

    def done(self, **facts: Any) -> None:
        """Tell an iteration's facts with its times in s, and wait for the next turn."""
        wall, cpu = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        self._answer({**facts, "wall_s": wall, "cpu_s": cpu})

    def _answer(self, row: dict[str, Any]) -> None:
        print(json.dumps(row), file=self._answers, flush=True)
        if not self._commands.readline():
            # Nobody wants another turn; what a library would do at its end is nobody's business.
            os._exit(0)
        self._since = time.perf_counter(), time.process_time()


class Worker:
    """The side that says whose turn it is.

    Args:
        command: That starts the worker.
        job: Written to its standard input.
    """

    def __init__(self, command: Sequence[str], job: dict[str, Any]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say(json.dumps(job))
        self.facts = self._hear()

    def turn(self) -> dict[str, Any]:
        """One iteration's row."""
        self._say("go")
        return self._hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}; see above")
        row: dict[str, Any] = json.loads(line)
        return row


def stepping_rate(env: Any, *, seconds: float = 1.0) -> float:
    """Steps of a parallel PettingZoo environment per CPU-second, its resets among them, with drawn actions."""
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    agents = list(env.possible_agents)
    low, high = env.action_space(agents[0]).low, env.action_space(agents[0]).high
    actions = [{agent: rng.uniform(low, high).astype(np.float32) for agent in agents} for _ in range(16)]
    steps, started = 0, time.process_time()
    while (elapsed := time.process_time() - started) < seconds:
        for chosen in actions:
            if not env.agents:
                env.reset()
            env.step(chosen)
        steps += len(actions)
    return steps / elapsed
