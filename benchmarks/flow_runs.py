"""What the benchmarks of flow policies share: one run in a process of its own, measured on held-out samples.

A *job* is a mapping: ``run`` (what names it), ``scenario``, ``overrides`` (``"section.key=value"``), ``every``
(iterations between evaluations), ``episodes`` (held-out samples), ``probes`` (points a noise level on which drift is
measured) and ``drift_every``. Run as a script, this module reads one from standard input, trains, and prints its row;
`run_all` does that for many jobs, one thread each, appends a line of JSON a finished run, and skips those that are
there.

Pairing: held-out conditions and noises are the same in every run and evaluation, and so are a training rollout's (they
follow from the seed and the iteration alone; a sampler whose last step is deterministic merely draws less).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marl_tr.analysis.audit import audit
from marl_tr.envs.flow.measures import start_entropy
from marl_tr.events.audit_log import AuditLog
from marl_tr.policy import Parameters
from marl_tr.rollout.team import Team, play
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_env
from marl_tr.trainer.loop import Trainer
from marl_tr.trainer.seeding import derive_seed, make_generator

__all__ = ["LEVELS", "bootstrap", "commit", "measure_run", "read_rows", "run_all"]

Array = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels of the probes on which drift is measured."""
HELD_OUT_SEED = 1_000_003
_ARC_BINS = 32
_KL_SAMPLES = 64
"""Held-out chains on which the divergence to the pretrained policy is measured."""


def measure_run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train one scenario and measure it before, during and after; the row that is kept."""
    started, load = time.time(), os.getloadavg()[0]
    scenario = load_scenario(job["scenario"], job.get("overrides", ()))
    torch.set_num_threads(scenario.trainer.threads)
    trainer = Trainer(scenario)
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder))
        trainer.audit = log.append
        trainer.start()
        instrument = _Instrument(trainer, job)
        instrument.look()
        while trainer.iteration < trainer.iterations:
            generator = trainer.collector.generator
            generator.manual_seed(derive_seed(scenario.seed, f"benchmark/rollout/{trainer.iteration}"))
            scalars = trainer.iterate().scalars
            instrument.note(scalars)
            if trainer.iteration % job["every"] == 0 or trainer.iteration == trainer.iterations:
                instrument.look()
        log.close()
        audited = _audited(Path(folder))
    trainer.env.close()
    seconds = {name: round(value, 2) for name, value in trainer.seconds.items()}
    ran = {"wall_s": round(time.time() - started, 1), "load": [load, os.getloadavg()[0]], "seconds": seconds}
    return {**ran, "audit": audited, **instrument.row()}


def run_all(jobs: Sequence[Mapping[str, Any]], rows: Path, *, parallel: int) -> None:
    """Run those of `jobs` whose ``"run"`` (a mapping that names it) has no line in `rows` yet; appends theirs.

    A job with ``script`` (in this folder) or ``python`` (an interpreter) is run by those, and not by this module.

    Raises:
        SystemExit: A run failed; the others are finished first.
    """
    done = {_key(row["run"]) for row in read_rows(rows)}
    waiting = [job for job in jobs if _key(job["run"]) not in done]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are in {rows}; {len(waiting)} to do", flush=True)
    rows.parent.mkdir(parents=True, exist_ok=True)
    lock, failed = threading.Lock(), []

    def one(job: Mapping[str, Any]) -> None:
        # Before the run: whoever commits while it goes on does not change what it ran.
        version = commit()
        process = subprocess.run(
            [job.get("python", sys.executable), str(HERE / job.get("script", "flow_runs.py"))],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        with lock:
            if process.returncode:
                failed.append(f"{job['run']}:\n{process.stderr[-2000:]}")
                print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
                return
            row = json.loads(process.stdout.splitlines()[-1])
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run": job["run"], "commit": version, **row}) + "\n")
            print(f"{job['run']} {row['wall_s']:.0f} s", flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, waiting))
    if failed:
        raise SystemExit(f"{len(failed)} of {len(waiting)} runs failed")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The finished runs; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def bootstrap(
    values: Array, statistic: Callable[[Array], Array] | None = None, *, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Mean of ``[seeds, samples]`` and its 95 % percentile interval; seeds and samples are both drawn anew.

    The samples are the same held-out ones for every seed, so that one draw of them serves all. Of three seeds an
    interval is rough.

    Args:
        values: ``[seeds, samples]``; ``[seeds, 1]`` draws the seeds alone.
        statistic: Of the resampled ``[..., seeds, samples]`` over the last two axes; by default the mean.
        resamples: How many.
        seed: Equal seeds give equal intervals.
    """
    statistic = statistic or (lambda x: x.mean((-2, -1)))
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, values.shape[0], (resamples, values.shape[0], 1))
    columns = generator.integers(0, values.shape[1], (resamples, 1, values.shape[1]))
    low, high = np.quantile(statistic(values[rows, columns]), [0.025, 0.975])
    return {"mean": float(statistic(values[None])[0]), "low": float(low), "high": float(high)}


def commit() -> str:
    """Of the checkout that this script lies in."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class _Sampled:
    """Held-out samples of one way of acting.

    Attributes:
        metrics: ``{name: [n]}``, the environment's.
        pairwise: ``[cohorts]``: root mean squared difference of two samples of a cohort, mean over its pairs.
        entropy: Of the arc parameter, or of the start, over equal cells, in nats.
        chain: ``[n, K + 1, D]`` states.
        observation: ``{leaf: [n, ...]}``.
    """

    metrics: dict[str, Array]
    pairwise: Array
    entropy: float
    chain: Tensor
    observation: dict[str, Tensor]


class _Instrument:
    """Measures a trainer's only team as it stands, and keeps what it saw."""

    def __init__(self, trainer: Trainer, job: Mapping[str, Any]) -> None:
        self._trainer, self._job = trainer, job
        (self._player,) = trainer.players
        self._pretrained = self._player.learners.parameters([0])
        self._looks: list[dict[str, Any]] = []
        self._samples: list[dict[str, dict[str, list[float]]]] = []
        self._notes: dict[str, list[float]] = {}
        generator = make_generator(HELD_OUT_SEED, "benchmark/probes")
        env: Any = trainer.env
        condition, data = env.demonstrations(job["probes"], generator)
        count = len(LEVELS)
        self._level = torch.tensor(LEVELS).repeat_interleave(len(data))
        s = self._level.view(-1, *(1,) * (data.ndim - 1))
        x0 = data.float().repeat(count, *(1,) * (data.ndim - 1))
        self._x = (1 - s) * x0 + s * torch.randn(x0.shape, generator=generator)
        self._condition = {leaf: c.float().repeat(count, *(1,) * (c.ndim - 1)) for leaf, c in condition.items()}
        self._velocity = self._at_probes(self._pretrained)

    def note(self, scalars: Mapping[str, float]) -> None:
        """Keep an iteration's scalars, and the drift where it is due."""
        kept = {tag: value for tag, value in scalars.items() if tag.startswith(("env/", "region/"))}
        kept["reward"] = scalars["charts/episodic_return"]
        if self._trainer.iteration % self._job["drift_every"] == 0:
            kept["drift"] = float(np.sqrt(np.square(self._drift()).mean()))
        for tag, value in kept.items():
            # The learner's name tells nothing: there is one.
            name = tag.rpartition("/")[0] if tag.startswith("region/") else tag
            self._notes.setdefault(name, []).append(round(float(value), 6))

    def look(self) -> None:
        """Held-out samples both ways, drift and divergence."""
        sampled = {mode: self._play(mode == "mode") for mode in ("mode", "sampled")}
        drift = self._drift()
        self._looks.append(
            {
                "iteration": self._trainer.iteration,
                "drift": float(np.sqrt(np.square(drift).mean())),
                "drift_levels": drift.tolist(),
                "kl_pretrained": self._divergence(sampled["sampled"]),
                **{
                    mode: {name: float(x.mean()) for name, x in held.metrics.items()}
                    | {"pairwise": float(held.pairwise.mean()), "entropy": held.entropy}
                    for mode, held in sampled.items()
                },
            }
        )
        kept = {
            mode: {name: np.round(x, 4).tolist() for name, x in (held.metrics | {"pairwise": held.pairwise}).items()}
            for mode, held in sampled.items()
        }
        # The first and the newest.
        self._samples = [*self._samples[:1], kept]

    def row(self) -> dict[str, Any]:
        """All of it."""
        return {"looks": self._looks, "first": self._samples[0], "last": self._samples[-1], "training": self._notes}

    def _play(self, mode: bool) -> _Sampled:
        trainer, team = self._trainer, self._player.team
        env = build_env(trainer.scenario, num_envs=self._job["episodes"])
        try:
            begun = env.reset(HELD_OUT_SEED)
            generator = make_generator(HELD_OUT_SEED, "benchmark/act")
            with torch.no_grad():
                actions, records, _ = play(
                    [team], begun, {team.name: None}, generator, mode=mode, device=trainer.device
                )
            ended = env.step(actions)
        finally:
            env.close()
        group = team.group.name
        samples = torch.from_numpy(actions[group]["action"]).flatten(1)
        cohort = torch.as_tensor(np.asarray(begun.cohort))
        metrics = {name: np.asarray(x, np.float64) for name, x in ended.metrics.items()}
        return _Sampled(
            metrics=metrics,
            pairwise=_pairwise(samples.double(), cohort),
            entropy=_entropy(metrics),
            chain=records[team.name]["chain"][0],
            observation={
                leaf: torch.from_numpy(x).flatten(0, 1) for leaf, x in begun.groups[group].observation.items()
            },
        )

    @torch.no_grad()
    def _at_probes(self, parameters: Parameters) -> Tensor:
        return self._network(parameters, self._x, self._level, self._condition)

    def _drift(self) -> Array:
        """Root mean squared change of the velocity a dimension, by noise level."""
        change = self._at_probes(self._player.learners.parameters([0])) - self._velocity
        squares: Array = change.double().square().flatten(1).mean(1).view(len(LEVELS), -1).mean(1).sqrt().numpy()
        return squares

    @torch.no_grad()
    def _divergence(self, held: _Sampled) -> float:
        """KL of the policy to the pretrained one on its own chains, nats (sum over dimensions and chain)."""
        policy: Any = self._player.team.policy
        own = self._player.learners.parameters([0])
        chain, total = held.chain[:_KL_SAMPLES], 0.0
        condition = {leaf: x[:_KL_SAMPLES] for leaf, x in held.observation.items()}
        coefficients = policy.coefficients
        for k in range(chain.shape[1] - 1):
            if coefficients.std[k] == 0:
                continue
            x = chain[:, k].unflatten(-1, self._x.shape[1:])
            level = coefficients.s[k].float().expand(len(x))
            gap = self._network(own, x, level, condition) - self._network(self._pretrained, x, level, condition)
            scale = float(coefficients.b[k] / coefficients.std[k])
            total += 0.5 * scale**2 * float(gap.double().square().flatten(1).sum(1).mean())
        return total

    def _network(self, parameters: Parameters, x: Tensor, level: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        network = _team_policy(self._player.team).module.row(parameters, 0)
        parts = [
            network(x[i : i + 256], level[i : i + 256], {leaf: c[i : i + 256] for leaf, c in condition.items()})
            for i in range(0, len(x), 256)
        ]
        return torch.cat(parts)


def _team_policy(team: Team) -> Any:
    """A flow policy: its module has networks in rows, and it says its coefficients."""
    return team.policy


def _pairwise(samples: Tensor, cohort: Tensor) -> Array:
    """``[cohorts]`` of ``[n, D]``."""
    found = []
    for which in cohort.unique():
        own = samples[cohort == which]
        found.append(float(torch.pdist(own).mean()) / samples.shape[1] ** 0.5 if len(own) > 1 else 0.0)
    return np.array(found)


def _entropy(metrics: Mapping[str, Array]) -> float:
    if "fit_x" in metrics:
        return start_entropy(torch.from_numpy(np.stack([metrics["fit_x"], metrics["fit_y"]], -1)))
    counts = np.bincount((metrics["arc"] * _ARC_BINS).astype(int).clip(0, _ARC_BINS - 1), minlength=_ARC_BINS)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _audited(folder: Path) -> dict[str, Any]:
    report = audit([folder])
    return {
        "ok": report.ok,
        "rows": [
            {"kind": row.kind, "guarantee": row.guarantee, "largest_ratio": row.largest_ratio, **row.outcomes}
            | {"violations": row.violations, "began_beyond": row.began_beyond}
            for row in report.rows
            if row.kind != "critic"
        ],
    }


def _key(run: Mapping[str, Any]) -> str:
    return json.dumps(run, sort_keys=True)


if __name__ == "__main__":
    print(json.dumps(measure_run(json.load(sys.stdin))))
