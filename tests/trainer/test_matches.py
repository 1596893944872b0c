"""Matches: the learned policies in one seat, an opponent in the others; and returns of agents that earn unlike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from turn_examples import Crowd, Nim, make_nim

from marl_tr import registry
from marl_tr.errors import UserError
from marl_tr.scenario import load_scenario
from marl_tr.trainer import api
from marl_tr.trainer.evaluation import Act, Episodes, evaluate_act
from marl_tr.trainer.held_out import returns_apart
from marl_tr.trainer.seats import Match, Seat, against, match_of, random_opponent, seated, seats_of
from marl_tr.vector.contract import Step

registry.register_env("trainer-tests/nim-v0", make_nim, native=True)
SEATS = (Seat("player_0", ("player_0",)), Seat("player_1", ("player_1",)))


def takes(choose: Any) -> Act:
    """A player that takes `choose(heap)` matches, as far as there are."""

    def act(step: Step) -> Any:
        heap = step.groups["player"].observation["heap"].argmax(-1)
        return {"player": {"take": np.clip(np.vectorize(choose)(heap), 1, np.maximum(heap, 1))}}

    return act


def play_match(env: Nim, ours: Act, theirs: Act, *, at: int) -> Match:
    played = evaluate_act(env, seated(ours, theirs, SEATS[at], env.spec), seed=0, window=None)
    return match_of(played, SEATS, at=at, opponent="greedy")


perfect, greedy = takes(lambda heap: heap % 4 or 1), takes(lambda heap: 3)


@pytest.mark.parametrize(("at", "returns"), [(0, [1, 1, 1]), (1, [1, -1, -1])])
def test_who_sits_where_decides_who_wins(at: int, returns: list[float]) -> None:
    """Heaps of 7, 6 and 5. Perfect first: always wins. Greedy first takes 3, leaving 4 (a loss), 3 and 2."""
    match = play_match(Nim(3), perfect, greedy, at=at)
    # In seat 1 perfect play faces what greedy left: of 4 it must lose, of 3 and 2 it takes all.
    expected = returns if at == 0 else [-1, 1, 1]
    assert match.returns.tolist() == expected
    assert match.won.tolist() == [value > 0 for value in expected]


def test_scalars_are_means_with_their_bootstrap_interval() -> None:
    matches = [play_match(Nim(90), perfect, greedy, at=at) for at in (0, 1)]
    scalars = against(matches, seed=0)
    assert scalars["eval/vs_greedy/player_0"] == scalars["eval/vs_greedy/player_0/won"] == 1
    assert scalars["eval/vs_greedy/player_1"] == pytest.approx(1 / 3)
    assert scalars["eval/vs_greedy/player_1/won"] == pytest.approx(2 / 3)
    low, high = (scalars[f"eval/vs_greedy/player_1/ci_{end}"] for end in ("low", "high"))
    # 30 of 90 are lost: the mean's standard error is 0.0994.
    assert low == pytest.approx(1 / 3 - 1.96 * 0.0994, abs=0.04)
    assert high == pytest.approx(1 / 3 + 1.96 * 0.0994, abs=0.04)


def test_random_opponents_keep_to_masks_and_take_all_that_is_allowed_alike() -> None:
    env = Crowd(40)  # raises where a forbidden choice reaches it
    act, step = random_opponent(env.spec, seed=3), env.reset(0)
    picked = np.zeros(4)
    expected = np.zeros(4)
    for _ in range(40):
        actions = act(step)
        mask = step.groups["mixed"].observation["may_pick"] != 0
        mask |= ~mask.any(-1, keepdims=True)
        picked += np.bincount(actions["mixed"]["pick"].ravel() - 5, minlength=4)
        expected += (mask / mask.sum(-1, keepdims=True)).sum((0, 1))
        step = env.step(actions)
    assert picked.sum() == 40 * 40 * 3
    np.testing.assert_allclose(picked, expected, atol=4 * np.sqrt(expected.max()))


def test_seats_are_agents_or_groups_or_what_is_said() -> None:
    nim, crowd = Nim(1).spec, Crowd(1).spec
    assert seats_of(nim, {}) == SEATS
    assert seats_of(crowd, {}) == (Seat("mixed", ("m0", "m1", "m2")), Seat("plain", ("p0", "p1")))
    given = {"first": ["m0", "p?"], "rest": ["*"]}
    assert seats_of(crowd, given) == (Seat("first", ("m0", "p0", "p1")), Seat("rest", ("m1", "m2")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": ["m*"], "b": ["p0"]}, "no seat matches p1"),
        ({"a": ["*"], "b": ["p0"]}, "b is left with no agent"),
        ({"a": ["*"]}, "needs two seats"),
    ],
)
def test_seats_that_fit_no_agents_are_refused(given: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        seats_of(Crowd(1).spec, given)


def test_returns_of_agents_are_told_apart_only_where_they_differ() -> None:
    played = evaluate_act(Nim(6), perfect, seed=0, window=None)
    assert played.returns.tolist() == [0.0] * 6
    apart = returns_apart(played)
    assert apart["player_0"].tolist() == [1.0] * 6
    assert apart["player_1"].tolist() == [-1.0] * 6
    same = Episodes(played.returns, played.lengths, None, {}, (), by_agent={"a": np.ones(3), "b": np.ones(3)})
    assert returns_apart(same) == {}


def test_agents_returns_are_all_their_lives_together() -> None:
    env = Crowd(8)
    act = random_opponent(env.spec, seed=1)
    steps: list[Step] = []

    def watched(step: Step) -> Any:
        steps.append(step)
        return act(step)

    played = evaluate_act(env, watched, seed=4, window=None)
    # Every episode has the same length here, so that all of them end in the step that `steps` does not hold.
    paid = {agent: np.zeros(8) for agent in env.spec.agents}
    for step in steps[1:]:
        for group in env.spec.groups:
            for a, agent in enumerate(group.agents):
                paid[agent] += step.groups[group.name].reward[:, a]
    again = Crowd(8)
    act, step = random_opponent(again.spec, seed=1), again.reset(4)
    for _ in steps:
        step = again.step(act(step))
    for group in env.spec.groups:
        for a, agent in enumerate(group.agents):
            np.testing.assert_allclose(played.by_agent[agent], paid[agent] + step.groups[group.name].reward[:, a])
    np.testing.assert_allclose(played.returns, np.mean(list(played.by_agent.values()), axis=0))


def test_a_run_shows_its_matches_and_each_agents_returns(tmp_path: Path) -> None:
    scenario = load_scenario(
        {
            "name": "nim",
            "preset": "mappo",
            "env": {"id": "trainer-tests/nim-v0", "num_envs": 8},
            "agents": {"kind": "gaussian", "hidden": [8]},
            "trainer": {"total_steps": 64, "rollout_steps": 8, "runs_dir": str(tmp_path)},
            "evaluation": {"episodes": 12, "final_episodes": 30, "opponents": ["random"], "policies": ["mode"]},
        }
    )
    folder = api.run(scenario)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for phase in ("eval", "final"):
        scalars = next(line["scalars"] for line in lines if line["phase"] == phase)
        assert scalars["eval/mode/return/player_0"] == -scalars["eval/mode/return/player_1"]
        assert abs(scalars["eval/iqm"]) < 1e-9
        for seat in ("player_0", "player_1"):
            won = scalars[f"eval/vs_random/{seat}/won"]
            assert scalars[f"eval/vs_random/{seat}"] == pytest.approx(2 * won - 1)
    report = (folder / "report.md").read_text()
    assert "| agent | learned, mode |" in report
    assert "| player_1 | random | " in report
    assert "30 episodes each" in report


def test_an_environment_of_one_agent_has_no_matches(tmp_path: Path) -> None:
    scenario = load_scenario(
        {
            "name": "alone",
            "preset": "mappo",
            "env": {"id": "gymnasium/CartPole-v1", "num_envs": 2},
            "agents": {"kind": "gaussian"},
            "trainer": {"total_steps": 64, "rollout_steps": 8, "runs_dir": str(tmp_path)},
            "evaluation": {"opponents": ["random"]},
        }
    )
    with pytest.raises(UserError, match="one agent alone, and nobody to play against"):
        api.run(scenario)
    assert not list(tmp_path.iterdir())
