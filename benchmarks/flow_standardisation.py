"""Mean and standard deviation of the reward's components on samples of the pretrained video model.

    python benchmarks/flow_standardisation.py

prints the constants of `marl_tr.envs.flow.standardisation` (level plain) as they come out for the model that ships:
ODE samples of all 24 conditions alike, from a fixed seed. They are measured once and then fixed.
"""

from __future__ import annotations

import argparse

import torch
from gymnasium import spaces

from marl_tr.envs.flow.measures import measured_standardisation
from marl_tr.envs.flow.rewards import Judge
from marl_tr.envs.flow.shapes import CONDITIONS, Condition, condition_tokens
from marl_tr.nn.flow_matching import ode_samples
from marl_tr.nn.velocity import build_velocity
from marl_tr.scenario.velocity import TransformerVelocityConfig
from marl_tr.vector.contract import GroupSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moving_shapes", help="registered name, file or folder")
    parser.add_argument("--samples", type=int, default=20 * CONDITIONS)
    parser.add_argument("--steps", type=int, default=10, help="of the ODE, as in the scenarios")
    parser.add_argument("--shift", type=float, default=3.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    group = GroupSpec(
        "segment",
        ("segment_0",),
        {"tokens": spaces.Box(-10, 10, (4, 32))},
        {"action": spaces.Box(-float("inf"), float("inf"), (1, 8, 16, 16))},
    )
    velocity = build_velocity(TransformerVelocityConfig(pretrained=arguments.model), group, generator)
    condition = Condition.from_index(torch.arange(arguments.samples) % CONDITIONS)
    tokens = {"tokens": condition_tokens(condition)}
    noise = torch.randn(arguments.samples, 1, 8, 16, 16, generator=generator)
    parts = [
        ode_samples(velocity, x, {"tokens": t}, steps=arguments.steps, shift=arguments.shift)
        for x, t in zip(noise.split(64), tokens["tokens"].split(64), strict=True)
    ]
    scores = Judge("plain", weights="A")(torch.cat(parts), condition)
    for name, constants in measured_standardisation(scores).items():
        print(f'"{name}": Standardisation(mean={constants.mean:.4g}, std={constants.std:.4g}),')
    print(f"manifold distance {float(scores.fit.distance.mean()):.4f}")
    for name in ("shape", "direction", "speed"):
        print(f"{name} accuracy {float(getattr(scores, name).float().mean()):.4f}")


if __name__ == "__main__":
    main()
