"""The auditor on the package's own games with exact gaps; the longer ones are `slow`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from marl_tr.equilibrium import Auditor, AuditSettings, Game, RandomSubject, ReferenceSubject, SubjectAudit
from marl_tr.scenario import load_scenario

LEARNER = ("optimizer.learning_rate=5e-3", "optimizer.minibatches=2", "critic.fit.minibatches=2")


def audited(
    environment: str, config: dict[str, Any], subject: Any, *, budget: int, rollout: int, episodes: int
) -> SubjectAudit:
    """By responders alone, two an agent that begin anew."""
    torch.set_num_threads(1)
    game = Game.of(
        load_scenario(
            {
                "name": "known",
                "preset": "ippo",
                "env": {"id": environment, "num_envs": 256, "config": config},
                "agents": {"kind": "gaussian", "hidden": [32]},
                "advantage": {"gamma": 1.0},
                "trainer": {"total_steps": 1, "rollout_steps": rollout},
            }
        )
    )
    settings = AuditSettings(
        fresh=2, warm=0, episodes=episodes, validation_episodes=5000, deviations=(), learner=LEARNER
    )
    with tempfile.TemporaryDirectory() as folder:
        return Auditor(game, settings, Path(folder), budget=budget).audit(subject, game.spec.agents)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "rho", "exact"),
    [(0.0, 0.0, 0.458912), (0.0, 1.0, 0.224761), (0.5, 0.0, 0.394490), (0.5, 1.0, 0.239472)],
)
def test_above_ninety_per_cent_of_the_placement_games_gap_is_found(weight: float, rho: float, exact: float) -> None:
    found = audited(
        "games/uav_placement-v0",
        {"lambda_sigma": weight, "rho": rho},
        RandomSubject(),
        budget=16_384,
        rollout=4,
        episodes=200_000,
    )
    assert found.nash_conv is not None
    assert found.exact_nash_conv == pytest.approx(exact, abs=1e-5)
    # From above only the episodes' noise leads past it.
    assert 0.9 < found.nash_conv.estimate / exact < 1.06
    assert found.nash_conv.low < exact


@pytest.mark.slow
def test_kuhn_pokers_gap_is_found_within_two_per_cent_and_none_at_its_equilibrium() -> None:
    uniform = audited("games/kuhn-v0", {}, RandomSubject(), budget=32_768, rollout=8, episodes=200_000)
    assert uniform.nash_conv is not None
    assert uniform.exact_nash_conv == pytest.approx(11 / 12)
    assert uniform.nash_conv.estimate == pytest.approx(11 / 12, rel=0.02)
    stable = audited("games/kuhn-v0", {}, ReferenceSubject("equilibrium"), budget=32_768, rollout=8, episodes=200_000)
    assert stable.nash_conv is not None
    assert abs(stable.nash_conv.estimate) < 0.02


def test_a_named_matrix_game_has_its_exact_gap_beside_the_learned_one() -> None:
    found = audited(
        "games/matrix-v0", {"game": "prisoners_dilemma"}, RandomSubject(), budget=4096, rollout=4, episodes=50_000
    )
    assert found.nash_conv is not None
    assert found.exact_nash_conv == pytest.approx(1.5)
    assert found.nash_conv.estimate == pytest.approx(1.5, rel=0.02)
