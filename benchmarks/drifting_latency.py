"""What one action costs: a Gaussian actor, a drifting one, the medoid of its samples, and flows of several steps.

    python benchmarks/drifting_latency.py

All have hidden layers of the same widths and act untrained, which costs the same, for one observation of a task's size
and for a batch. Every repetition times all of them in a random order on one thread; a ratio is taken within a
repetition. Times are of the process's CPU, so that other load matters less; a Gaussian is timed twice, so that its
ratio to itself shows what the measurement can tell apart. Writes ``benchmarks/results/drifting_latency.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flow_runs import HERE, commit
from numpy.typing import NDArray

from marl_tr.policy import Policy
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players

RESULTS = HERE / "results" / "drifting_latency.json"
BASE = "gaussian"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="gymnasium/Hopper-v5", help="whose observation and action are taken")
    parser.add_argument("--hidden", nargs=2, type=int, default=[64, 64], help="widths")
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 5, 10], help="steps K of the flows")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--calls", type=int, default=20, help="of each in a repetition")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    results = {
        "command": "python benchmarks/drifting_latency.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "settings": {name: getattr(arguments, name) for name in ("env", "hidden", "repetitions", "calls")},
        "batches": {str(size): measured(size, arguments) for size in arguments.batches},
    }
    results["load"] = [load, os.getloadavg()[0]]
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(arguments.results)


def measured(size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds a call and an action, and ratios to the Gaussian, by way of acting."""
    ways = acting(size, arguments)
    order = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for call in ways.values():
            for _ in range(arguments.calls):
                call()
        for _ in range(arguments.repetitions):
            for name in order.permutation(list(ways)):
                started = time.process_time()
                for _ in range(arguments.calls):
                    ways[name]()
                seconds[name].append((time.process_time() - started) / arguments.calls)
    base = np.array(seconds[BASE])
    return {
        name: {
            "call_s": spread(np.array(own)),
            "action_s": float(np.median(own)) / size,
            f"ratio_to_{BASE}": spread(np.array(own) / base),
        }
        for name, own in seconds.items()
    }


def acting(size: int, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """A call for each way, on the same observations."""
    h = arguments.hidden
    drifting = {"kind": "drifting", "hidden": h[:1], "head": h[1:], "activation": "tanh", "mode": "sample"}
    flow = {"kind": "flow", "network": {"kind": "mlp", "hidden": h, "activation": "tanh"}}
    chosen: dict[str, tuple[dict[str, Any], bool]] = {
        BASE: ({"kind": "gaussian", "hidden": h}, False),
        f"{BASE} again": ({"kind": "gaussian", "hidden": h}, False),
        "drifting, sample": (drifting, True),
        "drifting, medoid of 32": ({**drifting, "mode": "medoid", "medoid_samples": 32}, True),
        **{f"flow, K = {k}": ({**flow, "steps": k}, True) for k in arguments.chains},
    }
    generator = torch.Generator().manual_seed(1)
    ways: dict[str, Callable[[], object]] = {}
    for name, (agents, mode) in chosen.items():
        policy, observation = built(agents, arguments.env, size)
        ways[name] = lambda policy=policy, seen=observation, mode=mode: policy.act(seen, None, generator, mode=mode)
    return ways


def built(agents: dict[str, Any], env_id: str, size: int) -> tuple[Policy, dict[str, torch.Tensor]]:
    """An untrained policy, and ``{leaf: [L, size, ...]}`` to act on."""
    drifting = agents["kind"] == "drifting"
    scenario = load_scenario(
        {
            **{"name": "drifting_latency", "env": {"id": env_id, "num_envs": 1}, "agents": agents},
            **{"objective": {"kind": "podpo" if drifting else "clip"}, "region": {"kind": "measured"}},
            **{"optimizer": {}, "schedule": {"kind": "simultaneous"}, "critic": {"kind": "mlp"}},
            "trainer": {"total_steps": 1, "rollout_steps": 1},
        }
    )
    env = build_env(scenario, num_envs=1)
    try:
        (player,) = build_players(scenario, env.spec)
    finally:
        env.close()
    generator = torch.Generator().manual_seed(2)
    seen = {
        leaf: torch.randn(1, size, *(space.shape or ()), generator=generator)
        for leaf, space in player.team.group.observation.items()
    }
    return player.team.policy, seen


def spread(values: NDArray[Any]) -> dict[str, float]:
    """Median, and the middle half."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def show(results: dict[str, Any]) -> None:
    for size, ways in results["batches"].items():
        print(f"batch {size:<20} {'us a call (middle half)':<26} {'us an action':>12}  x {BASE} (middle half)")
        for name, found in ways.items():
            call, ratio = found["call_s"], found[f"ratio_to_{BASE}"]
            told = f"{1e6 * call['median']:.0f} ({1e6 * call['low']:.0f} to {1e6 * call['high']:.0f})"
            print(
                f"  {name:<24} {told:<26} {1e6 * found['action_s']:>12.2f}  {ratio['median']:.2f} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f})"
            )


if __name__ == "__main__":
    main()
