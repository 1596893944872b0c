"""A one-step generator of points in the plane, trained by drifting: noise, one pass of a small network, samples.

    python examples/drifting_toys.py
    python examples/drifting_toys.py --sets eight_gaussians --fields joint separate --temperatures 0.05

Prints how far the samples are from held-out points of the target, and draws them before, during and after training.
The whole method is in `train`: fresh samples, fresh points of the target, the field between them, one Adam step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Generator, Tensor, nn

from marl_tr.agents.drifting.field import Normalisation, drift, drift_loss

SCRIPT = "examples/drifting_toys.py"
NOISE_STD = 3.0
"""Of the two-dimensional noise. Modes have to be torn apart along lines in it, which a wide noise makes easier."""
HELD_OUT = 4000
MODE_STD = 0.05


@dataclass(frozen=True)
class Run:
    """What is trained: one set, one field, one seed."""

    set: str
    field: Normalisation
    temperatures: tuple[float, ...]
    steps: int
    batch: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        energy_distance: Of 4000 samples to 4000 held-out points of the target.
        energy_distance_of_target: Of 4000 other points of the target to 4000, on average: what is perfect.
        within_3_std: Share of samples within three deviations of a mode, and `modes`, how many modes have more than
            2 % of the samples so near; None where the set has no modes.
        cpu_s: Processor time of training.
    """

    energy_distance: float
    energy_distance_of_target: float
    within_3_std: float | None
    modes: int | None
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="what to learn")
    parser.add_argument("--fields", nargs="+", choices=get_args(Normalisation), default=["joint"])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.02, 0.05, 0.2], help="relative bandwidths")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=256, help="samples, and points of the target, a step")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="the first one is drawn")
    parser.add_argument("--figure", type=Path, default=Path("drifting_toys.png"))
    parser.add_argument("--results", type=Path, help="JSON; runs that are in it already are replaced, others stay")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, drawn = [], []
    for name in arguments.sets:
        for field in arguments.fields:
            for seed in arguments.seeds:
                run = Run(name, field, tuple(arguments.temperatures), arguments.steps, arguments.batch, seed)
                outcome, snapshots = train(run)
                rows.append(asdict(run) | asdict(outcome))
                print(line(run, outcome), flush=True)
                if seed == arguments.seeds[0]:
                    drawn.append((run, outcome, snapshots))
    draw(drawn, arguments.figure)
    print(arguments.figure)
    if arguments.results is not None:
        keep(rows, arguments.results)
        print(arguments.results)


def train(run: Run) -> tuple[Outcome, dict[int, Tensor]]:
    """The outcome, and samples ``[4000, 2]`` by the step at which they were drawn (always of the same noise)."""
    generator = Generator().manual_seed(run.seed)
    points = SETS[run.set]
    network = generator_network(generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    # The normalised force never fades, so the steps have to: constant for one half, then down to nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: fading(i / run.steps))
    noise = NOISE_STD * torch.randn(HELD_OUT, 2, generator=generator)
    snapshots = {}
    began = time.process_time()
    for step in range(run.steps):
        if step in (0, run.steps // 20, run.steps // 5):
            snapshots[step] = samples(network, noise)
        # One problem without a condition, so a batch of one: [B, G, D] = [1, batch, 2].
        x = network(NOISE_STD * torch.randn(run.batch, 2, generator=generator)).unsqueeze(0)
        positives = points(run.batch, generator).unsqueeze(0)
        loss = drift_loss(x, drift(x, positives, temperatures=run.temperatures, kind=run.field))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - began
    snapshots[run.steps] = samples(network, noise)
    return measured(run, snapshots[run.steps], seconds), snapshots


def generator_network(generator: Generator) -> nn.Sequential:
    """Of three hidden layers, initialised from `generator` like torch's own: samples start in one spot near zero."""
    widths = (2, 128, 128, 128, 2)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def fading(progress: float) -> float:
    return 1.0 if progress < 0.5 else 0.5 * (1 + math.cos(math.pi * (2 * progress - 1)))


@torch.no_grad()
def samples(network: nn.Module, noise: Tensor) -> Tensor:
    out: Tensor = network(noise)
    return out


def measured(run: Run, found: Tensor, seconds: float) -> Outcome:
    within, modes = None, None
    if run.set == "eight_gaussians":
        distance, nearest = torch.cdist(found, ring_of_modes()).min(1)
        near = distance < 3 * MODE_STD
        within = round(float(near.float().mean()), 4)
        modes = int((torch.bincount(nearest[near], minlength=8) > 0.02 * len(found)).sum())
    energy = energy_distance(found, held_out_points(run.set))
    return Outcome(round(energy, 5), round(distance_of_target(run.set), 5), within, modes, round(seconds, 1))


def held_out_points(name: str) -> Tensor:
    return SETS[name](HELD_OUT, Generator().manual_seed(0))


@cache
def distance_of_target(name: str) -> float:
    generator = Generator().manual_seed(0)
    pairs = ([SETS[name](HELD_OUT, generator) for _ in range(2)] for _ in range(8))
    return sum(energy_distance(x, y) for x, y in pairs) / 8


def energy_distance(x: Tensor, y: Tensor) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` of two samples, a point's distance to itself included."""
    x, y = x.double(), y.double()
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def ring_of_modes() -> Tensor:
    angle = torch.arange(8) * (math.pi / 4)
    return torch.stack([angle.cos(), angle.sin()], -1)


def eight_gaussians(count: int, generator: Generator) -> Tensor:
    chosen = torch.randint(8, (count,), generator=generator)
    return ring_of_modes()[chosen] + MODE_STD * torch.randn(count, 2, generator=generator)


def moons(count: int, generator: Generator) -> Tensor:
    """Two half circles that reach into each other."""
    angle = math.pi * torch.rand(count, generator=generator)
    lower = torch.randint(2, (count,), generator=generator)
    sign = 1 - 2 * lower
    points = torch.stack([sign * angle.cos() + lower - 0.5, sign * angle.sin() + 0.5 * lower - 0.25], -1)
    return 0.7 * points + 0.04 * torch.randn(count, 2, generator=generator)


def checkerboard(count: int, generator: Generator) -> Tensor:
    """The eight black squares of a board of four by four."""
    column = torch.randint(4, (count,), generator=generator)
    row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
    corner = torch.stack([column, row], -1)
    return (corner + torch.rand(count, 2, generator=generator)) / 2 - 1


def spiral(count: int, generator: Generator) -> Tensor:
    """One arm of two turns, its points evenly spread along it."""
    turn = torch.rand(count, generator=generator).sqrt()
    angle = 4 * math.pi * turn
    points = turn.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
    return points + 0.02 * torch.randn(count, 2, generator=generator)


SETS: dict[str, Callable[[int, Generator], Tensor]] = {
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
    "spiral": spiral,
}


def line(run: Run, outcome: Outcome) -> str:
    text = f"{run.set:<16} {run.field:<10} seed {run.seed}  energy distance {outcome.energy_distance:.4f}"
    text += f" (two sets of the target's own: {outcome.energy_distance_of_target:.4f})"
    if outcome.modes is not None:
        text += f"  within 3 sd {outcome.within_3_std:.2f}  modes {outcome.modes} of 8"
    return f"{text}  {outcome.cpu_s:.0f} s of processor time"


def draw(drawn: Sequence[tuple[Run, Outcome, dict[int, Tensor]]], path: Path) -> None:
    """A row a run: the target, then the samples of its first seed before, during and after training."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(snapshots) for _, _, snapshots in drawn)
    size = (2.1 * columns, 2.3 * len(drawn))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(len(drawn), columns, squeeze=False)
    for axes, (run, outcome, snapshots) in zip(grid, drawn, strict=True):
        panels = [(run.set.replace("_", " "), held_out_points(run.set), "#555555")]
        for step, found in snapshots.items():
            title = f"step {step}"
            if step == run.steps:
                title += f": distance {outcome.energy_distance:.4f}"
            panels.append((title, found, "#0072B2"))
        for axis, (title, points, color) in zip(axes, panels, strict=False):
            axis.scatter(*points.T, s=1.2, color=color, alpha=0.35, linewidths=0)
            axis.set_title(title, fontsize=9, loc="left")
        for axis in axes:
            axis.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_color("#cccccc")
        if len({r.field for r, _, _ in drawn}) > 1:
            axes[0].set_ylabel(f"{run.field} field", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def keep(rows: list[dict[str, Any]], path: Path) -> None:
    """Write `rows` into the JSON of results, in place of rows of the same runs."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread"
    made = {"commit": git.stdout.strip(), "machine": machine}
    kept = json.loads(path.read_text())["runs"] if path.exists() else []
    merged = {command(row): row for row in [*kept, *(row | made for row in rows)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": [{"command": c} | row for c, row in merged.items()]}, indent=1) + "\n")


def command(row: dict[str, Any]) -> str:
    """What makes this row alone."""
    temperatures = " ".join(map(str, row["temperatures"]))
    chosen = f"--sets {row['set']} --fields {row['field']} --temperatures {temperatures}"
    return f"python {SCRIPT} {chosen} --steps {row['steps']} --batch {row['batch']} --seeds {row['seed']}"


if __name__ == "__main__":
    main()
