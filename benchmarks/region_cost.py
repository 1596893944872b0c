"""What one update of each trust region costs beside PPO's clipped ratio.

    python benchmarks/region_cost.py [--rounds 5]

One learner with two hidden layers of 64, 2,048 decisions, ten epochs of eight minibatches (`trpo` its one natural
step), in the processor time of the process, which other programs on the machine hardly change. Every round goes
through all regions, so that whatever drifts drifts for all; the median over rounds is divided by that of `ppo_clip` on
the same kind of actions. Sampling, critic and the Guard are the same for all and not in it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from region_bounds import OPTIONS, policy_of, serves, turn_of

from marl_tr.policy import PolicyBatch
from marl_tr.region.turn import Learners, Turn
from marl_tr.registry import find, names
from marl_tr.scenario.schema import OptimizerSection

RESULTS = Path(__file__).parent / "results" / "region_cost.json"
STEPS, COPIES, WIDTH = 64, 16, 64


def turn(law: str, region: Any) -> Turn:
    """Whole episodes of 64 steps, of two agents that share their parameters: 2,048 decisions of one learner."""
    policy = policy_of(law, region, torch.Generator().manual_seed(0), shared=True, hidden=[WIDTH, WIDTH])
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(1, STEPS, 2 * COPIES, 4, generator=generator)
    records = []
    for t in range(STEPS):
        with torch.no_grad():
            records.append(policy.act({"observation": observation[:, t]}, None, generator).record)
    starts = torch.zeros(observation.shape[:3], dtype=torch.bool)
    starts[:, 0] = True
    batch = PolicyBatch(
        observation={"observation": observation},
        record={leaf: torch.stack([r[leaf] for r in records], 1) for leaf in records[0]},
        memory=None,
        starts=starts,
        mask=torch.ones_like(starts),
    )
    return turn_of(Learners(policy, ["learner"]), batch, generator, scale=1.0)


def region_of(name: str, law: str) -> Any:
    entry = find("regions", name)
    config: Any = entry.load_config()
    steps = OptimizerSection(learning_rate=3e-4, epochs=10, minibatches=8, max_grad_norm=0.5)
    settings = OPTIONS.get(name, {}).get(law, {})
    return entry.load()(config(**settings), None if getattr(config, "takes_own_step", False) else steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"rounds": arguments.rounds, "decisions": 2 * STEPS * COPIES, "cases": {}}
    for law in ("gaussian", "categorical"):
        cases = {}
        for name in names("regions"):
            if serves(name, law):
                region = region_of(name, law)
                cases[name] = (region, turn(law, region))
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(arguments.rounds):
            for name, (region, problem) in cases.items():
                began = time.process_time()
                region.propose(problem)
                seconds[name].append(time.process_time() - began)
        reference = float(np.median(seconds["ppo_clip"]))
        for name, each in seconds.items():
            ratios = [s / reference for s in each]
            found["cases"][f"{name}, {law}"] = {
                "seconds": each,
                "ratio": float(np.median(ratios)),
                "least": min(ratios),
                "most": max(ratios),
            }
            print(f"{name}, {law}: {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
