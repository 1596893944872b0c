"""Presets fill in what a scenario leaves open, and nothing else."""

from __future__ import annotations

import copy

import pytest

from marl_tr.scenario import ScenarioError, load_scenario
from marl_tr.scenario.presets import PRESETS, fill_in

MINIMAL = {
    "name": "p",
    "env": {"id": "uav/downlink-v0"},
    "agents": {"kind": "gaussian"},
    "trainer": {"total_steps": 10},
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_each_preset_alone_makes_a_whole_scenario(preset: str) -> None:
    scenario = load_scenario(MINIMAL | {"preset": preset})
    kinds = {name: getattr(scenario, name).kind for name in ("objective", "region", "schedule", "critic")}
    assert kinds == {name: PRESETS[preset][name]["kind"] for name in kinds}
    assert scenario.agents[0].sharing == PRESETS[preset]["agents"]["sharing"]
    assert scenario.env.reward == "own"


def test_the_presets_are_the_named_algorithms() -> None:
    def shape(preset: str) -> tuple[str, ...]:
        s = load_scenario(MINIMAL | {"preset": preset})
        critic = s.critic.config
        return (
            s.agents[0].sharing,
            s.objective.kind,
            s.region.kind,
            s.schedule.kind,
            critic.scope,
            critic.fit.kind,
            "optimizer" if s.optimizer else "",
        )

    assert shape("mappo") == ("all", "clip", "measured", "simultaneous", "centralized", "adam", "optimizer")
    assert shape("ippo") == ("all", "clip", "measured", "simultaneous", "local", "adam", "optimizer")
    assert shape("happo") == ("none", "clip", "measured", "sequential", "centralized", "adam", "optimizer")
    assert shape("matrl") == ("none", "surrogate", "trpo", "meta_game", "centralized", "trust_region", "")
    assert shape("matrpo") == ("none", "surrogate", "trpo", "consensus", "centralized", "trust_region", "")
    assert load_scenario(MINIMAL | {"preset": "matrpo"}).agents[0].config.scope == "joint"
    assert shape("hatrpo") == ("none", "surrogate", "trpo", "sequential", "centralized", "trust_region", "")


def test_fields_of_the_same_kind_are_merged_and_the_files_win() -> None:
    merged = fill_in({"critic": {"scope": "local", "fit": {"epochs": 3}}}, "mappo")
    assert merged["critic"] == {"kind": "mlp", "scope": "local", "fit": {"kind": "adam", "epochs": 3}}


def test_a_changed_kind_inherits_nothing_of_the_other() -> None:
    merged = fill_in({"critic": {"kind": "graph_recurrent"}}, "ippo")
    assert merged["critic"] == {"kind": "graph_recurrent"}
    inner = fill_in({"critic": {"fit": {"kind": "trust_region"}}}, "ippo")
    assert inner["critic"] == {"kind": "mlp", "scope": "local", "fit": {"kind": "trust_region"}}


def test_a_changed_region_leaves_the_presets_optimizer_out() -> None:
    assert "optimizer" not in fill_in({"region": {"kind": "trpo"}}, "mappo")
    assert fill_in({"region": {"bound": 0.1}}, "mappo")["optimizer"]["epochs"] == 5


@pytest.mark.parametrize("kind", [{"arxiv": 1707.06347}, {"arxiv": None}, ["spo"], None, 3])
def test_a_kind_that_is_no_name_is_told_and_not_looked_up(kind: object) -> None:
    with pytest.raises(ScenarioError, match=r"region\.kind"):
        load_scenario(MINIMAL | {"preset": "mappo", "region": {"kind": kind}})


def test_every_agents_entry_gets_the_sharing_that_it_does_not_state() -> None:
    merged = fill_in({"agents": [{"kind": "a"}, {"kind": "b", "sharing": "none"}]}, "mappo")
    assert [entry["sharing"] for entry in merged["agents"]] == ["all", "none"]


def test_filling_in_changes_neither_the_table_nor_the_scenario() -> None:
    table, own = copy.deepcopy(PRESETS), {"critic": {"fit": {"epochs": 2}}}
    merged = fill_in(own, "mappo")
    merged["critic"]["fit"]["kind"] = "changed"
    merged["optimizer"]["epochs"] = 99
    assert table == PRESETS
    assert own == {"critic": {"fit": {"epochs": 2}}}


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(Exception, match="did you mean 'happo'"):
        load_scenario(MINIMAL | {"preset": "hapo"})


def test_a_null_section_stays_the_users_decision() -> None:
    with pytest.raises(Exception, match="needs gradient steps"):
        load_scenario(MINIMAL | {"preset": "mappo", "optimizer": None})


def test_a_misspelt_preset_is_the_only_problem() -> None:
    scenario = {
        "name": "x",
        "preset": "happpo",
        "env": {"id": "uav/downlink-v0"},
        "agents": {"kind": "gaussian"},
        "trainer": {"total_steps": 1000},
    }
    with pytest.raises(ScenarioError) as caught:
        load_scenario(scenario)
    assert [problem.path for problem in caught.value.problems] == ["preset"]
    assert "did you mean 'happo'?" in str(caught.value)


def test_a_region_with_a_gain_of_its_own_takes_the_place_of_a_presets_objective_and_keeps_its_steps() -> None:
    changed = load_scenario(MINIMAL | {"preset": "mappo", "region": {"kind": "spo"}})
    assert (changed.objective.kind, changed.region.kind) == ("surrogate", "spo")
    assert changed.optimizer == load_scenario(MINIMAL | {"preset": "mappo"}).optimizer
    one_step = load_scenario(
        MINIMAL | {"preset": "mappo", "region": {"kind": "trpo"}, "objective": {"kind": "surrogate"}}
    )
    assert one_step.optimizer is None


def test_an_objective_beside_a_region_with_a_gain_of_its_own_is_refused() -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(MINIMAL | {"preset": "mappo", "region": {"kind": "spo"}, "objective": {"kind": "clip"}})
    assert [problem.path for problem in caught.value.problems] == ["objective.kind"]
    assert "it has a gain of its own in place of w A; use 'surrogate'" in str(caught.value)
