"""The auditor on games whose gaps are known by enumeration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrix_games import DILEMMA, PENNIES, ROTATION, MixedSubject, exact

from marl_tr.equilibrium import Auditor, AuditSettings, Game, RandomSubject, ReferenceSubject, SubjectAudit
from marl_tr.equilibrium.episodes import crossed_returns, deviation_returns, joint_returns
from marl_tr.errors import Interrupted, UserError
from marl_tr.scenario import load_scenario
from marl_tr.trainer.checkpoint import load_checkpoint, save_checkpoint

QUICK = ("optimizer.minibatches=1", "critic.fit.minibatches=1", "optimizer.learning_rate=2e-2")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def game(payoffs: Any, **config: Any) -> Game:
    return Game.of(
        load_scenario(
            {
                "name": "matrix",
                "preset": "ippo",
                "env": {"id": "matrix_games:MATRIX", "num_envs": 64, "config": {"payoffs": payoffs, **config}},
                "agents": {"kind": "gaussian", "hidden": [8]},
                "trainer": {"total_steps": 1000, "rollout_steps": 4},
            }
        )
    )


def audited(
    folder: Path, played: Game, profile: Any, *, budget: int = 2048, agents: tuple[str, ...] = ("p0", "p1"), **more: Any
) -> SubjectAudit:
    asked: dict[str, Any] = {"fresh": 1, "warm": 0, "episodes": 20_000, "validation_episodes": 1000, "learner": QUICK}
    auditor = Auditor(played, AuditSettings(**(asked | more)), folder, budget=budget)
    subject = MixedSubject(tuple(map(tuple, profile))) if not hasattr(profile, "bind") else profile
    return auditor.audit(subject, agents)


@pytest.mark.parametrize(
    ("payoffs", "profile"),
    [
        (DILEMMA, ((1.0, 0.0), (1.0, 0.0))),
        (DILEMMA, ((0.5, 0.5), (0.5, 0.5))),
        (PENNIES, ((0.8, 0.2), (0.3, 0.7))),
    ],
    ids=["cooperation", "uniform dilemma", "biased pennies"],
)
def test_nash_conv_is_that_of_enumeration_within_two_per_cent(tmp_path: Path, payoffs: Any, profile: Any) -> None:
    found = audited(tmp_path, game(payoffs), profile)
    true = sum(exact(payoffs, profile))
    assert found.nash_conv is not None
    assert found.nash_conv.estimate == pytest.approx(true, rel=0.02)
    assert found.converged
    assert found.found


@pytest.mark.parametrize("payoffs", [PENNIES, ROTATION], ids=["pennies", "rotation"])
def test_at_an_equilibrium_nothing_is_found(tmp_path: Path, payoffs: Any) -> None:
    uniform = ((0.5, 0.5), (0.5, 0.5))
    assert exact(payoffs, uniform) == pytest.approx([0, 0])
    found = audited(tmp_path, game(payoffs), uniform, episodes=4000)
    assert found.nash_conv is not None
    assert abs(found.nash_conv.estimate) < 0.08
    assert found.nash_conv.low <= 0 <= found.nash_conv.high


def test_players_who_take_turns_are_audited_alike(tmp_path: Path) -> None:
    found = audited(
        tmp_path, game(PENNIES, turns=True), ((0.8, 0.2), (0.3, 0.7)), budget=4096, agents=("p1",), episodes=8000
    )
    (player,) = found.agents
    assert player.gap.estimate == pytest.approx(exact(PENNIES, ((0.8, 0.2), (0.3, 0.7)))[1], abs=0.04)
    assert found.nash_conv is None


def test_gaps_of_the_positive_controls_are_found(tmp_path: Path) -> None:
    played = game(DILEMMA)
    (first,) = audited(tmp_path / "a", played, ReferenceSubject("always the first"), agents=("p0",)).agents
    assert first.gap.estimate == pytest.approx(2.0)
    random = audited(tmp_path / "b", played, RandomSubject(), agents=("p0",), episodes=4000)
    assert random.found
    assert random.agents[0].gap.estimate == pytest.approx(exact(DILEMMA, ((0.5, 0.5), (0.5, 0.5)))[0], abs=0.05)


def test_where_a_policy_that_did_not_learn_is_the_better_response_the_search_has_not_converged(tmp_path: Path) -> None:
    # Responders trained and scored in a game of the other sign: always the first is better there than all of them.
    played = game(DILEMMA)
    backwards = game((-np.asarray(DILEMMA)).tolist())
    settings = AuditSettings(fresh=1, warm=0, episodes=200, validation_episodes=100, learner=QUICK)
    profile = ((0.5, 0.5), (1.0, 0.0))
    Auditor(played, settings, tmp_path, budget=1024).audit(MixedSubject(profile), ("p0",))
    for scored in tmp_path.rglob("level_*.safetensors"):
        state = load_checkpoint(scored)
        state["validation"] = {way: -np.asarray(x) for way, x in state["validation"].items()}
        save_checkpoint(scored, state)
    (player,) = Auditor(backwards, settings, tmp_path, budget=1024).audit(MixedSubject(profile), ("p0",)).agents
    assert (player.responder, player.learned) == ("not learned: always the first", False)
    assert player.gap.estimate == pytest.approx(exact((-np.asarray(DILEMMA)).tolist(), profile)[0], abs=0.2)
    assert not player.converged


def test_common_random_numbers_take_out_the_noise_that_both_arms_share(tmp_path: Path) -> None:
    played, profile = game(DILEMMA, noise=3.0), ((0.5, 0.5), (0.5, 0.5))
    subject, responder = MixedSubject(profile), ReferenceSubject("always the first")
    paired: dict[str, Any] = {"episodes": 2000, "payoff": "own"}
    kept = joint_returns(played.make, subject, seed=7, **paired)["p0"]
    same = crossed_returns(played.make, subject, responder, "p0", seed=7, **paired)
    other = crossed_returns(played.make, subject, responder, "p0", seed=8, **paired)
    # Noise of variance 9 in each arm; what is left are the player's own draws.
    assert (same - kept).var() < 0.15 * (other - kept).var()
    assert (other - kept).var() == pytest.approx(18, rel=0.35)


def test_others_draw_the_same_whoever_deviates() -> None:
    played = game([[[0, 0], [0, 0]], [[0, 1], [0, 1]]])  # what p1 is paid is what p1 does
    subject = MixedSubject(((0.5, 0.5), (0.4, 0.6)))
    kept = joint_returns(played.make, subject, episodes=300, seed=3, payoff="own")["p1"]
    for own in (RandomSubject(), ReferenceSubject("always the first")):
        crossed = crossed_returns(played.make, subject, own, "p0", episodes=300, seed=3, payoff="sum")
        assert np.array_equal(crossed, kept)
    itself = crossed_returns(played.make, subject, subject, "p1", episodes=300, seed=3, payoff="own")
    assert np.array_equal(itself, kept)


def test_a_deviation_through_the_view_of_one_agent_is_that_in_the_whole_game() -> None:
    played, subject = game(DILEMMA), MixedSubject(((0.5, 0.5), (0.4, 0.6)))
    own = ReferenceSubject("always the first")
    crossed = crossed_returns(played.make, subject, own, "p1", episodes=200, seed=3, payoff="own")

    always = MixedSubject(((1.0, 0.0),))  # of the one agent that the view has
    viewed = deviation_returns(played.make, subject, always, "p1", episodes=200, seed=3, payoff="own")
    assert np.array_equal(viewed, crossed)


def test_an_audit_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    played, profile = game(PENNIES, turns=True), ((0.8, 0.2), (0.3, 0.7))
    settings = AuditSettings(fresh=2, warm=0, episodes=200, validation_episodes=100, learner=QUICK)
    whole = Auditor(played, settings, tmp_path / "whole", budget=1024).audit(MixedSubject(profile), ("p0",))
    stops = 0
    for calls in (1, 2, 3, 5, 40, 10_000):
        asked = iter(range(10_000))
        auditor = Auditor(
            played,
            settings,
            tmp_path / "parts",
            budget=1024,
            stop=lambda: next(asked) >= calls,  # noqa: B023
        )
        try:
            parts = auditor.audit(MixedSubject(profile), ("p0",))
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert parts == whole


def test_an_agent_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no agent p9; it has p0, p1"):
        game(PENNIES).check_agents(("p0", "p9"))


def test_cohorts_and_lonely_agents_are_refused() -> None:
    with pytest.raises(UserError, match="cohort"):
        game(PENNIES, cohort=True)
    with pytest.raises(UserError, match="one agent alone"):
        Game.of(
            load_scenario(
                {
                    "name": "alone",
                    "preset": "ippo",
                    "env": {"id": "gymnasium/CartPole-v1", "num_envs": 2},
                    "agents": {"kind": "gaussian"},
                    "trainer": {"total_steps": 100},
                }
            )
        )


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"fresh": 0, "warm": 0}, "no responders"),
        ({"doublings": 0}, "doublings must be at least 1"),
        ({"budget": 0}, "budget must be"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"agents": ("a", "a")}, "each once"),
        ({"episodes": 1}, "episodes must be at least 2"),
    ],
)
def test_settings_that_make_no_audit_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        AuditSettings(**settings).check()
