"""Combinations: what cannot work is refused with the reason, what is doubtful is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from marl_tr import registry
from marl_tr.registry import Entry
from marl_tr.scenario import Problem, load_scenario, scenario_warnings
from marl_tr.scenario.schema import Strict

Load = Callable[..., list[Problem]]

EXPLICIT = """\
name: x
env: {id: uav/downlink-v0}
agents: {kind: gaussian, sharing: none}
objective: {kind: surrogate}
region: {kind: trpo}
schedule: {kind: simultaneous}
critic: {kind: mlp}
trainer: {total_steps: 10}
"""


class SampleOnlyConfig(Strict):
    """Agents that can be sampled and nothing else."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"sample_distance"})


@pytest.fixture
def sample_only(monkeypatch: pytest.MonkeyPatch) -> str:
    table = registry._registered["agents"]
    monkeypatch.setitem(table, "sample_only", Entry("json:loads", config=SampleOnlyConfig))
    return "sample_only"


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "reason"),
    [
        ("{kind: surrogate}", "{kind: clip}", 4, "objective.kind", "never meets the clip"),
        ("{kind: trpo}", "{kind: measured}", 5, "region.kind", "needs gradient steps"),
        ("critic: {kind: mlp}", "critic: {kind: mlp}\noptimizer: {}", 8, "optimizer", "takes its own step"),
        (
            EXPLICIT,
            EXPLICIT.replace("sharing: none", "sharing: all").replace("simultaneous", "sequential"),
            3,
            "agents.sharing",
            "needs its own parameters",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("sharing: none", "sharing: all").replace("simultaneous", "meta_game"),
            3,
            "agents.sharing",
            "needs its own parameters",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("sharing: none", "sharing: all").replace("simultaneous}", "simultaneous, budget: equal}"),
            3,
            "agents.sharing",
            "needs its own parameters",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("simultaneous}", "simultaneous, budget: greedy}").replace(
                "{kind: trpo}", "{kind: measured}\noptimizer: {}"
            ),
            5,
            "region.kind",
            "schedule.budget splits bounds, and region 'measured' has none here",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("simultaneous}", "simultaneous, joint_bound: 0.1}"),
            6,
            "schedule",
            "has nothing to bound",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("simultaneous", "consensus"),
            3,
            "agents.kind",
            "needs a policy over the joint action: set 'scope: joint'",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("sharing: none", "scope: joint"),
            3,
            "agents.scope",
            "not of a joint one; leave 'scope' out, or take schedule consensus",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace("sharing: none", "scope: joint")
            .replace("simultaneous", "consensus")
            .replace("{kind: trpo}", "{kind: measured}\noptimizer: {}"),
            5,
            "region.kind",
            "goes by minibatches",
        ),
        (
            EXPLICIT,
            EXPLICIT.replace(
                "{kind: gaussian, sharing: none}",
                "[{kind: gaussian, scope: joint, select: [uav_0]}, {kind: gaussian, scope: joint, law: beta}]",
            ).replace("simultaneous", "consensus"),
            3,
            "agents",
            "needs one 'law' for all agents",
        ),
    ],
)
def test_impossible_combinations_are_refused_with_the_reason(
    problems: Load, old: str, new: str, line: int, path: str, reason: str
) -> None:
    assert problems(EXPLICIT) == []
    assert old in EXPLICIT
    found = problems(EXPLICIT.replace(old, new))
    assert [(problem.line, problem.path) for problem in found] == [(line, path)]
    assert reason in found[0].message


def test_agents_without_a_density_cannot_have_a_region_that_needs_one(problems: Load, sample_only: str) -> None:
    found = problems(EXPLICIT.replace("kind: gaussian", f"kind: {sample_only}"))
    assert {(problem.line, problem.path) for problem in found} == {(3, "agents.kind")}
    assert {problem.message.split(" needs ")[0] for problem in found} == {
        "objective 'surrogate'",
        "region 'trpo'",
    }
    assert all("they have sample_distance" in problem.message for problem in found)


def test_a_combination_that_a_preset_made_is_shown_at_the_preset(problems: Load) -> None:
    text = (
        "name: x\npreset: mappo\nenv: {id: uav/downlink-v0}\nagents: {kind: gaussian}\n"
        "region: {kind: trpo}\ntrainer: {total_steps: 10}\n"
    )
    assert [(problem.line, problem.path) for problem in problems(text)] == [(2, "objective.kind")]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["env.reward=own", "env.config.rho=1.0"], 0),
        (["env.reward=own", "env.config.rho=0.5"], 1),
        (["env.reward=mean", "env.config.rho=0.5"], 0),
        (["env.reward=own", "env.config.rho=0.5", "schedule.kind=simultaneous"], 0),
    ],
)
def test_a_sequence_of_updates_on_selfish_rewards_is_warned_of(overrides: list[str], count: int) -> None:
    warnings = scenario_warnings(load_scenario("uav_team_hatrpo", overrides))
    assert len(warnings) == count
    assert all("env: {reward: mean}" in warning for warning in warnings)


def test_numbers_of_copies_that_cohorts_do_not_fit_into_are_refused_before_the_run(problems: Load) -> None:
    text = EXPLICIT.replace("{id: uav/downlink-v0}", "{id: flow/mixture-v0, num_envs: 12, config: {cohort: 4}}")
    assert problems(text) == []
    found = problems(text, ("env.num_envs=10", "evaluation.episodes=9", "evaluation.final_episodes=255"))
    said = sorted(str(problem).partition("choose")[0] for problem in found)
    assert len(said) == 3
    for number, where in ((10, "env.num_envs"), (9, "evaluation.episodes"), (255, "evaluation.final_episodes")):
        assert any(where in line and f"{number} copies cannot be split into cohorts of 4" in line for line in said)


@pytest.mark.parametrize(
    ("env", "path", "reason"),
    [
        ("{id: uav/downlink-v0, backend: workers}", "env.backend", "simulates all copies at once"),
        ("{id: gymnasium/CartPole-v1, num_envs: 2, backend: workers, workers: 3}", "env.workers", "at most one a copy"),
        ("{id: gymnasium/CartPole-v1, workers: 2}", "env.workers", "'backend: workers' alone"),
    ],
)
def test_worker_processes_are_refused_where_they_make_no_sense(
    problems: Load, env: str, path: str, reason: str
) -> None:
    found = problems(EXPLICIT.replace("{id: uav/downlink-v0}", env))
    assert [(problem.line, problem.path) for problem in found] == [(2, path)]
    assert reason in found[0].message


def test_a_meta_game_of_ratios_needs_a_likelihood_and_says_how_to_do_without(problems: Load) -> None:
    text = """\
name: x
env: {id: games/bandit-v0}
agents: {kind: drifting}
objective: {kind: podpo}
region: {kind: measured, bound: 0.05}
schedule: {kind: meta_game}
critic: {kind: mlp}
optimizer: {}
trainer: {total_steps: 10}
"""
    (problem,) = problems(text)
    assert problem.message.startswith(
        "schedule 'meta_game' needs log_prob, which agents of kind 'drifting' do not have"
    )
    assert problem.message.endswith("; or 'payoffs: rollouts'")
    assert problems(text.replace("meta_game", "meta_game, payoffs: rollouts")) == []


def test_a_budget_of_nats_needs_agents_that_can_say_their_divergence_in_nats(problems: Load, sample_only: str) -> None:
    text = EXPLICIT.replace("simultaneous}", "simultaneous, budget: equal}").replace(
        "kind: gaussian", f"kind: {sample_only}"
    )
    assert any("schedule.budget splits nats, so it needs kl" in problem.message for problem in problems(text))
