"""What an update gains on the data that it was made from, and what on fresh data: which settings learn from noise.

Takes a run's newest checkpoint (or that of ``--step``), draws some rollouts to make updates from and others to judge
them by, and makes each update from the same parameters. The judge's advantages are those of the run's own scenario,
whatever the update was made from, so that settings are held against one measure:

    marl-tr run uav_team trainer.total_steps=512_000
    python benchmarks/fresh_gain.py runs/uav_team/<run> --lam 0.95 0.8 0.5 0.3 0
    python benchmarks/fresh_gain.py runs/uav_team/<run> --set iterations=5 damping=0.1 --set subsample=0.1

Natural steps under a `trpo` region, one learner, no regularisers. Results go to
``benchmarks/results/fresh_gain.json``, under the run's name.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.region.config import TrpoConfig
from marl_tr.region.trpo import Trpo
from marl_tr.region.turn import Turn
from marl_tr.scenario.loader import load_scenario
from marl_tr.trainer.checkpoint import latest_checkpoint, load_checkpoint
from marl_tr.trainer.loop import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "fresh_gain.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--step", type=int, help="its checkpoint of this environment step; the newest if left out")
    parser.add_argument("--lam", type=float, nargs="*", default=[], help="lambdas of the updates' advantages")
    parser.add_argument(
        "--set", nargs="+", action="append", default=[], metavar="KEY=VALUE", help="settings of the trust region"
    )
    parser.add_argument("--updates", type=int, default=3, help="rollouts, an update from each")
    parser.add_argument("--judges", type=int, default=8, help="fresh rollouts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = _checkpoint(arguments.run, arguments.step)
    bench = Bench(arguments.run, path, updates=arguments.updates, judges=arguments.judges)
    rows = []
    print(f"{path.name}: gain of the surrogate, mean advantage in standard deviations; means over {bench.updates}")
    print(f"{'setting':40} {'CPU s':>6} {'divergence':>10} {'own data':>9} {'fresh data':>10}  of each update")
    for label, lam, settings in _cases(bench, arguments.lam, arguments.set):
        row = {"setting": label, "lam": lam, **bench.measure(lam, TrpoConfig(**settings))}
        rows.append(row)
        each = " ".join(f"{gain:.4f}" for gain in row["fresh"])
        print(
            f"{label:40} {np.mean(row['cpu_s']):6.2f} {np.mean(row['divergence']):10.4f} {np.mean(row['own']):9.4f} "
            f"{np.mean(row['fresh']):10.4f}  {each}",
            flush=True,
        )
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[f"{bench.name}, step {bench.step}"] = {"judges": bench.judges, "rows": rows}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


class Bench:
    """A checkpoint, and rollouts of it.

    Args:
        run: Folder of the run.
        checkpoint: One of its checkpoints.
        updates: Rollouts to make updates from.
        judges: Rollouts to judge them by.
    """

    def __init__(self, run: Path, checkpoint: Path, *, updates: int, judges: int) -> None:
        scenario = load_scenario(run / "scenario.yaml")
        self.name, self.updates, self.judges = scenario.name, updates, judges
        self._trainer = Trainer(scenario)
        self._trainer.load_state_dict(load_checkpoint(checkpoint)["trainer"])
        self.step = self._trainer.step
        self.lam = scenario.advantage.lam
        region = None if scenario.region is None else scenario.region.config
        self.region = region if isinstance(region, TrpoConfig) else TrpoConfig()
        self._objective = Surrogate(SurrogateConfig())
        collect = self._trainer.collector.collect
        length = scenario.trainer.rollout_steps
        self._rollouts = [collect(length) for _ in range(updates)]
        self._fresh = [self._turn(collect(length), self.lam) for _ in range(judges)]

    def measure(self, lam: float, config: TrpoConfig) -> dict[str, list[float]]:
        """An update from each rollout: CPU time, divergence, gain on its own data and on fresh data."""
        region = Trpo(config)
        found: dict[str, list[float]] = {"cpu_s": [], "divergence": [], "own": [], "fresh": []}
        for rollout in self._rollouts:
            turn = self._turn(rollout, lam)
            began = time.process_time()
            parameters = region.propose(turn).parameters
            found["cpu_s"].append(time.process_time() - began)
            measured = turn.measure(parameters)
            found["divergence"].append(float(measured.divergence[0]))
            found["own"].append(_gain(turn, parameters))
            found["fresh"].append(float(np.mean([_gain(judge, parameters) for judge in self._fresh])))
        return found

    def _turn(self, rollout: Any, lam: float) -> Turn:
        trainer = self._trainer
        trainer.scenario = trainer.scenario.model_copy(
            update={"advantage": trainer.scenario.advantage.model_copy(update={"lam": lam})}
        )
        advantage = trainer._advantage(rollout, trainer.critic.evaluate(rollout))
        assignment = trainer._assignment(trainer.players[0], rollout, advantage.raw, {}, 0)
        if len(assignment.learners.names) > 1:
            raise SystemExit(
                f"{self.name} has {len(assignment.learners.names)} learners; this takes one ('sharing: all')"
            )
        assignment = replace(assignment, objective=self._objective)
        return assignment.turn((0,), weight=None, generator=torch.Generator().manual_seed(0), progress=0.0)


def _gain(turn: Turn, parameters: Any) -> float:
    gain = turn.measure(parameters).gain
    assert gain is not None
    return float(gain[0])


def _cases(bench: Bench, lams: list[float], settings: list[list[str]]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    kept = bench.region.model_dump()
    if not lams and not settings:
        yield "as it is", bench.lam, kept
    for lam in lams:
        yield f"lam {lam:g}", lam, kept
    for pairs in settings:
        changed = dict(pair.split("=", 1) for pair in pairs)
        yield " ".join(pairs), bench.lam, {**kept, **{key: yaml.safe_load(value) for key, value in changed.items()}}


def _checkpoint(run: Path, step: int | None) -> Path:
    folder = run / "checkpoints"
    path = latest_checkpoint(folder) if step is None else folder / f"step_{step:012d}.safetensors"
    if path is None or not path.exists():
        raise SystemExit(f"no such checkpoint in {folder}")
    return path


if __name__ == "__main__":
    main()
