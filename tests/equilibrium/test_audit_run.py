"""``marl-tr nash-gap``: what it asks, says and leaves, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrix_games import DILEMMA, exact
from running import Command, contents, scalar_steps, until

from marl_tr.cli import main
from marl_tr.equilibrium import AuditSettings, frozen_run, nash_gap
from marl_tr.equilibrium.episodes import check_repeatable, deviation_returns, joint_returns
from marl_tr.equilibrium.exact import probabilities
from marl_tr.equilibrium.plays import PolicySubject
from marl_tr.equilibrium.responder import inherit, responder_scenario
from marl_tr.equilibrium.solo import SoloEnv
from marl_tr.errors import UserError
from marl_tr.scenario import load_scenario
from marl_tr.trainer.build import build_players
from marl_tr.vector import make_vector_env

Trained = Callable[[str], Path]

SMALL = ("--fresh", "1", "--warm", "1", "--budget", "64", "--episodes", "16", "--validation", "8")
SETTINGS = AuditSettings(fresh=1, warm=1, budget=64, episodes=16, validation_episodes=8, controls=())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


@pytest.fixture(scope="module")
def matrix_audit(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the prisoner's dilemma that was audited by the command line, and what was printed."""
    folder = tmp_path_factory.mktemp("audit")
    run = copied(trained("matrix"), folder)
    shutil.copy(Path(__file__).with_name("matrix_games.py"), folder)
    overrides = ("optimizer.learning_rate=2e-2", "optimizer.minibatches=1")
    asked = ("--fresh", "1", "--warm", "1", "--budget", "1024", "--episodes", "4000", "--validation", "500")
    command = Command(folder, "nash-gap", "run", *overrides, *asked, "--omniscient", "--cross", str(trained("matrix")))
    assert command.wait() == 0, command.output()
    return run, command.output()


def test_the_learned_gap_stands_beside_the_exact_one(matrix_audit: tuple[Path, str]) -> None:
    report = json.loads((matrix_audit[0] / "nash_gap.json").read_text())
    policy = report["policy"]
    assert report["bound"] == "lower"
    assert policy["nash_conv"]["estimate"] == pytest.approx(policy["exact_nash_conv"], rel=0.05)
    assert policy["exact_nash_conv"] == pytest.approx(sum(own["exact_gap"] for own in policy["agents"].values()))
    assert [control["subject"] for control in report["controls"]] == ["random", "always the first"]
    assert report["controls"][0]["agents"]["p0"]["exact_gap"] == pytest.approx(exact(DILEMMA, [[0.5] * 2] * 2)[0])
    assert report["omniscient"]["omniscient"]
    assert report["cross_play"]["pool"] == ["policy", "matrix-seed1", "random", "always the first"]
    table = np.array(report["cross_play"]["returns"]["p0"])
    assert np.array_equal(table[0], table[1])
    assert table[3, 3] == 3


def test_it_says_what_it_costs_first_and_that_gaps_are_lower_bounds(matrix_audit: tuple[Path, str]) -> None:
    lines = matrix_audit[1].splitlines()
    assert lines[0].startswith("cost: ")
    assert "environment steps of training" in lines[0]
    assert "every gap here is a lower bound" in matrix_audit[1]
    assert "no proof of an equilibrium" in matrix_audit[1]
    assert "Positive control 'random': the same auditor finds a gap" in matrix_audit[1]


def test_it_leaves_a_picture_scalars_and_one_section_of_the_report(matrix_audit: tuple[Path, str]) -> None:
    run, _ = matrix_audit
    assert (run / "media" / "nash_gap.png").read_bytes().startswith(b"\x89PNG")
    tags = scalar_steps(run)
    assert tags["nash_gap/policy/nash_conv"] == [512]
    assert {"nash_gap/policy/p0/ci_low", "nash_gap/control/random/p0", "nash_gap/policy/p0/exact"} <= tags.keys()
    assert (run / "report.md").read_text().count("## Equilibrium audit") == 1


def test_a_finished_audit_is_left_alone_and_other_settings_are_refused(
    matrix_audit: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = matrix_audit
    monkeypatch.chdir(run.parent)
    before = contents(run)
    with pytest.raises(UserError, match=r"episodes was 4000 and is 100.*--restart"):
        nash_gap(run, AuditSettings(episodes=100), say=lambda line: None)
    assert contents(run) == before


@pytest.mark.parametrize("name", ["uav_mlp", "uav_gru", "spread"])
def test_a_warm_responder_begins_at_the_agents_own_policy(trained: Trained, name: str) -> None:
    with frozen_run(trained(name)) as run:
        game, team = run.game, run.subject.teams[0]
        agent = team.agents[-1]
        scenario = responder_scenario(game, agent, SETTINGS, steps=64, seed=5)
        view = SoloEnv(game.make(2), agent, run.subject.bind(game.make(2), seed=1))
        (player,) = build_players(scenario, view.spec)
        inherit(player.team.policy, team, agent)
        modes = PolicySubject("policy", run.subject.teams, run.subject.device, mode=True)
        own = PolicySubject("own", (player.team,), run.subject.device, mode=True)
        asked: dict[str, Any] = {"episodes": 4, "seed": 3, "payoff": game.payoff}
        kept = joint_returns(game.make, modes, **asked)[agent]
        alone = deviation_returns(game.make, modes, own, agent, **asked)
    # The same decisions in stacks of another shape: sums are rounded otherwise.
    assert alone == pytest.approx(kept, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["families", "spread"])
def test_any_kind_of_agent_and_any_environment_can_be_audited(trained: Trained, tmp_path: Path, name: str) -> None:
    quick = replace(SETTINGS, budget=32, doublings=1)
    report = nash_gap(copied(trained(name), tmp_path), quick, say=lambda line: None)
    assert report is not None
    assert report["payoff"] == "mean"
    assert all(np.isfinite(own["gap"]["estimate"]) for own in report["policy"]["agents"].values())
    assert report["policy"]["exact_nash_conv"] is None


def test_probabilities_are_those_that_the_policy_draws_by(trained: Trained) -> None:
    with frozen_run(trained("matrix")) as run:
        ask = probabilities(run.subject, run.game.spec)
        assert ask is not None
        env = run.game.make(20_000)
        step, play = env.reset(1), run.subject.bind(env, seed=2)
        chosen = play.act(step, {"player": np.ones((20_000, 2), np.bool_)})["player"]["action"]
        for i, agent in enumerate(("p0", "p1")):
            (shares,) = ask(agent, {"observation": step.groups["player"].observation["observation"][:1, i]})
            assert np.bincount(chosen[:, i], minlength=2) / 20_000 == pytest.approx(shares, abs=0.015)


def test_ctrl_c_saves_and_the_same_command_comes_to_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    whole, parts = copied(trained("uav_gru"), tmp_path / "whole"), copied(trained("uav_gru"), tmp_path / "parts")
    asked = (*SMALL, "--agents", "uav_1", "--controls", "random", "--yes")
    command = Command(whole.parent, "nash-gap", "run", *asked)
    assert command.wait() == 0, command.output()
    command = Command(parts.parent, "nash-gap", "run", *asked)
    assert until(lambda: len(list((parts / "nash_gap").rglob("level_*"))) >= 2, command)
    command.signal(signal.SIGINT)
    assert command.wait() == 130, command.output()
    assert "the same command goes on" in command.output()
    command = Command(parts.parent, "nash-gap", "run", *asked)
    assert command.wait() == 0, command.output()
    assert (parts / "nash_gap.json").read_bytes() == (whole / "nash_gap.json").read_bytes()


def test_an_audit_that_broke_off_comes_to_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    whole, parts = copied(trained("spread"), tmp_path / "whole"), copied(trained("spread"), tmp_path / "parts")
    asked = replace(SETTINGS, budget=32, doublings=1, agents=("agent_0",))
    nash_gap(whole, asked, say=lambda line: None)

    def break_off(line: str) -> None:
        if list((parts / "nash_gap").rglob("level_*")):
            raise OSError(line)

    with pytest.raises(OSError, match="agent_0"):
        nash_gap(parts, asked, say=break_off)
    assert not (parts / "nash_gap.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (parts / "nash_gap").rglob("level_*")}
    nash_gap(parts, asked, say=lambda line: None)
    # It went on: what was there was not trained again.
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (parts / "nash_gap.json").read_bytes() == (whole / "nash_gap.json").read_bytes()


def test_a_dry_run_only_says_what_it_would_cost(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained("uav_mlp"), tmp_path)
    before = contents(run)
    assert main(["nash-gap", str(run), *SMALL, "--controls", "random", "--dry-run"]) == 0
    # Two agents with two responders each, and one against random play.
    assert "cost: 5 responders, 640 to 1,280 environment steps" in capsys.readouterr().out
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--agents", "uav_9"), "has no agent uav_9; it has uav_0, uav_1"),
        (("--controls", "perfect"), "'perfect' is neither 'random', 'references' nor a reference policy"),
        (("--payoff", "theirs"), "one of own, mean and sum"),
        (("optimizer.learning_rat=1",), "learning_rat"),
        (("--fresh", "0", "--warm", "0"), "no responders"),
    ],
)
def test_what_cannot_be_asked_is_said(
    trained: Trained, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    run = trained("uav_mlp")
    assert main(["nash-gap", str(run), "--dry-run", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_runs_that_cannot_be_audited_are_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained("uav_mlp"), tmp_path)
    shutil.rmtree(run / "checkpoints")
    assert main(["nash-gap", str(run)]) == 2
    assert "holds no checkpoint; there is nothing to audit" in capsys.readouterr().err
    assert main(["nash-gap", str(trained("cartpole"))]) == 2
    assert "has one agent alone" in capsys.readouterr().err
    assert main(["nash-gap", str(tmp_path / "nowhere")]) == 2


def test_cross_play_with_another_game_is_refused(trained: Trained) -> None:
    with pytest.raises(UserError, match="its game is not that of"):
        nash_gap(trained("uav_mlp"), SETTINGS, cross=[trained("spread")], dry_run=True)


def test_a_game_that_does_not_repeat_itself_is_refused(trained: Trained) -> None:
    with frozen_run(trained("matrix")) as run:

        def make(copies: int) -> Any:
            return make_vector_env(
                "matrix_games:MATRIX", num_envs=copies, config={"noise": 1.0, "forgetful": True, "payoffs": DILEMMA}
            )

        with pytest.raises(UserError, match=r"does not repeat itself.*at step 1"):
            check_repeatable(make, run.subject, payoff="own")
        check_repeatable(run.game.make, run.subject, payoff="own")


def test_symmetry_lets_one_agent_stand_for_its_group(trained: Trained, tmp_path: Path) -> None:
    run = copied(trained("uav_mlp"), tmp_path)
    alone = AuditSettings(
        agents=("uav_0",), symmetric=True, fresh=1, warm=0, budget=64, episodes=16, validation_episodes=8, controls=()
    )
    lines: list[str] = []
    report = nash_gap(run, alone, say=lines.append)
    assert report is not None
    policy = report["policy"]
    assert policy["nash_conv"]["estimate"] == pytest.approx(2 * policy["agents"]["uav_0"]["gap"]["estimate"])
    assert any("that is an assumption" in line for line in lines)
    assert any("No positive control was run" in line for line in lines)
    before = contents(run)
    assert nash_gap(run, alone, say=lines.append) == report
    assert lines[-1].endswith("is finished; nothing was changed")
    assert contents(run) == before


def test_the_scenario_of_a_responder_keeps_the_agents_network(trained: Trained) -> None:
    with frozen_run(trained("uav_gru")) as run:
        scenario = responder_scenario(run.game, "uav_1", SETTINGS, steps=64, seed=1)
    assert scenario.agents[0].config.network == "gru"
    assert scenario.objective.config.entropy == 0
    assert load_scenario(scenario.model_dump(mode="json")).region.kind == "measured"
