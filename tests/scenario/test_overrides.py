"""``key=value`` arguments: the same checks as the file, and answers of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marl_tr.scenario import Problem, Scenario, load_scenario

Load = Callable[..., list[Problem]]


@pytest.fixture
def load(good: str, tmp_path: Path) -> Callable[..., Scenario]:
    path = tmp_path / "scenario.yaml"
    path.write_text(good)
    return lambda *overrides: load_scenario(path, overrides)


def test_overrides_win_over_the_file_in_order(load: Callable[..., Scenario]) -> None:
    scenario = load("env.num_envs=8", "env.num_envs=9", "region.bound=1e-3", "seed=5")
    assert (scenario.env.num_envs, scenario.region.config.bound, scenario.seed) == (9, 0.001, 5)


def test_sections_that_the_file_leaves_out_are_made(load: Callable[..., Scenario]) -> None:
    assert load("advantage.gamma=0.5").advantage.gamma == 0.5
    assert load("critic.fit.bound=0.3").critic.config.fit.bound == 0.3
    assert load("env.config.size=3").env.config == {"size": 3}


def test_the_only_agents_entry_needs_no_index(load: Callable[..., Scenario]) -> None:
    assert load("agents.hidden=[7]").agents[0].config.hidden == [7]
    assert load("agents.0.hidden=[7, 8]").agents[0].config.hidden == [7, 8]
    assert load("agents={kind: matr, hidden: [9]}").agents[0].kind == "matr"


def test_a_preset_can_be_overridden(load: Callable[..., Scenario]) -> None:
    assert load("preset=mappo").objective.kind == "clip"
    assert load("region.kind=measured", "optimizer={}").region.config.bound is None


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("seed", "", "section.key=value"),
        ("=3", "", "section.key=value"),
        ("env..id=3", "", "section.key=value"),
        ("sead=3", "sead", "did you mean 'seed'?"),
        ("region.bond=3", "region.bond", "did you mean 'bound'?"),
        ("regoin.bound=3", "regoin", "did you mean 'region'?"),
        ("env.id.x=3", "env.id", "single value"),
        ("agents.1.kind=matr", "agents.1", "numbered 0 to 0"),
        ("env.num_envs=-1", "env.num_envs", "greater than or equal to 1"),
        ("env.num_envs=", "env.num_envs", "not nothing"),
        ("env.num_envs=.nan", "env.num_envs", "whole number"),
        ("env.num_envs=[1", "env.num_envs", "expected ',' or ']'"),
        ("description=!x 1", "description", "tag !x"),
        ("env.config.sise=1", "env.config.sise", "did you mean 'size'?"),
        ("region.kind=trop", "region.kind", "did you mean 'trpo'?"),
    ],
)
def test_a_wrong_override_is_named_by_its_number(
    good: str, problems: Load, override: str, path: str, message: str
) -> None:
    found = problems(good, ("seed=1", override))
    assert [(problem.file, problem.path) for problem in found] == [("override 2", path)]
    assert message in found[0].message
    assert str(found[0]).splitlines()[1] == f"    {override}"


def test_a_problem_of_the_file_comes_before_one_of_an_override(good: str, problems: Load) -> None:
    found = problems(good + "sead: 1\n", ("env.num_envs=0",))
    assert [problem.file.rsplit("/", 1)[-1] for problem in found] == ["scenario.yaml", "override 1"]


def test_an_override_that_replaces_a_section_leaves_no_stale_positions(good: str, problems: Load) -> None:
    found = problems(good + "critic: {kind: mlp, hidden: 3}\n", ("critic={kind: mlp, hidden: 4}",))
    assert [problem.file for problem in found] == ["override 1"]
