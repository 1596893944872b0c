"""Tables of trust regions on the same environment, seeds and steps, from folders of `marl-tr compare`.

    marl-tr compare benchmarks/sweeps/regions_cartpole.yaml --jobs 2
    python benchmarks/region_tables.py runs/compare/regions_cartpole

Return is the final evaluation's, divergences are the largest that any update of any seed put in force
(`metrics.jsonl`), cost is from `results/region_cost.json`. What is printed is Markdown; the numbers go to
`results/<sweep>.json`, a figure to `docs/img/<sweep>.png`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from marl_tr.analysis.plots import COLORS
from marl_tr.registry import find

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "img"
BOUND = 0.01
_ABSOLUTE = re.compile(r"\|([^|]+)\|")


def collected(folder: Path) -> dict[str, Any]:
    """Of every task and variant: final scores by seed, and the largest divergences."""
    comparison = json.loads((folder / "compare.json").read_text())
    found: dict[str, Any] = {"sweep": comparison["sweep"], "attempts": comparison.get("attempts", []), "tasks": {}}
    for run in sorted((folder / "runs").glob("*/*/*/metrics.jsonl")):
        task, variant = run.parts[-4], run.parts[-3]
        events = [json.loads(line) for line in run.read_text("utf-8").splitlines()]
        largest: dict[str, float] = defaultdict(float)
        last: dict[str, float] = {}
        score = None
        for event in events:
            for tag, value in event["scalars"].items():
                for name in ("divergence", "max_divergence", "reach"):
                    if tag.startswith(f"region/{name}/") and value is not None:
                        largest[name] = max(largest[name], value)
                if tag.startswith("region/limit/"):
                    last["limit"] = value
            if event["phase"] == "final":
                score = event["scalars"]["eval/sampled/mean"]
        one = {"run": "/".join(run.parts[-4:-1]), "score": score, **largest, **last}
        found["tasks"].setdefault(task, {}).setdefault(variant, []).append(one)
    return found


def table(task: str, variants: dict[str, list[dict[str, Any]]], cost: dict[str, Any], law: str) -> str:
    """Markdown, the best mean first."""
    lines = [
        "| mechanism | return of each seed | mean | largest mean KL | largest KL of a decision | cost |",
        "|---|---|---|---|---|---|",
    ]
    means = {name: sum(run["score"] for run in runs) / len(runs) for name, runs in variants.items()}
    for name in sorted(variants, key=lambda each: -means[each]):
        runs = variants[name]
        digits = 0 if abs(means[name]) >= 10 else 2
        scores = ", ".join(f"{run['score']:.{digits}f}" for run in runs)
        mean_kl = max(run.get("divergence", 0.0) for run in runs)
        max_kl = max(run.get("max_divergence", 0.0) for run in runs)
        own = cost["cases"].get(f"{name}, {law}") if cost else None
        told = "" if own is None else f"{own['ratio']:.2f}"
        lines.append(f"| `{name}` | {scores} | {means[name]:.{digits}f} | {mean_kl:.3g} | {max_kl:.3g} | {told} |")
    return "\n".join(lines)


def figure(task: str, variants: dict[str, list[dict[str, Any]]], cost: dict[str, Any], law: str, path: Path) -> None:
    """A line a mechanism: return of each seed, largest divergences (log scale), cost."""
    order = sorted(variants, key=lambda name: sum(run["score"] for run in variants[name]))
    places = range(len(order))
    panels, (returns, divergences, costs) = plt.subplots(
        1, 3, figsize=(11, 0.28 * len(order) + 1.6), sharey=True, width_ratios=(3, 3, 1.6), layout="constrained"
    )
    for place, name in zip(places, order, strict=True):
        runs = variants[name]
        scores = [run["score"] for run in runs]
        returns.plot(scores, [place] * len(scores), "o", color=COLORS[0], alpha=0.6, markersize=5)
        returns.plot(sum(scores) / len(scores), place, "|", color="black", markersize=12, markeredgewidth=2)
        largest = (max(run.get(key, 0.0) for run in runs) for key in ("divergence", "max_divergence"))
        for value, marker, color in zip(largest, "os", (COLORS[0], COLORS[1]), strict=True):
            divergences.plot(value, place, marker, color=color, markersize=5)
        own = cost["cases"].get(f"{name}, {law}") if cost else None
        if own:
            costs.plot(own["ratio"], place, "o", color=COLORS[2], markersize=5)
    guarantees = {name: getattr(find("regions", name).load_config(), "guarantee", "none") for name in order}
    returns.set_yticks(list(places), [f"{name} ({guarantees[name]})" for name in order])
    returns.set_xlabel("return of each seed, mean")
    divergences.set_xscale("log")
    divergences.set_xlabel(
        "largest KL(old to new) of an update, nats\nround: mean of its batch; square: of one decision"
    )
    costs.axvline(1, color="0.7", linewidth=1)
    costs.set_xlim(left=0)
    costs.set_xlabel("cost of an update\nbeside ppo_clip")
    for axes in (returns, divergences, costs):
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    seeds = max(len(runs) for runs in variants.values())
    panels.suptitle(f"{task}: {seeds} seeds, a look; in brackets what each guarantees", fontsize=11)
    panels.savefig(path, dpi=110)
    plt.close(panels)


def adversary(bounds: dict[str, Any]) -> str:
    """Markdown of `results/region_bounds.json`."""
    lines = [
        "| mechanism | actions | guarantee | own measure | limit | median | largest | beyond | with `bound: 0.01` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, found in bounds["cases"].items():
        name, law = case.split(", ")
        kl = found["mean_kl"]
        cells: list[Any] = ["mean KL", "-", kl["median"], kl["largest"], "-"]
        if name == "trpo":
            cells[1], cells[4] = BOUND, int(kl["largest"] > BOUND + 1e-5)
        if "reach" in found:
            reach = found["reach"]
            cells = [found["what"], found["limit"], reach["median"], reach["largest"], found["beyond"]]
        told = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        own = " | ".join(_ABSOLUTE.sub(r"abs(\1)", cell.replace("||", " to ")) for cell in told)
        lines.append(f"| `{name}` | {law} | {found['guarantee']} | {own} | {found['bounded']['largest']:.5f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--law", default="categorical", help="whose cost is shown")
    parser.add_argument("--adversary", action="store_true", help="also the table of region_bounds.json")
    arguments = parser.parse_args()
    path = RESULTS / "region_cost.json"
    cost = json.loads(path.read_text()) if path.is_file() else {}
    for folder in arguments.folders:
        found = collected(folder)
        (RESULTS / f"{found['sweep']['name']}.json").write_text(json.dumps(found, indent=1) + "\n")
        for task, variants in found["tasks"].items():
            print(f"\n{task}\n\n{table(task, variants, cost, arguments.law)}")
            figure(task, variants, cost, arguments.law, IMAGES / f"{found['sweep']['name']}.png")
    if arguments.adversary:
        print(adversary(json.loads((RESULTS / "region_bounds.json").read_text())))


if __name__ == "__main__":
    main()
