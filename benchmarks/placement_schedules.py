"""What each schedule learns on the UAV placement game, beside its exact equilibria.

    python benchmarks/placement_schedules.py [--seeds 5] [--iterations 150]

Everything is exact but the learning: at every tenth iteration the policies' probabilities are read off, and the
environment computes NashConv and payoffs by enumeration. All schedules have the same region (`trpo`, bound 0.01), the
same critic and the same steps; `consensus` has policies over joint actions, as it must.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from marl_tr.analysis.statistics import stratified_bootstrap_ci
from marl_tr.equilibrium.exact import probabilities
from marl_tr.scenario import load_scenario
from marl_tr.trainer.loop import Trainer

RESULTS = Path(__file__).parent / "results" / "placement_schedules.json"
PRESETS = {"simultaneous": "hatrpo", "sequential": "hatrpo", "meta_game": "matrl", "consensus": "matrpo"}
COPIES, ROLLOUT = 256, 4
EVERY = 10


def learned(schedule: str, rho: float, *, seed: int, iterations: int) -> dict[str, Any]:
    """One run: NashConv and mean payoff along it, and what the policies most probably do at its end."""
    data = {
        "name": "placement",
        "preset": PRESETS[schedule],
        "seed": seed,
        "env": {
            "id": "games/uav_placement-v0",
            "num_envs": COPIES,
            "reward": "mean" if rho == 1 else "own",
            "config": {"lambda_sigma": 0.5, "rho": rho},
        },
        "agents": {"kind": "gaussian", "hidden": [32]},
        "schedule": {"kind": schedule},
        "trainer": {"total_steps": iterations * COPIES * ROLLOUT, "rollout_steps": ROLLOUT},
    }
    trainer = Trainer(load_scenario(data))
    trainer.audit = lambda line: None
    trainer.start()
    env: Any = trainer.env
    subject: Any = SimpleNamespace(teams=[player.team for player in trainer.players])
    policy = probabilities(subject, env.spec)
    assert policy is not None
    curve = []
    for iteration in range(iterations + 1):
        if iteration % EVERY == 0:
            gaps = env.exact_gaps(policy)
            laws = laws_of(env, policy)
            curve.append(
                {"step": trainer.step, "nash_conv": float(sum(gaps.values())), "payoff": mean_payoff(env, laws)}
            )
        if iteration < iterations:
            trainer.iterate()
    cell = tuple(int(law.argmax()) for law in laws)
    return {"curve": curve, "profile": cell, "probability": float(np.prod([law.max() for law in laws]))}


def laws_of(env: Any, policy: Any) -> list[Any]:
    """What each agent does, as it sees the game's only observation."""
    seen: list[Any] = []

    def spying(agent: str, observation: Any) -> Any:
        law = policy(agent, observation)
        seen.append((agent, law))
        return law

    env.exact_gaps(spying)
    by_agent = dict(seen)
    return [np.asarray(by_agent[agent][0]) for agent in env.spec.agents]


def mean_payoff(env: Any, laws: list[Any]) -> float:
    """Expected payoff of a joint policy, the mean over agents, by enumeration."""
    payoffs = env.game.payoffs
    total = 0.0
    for cell in itertools.product(*(range(len(law)) for law in laws)):
        total += float(
            np.prod([law[k] for law, k in zip(laws, cell, strict=True)]) * payoffs[(slice(None), *cell)].mean()
        )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"iterations": arguments.iterations, "copies": COPIES, "rollout": ROLLOUT, "runs": {}}
    if arguments.out.is_file():
        found = json.loads(arguments.out.read_text())
    for rho in (0.0, 1.0):
        for schedule in PRESETS:
            if f"rho {rho}, {schedule}" in found["runs"]:
                continue
            began = time.perf_counter()
            runs = [
                learned(schedule, rho, seed=seed, iterations=arguments.iterations)
                for seed in range(1, arguments.seeds + 1)
            ]
            found["runs"][f"rho {rho}, {schedule}"] = runs
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            gaps, payoffs = (
                stratified_bootstrap_ci([run["curve"][-1][key] for run in runs], seed=0)
                for key in ("nash_conv", "payoff")
            )
            ended = sorted({str(run["profile"]) for run in runs})
            print(
                f"rho {rho}, {schedule}: NashConv {gaps.estimate:.4f} [{gaps.low:.4f}, {gaps.high:.4f}], payoff "
                f"{payoffs.estimate:.4f}, profiles {', '.join(ended)}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
