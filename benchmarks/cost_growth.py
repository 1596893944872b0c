"""How the cost of training grows with UAVs, users, environments, rollout steps, learners and widths of networks.

    python benchmarks/cost_growth.py
    python benchmarks/cost_growth.py --redraw

Two configurations of the same task: GA-MATR (`uav_team`: entity encoders, natural steps, graph-recurrent critic in its
trust region) and MAPPO of MLPs (`uav_team_mappo` on flat observations, Adam), either with one network for all UAVs. One
size grows at a time, the others stay at `BASE`. "UAVs, own parameters" gives each a network of its own; of
"learners" 8 UAVs are 1 to 8 teams that share parameters. All learners step at once.

Every point runs in a process of its own (forked from one that has imported everything, so not on Windows), on one
thread: first episodes, one iteration that is not counted, and `--iterations` that are; the cheapest counts, as whatever
else the machine does only adds. Counted is processor time, divided by the iteration's environment steps:

- act: policies choose actions, and what was recorded is made into a rollout
- env: the simulator, its observations and states
- learn: advantages and updates of all policies
- critic: values of the rollout, and the critic's fit

Memory is the peak of the resident set less what it was after a rehearsal of the smallest size; the rollout is in it.

Points are kept as they are measured, in ``benchmarks/results/cost_growth.json``: what is there is not measured again,
unless the numbers of iterations differ (`--fresh` measures everything). A figure goes to ``docs/img/cost_growth.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy loads its linear algebra
    os.environ[name] = "1"

from growth import in_fork, peak_mib, power_law  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "cost_growth.json"
FIGURE = Path(__file__).parents[1] / "docs" / "img" / "cost_growth.png"

Point = dict[str, Any]
"""``configuration``, ``uavs``, ``users``, ``envs``, ``steps`` of a rollout; ``teams`` of UAVs that share parameters, or
``sharing`` in their place; ``width`` of every network. None: as the scenario has it."""

SCENARIOS = {"GA-MATR": "uav_team", "MLP MAPPO": "uav_team_mappo"}
BASE: Point = {"uavs": 3, "users": 20, "envs": 32, "steps": 25, "teams": None, "sharing": None, "width": None}
PARTS = ("act", "env", "learn", "critic")
_PAGE_MIB = 2**-8
"""A point that needs no more than the rehearsal did takes a page: powers are of positive numbers."""
OWN = "UAVs, own parameters"

AXES: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "UAVs": ("uavs", {}, [2, 3, 4, 6, 8]),
    OWN: ("uavs", {"sharing": "none"}, [2, 3, 4, 6, 8]),
    "users": ("users", {}, [10, 20, 40, 80, 160]),
    "environments": ("envs", {}, [16, 32, 64, 128, 256]),
    "rollout steps": ("steps", {}, [25, 50, 100, 200]),
    "learners, 8 UAVs": ("teams", {"uavs": 8}, [1, 2, 4, 8]),
    "width": ("width", {}, [32, 64, 128, 256, 512]),
}
"""What grows by the axis' name: its field of a point, what else differs from `BASE`, and the sizes."""


def points(configuration: str, axis: str) -> list[Point]:
    """The points of one axis, the smallest first."""
    field, others, sizes = AXES[axis]
    return [{"configuration": configuration, **BASE, **others, field: size} for size in sizes]


def scenario_of(point: Point) -> dict[str, Any]:
    """The shipped scenario in this point's sizes."""
    from marl_tr.scenario.document import read_document
    from marl_tr.scenario.loader import shipped

    data: dict[str, Any] = read_document(shipped()[SCENARIOS[point["configuration"]]]).data
    data["env"]["num_envs"] = point["envs"]
    data["env"]["config"] |= {"num_uavs": point["uavs"], "num_users": point["users"]}
    data["trainer"]["rollout_steps"] = point["steps"]
    agents = data["agents"]
    if point["configuration"] == "MLP MAPPO":
        data["env"]["config"]["observation"] = agents["encoder"] = "flat"
        del agents["entity_width"]
    if (width := point["width"]) is not None:
        agents["hidden"] = [width]
        if agents["encoder"] == "entities":
            agents["entity_width"] = data["critic"]["width"] = width
        else:
            data["critic"]["hidden"] = [width, width]
    if point["sharing"] is not None:
        agents["sharing"] = point["sharing"]
    if (teams := point["teams"]) is not None:
        each, rest = divmod(point["uavs"], teams)
        assert not rest, f"{point['uavs']} UAVs do not make {teams} teams"
        members = [[f"uav_{i}" for i in range(k * each, (k + 1) * each)] for k in range(teams)]
        data["agents"] = [{**agents, "sharing": "all", "select": team} for team in members]
    return data


def measure(point: Point, *, iterations: int) -> dict[str, Any]:
    """One point, in this process; `seconds` are those of the cheapest iteration, microseconds are for an environment's
    step."""
    import torch

    from marl_tr.scenario import load_scenario
    from marl_tr.trainer.loop import Trainer

    torch.set_num_threads(1)
    scenario = load_scenario(scenario_of(point))
    rehearse(point["configuration"])
    before = peak_mib()
    # The trainer's own clock tells the parts apart. It is wall time, which other programs stretch.
    with mock.patch("time.perf_counter", time.process_time):
        trainer = Trainer(scenario)
        trainer.audit = lambda line: None
        trainer.start()
        trainer.iterate()
        found = [trainer.iterate().scalars for _ in range(iterations)]
    parts = [{part: each[f"perf/{part}_s"] for part in PARTS} for each in found]
    cheapest = min(parts, key=lambda each: sum(each.values()))
    steps = point["envs"] * point["steps"]
    return {
        "us_per_step": {part: 1e6 * seconds / steps for part, seconds in cheapest.items()}
        | {"total": 1e6 * sum(cheapest.values()) / steps},
        "seconds": [sum(each.values()) for each in parts],
        "learners": len(trainer.learners),
        "parameters": {
            "policies": sum(p.numel() for player in trainer.players for p in player.team.policy.module.parameters()),
            "critic": sum(p.numel() for p in trainer.critic.encoder.module.parameters()),
        },
        "peak_rss_mib": peak_mib(),
        "rss_before_mib": before,
        "memory_mib": max(peak_mib() - before, _PAGE_MIB),
    }


def rehearse(configuration: str) -> None:
    """One tiny iteration: what torch and the parts load on first use would else count as a point's memory and time."""
    from marl_tr.scenario import load_scenario
    from marl_tr.trainer.loop import Trainer

    smallest = {"configuration": configuration, **BASE, "uavs": 2, "users": 2, "envs": 2, "steps": 2, "width": 8}
    trainer = Trainer(load_scenario(scenario_of(smallest)))
    trainer.audit = lambda line: None
    trainer.start()
    trainer.iterate()


def key(point: Point) -> str:
    """A point's name among the results."""
    return json.dumps(point, sort_keys=True)


def fits(configuration: str, axis: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Powers along one axis: of each part's time, of the total, of memory; and of the last two totals alone."""
    field, _, sizes = AXES[axis]
    rows = [measured[key(point)] for point in points(configuration, axis)]
    laws = {
        part: asdict(power_law(sizes, [row["us_per_step"][part] for row in rows])) for part in (*PARTS, "total")
    } | {"memory": asdict(power_law(sizes, [row["memory_mib"] for row in rows]))}
    totals = [row["us_per_step"]["total"] for row in rows]
    last = math.log(totals[-1] / totals[-2]) / math.log(sizes[-1] / sizes[-2])
    return {"field": field, "sizes": sizes, "laws": laws, "exponent_of_the_last_two": last}


def table(found: dict[str, Any]) -> str:
    """Markdown: exponents with half their 95 % intervals, and what the ends of each axis cost."""
    lines = [
        "| | grows | act | env | learn | critic | all | all, last two | memory | µs a step, ends | MiB, ends |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for configuration, axes in found["fits"].items():
        for axis, fit in axes.items():
            laws, sizes = fit["laws"], fit["sizes"]
            rows = [found["points"][key(point)] for point in points(configuration, axis)]
            ends = " to ".join(f"{row['us_per_step']['total']:.0f}" for row in (rows[0], rows[-1]))
            mib = " to ".join(f"{row['memory_mib']:.0f}" for row in (rows[0], rows[-1]))
            powers = [_power(laws[part]) for part in (*PARTS, "total")]
            cells = [*powers, f"{fit['exponent_of_the_last_two']:.2f}", _power(laws["memory"]), ends, mib]
            lines.append(f"| {configuration} | {axis}, {sizes[0]} to {sizes[-1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _power(law: dict[str, Any]) -> str:
    return f"{law['exponent']:.2f} ± {law['high'] - law['exponent']:.2f}"


def draw(found: dict[str, Any], path: Path) -> None:
    """Time by part over each size, a row a configuration; below, memory of both."""
    from matplotlib.figure import Figure

    from marl_tr.analysis.plots import COLORS, save_figure

    columns = [axis for axis in AXES if axis != OWN]
    colors = {**dict(zip(PARTS, COLORS, strict=False)), "total": "black"}
    figure = Figure(figsize=(3.0 * len(columns), 8.4), dpi=110, layout="constrained")
    grid = figure.subplots(3, len(columns), sharex="col", sharey="row", squeeze=False)
    for row, configuration in enumerate(SCENARIOS):
        for axes, axis in zip(grid[row], columns, strict=True):
            sizes = AXES[axis][2]
            here = [found["points"][key(point)] for point in points(configuration, axis)]
            for part, color in colors.items():
                costs = [each["us_per_step"][part] for each in here]
                axes.plot(sizes, costs, color=color, marker=".", linewidth=2.2 if part == "total" else 1.4, label=part)
            if axis == "UAVs":
                other = [found["points"][key(point)] for point in points(configuration, OWN)]
                axes.plot(sizes, [o["us_per_step"]["total"] for o in other], color="black", linestyle=":")
                axes.set_title("dotted: total, own parameters", loc="left", fontsize=8)
            law = found["fits"][configuration][axis]["laws"]["total"]
            axes.text(0.04, 0.04, f"total: power {_power(law)}", transform=axes.transAxes, fontsize=8)
        grid[row][0].set_ylabel(f"{configuration}\nCPU µs for an environment's step")
    for axes, axis in zip(grid[2], columns, strict=True):
        for configuration, color in zip(SCENARIOS, (COLORS[4], COLORS[5]), strict=True):
            memory = [found["points"][key(point)]["memory_mib"] for point in points(configuration, axis)]
            axes.plot(AXES[axis][2], memory, color=color, marker="s", markersize=4, label=configuration)
        axes.set_xlabel(axis)
        axes.set_xticks(AXES[axis][2], [str(size) for size in AXES[axis][2]])
        axes.set_xticks([], minor=True)
    grid[2][0].set_ylabel("peak memory, MiB")
    for axes in grid.flat:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(color="#eeeeee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, axis in zip(grid[2], columns, strict=True):  # a log scale brings its own ticks
        axes.set_xticks(AXES[axis][2], [str(size) for size in AXES[axis][2]])
        axes.minorticks_off()
    handles = [*grid[0][0].get_lines()[: len(colors)], *grid[2][0].get_lines()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save_figure(figure, path)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, one subprocess after the other, and keep it at once."""
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() and not arguments.fresh else {}
    measured = kept.get("points", {}) if kept.get("iterations") == arguments.iterations else {}
    found: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/cost_growth.py", *sys.argv[1:]]),
        "unit": "CPU time of one thread for a step of one environment, us; peak memory above a rehearsal's, MiB",
        "iterations": arguments.iterations,
        "base": BASE,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "points": measured,
        "fits": {},
    }
    for configuration in SCENARIOS:
        rehearse(configuration)
    for configuration in SCENARIOS:
        for axis in AXES:
            for point in points(configuration, axis):
                if key(point) in measured:
                    continue
                row = in_fork(partial(measure, iterations=arguments.iterations), point)
                row |= {"load_average": os.getloadavg()[0], "date": datetime.now(UTC).isoformat(timespec="seconds")}
                measured[key(point)] = row
                _write(found, arguments.out)
                told = ", ".join(f"{part} {row['us_per_step'][part]:.0f}" for part in (*PARTS, "total"))
                size = point[AXES[axis][0]]
                print(f"{configuration}, {axis} {size}: {told} us; {row['memory_mib']:.0f} MiB", flush=True)
            found["fits"].setdefault(configuration, {})[axis] = fits(configuration, axis, measured)
    _write(found, arguments.out)
    return found


def _write(found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2, help="measured iterations a point; the cheapest counts")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    parser.add_argument("--redraw", action="store_true", help="only draw and print the kept results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to keep points in")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="PNG to draw")
    arguments = parser.parse_args()
    found = json.loads(arguments.out.read_text()) if arguments.redraw else run(arguments)
    print(table(found))
    draw(found, arguments.figure)


if __name__ == "__main__":
    main()
