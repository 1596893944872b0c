"""Loading: what a user can get wrong, and what the answer says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marl_tr.errors import UserError
from marl_tr.scenario import Problem, ScenarioError, load_scenario, resolved, scenario_yaml, shipped
from marl_tr.scenario.schema import Scenario

Load = Callable[..., list[Problem]]


def told(problems: list[Problem]) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.path) for problem in problems]


def test_the_good_scenario_is_good(good: str, problems: Load) -> None:
    assert problems(good) == []


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_scenario_loads_by_name_and_by_path(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario == load_scenario(shipped()[name])
    assert scenario.description


@pytest.mark.parametrize("name", list(shipped()))
def test_a_resolved_scenario_loads_to_the_same_scenario(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(name)
    assert load_scenario(resolved(scenario)) == scenario
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario_yaml(scenario), encoding="utf-8")
    again = load_scenario(path)
    assert again == scenario
    assert again.critic.config == scenario.critic.config
    assert again.env.settings == scenario.env.settings


def test_parts_hold_their_validated_models(good: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(good + "region: {bound: 0.02}\n")
    scenario = load_scenario(path)
    assert scenario.region.config.bound == 0.02
    assert scenario.region.config.iterations == 10
    assert scenario.agents[0].config.hidden == [128, 128]
    assert scenario.env.settings == {}


def test_a_resolved_scenario_says_every_default() -> None:
    def leaves(model: Any, data: dict[str, Any]) -> None:
        for name in model.model_fields:
            assert name in data

    scenario = load_scenario("uav_quick")
    data = resolved(scenario)
    leaves(Scenario, data)
    leaves(type(scenario.region.config), data["region"])
    leaves(type(scenario.critic.config.fit), data["critic"]["fit"])
    leaves(type(scenario.env.settings), data["env"]["config"])


def test_all_problems_come_at_once_and_in_the_order_of_the_file(good: str, problems: Load) -> None:
    text = good.replace("num_envs: 4", 'num_envs: "4", nums: 1') + (
        "region: {kind: trpo, bund: 1, damping: .nan}\n"
        "critic:\n  kind: mlp\n  fit: {kind: adm}\n"
        "trainer: {total_steps: 5}\n"
        "evaluation: {policies: [mod], seed: -1}\n"
    )
    assert told(problems(text)) == [
        (3, "env.num_envs"),
        (3, "env.nums"),
        (6, "region.bund"),
        (6, "region.damping"),
        (9, "critic.fit.kind"),
        (10, "trainer"),
        (11, "evaluation.policies.0"),
        (11, "evaluation.seed"),
    ]


@pytest.mark.parametrize(
    ("line", "path", "column", "message"),
    [
        ("sead: 3", "sead", 1, "did you mean 'seed'?"),
        ("advantage: {lamda: 1}", "advantage.lamda", 13, "did you mean 'lam'?"),
        ("region: {kind: trpo, bond: 1}", "region.bond", 22, "did you mean 'bound'?"),
        ("critic: {fit: {kind: trust_region, bonud: 1}}", "critic.fit.bonud", 36, "did you mean 'bound'?"),
        ("seed: one", "seed", 7, "whole number, not 'one'"),
        ('seed: "1"', "seed", 7, "leave out the quotes"),
        ("seed: true", "seed", 7, "whole number, not true"),
        ("seed: 1.5", "seed", 7, "whole number"),
        ("seed: 99999999999999999999", "seed", 7, "less than"),
        ("seed: null", "seed", 7, "not nothing"),
        ("advantage: {gamma: 1.01}", "advantage.gamma", 20, "less than or equal to 1"),
        ("advantage: {gamma: .nan}", "advantage.gamma", 20, "finite"),
        ("advantage: {gamma: .inf}", "advantage.gamma", 20, "finite"),
        ("advantage: {gamma: 1e999}", "advantage.gamma", 20, "finite"),
        ("advantage: {normalise: yes}", "advantage.normalise", 24, "true or false, not 'yes'"),
        ("advantage: 3", "advantage", 12, "a mapping"),
        ("advantage: []", "advantage", 12, "a mapping"),
        ("evaluation: {policies: [best]}", "evaluation.policies.0", 25, "'sampled' or 'mode'"),
        ("evaluation: {policies: []}", "evaluation.policies", 24, "must have at least 1 item, not 0"),
        ("region: {kind: trop}", "region.kind", 16, "did you mean 'trpo'?"),
        ("region: 3", "region", 9, "a mapping"),
        ("region: {kind: 3}", "region.kind", 16, "text"),
        ("critic: {kind: mlp, hidden: 64}", "critic.hidden", 29, "a list"),
        ("critic: {kind: mlp, hidden: [64, x]}", "critic.hidden.1", 34, "whole number"),
        ("critic: {kind: graph_recurrent, width: 10}", "critic", 9, "heads must divide width"),
        ("critic: {kind: graph_recurrent, backend: pyg}", "critic", 9, "computes attention 'gatv2' only"),
        (
            "objective: {kind: 'no_such_package:x'}",
            "objective.kind",
            19,
            "cannot import module 'no_such_package'",
        ),
        ("objective: {kind: 'json:dunps'}", "objective.kind", 19, "did you mean 'dumps'?"),
    ],
)
def test_a_wrong_line_is_answered_with_its_place_and_a_cure(
    good: str, problems: Load, line: str, path: str, column: int, message: str
) -> None:
    found = problems(good + line + "\n")
    assert [(p.line, p.column, p.path) for p in found] == [(6, column, path)]
    assert message in found[0].message
    assert found[0].source == line


def test_a_duplicate_section_is_one_problem(good: str, problems: Load) -> None:
    assert told(problems(good + "name: again\n")) == [(6, "name")]


def test_missing_sections_are_reported_at_the_top(problems: Load) -> None:
    assert told(problems("name: x\n")) == [
        (1, "agents"),
        (1, "critic"),
        (1, "env"),
        (1, "objective"),
        (1, "region"),
        (1, "schedule"),
        (1, "trainer"),
    ]


def test_a_list_of_agents_is_reported_with_its_index_and_a_single_one_without(good: str, problems: Load) -> None:
    single = problems(good.replace("{kind: gaussian}", "{kind: gaussian, hiden: [1]}"))
    several = problems(good.replace("{kind: gaussian}", "\n  - {kind: gaussian}\n  - {kind: gaussian, hiden: [1]}"))
    assert told(single) == [(4, "agents.hiden")]
    assert told(several) == [(6, "agents.1.hiden")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"---\n", "is empty"),
        (b"- a\n- b\n", "is a list; a scenario is a mapping"),
        (b"hello\n", "is a single value; a scenario is a mapping"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: 1\n\tb: 2\n", "tab"),
        (b"x" * 10_000_000, "at most"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(problems: Load, text: bytes, message: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert message in found[0].message


def test_a_missing_file_a_folder_and_a_misspelt_name_are_user_errors(tmp_path: Path) -> None:
    cases = {
        str(tmp_path / "none.yaml"): "no such file",
        str(tmp_path): "is a folder",
        "uav_quik": "did you mean 'uav_quick'?",
        "": "folder|no such file",
    }
    for source, message in cases.items():
        with pytest.raises(ScenarioError, match=message) as caught:
            load_scenario(source)
        assert isinstance(caught.value, UserError)


def test_an_unknown_environment_is_answered_with_the_nearest(good: str, problems: Load) -> None:
    found = problems(good.replace('"tests_fake:make"', "uav/downlnk-v0"))
    assert told(found) == [(3, "env.id")]
    assert "did you mean 'uav/downlink-v0'?" in found[0].message


def test_a_factory_without_a_model_is_checked_by_its_arguments(good: str, problems: Load) -> None:
    misspelt = problems(good.replace("num_envs: 4", "config: {size: 1, spead: 2}"))
    missing = problems(good.replace("tests_fake:make", "tests_fake:strict"))
    assert told(misspelt) == [(3, "env.config.spead")]
    assert "did you mean 'speed'?" in misspelt[0].message
    assert told(missing) == [(3, "env.config.size")]


def test_gymnasium_environments_are_checked_by_their_own_arguments(good: str, problems: Load) -> None:
    def with_env(text: str) -> str:
        return good.replace('"tests_fake:make"', text)

    assert problems(with_env("gymnasium/CartPole-v1, config: {max_episode_steps: 50}")) == []
    found = problems(with_env("gymnasium/CartPole-v1, config: {sutton_bartho_reward: true}"))
    assert "did you mean 'sutton_barto_reward'?" in found[0].message
    assert told(problems(with_env("gymnasium/CartPohl-v1"))) == [(3, "env.id")]


def test_a_problem_in_a_merged_part_is_shown_where_the_anchor_is(good: str, problems: Load) -> None:
    text = good.replace("trainer: {total_steps: 100}", "trainer: &t {total_steps: 0}") + "advantage: {<<: *t}\n"
    assert told(problems(text)) == [(5, "advantage.total_steps"), (5, "trainer.total_steps")]


def test_anchors_and_merges_are_ordinary_yaml(good: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(
        good.replace("{kind: gaussian}", "\n  - &a {kind: gaussian, hidden: [8]}\n  - {<<: *a, select: [x]}")
    )
    scenario = load_scenario(path)
    assert [agent.config.hidden for agent in scenario.agents] == [[8], [8]]
    assert [agent.select for agent in scenario.agents] == [["*"], ["x"]]


def test_the_printed_error_has_position_source_caret_and_suggestion(good: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(good + "advantage: {gama: 0.9}\n")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert str(caught.value) == (
        f"{path}:6:13: advantage.gama: unknown key 'gama'; did you mean 'gamma'?\n"
        "    advantage: {gama: 0.9}\n"
        "                ^"
    )


def test_a_scenario_can_be_a_mapping(good: str) -> None:
    data = {
        "name": "m",
        "preset": "mappo",
        "env": {"id": "tests_fake:make"},
        "agents": {"kind": "gaussian"},
        "trainer": {"total_steps": 10},
    }
    before = repr(data)
    assert load_scenario(data, ["seed=9"]).seed == 9
    assert repr(data) == before
    with pytest.raises(ScenarioError, match=r"scenario: trainer\.total_step: unknown key"):
        load_scenario(data | {"trainer": {"total_steps": 1, "total_step": 1}})


def test_what_a_pattern_wants_is_said_in_words(good: str, problems: Load) -> None:
    (found,) = problems(good.replace("name: good", "name: my run!"))
    assert (found.path, found.message) == (
        "name",
        "must be letters, digits, '_', '.' and '-', beginning with a letter or digit, not 'my run!'",
    )


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("podpo_bandit", "agents.head=[8, 0]"),
        ("podpo_bandit", "agents.hidden=[-3]"),
        ("podpo_bandit", "critic.hidden=[0]"),
        ("pendulum", "agents.hidden=[0]"),
        ("uav_team", "agents.hidden=[0]"),
        ("flow_pendulum", "agents.network.hidden=[0]"),
    ],
)
def test_a_layer_without_width_is_refused(name: str, override: str) -> None:
    with pytest.raises(ScenarioError, match=r"hidden|head") as refused:
        load_scenario(name, [override])
    assert "greater than or equal to 1" in str(refused.value)
