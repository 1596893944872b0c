"""What the benchmarks of drifting policies share: one run in a process of its own, measured while and after it trains.

A *job* is a mapping: ``run`` (what names it), ``scenario``, ``overrides`` (``"section.key=value"``), ``ways`` of acting
that are measured (`WAYS`), ``every`` (iterations between looks at the first of them, 0: only at the end), ``episodes``
(held-out ones of a look), ``final_episodes``, and where they are wanted ``cohort`` (copies of an episode that measure
how answers divide among modes) and ``contexts`` (how many are shown: so many cohorts' samples are kept). Run as a
script, this module reads one from standard input, trains, and prints its row; `run_all` does that for many jobs,
appends a line of JSON a finished run, and skips those that are there. A job with ``python`` and ``script`` is run by
those instead.

Wall time and processor time are those of building, rollouts and learning; evaluations are not in them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flow_runs
import numpy as np
import torch
from numpy.typing import NDArray

from marl_tr.analysis.statistics import iqm, stratified_bootstrap_ci
from marl_tr.errors import Diverged
from marl_tr.rollout.team import Team
from marl_tr.scenario import Scenario, load_scenario
from marl_tr.trainer.build import build_env, build_players
from marl_tr.trainer.evaluation import Episodes, evaluate_policies, policy_actor
from marl_tr.trainer.loop import Trainer
from marl_tr.vector import VectorEnv, make_vector_env

__all__ = ["HELD_OUT_SEED", "RECENT", "WAYS", "about", "interval", "measure_run", "over_seeds", "run_all"]

Array = NDArray[Any]

HELD_OUT_SEED = 1_000_003
RECENT = 20
"""Training episodes of a curve's mean: the last that ended."""
WAYS = {"explored": False, "sample": True, "medoid": True, "densest": True, "zero": True, "mode": True, "drawn": False}
"""How a policy acts, and whether that is its mode: drifting policies ``explored`` (as in training), by a ``sample``
without exploration, the ``medoid`` of samples or ``zero`` noise; explicit ones by the law's ``mode``, or ``drawn`` from
it."""
_DRIFTING = ("sample", "medoid", "densest", "zero")
_KEPT = ("drift/", "region/divergence", "losses/explained_variance", "losses/mean_std", "losses/entropy")


def measure_run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train one scenario and measure it; the row that is kept, with ``diverged`` where learning broke off."""
    load = os.getloadavg()[0]
    scenario = load_scenario(job["scenario"], job.get("overrides", ()))
    torch.set_num_threads(scenario.trainer.threads)
    clock = _Clock()
    with clock:
        trainer = Trainer(scenario)
        audit: list[Mapping[str, Any]] = []
        trainer.audit = audit.append
        trainer.start()
    notes, looks, diverged = _Notes(trainer, clock), [], None
    every = job.get("every", 0)
    if every:
        looks.append(_look(trainer, job, job["ways"][:1], job["episodes"]))
    while trainer.iteration < trainer.iterations and diverged is None:
        try:
            with clock:
                scalars = trainer.iterate().scalars
        except Diverged as error:
            diverged = str(error)
            break
        notes.add(scalars)
        if every and trainer.iteration % every == 0 and trainer.iteration < trainer.iterations:
            looks.append(_look(trainer, job, job["ways"][:1], job["episodes"]))
    row = {**clock.row(), "load": [load, os.getloadavg()[0]], "iterations": trainer.iteration}
    row |= {"outcomes": _outcomes(audit), "diverged": diverged, "parameters": _parameters(trainer)}
    row |= {"seconds": {name: round(value, 2) for name, value in trainer.seconds.items()}, **notes.row()}
    if diverged is None:
        looks.append(_look(trainer, job, job["ways"], job["final_episodes"], keep=job.get("keep_returns", False)))
        row["samples"] = _samples(trainer, job)
    trainer.env.close()
    return {**row, "looks": looks}


def run_all(jobs: Sequence[Mapping[str, Any]], rows: Path, *, parallel: int) -> None:
    """`flow_runs.run_all` with this module to run a job, where the job names no other script."""
    flow_runs.run_all([{"script": "drifting_runs.py", **job} for job in jobs], rows, parallel=parallel)


def about(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a file of results says of its runs as a whole."""
    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} " + " ".join(sys.argv[1:]),
        "commits": sorted({row.get("commit", "unknown") for row in rows}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
        "load": [min(row["load"][0] for row in rows), max(row["load"][1] for row in rows)],
        "core_minutes": round(sum(row["wall_s"] for row in rows) / 60, 1),
        "runs": len(rows),
    }


def over_seeds(values: Iterable[float]) -> dict[str, Any]:
    """IQM with its 95 % bootstrap interval over runs, the mean with its own, the range, and the values."""
    scores = np.array(list(values), np.float64)
    return {
        "iqm": interval(scores, iqm),
        "mean": interval(scores, lambda x: x.mean(-1)),
        "range": [float(scores.min()), float(scores.max())],
        "values": scores.round(5).tolist(),
    }


def interval(scores: Array, statistic: Any) -> dict[str, float]:
    """A statistic of ``[n]`` runs; of a few of them its interval is rough."""
    found = stratified_bootstrap_ci(scores, statistic, seed=0)
    return {name: round(getattr(found, name), 5) for name in ("estimate", "low", "high")}


class _Clock:
    """Wall and processor time of what is done inside it, in s."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._since[0]
        self.cpu += time.process_time() - self._since[1]

    def row(self) -> dict[str, float]:
        return {"wall_s": round(self.wall, 2), "cpu_s": round(self.cpu, 2)}


class _Notes:
    """A curve point an iteration: steps, times, the mean return of the last training episodes, and scalars."""

    def __init__(self, trainer: Trainer, clock: _Clock) -> None:
        self._trainer, self._clock = trainer, clock
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._curve: dict[str, list[float | None]] = {"step": [], "wall_s": [], "cpu_s": [], "return": []}
        self._scalars: dict[str, list[float | None]] = {}
        collect: Any = trainer.collector.collect

        # Iterations tell the mean over a rollout's episodes, of which there may be one or a hundred.
        def collect_and_note(steps: int) -> Any:
            rollout = collect(steps)
            self._recent.extend(rollout.episodes.returns.mean(1).tolist())
            return rollout

        vars(trainer.collector)["collect"] = collect_and_note

    def add(self, scalars: Mapping[str, float]) -> None:
        point = {"step": self._trainer.step, **self._clock.row()}
        point["return"] = round(float(np.mean(self._recent)), 4) if self._recent else None
        for name, value in point.items():
            self._curve[name].append(value)
        count = len(self._curve["step"])
        for tag, value in scalars.items():
            if tag.startswith(_KEPT):
                # The learner's name tells nothing: there is one.
                name = "/".join(tag.split("/")[:2])
                series = self._scalars.setdefault(name, [])
                # What an iteration did not say leaves a gap.
                series += [None] * (count - 1 - len(series)) + [float(f"{value:.5g}")]

    def row(self) -> dict[str, Any]:
        return {"curve": self._curve, "training": self._scalars}


def _look(
    trainer: Trainer, job: Mapping[str, Any], ways: Sequence[str], episodes: int, *, keep: bool = False
) -> dict[str, Any]:
    """Held-out means of some ways of acting: ``return``, the environment's metrics, and its measures of modes."""
    found: dict[str, Any] = {"iteration": trainer.iteration, "step": trainer.step}
    for way in ways:
        played = _play(trainer, job, way, episodes)
        found[way] = {
            "return": float(played.returns.mean()),
            **{name: float(x.mean()) for name, x in played.metrics.items()},
            **played.measures,
        }
        if keep:
            found[way] |= {"returns": played.returns.round(3).tolist(), "length": float(played.lengths.mean())}
    return found


def _play(trainer: Trainer, job: Mapping[str, Any], way: str, episodes: int) -> Episodes:
    if way in ("medoid", "densest") and job.get("cohort"):
        # Each of its actions takes dozens of samples, all of them in memory at once.
        episodes = job["cohort"] * max(1, episodes // job["cohort"] // 4)
    return evaluate_policies(
        [_acting(trainer, job, way)],
        lambda copies: _environment(trainer.scenario, copies, job.get("cohort")),
        episodes=episodes,
        seed=HELD_OUT_SEED,
        mode=WAYS[way],
        window=None,
        device=trainer.device,
    )


def _environment(scenario: Scenario, copies: int, cohort: int | None) -> VectorEnv:
    if cohort is None:
        return build_env(scenario, num_envs=copies)
    settings = scenario.env.settings.model_copy(update={"cohort": cohort})
    return make_vector_env(scenario.env.id, num_envs=copies, config=settings)


def _acting(trainer: Trainer, job: Mapping[str, Any], way: str) -> Team:
    """The trained team; in another way of a drifting policy a copy of it that acts so."""
    (player,) = trainer.players
    if way not in _DRIFTING:
        return player.team
    changed = {**job["scenario"], "agents": {**job["scenario"]["agents"], "mode": way}}
    (other,) = build_players(load_scenario(changed, job.get("overrides", ())), trainer.env.spec)
    other.team.policy.load_state_dict(player.team.policy.state_dict())
    return other.team


def _samples(trainer: Trainer, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Actions for a few contexts, ``[contexts, cohort, D]``, with what was observed, by the first way of acting."""
    if not job.get("contexts"):
        return None
    way, cohort = job["ways"][0], job["cohort"]
    env = _environment(trainer.scenario, job["contexts"] * cohort, cohort)
    try:
        begun = env.reset(HELD_OUT_SEED)
        team = _acting(trainer, job, way)
        act = policy_actor([team], env, mode=WAYS[way], seed=HELD_OUT_SEED, device=trainer.device)
        actions = act(begun)[team.group.name]["action"][:, 0].reshape(job["contexts"], cohort, -1)
    finally:
        env.close()
    seen = begun.groups[team.group.name].observation["observation"][::cohort, 0]
    return {"context": seen.round(5).tolist(), "action": np.clip(actions, -1, 1).round(4).tolist()}


def _outcomes(audit: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in audit:
        if line["kind"] != "critic":
            counts[line["outcome"]] = counts.get(line["outcome"], 0) + 1
    return counts


def _parameters(trainer: Trainer) -> int:
    """Of the policy."""
    return sum(p.numel() for player in trainer.players for p in player.team.policy.module.parameters())


if __name__ == "__main__":
    print(json.dumps(measure_run(json.load(sys.stdin))))
