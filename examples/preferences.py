"""A policy that learns from preferences: pairs, scored groups and demonstrations, and then from a better policy.

    python examples/preferences.py
    python examples/preferences.py --losses adpo psft --rounds 40 --bound 0.01

The environment is the bandit whose two equally good answers turn with what is seen. Each round samples groups of eight
answers to the same situation, which the environment scores, and makes one update of them. Whatever the loss, the Guard
measures the update and keeps it within the bound. At the end the best policy is a teacher, whose log-ratio to the
policy at the start is all that a fresh policy learns from.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marl_tr.policy import Parameters
from marl_tr.preference.config import PreferenceSettings
from marl_tr.preference.data import PreferenceData, best_as_expert, levels
from marl_tr.preference.sampling import Sampler, opened
from marl_tr.preference.trainer import PreferenceTrainer
from marl_tr.scenario import load_scenario

SCENARIO = """
name: preferences
env: {id: games/bandit-v0, num_envs: 512, config: {modes: 2, cohort: 8}}
agents: {kind: gaussian, sharing: all, hidden: [32]}
objective: {kind: surrogate}
region: {kind: measured}
optimizer: {}
schedule: {kind: simultaneous}
critic: {kind: mlp, hidden: [8]}
trainer: {total_steps: 512, rollout_steps: 1}
"""
ON_DEMONSTRATIONS = ("psft", "trsft")
SETTINGS: dict[str, dict[str, Any]] = {
    "adpo": {"loss": {"kind": "adpo"}},
    "tr_dpo": {
        "loss": {"kind": "tr_dpo", "beta": 1.0},
        "anchor": {"weight": 0, "anchor": {"kind": "soft", "rate": 0.6}},
    },
    "trpa": {"loss": {"kind": "trpa", "beta": 1.0}, "anchor": {"weight": 0, "anchor": {"kind": "period", "every": 5}}},
    "psft": {"loss": {"kind": "psft"}},
    "trsft": {"loss": {"kind": "trsft", "of": "quantile"}},
}
STEPS = {"learning_rate": 3e-3, "epochs": 4, "minibatches": 4, "max_grad_norm": 2.0}


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        before: Mean score of fresh samples.
        after: The same at the end.
        largest: The largest divergence that was committed, nats.
        parameters: At the end.
    """

    before: float
    after: float
    largest: float
    parameters: Parameters


def train(name: str, *, rounds: int, bound: float, teacher: Parameters | None = None, seed: int = 0) -> Outcome:
    """Learn with one loss from the scenario's start; ``erpd`` from a teacher."""
    with tempfile.TemporaryDirectory() as folder, opened(scenario(Path(folder))) as sampler:
        policy = sampler.player().learners.policy
        # Of the second stage the anchor is the base policy, and its weight is lambda.
        own = SETTINGS.get(name, {"loss": {"kind": "erpd"}, "anchor": {"weight": 0.3}})
        settings = PreferenceSettings.model_validate({"bound": bound, "optimizer": STEPS, "seed": seed, **own})
        trainer = PreferenceTrainer(policy, settings, teacher=teacher)
        before = score(sampler)
        largest = 0.0
        for number in range(rounds):
            (report,) = trainer.update(prepared(name)(sampler.sample(seed=1000 * seed + number)))
            largest = max(largest, report.accepted)
        return Outcome(before, score(sampler), largest, trainer.learners.parameters([0]))


def prepared(name: str) -> Callable[[PreferenceData], PreferenceData]:
    """What a loss wants to know of scored groups."""
    if name in ON_DEMONSTRATIONS:
        return best_as_expert
    if name == "trpa":
        return lambda data: PreferenceData(data.batch, data.group, data.score, levels(data.score, [0.2, 0.6]))
    return lambda data: data


def score(sampler: Sampler) -> float:
    """Mean of fresh samples, the same situations every time."""
    found = sampler.sample(seed=10**9, rounds=4).score
    assert found is not None
    return float(found.mean())


def scenario(folder: Path) -> Any:
    file = folder / "preferences.yaml"
    file.write_text(SCENARIO, encoding="utf-8")
    return load_scenario(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=30, help="updates of each")
    parser.add_argument("--bound", type=float, default=0.02, help="mean KL(old||new) an update, nats")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = {}
    for name in arguments.losses:
        outcomes[name] = train(name, rounds=arguments.rounds, bound=arguments.bound)
        show(name, outcomes[name])
    best = max(outcomes, key=lambda name: outcomes[name].after)
    taught = train("erpd", rounds=arguments.rounds, bound=arguments.bound, teacher=outcomes[best].parameters)
    show(f"erpd, taught by {best}", taught)


def show(name: str, outcome: Outcome) -> None:
    print(f"{name:<22} score {outcome.before:.3f} -> {outcome.after:.3f}, largest divergence {outcome.largest:.4f}")


if __name__ == "__main__":
    main()
