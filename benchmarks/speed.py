"""Environment steps per core-second of whole training loops, where their time goes, and what the critic's fits cost.

    python benchmarks/speed.py [--repeats 3] [--only uav_team ...] [--skip-critic] [--skip-runs]

Three measurements, on one thread:

- *rates*: iterations of `Trainer` (rollout, values, update, critic fit), in turns between the scenarios and several
  times, so that a change of the machine's load touches all alike. Time is the process's CPU time. The shares of the
  loop are of wall time, as in the ``perf/*`` tags.
- *runs*: short whole runs with evaluation, logs, checkpoints and figures as shipped; the share of wall time between
  their first and last TRAIN event that is spent outside acting, environment, updates and critic.
- *critic*: the CPU time of a trust-region fit over that of an Adam fit **of equal error**. Both fit the same targets
  from the same parameters, of several rollouts in a row; the error is the report's ``loss_after``, the mean of
  ``(V - target)^2 / (2 sigma^2)`` on the fit's own targets. Adam of equal error is the one with the fewest epochs (of
  those in `EPOCHS`) whose error is at most the trust region's; where none is, there is no such ratio. Adam keeps its
  moments from rollout to rollout. The ratio to Adam with its default epochs, whatever the errors, is written beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for variable in THREADS:  # before numpy loads its linear algebra
    os.environ[variable] = "1"

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from marl_tr.critic.config import AdamFitConfig  # noqa: E402
from marl_tr.critic.critic import Critic, Values  # noqa: E402
from marl_tr.scenario import load_scenario  # noqa: E402
from marl_tr.scenario.schema import Scenario  # noqa: E402
from marl_tr.trainer.api import run  # noqa: E402
from marl_tr.trainer.build import build_critic  # noqa: E402
from marl_tr.trainer.loop import Trainer  # noqa: E402
from marl_tr.trainer.memory import keep_freed_memory  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "speed.json"
FLAT = ("agents.encoder=flat", "env.config.observation=flat")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "uav_team_mappo, flat": ("uav_team_mappo", FLAT),
    "uav_team_mappo, entities": ("uav_team_mappo", ()),
    "uav_team": ("uav_team", ()),
    "simple_spread": ("simple_spread", ()),
    "pendulum": ("pendulum", ()),
}
WHOLE_RUNS = ("uav_team", "simple_spread", "pendulum")
CRITICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "graph_recurrent": ("uav_team", ()),
    "mlp": ("uav_team_mappo", (*FLAT, "critic.fit={kind: trust_region}")),
}
EPOCHS = (1, 2, 3, 5, 10)
DEFAULT_EPOCHS: int = AdamFitConfig().epochs
PARTS = ("env", "act", "learn", "critic")


def scenario_of(case: str) -> Scenario:
    name, overrides = CASES[case]
    return load_scenario(name, overrides)


class Loop:
    """A trainer that has done its first iteration, and what its iterations take."""

    def __init__(self, case: str) -> None:
        self._trainer = Trainer(scenario_of(case))
        self._trainer.audit = lambda line: None
        self._trainer.start()
        self._trainer.iterate()

    def measure(self, *, seconds: float) -> tuple[float, dict[str, float]]:
        """Steps per CPU-second over at least so much CPU time, and shares of wall time."""
        trainer = self._trainer
        before, first = dict(trainer.seconds), trainer.step
        wall, start = time.perf_counter(), time.process_time()
        while (elapsed := time.process_time() - start) < seconds:
            trainer.iterate()
        wall = time.perf_counter() - wall
        shares = {part: (trainer.seconds[part] - before[part]) / wall for part in PARTS}
        return (trainer.step - first) / elapsed, shares | {"other": 1 - sum(shares.values())}


def rates(cases: list[str], *, repeats: int, seconds: float) -> dict[str, Any]:
    loops = {case: Loop(case) for case in cases}
    found: dict[str, list[tuple[float, dict[str, float]]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case, loop in loops.items():
            found[case].append(loop.measure(seconds=seconds))
    return {
        case: {
            "median": statistics.median(rate for rate, _ in each),
            "least": min(rate for rate, _ in each),
            "most": max(rate for rate, _ in each),
            "shares": {part: statistics.median(s[part] for _, s in each) for part in (*PARTS, "other")},
        }
        for case, each in found.items()
    }


def outside(case: str, *, iterations: int) -> dict[str, float]:
    """Shares of wall time of a whole run that are not environment, networks and optimizer."""
    name, overrides = CASES[case]
    plain = load_scenario(name, overrides)
    steps = iterations * plain.env.num_envs * plain.trainer.rollout_steps
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        settings = (*overrides, f"trainer.total_steps={steps}", f"trainer.runs_dir={folder}")
        made = run(load_scenario(name, settings), console=Console(file=nowhere))
        lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    events = [scalars for scalars in (line.get("scalars", line) for line in lines) if "perf/act_s" in scalars]
    wall = events[-1]["perf/wall_clock"] - events[0]["perf/wall_clock"]
    spent = {part: sum(event[f"perf/{part}_s"] for event in events[1:]) for part in (*PARTS, "evaluate", "log")}
    return {
        "evaluate": spent["evaluate"] / wall,
        "log, checkpoints, figures": spent["log"] / wall,
        "outside": 1 - sum(spent[part] for part in PARTS) / wall,
    }


def critic_costs(kind: str, *, rollouts: int) -> dict[str, Any]:
    """Fits of the same targets from the same parameters, by the trust region and by Adam."""
    name, overrides = CRITICS[kind]
    plain = load_scenario(name, overrides)
    trainer = Trainer(plain)
    trainer.audit = lambda line: None
    adams: dict[int, Critic] = {}
    for epochs in EPOCHS:
        adam = load_scenario(name, (*overrides, f"critic.fit={{kind: adam, epochs: {epochs}}}"))
        adams[epochs] = build_critic(adam, trainer.env.spec)
    rows: list[dict[str, Any]] = []
    learn = trainer.critic.fit

    def timed(fit: Any, bounded: bool, *arguments: Any) -> tuple[float, Any]:
        start = time.process_time()
        report = fit(*arguments)
        seconds = time.process_time() - start
        # Settings that did not take would compare a fit with itself.
        assert (report.bound is not None) == bounded, "this is not the kind of fit that was asked for"
        return seconds, report

    def compare(values: Values, target: torch.Tensor, alive: torch.Tensor) -> Any:
        state = trainer.critic.state_dict()
        copied = {key: torch.clone(x) for key, x in state["module"].items()}
        normaliser = None if state["normaliser"] is None else {k: x.clone() for k, x in state["normaliser"].items()}
        by_adam = {}
        for epochs, critic in adams.items():
            critic.load_state_dict(
                {**state, "module": copied, "normaliser": normaliser, "fit": critic.state_dict()["fit"]}
            )
            seconds, report = timed(critic.fit, False, values, target, alive)
            by_adam[epochs] = {"seconds": seconds, "error": report.loss_after}
        seconds, report = timed(learn, True, values, target, alive)
        rows.append({"seconds": seconds, "error": report.loss_after, "adam": by_adam})
        return report

    trainer.start()
    trainer.iterate()  # the first fit also sets the values' units
    trainer.critic.fit = compare  # type: ignore[method-assign]
    for _ in range(rollouts):
        trainer.iterate()
    equal = []
    for row in rows:
        as_low = [n for n in EPOCHS if row["adam"][n]["error"] <= row["error"]]
        row["epochs_of_equal_error"] = as_low[0] if as_low else None
        if as_low:
            equal.append(row["seconds"] / row["adam"][as_low[0]]["seconds"])
    default = [row["seconds"] / row["adam"][DEFAULT_EPOCHS]["seconds"] for row in rows]
    return {
        "equal_error": {"median": statistics.median(equal), "least": min(equal), "most": max(equal)} if equal else None,
        "equal_error_found": f"{len(equal)} of {len(rows)} rollouts",
        "default_epochs": {"median": statistics.median(default), "least": min(default), "most": max(default)},
        "rollouts": rows,
    }


def show(record: dict[str, Any]) -> None:
    print(f"{'':28}{'steps / core-second':>20}{'spread':>18}  " + "".join(f"{p:>8}" for p in (*PARTS, "other")))
    for case, row in record["rates"].items():
        spread = f"{row['least']:,.0f} - {row['most']:,.0f}"
        shares = "".join(f"{row['shares'][part]:>8.1%}" for part in (*PARTS, "other"))
        print(f"{case:28}{row['median']:>20,.0f}{spread:>18}  {shares}")
    for case, row in record["runs"].items():
        print(f"whole run of {case}: " + ", ".join(f"{name} {share:.1%}" for name, share in row.items()))
    for kind, row in record["critic"].items():
        equal, default = row["equal_error"], row["default_epochs"]["median"]
        told = "none" if equal is None else f"{equal['median']:.2f} ({equal['least']:.2f} to {equal['most']:.2f})"
        print(
            f"critic {kind}: trust region / Adam of equal error {told} in {row['equal_error_found']}; "
            f"/ Adam of {DEFAULT_EPOCHS} epochs {default:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each scenario")
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU time of one measurement, in s, at least")
    parser.add_argument("--iterations", type=int, default=20, help="of a whole run")
    parser.add_argument("--rollouts", type=int, default=4, help="that both kinds of fit are compared on")
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), help="scenarios of the rates")
    parser.add_argument("--skip-runs", action="store_true", help="no whole runs")
    parser.add_argument("--skip-critic", action="store_true", help="no fits")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    load_before = os.getloadavg()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "environment steps per second of process CPU time, one thread",
        "repeats": arguments.repeats,
        "seconds_each": arguments.seconds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "rates": rates(arguments.only, repeats=arguments.repeats, seconds=arguments.seconds),
        "runs": {}
        if arguments.skip_runs
        else {case: outside(case, iterations=arguments.iterations) for case in WHOLE_RUNS},
        "critic": {}
        if arguments.skip_critic
        else {kind: critic_costs(kind, rollouts=arguments.rollouts) for kind in CRITICS},
    }
    record["load_average"] = {"before": load_before, "after": os.getloadavg()}
    show(record)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
