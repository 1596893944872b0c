"""The reference ladder of ``uav/downlink-v0``: what UAVs earn that are placed, not flown.

For 2, 3 and 4 UAVs: random places, k-means, and two searches that begin there, over static scenes at the environment's
defaults; beside them the published ladder, whose search was a random hill climb of 1,500 steps too. Then what the
reference policies, which fly to such places, earn in an episode, and how long their searches take. Writes
``benchmarks/results/uav_ladder.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from marl_tr.envs.uav.config import DownlinkConfig  # noqa: E402
from marl_tr.envs.uav.references import k_means  # noqa: E402
from marl_tr.envs.uav.search import placement_problem, search, steps_for  # noqa: E402
from marl_tr.envs.uav.simulator import Simulator  # noqa: E402
from marl_tr.envs.uav.vector import make  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "uav_ladder.json"

COLUMNS = ("reward", "mean_rate_mbps", "std_rate_mbps", "jain", "p5_rate_mbps", "mean_sinr_db")
RANDOM, K_MEANS, POSITION = "random, full power", "k-means, full power", "k-means + position search"
POWER, UNFAIR = "k-means + position and power search", "the same, lambda_sigma = 0 in the search"

# Specification of the GA-MATR study, 1.12: 256 static scenes, columns as above, 2, 3 and 4 UAVs.
PUBLISHED: dict[str, dict[int, tuple[float, ...]]] = {
    RANDOM: {
        2: (0.506, 0.298, 0.247, 0.656, 0.107, 8.6),
        3: (0.331, 0.336, 0.328, 0.565, 0.097, 6.0),
        4: (0.260, 0.376, 0.392, 0.547, 0.102, 4.8),
    },
    K_MEANS: {
        2: (0.995, 0.492, 0.296, 0.766, 0.187, 14.3),
        3: (0.718, 0.616, 0.487, 0.677, 0.212, 11.5),
        4: (0.537, 0.687, 0.632, 0.606, 0.223, 9.1),
    },
    POSITION: {
        2: (1.204, 0.524, 0.215, 0.855, 0.214, 16.6),
        3: (0.953, 0.639, 0.288, 0.831, 0.262, 13.6),
        4: (0.784, 0.712, 0.339, 0.816, 0.299, 11.7),
    },
    POWER: {
        2: (1.457, 0.588, 0.167, 0.920, 0.306, 22.9),
        3: (1.062, 0.656, 0.211, 0.901, 0.325, 16.0),
        4: (0.874, 0.731, 0.254, 0.887, 0.362, 13.9),
    },
    UNFAIR: {
        2: (0.739, 0.641, 0.772, 0.520, 0.115, 18.6),
        3: (0.480, 0.849, 1.199, 0.402, 0.137, 14.7),
        4: (0.385, 1.011, 1.488, 0.354, 0.131, 12.1),
    },
}


def ladder(uavs: int, *, scenes: int, seed: int, steps: int) -> dict[str, dict[str, Any]]:
    """Means over scenes of every rung, with their standard errors and the seconds of its search."""
    config = DownlinkConfig(num_uavs=uavs)
    stream = np.arange(scenes)
    sim = Simulator(config, scenes)
    sim.reset(seed)
    users, scattered = sim.users.copy(), sim.position[..., :2].copy()
    centroids = k_means(users, uavs, stream=stream)
    full = np.full((scenes, uavs), config.p_max_w)
    placed: dict[str, tuple[Any, Any, float]] = {RANDOM: (scattered, full, 0.0), K_MEANS: (centroids, full, 0.0)}
    for rung, powers, weight in ((POSITION, False, None), (POWER, True, None), (UNFAIR, True, 0.0)):
        problem = placement_problem(config, lambda_sigma=weight)
        began = time.process_time()
        found = search(problem, users, centroids, full, stream=stream, powers=powers, steps=steps)
        placed[rung] = (found.position, found.power_w, time.process_time() - began)
    return {
        rung: measured(sim, seed, position, power_w) | {"seconds": seconds}
        for rung, (position, power_w, seconds) in placed.items()
    }


def measured(sim: Simulator, seed: int, position: Any, power_w: Any) -> dict[str, Any]:
    """One slot of the simulator itself in which UAVs at `position` hover and send; ``{"mean", "error"}`` by column."""
    config = sim.config
    sim.reset(seed)
    sim.position[..., :2] = position
    hover = np.zeros((*power_w.shape, 3))
    hover[..., 0], hover[..., 2] = -1.0, 2.0 * power_w / config.p_max_w - 1.0
    outcome = sim.step(hover)
    found = {**outcome.metrics, "reward": outcome.reward.mean(axis=1)}
    root = np.sqrt(sim.num_envs)
    return {
        column: {"mean": float(found[column].mean()), "error": float(found[column].std() / root)} for column in COLUMNS
    }


def flown(uavs: int, *, episodes: int, seed: int) -> dict[str, dict[str, float]]:
    """What the reference policies earn a slot, over the episode and over its last 20, and what their planning costs."""
    env = make(num_envs=episodes, num_uavs=uavs)
    horizon = env.config.horizon
    rows: dict[str, dict[str, float]] = {}
    for reference in env.references():
        step = env.reset(seed)
        began = time.process_time()
        actions = reference.act(step)
        planning = time.process_time() - began
        rewards = []
        for _ in range(horizon):
            step = env.step(actions)
            rewards.append(float(step.groups["uav"].reward.mean()))
            actions = reference.act(step) if len(rewards) < horizon else actions
        rows[reference.name] = {
            "slot": float(np.mean(rewards)),
            "last_20": float(np.mean(rewards[-20:])),
            "planning_s": planning,
            "episodes_s": time.process_time() - began,
        }
    return rows


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Ours, then the published number in brackets, a row a rung and a number of UAVs."""
    lines = [
        "| placement | U | reward | mean rate Mb/s | std Mb/s | Jain | 5th percentile Mb/s | mean SINR dB | search s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rung, published in PUBLISHED.items():
        for uavs, numbers in published.items():
            row = rows[str(uavs)][rung]
            cells = []
            for column, number in zip(COLUMNS, numbers, strict=True):
                digits = 1 if column == "mean_sinr_db" else 3
                cells.append(f"{row[column]['mean']:.{digits}f} ({number:.{digits}f})")
            lines.append(f"| {rung} | {uavs} | {' | '.join(cells)} | {row['seconds']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1024, help="static scenes of the ladder")
    parser.add_argument("--episodes", type=int, default=256, help="episodes that the policies fly")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the ladder's searches")
    parser.add_argument("--seed", type=int, default=2024, help="of the scenes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    arguments = parser.parse_args()
    ladders, policies = {}, {}
    for uavs in (2, 3, 4):
        ladders[str(uavs)] = ladder(uavs, scenes=arguments.scenes, seed=arguments.seed, steps=arguments.steps)
        policies[str(uavs)] = flown(uavs, episodes=arguments.episodes, seed=arguments.seed)
    print(table(ladders), "\n")
    for number, rows in policies.items():
        print(f"{number} UAVs, {arguments.episodes} episodes, searches of {steps_for(int(number), 20)} steps")
        for rung, row in rows.items():
            print(
                f"  {rung:34} a slot {row['slot']:.3f}, last 20 {row['last_20']:.3f}; planning "
                f"{row['planning_s']:.2f} s of {row['episodes_s']:.2f} s"
            )
    record = {
        "command": shlex.join(["python", "benchmarks/uav_ladder.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "means over scenes; errors are standard errors of them; seconds of CPU time, one thread",
        "scenes": arguments.scenes,
        "episodes": arguments.episodes,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "published": PUBLISHED,
        "ladder": ladders,
        "policies": policies,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
