"""What UAVs earn that always fly up the reward's slope: the optima that are near, beside those that a search finds.

In static scenes of ``uav/downlink-v0`` every UAV follows the finite-difference gradient of the reward of hovering with
respect to its own place, one slot's flight at a time, and may change its power by a quarter; from random places, where
episodes begin, and from k-means. It knows the channel and all users, so that a learned policy that earns no more has
found what is near and nothing farther away. Writes ``benchmarks/results/uav_greedy.json``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from marl_tr.envs.uav.config import DownlinkConfig  # noqa: E402
from marl_tr.envs.uav.references import k_means  # noqa: E402
from marl_tr.envs.uav.search import Problem, placement_problem, search, steps_for  # noqa: E402
from marl_tr.envs.uav.simulator import Simulator  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "uav_greedy.json"
PROBE_M = 20.0
"""Half the distance between the two places whose rewards give a slope."""
POWER_FACTOR = 1.25
SETTLING = 0.7
"""Share of the slots that are flown at full speed; later ways get shorter, so that UAVs come to rest."""

Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--slots", type=int, default=100, help="of flight")
    parser.add_argument("--uavs", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    table = {str(uavs): rungs(uavs, arguments.scenes, arguments.slots) for uavs in arguments.uavs}
    print("| | " + " | ".join(f"{uavs} UAVs" for uavs in table) + " |")
    print("|---|" + "---|" * len(table))
    for label in next(iter(table.values())):
        cells = [f"{found[label]['mean']:.3f} ({found[label]['standard_error']:.3f})" for found in table.values()]
        print(f"| {label} | " + " | ".join(cells) + " |")
    arguments.out.write_text(
        json.dumps({"scenes": arguments.scenes, "slots": arguments.slots, "reward": table}, indent=1) + "\n"
    )


def rungs(uavs: int, scenes: int, slots: int) -> dict[str, dict[str, float]]:
    """Mean reward of hovering, and its standard error over scenes, by way of getting there."""
    config = DownlinkConfig(num_uavs=uavs)
    simulator = Simulator(config, scenes)
    simulator.reset(0)
    users, starts = simulator.users.astype(np.float64), simulator.position[..., :2].astype(np.float64)
    problem = placement_problem(config)
    loud = np.full((scenes, uavs), config.p_max_w)
    centroids = k_means(users, uavs, stream=np.arange(scenes))
    step = config.v_max * config.slot_s
    searched = search(
        problem, users, centroids, loud, stream=np.arange(scenes), powers=False, steps=steps_for(uavs, config.num_users)
    )
    values = {
        "where episodes begin, full power": problem.value(starts, loud, users),
        "k-means, full power": problem.value(centroids, loud, users),
        "up the slope, full power": climb_slope(problem, users, starts, loud, slots=slots, step=step, powers=False),
        "up the slope from k-means, full power": climb_slope(
            problem, users, centroids, loud, slots=slots, step=step, powers=False
        ),
        "position search from k-means, full power": searched.value,
        "up the slope, powers too": climb_slope(problem, users, starts, loud, slots=slots, step=step, powers=True),
        "up the slope from k-means, powers too": climb_slope(
            problem, users, centroids, loud, slots=slots, step=step, powers=True
        ),
    }
    return {
        label: {"mean": float(value.mean()), "standard_error": float(value.std(ddof=1) / np.sqrt(scenes))}
        for label, value in values.items()
    }


def climb_slope(
    problem: Problem, users: Array, position: Array, power_w: Array, *, slots: int, step: float, powers: bool
) -> Array:
    """The value ``[E]`` after `slots` of flight up the slope.

    Args:
        problem: What is climbed.
        users: ``[E, G, 2]``, in m.
        position: ``[E, U, 2]``, in m, where flight begins.
        power_w: ``[E, U]``.
        slots: Of flight; all UAVs move at once.
        step: Longest way of a slot, in m.
        powers: Whether a UAV's power may change, by `POWER_FACTOR` a slot.
    """
    position, power = position.copy(), power_w.copy()
    for slot in range(slots):
        slope = _slope(problem, users, position, power)
        length = np.linalg.norm(slope, axis=2, keepdims=True)
        left = slots * (1 - SETTLING)
        reach = step * min(1.0, 0.5 ** ((slot - SETTLING * slots) / (left / 5)))
        position = np.clip(position + reach * slope / np.maximum(length, 1e-300), problem.low, problem.high)
        if powers:
            power = better_powers(problem, users, position, power)
    return problem.value(position, power, users)


def _slope(problem: Problem, users: Array, position: Array, power: Array) -> Array:
    slope = np.zeros_like(position)
    for index in np.ndindex(position.shape[1:]):
        offset = np.zeros(position.shape[1:])
        offset[index] = PROBE_M
        ahead, behind = (problem.value(position + side * offset, power, users) for side in (1, -1))
        slope[:, index[0], index[1]] = (ahead - behind) / (2 * PROBE_M)
    return slope


def better_powers(problem: Problem, users: Array, position: Array, power: Array) -> Array:
    """Powers ``[E, U]`` after each UAV in turn took the best of its own, `POWER_FACTOR` times it, and as much less."""
    for uav in range(power.shape[1]):
        best, value = power, problem.value(position, power, users)
        for factor in (POWER_FACTOR, 1 / POWER_FACTOR):
            changed = power.copy()
            changed[:, uav] = problem.allowed(changed[:, uav] * factor)
            found = problem.value(position, changed, users)
            best = np.where((found > value)[:, None], changed, best)
            value = np.maximum(found, value)
        power = best
    return power


if __name__ == "__main__":
    main()
