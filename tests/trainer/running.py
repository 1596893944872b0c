"""Tiny scenarios, the command line in processes that can be killed, and what is read from a run's folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCENARIOS = {
    "uav_mlp": """
name: tiny
preset: hatrpo
env: {id: uav/downlink-v0, num_envs: 4, config: {num_uavs: 2, num_users: 4, horizon: 12, rho: 1.0}}
agents: {kind: matr, network: mlp, hidden: [16], normalise_observation: true}
region: {iterations: 3}
critic: {kind: graph_recurrent, width: 16, fit: {kind: trust_region, subsample: 0.5, iterations: 3}}
trainer: {total_steps: 320, rollout_steps: 8, checkpoint_every: 2}
evaluation: {every: 3, episodes: 4, final_episodes: 4, window: 4, media: false, references: false}
""",
    "uav_gru": """
name: tiny
preset: hatrpo
env: {id: uav/downlink-v0, num_envs: 4, config: {num_uavs: 2, num_users: 4, horizon: 12, rho: 1.0}}
agents: {kind: matr, network: gru, hidden: [16]}
region: {iterations: 3}
critic: {kind: graph_recurrent, width: 16, fit: {kind: trust_region, subsample: 0.5, iterations: 3}}
trainer: {total_steps: 320, rollout_steps: 8, checkpoint_every: 2}
evaluation: {every: 3, episodes: 4, final_episodes: 4, window: 4, media: false, references: false}
""",
    "spread": """
name: tiny
preset: mappo
env:
  id: mpe2.simple_spread_v3:parallel_env
  num_envs: 3
  reward: mean
  config: {N: 3, max_cycles: 15, continuous_actions: true}
agents: {kind: gaussian, law: beta, hidden: [16]}
optimizer: {learning_rate: 1e-3, anneal: true, epochs: 2, minibatches: 2}
trainer: {total_steps: 240, rollout_steps: 8, checkpoint_every: 2}
evaluation: {every: 3, episodes: 3, final_episodes: 3, media: false, references: false}
""",
    "cartpole": """
name: tiny
preset: hatrpo
env: {id: gymnasium/CartPole-v1, num_envs: 3}
schedule: {kind: simultaneous}
agents: {kind: gaussian, hidden: [16]}
trainer: {total_steps: 480, rollout_steps: 16, checkpoint_every: 2}
evaluation: {every: 3, episodes: 3, final_episodes: 3, media: false, references: false}
""",
    "workers": """
name: tiny
preset: hatrpo
env: {id: gymnasium/CartPole-v1, num_envs: 3, backend: workers, workers: 2}
schedule: {kind: simultaneous}
agents: {kind: gaussian, hidden: [16]}
trainer: {total_steps: 480, rollout_steps: 16, checkpoint_every: 2}
evaluation: {every: 0, episodes: 3, final_episodes: 3, media: false, references: false}
""",
    "families": """
name: tiny
env: {id: uav/downlink-v0, num_envs: 4, reward: mean, config: {num_uavs: 3, num_users: 4, horizon: 12, rho: 1.0}}
agents:
  - {select: [uav_0], kind: matr, network: gru, hidden: [16]}
  - select: [uav_1]
    kind: flow
    steps: 3
    network: {kind: mlp, hidden: [16]}
    objective: {kind: clip, entropy: 0}
    region: {kind: measured, bound: 0.01}
    optimizer: {learning_rate: 1e-2, epochs: 2}
  - select: [uav_2]
    kind: drifting
    network: gru
    hidden: [16]
    head: [16]
    normalise_observation: true
    objective: {kind: podpo, minimum_positives: 2}
    region: {kind: measured, bound: 1e-4}
    optimizer: {learning_rate: 1e-2, epochs: 2, max_grad_norm: null}
objective: {kind: surrogate}
region: {kind: trpo, bound: 0.01, iterations: 3}
schedule: {kind: sequential}
critic: {kind: graph_recurrent, width: 16, fit: {kind: trust_region, subsample: 0.5, iterations: 3}}
trainer: {total_steps: 320, rollout_steps: 8, checkpoint_every: 2}
evaluation: {every: 3, episodes: 4, final_episodes: 4, window: 4, media: false, references: false}
""",
}

_CHILD = """
import os, sys
os.chdir(folder)
file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(file, 1)
os.dup2(file, 2)
from marl_tr.cli import main
sys.exit(main(arguments))
"""

# Its children are forked from one process that has already imported what takes seconds to import; the last two are what
# torch imports at its first gradient (with all of sympy) and its first optimizer.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        *("marl_tr.cli", "marl_tr.trainer.api", "torch.utils.tensorboard", "matplotlib.figure", "mpe2", "gymnasium"),
        *("torch.fx.experimental.symbolic_shapes", "torch._dynamo"),
    ]
)


class Command:
    """``marl-tr ARGUMENTS`` in a process of its own, working in `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = folder / "output.txt"
        self._log.write_text("")
        names = {"folder": str(folder), "log": str(self._log), "arguments": list(arguments)}
        self._process = _processes.Process(target=exec, args=(_CHILD, names))
        self._process.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process.exitcode is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def wait_for(self, seconds: float) -> bool:
        """Wait that long at most; whether it still runs."""
        self._process.join(seconds)
        return self._process.exitcode is None

    def wait(self, limit: float = 120) -> int:
        """The exit code; minus a signal's number where it was killed."""
        self._process.join(limit)
        assert self._process.exitcode is not None, f"still running after {limit} s:\n{self.output()}"
        return self._process.exitcode

    def output(self) -> str:
        return self._log.read_text()


def write_scenario(folder: Path, name: str, text: str | None = None) -> Path:
    """``scenario.yaml`` with one of `SCENARIOS`, or with `text`."""
    path = folder / "scenario.yaml"
    path.write_text(SCENARIOS[name] if text is None else text)
    return path


def the_run(folder: Path) -> Path:
    """The only run below ``runs/``."""
    (run,) = (folder / "runs").glob("*/*")
    return run


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*.safetensors"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of ``metrics.jsonl``, without what measures time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        timed = [tag for tag in line["scalars"] if tag.startswith("perf/") or tag == "charts/SPS"]
        for tag in timed:
            del line["scalars"][tag]
    return lines


def count_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def until(condition: Callable[[], bool], command: Command, limit: float = 60) -> bool:
    """Wait for `condition` while `command` runs; whether it came true."""
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, command.output()
        if not command.wait_for(0.002):
            return condition()
    return True


def scalar_steps(run: Path) -> dict[str, list[int]]:
    """The steps of every scalar, as TensorBoard reads them from all event files of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [point.step for point in events.Scalars(tag)] for tag in sorted(events.Tags()["scalars"])}


def same_run(run: Path, whole: Path) -> None:
    """The same newest checkpoint and audit to the bit, and the same metrics, but for measured times."""
    newest, expected = checkpoints(run)[-1], checkpoints(whole)[-1]
    assert newest.name == expected.name
    assert newest.read_bytes() == expected.read_bytes()
    assert metrics(run) == metrics(whole)
    assert (run / "audit.jsonl").read_bytes() == (whole / "audit.jsonl").read_bytes()
