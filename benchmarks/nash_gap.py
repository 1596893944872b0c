"""Learned gaps beside exact ones, on games that can be enumerated.

    python benchmarks/nash_gap.py [--only kuhn] [--episodes 200000]

Responders alone: no policy that needs no learning stands beside them, and none begins warm. Subjects are uniform play,
whose exact gaps the environment computes, and the environment's equilibrium, whose gaps are 0. Each case is two
responders an agent from the budget in `CASES`, doubled at least once; the learner is marl-tr's own with three settings
changed (`LEARNER`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from marl_tr.equilibrium import Auditor, AuditSettings, Game, RandomSubject, ReferenceSubject
from marl_tr.scenario import load_scenario

RESULTS = Path(__file__).parent / "results" / "nash_gap.json"
LEARNER = ("optimizer.learning_rate=5e-3", "optimizer.minibatches=2", "critic.fit.minibatches=2")
COPIES = 256

CASES: dict[str, tuple[str, dict[str, Any], str, int, int]] = {
    **{
        f"{game}, {subject}": ("games/matrix-v0", {"game": game}, subject, 8_192, 4)
        for game, subject in (
            ("matching_pennies", "random"),
            ("rock_paper_scissors", "random"),
            ("prisoners_dilemma", "random"),
            ("stag_hunt", "random"),
            ("chicken", "random"),
            ("coordination", "random"),
            ("rotation", "equilibrium"),
            ("prisoners_dilemma", "equilibrium"),
        )
    },
    **{
        f"uav_placement, lambda {weight} rho {rho}, {subject}": (
            "games/uav_placement-v0",
            {"lambda_sigma": weight, "rho": rho},
            subject,
            16_384,
            4,
        )
        for weight, rho, subject in (
            (0.0, 0.0, "random"),
            (0.0, 1.0, "random"),
            (0.5, 0.0, "random"),
            (0.5, 1.0, "random"),
            (0.5, 0.0, "equilibrium"),
        )
    },
    "kuhn, random": ("games/kuhn-v0", {}, "random", 32_768, 8),
    "kuhn, equilibrium": ("games/kuhn-v0", {}, "equilibrium", 32_768, 8),
    "leduc, random": ("games/leduc-v0", {}, "random", 131_072, 16),
}
"""Environment, its settings, whose gaps, budget, and steps of a rollout."""


def audited(name: str, *, episodes: int, seed: int) -> dict[str, Any]:
    """One case."""
    environment, config, subject, budget, rollout = CASES[name]
    game = Game.of(
        load_scenario(
            {
                "name": "known",
                "preset": "ippo",
                "env": {"id": environment, "num_envs": COPIES, "config": config},
                "agents": {"kind": "gaussian", "hidden": [32]},
                "advantage": {"gamma": 1.0},
                "trainer": {"total_steps": 1, "rollout_steps": rollout},
            }
        )
    )
    settings = AuditSettings(
        fresh=2, warm=0, episodes=episodes, validation_episodes=5000, deviations=(), learner=LEARNER, seed=seed
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        auditor = Auditor(game, settings, Path(folder), budget=budget)
        found = auditor.audit(RandomSubject() if subject == "random" else ReferenceSubject(subject), game.spec.agents)
    assert found.nash_conv is not None
    exact = 0.0 if subject == "equilibrium" else found.exact_nash_conv
    assert exact is not None
    return {
        "budget": budget,
        "episodes": episodes,
        "nash_conv": found.nash_conv.estimate,
        "ci_low": found.nash_conv.low,
        "ci_high": found.nash_conv.high,
        "exact": exact,
        "share": found.nash_conv.estimate / exact if exact > 1e-9 else None,
        "converged": found.converged,
        "steps": {agent.agent: agent.levels[-1].steps for agent in found.agents},
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--episodes", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"cases": {}}
    for name in CASES:
        if arguments.only in name:
            found = audited(name, episodes=arguments.episodes, seed=arguments.seed)
            known["cases"][name] = found
            arguments.out.write_text(json.dumps(known, indent=1) + "\n")
            share = "" if found["share"] is None else f", {found['share']:.1%}"
            print(
                f"{name}: {found['nash_conv']:.4f} [{found['ci_low']:.4f}, {found['ci_high']:.4f}], exact "
                f"{found['exact']:.4f}{share}; {found['seconds']} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
