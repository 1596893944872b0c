"""What exploration costs on the shipped video model: SDE against ODE sampling, and where an iteration's time goes.

    python benchmarks/flow_cost.py

Both ways of sampling evaluate the network equally often. Every repetition times all samplers in a random order on one
thread; a ratio is taken within a repetition. Times are of the process's CPU, so that other load matters less. Writes
``benchmarks/results/flow_cost.json``.
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
from flow_runs import HERE, bootstrap, commit
from flow_samplers import scenario
from flow_samplers_figures import SAMPLERS

from marl_tr.policy import PolicyBatch
from marl_tr.scenario import load_scenario
from marl_tr.trainer.loop import Trainer

RESULTS = HERE / "results" / "flow_cost.json"
AIM = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moving_shapes", help="registered name, or a file of 'marl-tr pretrain'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="the first one is used")
    parser.add_argument("--steps", type=int, default=40, help="repetitions")
    parser.add_argument("--copies", type=int, default=64, help="samples at a time, a multiple of 8")
    parser.add_argument("--chain", type=int, default=10, help="denoising steps K")
    parser.add_argument("--iterations", type=int, default=3, help="training iterations that are timed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    results = {
        "command": "python benchmarks/flow_cost.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "samples": arguments.copies,
        "network_evaluations_a_sample": arguments.chain,
        "sampling": sampling(arguments),
        "iteration": iteration(arguments),
    }
    results["load"] = [load, os.getloadavg()[0]]
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(arguments.results)


def sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds by sampler and their ratios to the ODE."""
    trainers = {sampler: trained(sampler, arguments) for sampler in SAMPLERS}
    observation = conditions(next(iter(trainers.values())))
    generator = torch.Generator()
    ways: dict[str, Callable[[], object]] = {
        sampler: lambda policy=trainer.players[0].team.policy: policy.act(observation, None, generator)
        for sampler, trainer in trainers.items()
    }
    some_policy = trainers["sage"].players[0].team.policy
    # Twice, so that the ODE's ratio to itself shows what the measurement can tell apart.
    ways |= {name: lambda: some_policy.act(observation, None, generator, mode=True) for name in ("ode", "ode again")}
    order = np.random.default_rng(arguments.seeds[0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for repetition in range(arguments.steps + 1):
            for name in order.permutation(list(ways)):
                generator.manual_seed(repetition)
                spent = timed(ways[name])
                # The first repetition warms caches and allocators up.
                if repetition:
                    seconds[name].append(spent)
    for trainer in trainers.values():
        trainer.env.close()
    ode = np.array(seconds["ode"])
    return {
        name: {
            "cpu_s": spread(np.array(times)),
            "ratio_to_ode": spread(np.array(times) / ode),
            "median_ratio": bootstrap(np.array(times)[None] / ode, lambda x: np.median(x, (-2, -1))),
            # The fastest repetition of each: what other load disturbs least.
            "ratio_of_least": float(min(times) / ode.min()),
        }
        for name, times in seconds.items()
    }


def iteration(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where the time of training goes: the trainer's own split, and what its passes cost each."""
    trainer = trained("sage", arguments)
    trainer.audit = lambda line: None
    trainer.start()
    parts: dict[str, list[float]] = {}
    for _ in range(arguments.iterations):
        before, began = dict(trainer.seconds), time.perf_counter()
        trainer.iterate()
        for name, value in trainer.seconds.items():
            parts.setdefault(name, []).append(value - before[name])
        parts.setdefault("whole", []).append(time.perf_counter() - began)
    policy: Any = trainer.players[0].team.policy
    observation = conditions(trainer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        record = policy.act(observation, None, generator).record
    batch = PolicyBatch(
        observation={leaf: x[:, None] for leaf, x in observation.items()},
        record={name: x[:, None] for name, x in record.items()},
        memory=None,
        starts=torch.ones(1, 1, arguments.copies, dtype=torch.bool),
        mask=torch.ones(1, 1, arguments.copies, dtype=torch.bool),
    )
    parameters = {name: p.detach().clone().requires_grad_() for name, p in policy.module.named_parameters()}

    def forward() -> None:
        with torch.no_grad():
            policy.evaluate(parameters, batch)

    def backward() -> None:
        policy.evaluate(parameters, batch).log_prob.mean().backward()

    trainer.env.close()
    passes = {name: [timed(way) for _ in range(3)] for name, way in (("forward", forward), ("backward", backward))}
    return {
        "wall_s": {name: spread(np.array(times)) for name, times in parts.items()},
        "share": {name: float(np.sum(times) / np.sum(parts["whole"])) for name, times in parts.items()},
        # Over all chains of a rollout; a backward pass includes its forward pass.
        "pass_cpu_s": {name: spread(np.array(times)) for name, times in passes.items()},
    }


def trained(sampler: str, arguments: argparse.Namespace) -> Trainer:
    run = {
        **{"sampler": sampler, "eta": 0.5, "decode": "latent", "seed": arguments.seeds[0], "steps": 1},
        **{"copies": arguments.copies, "chain": arguments.chain, "shift": 3.0, "weights": "B"},
        **{"learning_rate": 1e-6, "clip": 0.002, "epochs": 1, "minibatches": 2},
    }
    return Trainer(load_scenario(scenario(run, arguments.model)))


def conditions(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of the first episodes, as the policy sees them: ``{leaf: [1, N, ...]}``."""
    (group,) = trainer.env.reset(1).groups.values()
    return {leaf: torch.from_numpy(x).flatten(0, 1)[None] for leaf, x in group.observation.items()}


def timed(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


def spread(values: Any) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "q25": float(low), "q75": float(high), "least": float(values.min())}


def show(results: dict[str, Any]) -> None:
    for name, found in results["sampling"].items():
        ratio, spent, median = found["ratio_to_ode"], found["cpu_s"], found["median_ratio"]
        print(
            f"{name:<10} {spent['median']:.3f} s, {median['mean']:.3f} [{median['low']:.3f}, {median['high']:.3f}] of "
            f"the ODE (quartiles {ratio['q25']:.3f}, {ratio['q75']:.3f}), fastest {found['ratio_of_least']:.3f}"
            f"{'' if median['mean'] <= AIM else f': above the aim {AIM}'}"
        )
    took = results["iteration"]
    split = ", ".join(f"{name} {share:.1%}" for name, share in took["share"].items() if name != "whole")
    print(f"an iteration: {took['wall_s']['whole']['median']:.2f} s wall; {split}")
    print(", ".join(f"{name} pass {spent['median']:.2f} CPU s" for name, spent in took["pass_cpu_s"].items()))


if __name__ == "__main__":
    main()
