"""Where a learned policy of ``uav/downlink-v0`` leaves the UAVs, and what the reward's slope would give from there.

    marl-tr eval runs/uav_team/<run> --episodes 128 --csv 128
    python benchmarks/uav_endings.py runs/uav_team/<run> [<run> ...]

Of the tables of every episode that `eval` wrote: the reward of the last 20 slots; of hovering at the mean place of
these slots with their (geometric) mean powers, without flight and noise; and of hovering where flying up the slope of
the reward ends from there (`uav_greedy.py`) when only places, only powers, or both may change. If the slope still gives
much, the policy lacks precision; if it gives nothing, the policy is at an optimum of its surroundings. Level flight,
static users. Writes ``benchmarks/results/uav_endings.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from uav_greedy import better_powers, climb_slope

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.search import placement_problem
from marl_tr.scenario import load_scenario

RESULTS = Path(__file__).parent / "results" / "uav_endings.json"
WINDOW = 20
"""Slots at the end of an episode."""
POWER_STEPS = 30

Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with tables of the same episodes")
    parser.add_argument("--slots", type=int, default=60, help="of flight up the slope")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file; runs that it holds are replaced")
    arguments = parser.parse_args()
    found = {run.resolve().name: endings(run, slots=arguments.slots) for run in arguments.runs}
    for name, row in found.items():
        print(name)
        for label, value in row.items():
            print(f"  {label:48} {value}")
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    arguments.out.write_text(json.dumps(kept | found, indent=1) + "\n")


def endings(run: Path, *, slots: int) -> dict[str, Any]:
    """What the module's description names, means over episodes with standard errors."""
    config = DownlinkConfig.model_validate(load_scenario(run / "scenario.yaml").env.config)
    tables = sorted((run / "tables").glob("uavs_episode*.csv"))
    if not tables:
        raise SystemExit(f"{run}: no tables; write them with 'marl-tr eval {run} --episodes 128 --csv 128'")
    flown = [_episode(table, config.num_uavs) for table in tables]
    place, power, users, reward = (np.array(part) for part in zip(*flown, strict=True))
    problem, step = placement_problem(config), config.v_max * config.slot_s
    end, loud = place[:, -WINDOW:].mean(axis=1), np.exp(np.log(power[:, -WINDOW:]).mean(axis=1))
    alone = loud.copy()
    for _ in range(POWER_STEPS):
        alone = better_powers(problem, users, end, alone)
    climbed = {
        free: climb_slope(problem, users, end, loud, slots=slots, step=step, powers=free == "both")
        for free in ("places", "both")
    }
    moved = np.linalg.norm(np.diff(place[:, -WINDOW:], axis=1), axis=-1)
    return {
        "episodes": len(tables),
        f"reward, last {WINDOW} slots": _spread(reward[:, -WINDOW:].mean(axis=1)),
        "hovering there": _spread(problem.value(end, loud, users)),
        "up the slope, places": _spread(climbed["places"]),
        "up the slope, powers": _spread(problem.value(end, alone, users)),
        "up the slope, both": _spread(climbed["both"]),
        "metres flown a slot": round(float(moved.mean()), 2),
        "powers over the highest, sorted": np.sort(loud / config.p_max_w, axis=1).mean(axis=0).round(3).tolist(),
    }


def _episode(table: Path, uavs: int) -> tuple[Array, Array, Array, Array]:
    """Places ``[T + 1, U, 2]``, powers ``[T, U]``, users ``[G, 2]`` and the mean reward ``[T]``."""
    rows = np.genfromtxt(table, delimiter=",", names=True)
    place = np.stack([rows[axis].reshape(-1, uavs) for axis in ("x", "y")], axis=-1)
    power, reward = (rows[name].reshape(-1, uavs)[1:] for name in ("power_w", "reward"))
    seen = np.genfromtxt(table.with_name(table.name.replace("uavs", "users", 1)), delimiter=",", names=True)
    users = np.stack([seen[axis].reshape(len(place), -1)[0] for axis in ("x", "y")], axis=-1)
    return place, power, users, reward.mean(axis=1)


def _spread(values: Array) -> dict[str, float]:
    error = values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": round(float(values.mean()), 4), "standard_error": round(float(error), 4)}


if __name__ == "__main__":
    main()
