"""The gradient norm equalizer, and the samplers' distance to the legal clips, measured on the shipped video model.

    python benchmarks/flow_gradients.py

*Gradients* (check M6): the norm of the parameter gradient of each chain step's log-probability, before and after the
equalizer's weight, beside the closed form ``N = |J| / std``. *Distances* (specification 6.3): root mean squared
distance of samples to the nearest legal clip, of the chain's last state and of its last clean estimate, for every
sampler on common start noises, with 95 % bootstrap intervals of paired differences. Writes
``benchmarks/results/flow_gradients.json`` and ``docs/img/flow_gradients.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flow_runs import HERE, bootstrap, commit
from flow_samplers import model_digest, scenario
from flow_samplers_figures import COLORS, SAMPLERS
from numpy.typing import NDArray

from marl_tr.agents.sage.equalizer import gradient_norms
from marl_tr.agents.sage.sampler import Coefficients
from marl_tr.analysis.plots import save_figure
from marl_tr.envs.flow.rewards import Judge
from marl_tr.envs.flow.shapes import Condition, decode_condition
from marl_tr.policy import PolicyBatch
from marl_tr.region.chain_gradients import ChainGradientNorms, chain_gradient_norms
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env, build_players

Array = NDArray[np.float64]

RESULTS = HERE / "results" / "flow_gradients.json"
FIGURE = HERE.parent / "docs" / "img" / "flow_gradients.png"
SPECIFIED = {
    "dance": {"raw": 15.9, "equalized": 2.61, "correlation": 0.995},
    "flow": {"raw": 208.5, "equalized": 2.54, "correlation": 0.998},
    "sage": {"raw": 322.9, "equalized": 2.56, "correlation": 0.999},
}
"""Specification 3: another network (206k parameters), the same grid."""
PAIRS = (("dance", "sage"), ("flow", "sage"), ("cps", "sage"), ("precise", "sage"), ("sage", "ode"), ("cps", "ode"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moving_shapes", help="registered name, or a file of 'marl-tr pretrain'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="the first one is used")
    parser.add_argument("--steps", type=int, default=32, help="rollouts whose gradients are measured")
    parser.add_argument("--samples", type=int, default=128, help="clips whose distance is measured")
    parser.add_argument("--grids", nargs="+", default=["20/5", "10/3"], help="steps/shift; gradients on the first")
    parser.add_argument("--etas", nargs="+", type=float, default=[0.5, 1.0], help="gradients at the first")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--redraw", action="store_true", help="only draw the kept results again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.redraw:
        results = {
            "command": "python benchmarks/flow_gradients.py " + " ".join(sys.argv[1:]),
            "commit": commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
            "load": os.getloadavg()[0],
            "model": model_digest(arguments.model),
            "rollouts": arguments.steps,
            "samples": arguments.samples,
            "gradients": {sampler: gradients(sampler, arguments) for sampler in SAMPLERS},
            "distances": {
                grid: {f"{eta:g}": distances(grid, eta, arguments) for eta in arguments.etas}
                for grid in arguments.grids
            },
        }
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(arguments.results.read_text())
    show(results)
    draw(results, arguments.figure)
    print(f"{arguments.results}\n{arguments.figure}")


def gradients(sampler: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measured gradient norms of every step, their spread, and the closed form's."""
    policy, observation = policy_of(sampler, arguments.grids[0], arguments.etas[0], arguments.steps, arguments)
    record, _ = rollout(policy, observation, arguments)
    batch = PolicyBatch(
        observation={leaf: x[:, None] for leaf, x in observation.items()},
        record={name: x[:, None] for name, x in record.items()},
        memory=None,
        starts=torch.ones(1, 1, arguments.steps, dtype=torch.bool),
        mask=torch.ones(1, 1, arguments.steps, dtype=torch.bool),
    )
    parameters = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    norms = chain_gradient_norms(policy, parameters, batch, decisions=arguments.steps)
    predicted, stochastic = gradient_norms(policy.coefficients), policy.coefficients.stochastic
    logs = torch.stack([norms.raw[stochastic].log(), predicted[stochastic].log()])
    return {
        "raw": norms.raw.tolist(),
        "equalized": norms.weighted.tolist(),
        "closed_form": predicted.tolist(),
        "stochastic_steps": int(stochastic.sum()),
        "spread_raw": ChainGradientNorms.spread(norms.raw),
        "spread_equalized": ChainGradientNorms.spread(norms.weighted),
        "spread_closed_form": ChainGradientNorms.spread(predicted),
        "correlation_of_logs": float(torch.corrcoef(logs)[0, 1]),
        "specified": SPECIFIED.get(sampler),
    }


def distances(grid: str, eta: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every sampler's samples: distance to the nearest legal clip, and how much neighbouring frames differ."""
    judge = Judge()
    found: dict[str, Any] = {}
    values: dict[str, dict[str, Array]] = {}
    for sampler in ("ode", *SAMPLERS):
        kind = "sage" if sampler == "ode" else sampler
        policy, observation = policy_of(kind, grid, eta, arguments.samples, arguments)
        record, clean = rollout(policy, observation, arguments, ode=sampler == "ode")
        asked = decode_condition(observation["tokens"][0])
        ends = {"last_state": record["chain"][0, :, -1].view_as(clean), "last_clean": clean}
        values[sampler] = {name: judged(judge, clips, asked) for name, clips in ends.items()}
        found[sampler] = {name: bootstrap(x[None]) for name, x in values[sampler].items()}
        state = ends["last_state"]
        found[sampler]["frame_difference"] = float((state[:, :, 1:] - state[:, :, :-1]).abs().mean())
        found[sampler]["residual_in_theory"] = 0.0 if sampler == "ode" else residual(policy.coefficients)
    found["paired"] = {
        f"{a} - {b}": {name: bootstrap((values[a][name] - values[b][name])[None]) for name in values[a]}
        for a, b in PAIRS
    }
    return found


def judged(judge: Judge, clips: torch.Tensor, asked: Condition) -> Array:
    distance: Array = judge(clips, asked).fit.distance.double().numpy()
    return distance


def residual(coefficients: Coefficients) -> float:
    """Deviation left at ``s = 0`` of a direction in which the data have none (check M3): V' = (c/s)^2 V + std^2."""
    variance = 1.0
    for s, c, noise in zip(coefficients.s, coefficients.c, coefficients.variance, strict=True):
        variance = float((c / s) ** 2 * variance + noise)
    return variance**0.5


def policy_of(
    sampler: str, grid: str, eta: float, copies: int, arguments: argparse.Namespace
) -> tuple[Any, dict[str, torch.Tensor]]:
    """A policy of the pretrained model that decodes clean estimates, and conditions ``{leaf: [1, N, ...]}``."""
    steps, shift = grid.split("/")
    run = {
        **{"sampler": sampler, "eta": eta, "decode": "clean", "seed": arguments.seeds[0], "steps": 1},
        **{"copies": copies - copies % -8, "chain": int(steps), "shift": float(shift), "weights": "A"},
        **{"learning_rate": 1e-6, "clip": 0.002, "epochs": 1, "minibatches": 1},
    }
    loaded = load_scenario(scenario(run, arguments.model))
    env = build_env(loaded, num_envs=run["copies"])
    (player,) = build_players(loaded, env.spec)
    (group,) = env.reset(arguments.seeds[0]).groups.values()
    env.close()
    # A cohort has one condition; every eighth copy first, so that few samples show many conditions.
    order = torch.arange(run["copies"]).view(-1, 8).T.flatten()[:copies]
    observation = {leaf: torch.from_numpy(x).flatten(0, 1)[order][None] for leaf, x in group.observation.items()}
    return player.team.policy, observation


@torch.no_grad()
def rollout(
    policy: Any, observation: dict[str, torch.Tensor], arguments: argparse.Namespace, *, ode: bool = False
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The chain's record, and the clean estimates of its last step ``[N, *event]``; noises by the seed alone."""
    generator = torch.Generator().manual_seed(arguments.seeds[0])
    action = policy.act(observation, None, generator, mode=ode)
    (clean,) = action.env.values()
    return action.record, clean[0]


def show(results: dict[str, Any]) -> None:
    for sampler, found in results["gradients"].items():
        known = found["specified"]
        beside = (
            f" (specification: {known['raw']:g}, {known['equalized']:g}, {known['correlation']:g})" if known else ""
        )
        print(
            f"{sampler:<8} spread {found['spread_raw']:.1f}x, equalized {found['spread_equalized']:.2f}x, closed form "
            f"{found['spread_closed_form']:.1f}x, correlation of logs {found['correlation_of_logs']:.4f}{beside}"
        )
    for grid, by_eta in results["distances"].items():
        for eta, found in by_eta.items():
            print(f"grid {grid}, eta {eta}: distance of the last state / of the last clean estimate; frame difference")
            for sampler in ("ode", *SAMPLERS):
                own = found[sampler]
                print(
                    f"  {sampler:<8} {own['last_state']['mean']:.4f} / {own['last_clean']['mean']:.4f}; "
                    f"{own['frame_difference']:.3f}; residual in theory {own['residual_in_theory']:.3f}"
                )
            for pair, own in found["paired"].items():
                told = (f"{x['mean']:+.4f} [{x['low']:+.4f}, {x['high']:+.4f}]" for x in own.values())
                print(f"  {pair:<16} " + " / ".join(told))


def draw(results: dict[str, Any], path: Path) -> None:
    """Gradient norms by step before and after the equalizer; distances by sampler and what is decoded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axis, name, title in ((left, "raw", "before the equalizer"), (middle, "equalized", "after")):
        for sampler, found in results["gradients"].items():
            norms = np.array(found[name])
            norms[norms == 0] = np.nan
            spread = found[f"spread_{name}"]
            axis.plot(norms, color=COLORS[sampler], marker=".", linewidth=1.6, label=f"{sampler}: {spread:.3g}x")
        axis.set_yscale("log")
        axis.set_xlabel("chain step (noise to data)")
        axis.set_title(f"gradient norm of a step, {title}", loc="left", fontsize=10)
        axis.legend(frameon=False, fontsize=9)
    middle.set_ylim(left.get_ylim())
    (grid, by_eta) = next(iter(results["distances"].items()))
    eta, found = next(iter(by_eta.items()))
    for offset, (name, label) in enumerate((("last_state", "last state"), ("last_clean", "last clean estimate"))):
        for index, sampler in enumerate(("ode", *SAMPLERS)):
            own = found[sampler][name]
            right.errorbar(
                index + 0.24 * offset - 0.12,
                own["mean"],
                yerr=[[own["mean"] - own["low"]], [own["high"] - own["mean"]]],
                color=COLORS.get(sampler, "#333333"),
                marker="os"[offset],
                markerfacecolor="white" if offset else None,
                label=label if index == 0 else None,
            )
    right.set_xticks(range(6), ["ode", *SAMPLERS], fontsize=9)
    right.set_title(f"distance to the nearest legal clip, {grid} grid, eta {eta}", loc="left", fontsize=10)
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=9)
    for axis in (left, middle, right):
        axis.grid(color="#eeeeee", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
