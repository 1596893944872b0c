"""An entry of `agents` with an objective, a region and an optimizer of its own, in one scenario with others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml

from marl_tr import registry
from marl_tr.registry import Entry
from marl_tr.scenario import Problem, load_scenario, resolved, scenario_warnings, scenario_yaml
from marl_tr.scenario.json_schema import scenario_schema
from marl_tr.scenario.optimizer import OptimizerSection
from marl_tr.scenario.presets import PRESETS
from marl_tr.scenario.schema import Strict

Load = Callable[..., list[Problem]]

MIXED = """\
name: mixed
env: {id: uav/downlink-v0}
agents:
  - kind: matr
    select: [uav_0]
  - kind: gaussian
    objective: {kind: clip}
    region: {kind: measured, bound: 0.02}
    optimizer: {}
objective: {kind: surrogate}
region: {kind: trpo}
schedule: {kind: simultaneous}
critic: {kind: mlp}
trainer: {total_steps: 10}
"""
# Both of a pair that a sentence is about lie in the second entry, lines 7 to 9.
OWN = "    objective: {kind: clip}\n    region: {kind: measured, bound: 0.02}\n    optimizer: {}\n"
MEASURED = "region: {kind: measured, bound: 0.02}"


class SampleOnlyConfig(Strict):
    """Agents that can be sampled and nothing else."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"sample_distance"})


class MatchingConfig(Strict):
    """An objective that asks for samples only."""

    requires: ClassVar[frozenset[str]] = frozenset({"sample_distance"})


class UndemandingConfig(Strict):
    """A region without any demand, by gradient steps."""


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents 'dots' without a likelihood, an objective 'match' and a region 'open' that they can learn with."""
    for kind, name, config in (
        ("agents", "dots", SampleOnlyConfig),
        ("objectives", "match", MatchingConfig),
        ("regions", "open", UndemandingConfig),
    ):
        monkeypatch.setitem(registry._registered[kind], name, Entry("json:loads", config=config))


SAMPLED = (
    MIXED.replace("kind: gaussian", "kind: dots")
    .replace("objective: {kind: clip}", "objective: {kind: match}")
    .replace(MEASURED, "region: {kind: open}")
)


def mixed(text: str = MIXED, overrides: tuple[str, ...] = ()) -> Any:
    return load_scenario(yaml.safe_load(text), overrides)


def test_what_holds_for_an_entry_is_its_own_where_it_has_it_and_the_scenarios_else() -> None:
    scenario = mixed()
    first, second = scenario.agents
    assert (first.objective, first.region, first.optimizer) == (None, None, None)
    assert scenario.objective_of(first) is scenario.objective
    assert scenario.region_of(first) is scenario.region
    assert scenario.optimizer_of(first) is None
    assert scenario.objective_of(second).kind == "clip"
    assert scenario.objective_of(second).config.clip == 0.2
    assert scenario.region_of(second).config.bound == 0.02
    assert scenario.optimizer_of(second) == OptimizerSection()


def test_an_optimizer_is_inherited_by_those_that_take_gradient_steps_and_by_no_others() -> None:
    text = MIXED.replace("    optimizer: {}\n", "") + "optimizer: {epochs: 3}\n"
    scenario = mixed(text)
    assert [scenario.optimizer_of(entry) for entry in scenario.agents] == [None, OptimizerSection(epochs=3)]
    empty = mixed(MIXED + "optimizer: {epochs: 3}\n")
    assert empty.optimizer_of(empty.agents[1]) == OptimizerSection(), "an entry's own is not laid over the scenario's"


def test_own_sections_are_written_out_with_their_defaults_and_read_back(tmp_path: Path) -> None:
    scenario = mixed()
    first, second = resolved(scenario)["agents"]
    assert (first["objective"], first["region"], first["optimizer"]) == (None, None, None)
    clip = {"kind": "clip", "entropy": 0.01, "entropy_support": None, "reduction": "sum", "clip": 0.2}
    assert second["objective"] == clip
    assert second["region"] == {"kind": "measured", "bound": 0.02, "stop_at": None}
    assert second["optimizer"] == OptimizerSection().model_dump()
    assert load_scenario(resolved(scenario)) == scenario
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario_yaml(scenario), encoding="utf-8")
    again = load_scenario(path)
    assert again == scenario
    assert again.agents[1].region.config == scenario.agents[1].region.config


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "path", "said"),
    [
        ("objective: {kind: clip}", "objective: {kind: clop}", 7, 23, "objective.kind", "did you mean 'clip'?"),
        ("objective: {kind: clip}", "objective: {kind: clip, clp: 1}", 7, 29, "objective.clp", "did you mean 'clip'?"),
        ("objective: {kind: clip}", "objective: {clip: 0.1}", 7, 5, "objective.kind", "is required and missing"),
        ("objective: {kind: clip}", "objectve: {kind: clip}", 7, 5, "objectve", "did you mean 'objective'?"),
        (MEASURED, "region: {kind: mesured}", 8, 20, "region.kind", "did you mean 'measured'?"),
        (MEASURED, "region: {kind: measured, bound: -1}", 8, 37, "region.bound", "must be greater than 0"),
        (MEASURED, "region: 3", 8, 13, "region", "must be a mapping"),
        ("optimizer: {}", "optimizer: {kind: moun}", 9, 23, "optimizer.kind", "did you mean 'muon'?"),
        ("optimizer: {}", "optimizer: {epoch: 3}", 9, 17, "optimizer.epoch", "did you mean 'epochs'?"),
    ],
)
def test_what_is_wrong_in_an_entrys_own_section_is_said_at_its_place(
    problems: Load, old: str, new: str, line: int, column: int, path: str, said: str
) -> None:
    assert problems(MIXED) == []
    found = problems(MIXED.replace(old, new))
    assert [(p.line, p.column, p.path) for p in found] == [(line, column, f"agents.1.{path}")]
    assert said in found[0].message


def test_problems_of_all_entries_come_at_once(problems: Load) -> None:
    text = MIXED.replace("select: [uav_0]", "region: {kind: trop}").replace("optimizer: {}", "optimizer: {epochs: 0}")
    found = problems(text.replace("clip}", "clip, entropy: -1}"))
    assert [(p.line, p.path) for p in found] == [
        (5, "agents.0.region.kind"),
        (7, "agents.1.objective.entropy"),
        (9, "agents.1.optimizer.epochs"),
    ]


def test_overrides_reach_into_an_entry_and_make_what_is_not_there(problems: Load) -> None:
    scenario = mixed(
        overrides=("agents.0.region.kind=trpo", "agents.0.region.bound=0.5", "agents.1.optimizer.epochs=9")
    )
    assert scenario.region_of(scenario.agents[0]).config.bound == 0.5
    assert scenario.optimizer_of(scenario.agents[1]).epochs == 9
    single = MIXED.replace("  - kind: matr\n    select: [uav_0]\n", "")
    assert mixed(single, ("agents.region.bound=0.3",)).agents[0].region.config.bound == 0.3
    (found,) = problems(MIXED, ("agents.1.region.bond=0.3",))
    assert (found.file, found.path) == ("override 1", "agents.1.region.bond")


def test_a_preset_leaves_an_entrys_own_sections_alone() -> None:
    data = yaml.safe_load(MIXED)
    for section in ("objective", "region", "schedule", "critic"):
        del data[section]
    scenario = load_scenario({**data, "preset": "hatrpo"})
    assert [scenario.objective_of(entry).kind for entry in scenario.agents] == ["surrogate", "clip"]
    assert [scenario.region_of(entry).kind for entry in scenario.agents] == ["trpo", "measured"]
    assert scenario.optimizer_of(scenario.agents[1]) == OptimizerSection()


def test_a_presets_optimizer_stays_where_some_agents_have_the_presets_region() -> None:
    base = {"name": "x", "env": {"id": "uav/downlink-v0"}, "trainer": {"total_steps": 10}, "preset": "mappo"}
    trpo = {"kind": "gaussian", "objective": {"kind": "surrogate"}, "region": {"kind": "trpo"}}
    some = load_scenario({**base, "agents": [{**trpo, "select": ["uav_0"]}, {"kind": "gaussian"}]})
    assert [some.optimizer_of(entry) for entry in some.agents] == [
        None,
        OptimizerSection(**PRESETS["mappo"]["optimizer"]),
    ]
    assert load_scenario({**base, "agents": trpo}).optimizer is None
    back = {"kind": "gaussian", "objective": {"kind": "clip"}, "region": {"kind": "measured"}}
    swapped = {
        "region": {"kind": "trpo"},
        "objective": {"kind": "surrogate"},
        "agents": [{**back, "select": ["uav_0"]}],
    }
    swapped["agents"].append({"kind": "gaussian"})
    assert load_scenario({**base, **swapped}).optimizer is not None


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "said"),
    [
        # Nobody takes gradient steps: the scenario's optimizer is of no use.
        (OWN, "optimizer: {}\n", 7, "optimizer", "region 'trpo' takes its own step"),
        (
            "    optimizer: {}\n",
            "",
            8,
            "agents.1.region.kind",
            "add a section 'optimizer: {}' (all defaults) beside it",
        ),
        (
            "    select: [uav_0]\n",
            "    select: [uav_0]\n    optimizer: {}\n",
            6,
            "agents.0.optimizer",
            "region 'trpo' takes its own step and leaves an optimizer nothing to do; remove the section",
        ),
        (MEASURED, "region: {kind: trpo}", 7, "agents.1.objective.kind", "never meets the clip"),
        (
            OWN + "objective: {kind: surrogate}\nregion: {kind: trpo}\n",
            "    region: {kind: trpo}\nobjective: {kind: clip}\nregion: {kind: measured}\noptimizer: {}\n",
            7,
            "agents.1.region.kind",
            "use 'surrogate', in an 'objective' beside it",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused_in_the_entry_that_they_are_in(
    problems: Load, old: str, new: str, line: int, path: str, said: str
) -> None:
    assert old in MIXED
    found = problems(MIXED.replace(old, new))
    assert (line, path) in [(problem.line, problem.path) for problem in found]
    assert all(said in problem.message for problem in found if problem.path == path)
    idle = {problem.path for problem in found} - {path}
    assert idle <= {"agents.1.optimizer"}, "an entry's optimizer beside its 'trpo' is the one other thing"


def test_a_scenarios_section_that_several_entries_share_is_wrong_once(problems: Load) -> None:
    text = MIXED.replace(OWN, "").replace("region: {kind: trpo}", "region: {kind: measured}")
    assert [(p.line, p.path) for p in problems(text)] == [(8, "region.kind")]
    assert problems(text + "optimizer: {}\n") == []


def test_a_region_that_no_agents_have_needs_no_optimizer(problems: Load) -> None:
    own = "    region: {kind: trpo}\n"
    text = MIXED.replace("    select: [uav_0]\n", "    select: [uav_0]\n" + own).replace(OWN, own)
    assert problems(text.replace("\nregion: {kind: trpo}", "\nregion: {kind: measured}")) == []


def test_an_entry_is_asked_for_what_its_own_sections_require(problems: Load, sampled: None) -> None:
    assert problems(SAMPLED) == []
    found = problems(SAMPLED.replace("kind: dots", "kind: gaussian"))
    assert [(p.line, p.path) for p in found] == [(7, "agents.1.objective.kind")]
    assert "objective 'match' needs sample_distance, which agents of kind 'gaussian' do not have" in found[0].message
    found = problems(SAMPLED.replace("    objective: {kind: match}\n", ""))
    assert [(p.line, p.path) for p in found] == [(6, "agents.1.kind")]
    assert "objective 'surrogate' needs log_prob" in found[0].message


REGULARISERS = "regularisers:\n  - {kind: position, weight: 1}\n  - {kind: velocity, form: monte_carlo, weight: 1}\n"


def test_regularisers_that_some_agents_cannot_serve_are_left_out_there_and_that_is_said(sampled: None) -> None:
    scenario = mixed(SAMPLED + REGULARISERS)
    assert scenario.regularisers_of(scenario.agents[0]) == scenario.regularisers
    assert scenario.regularisers_of(scenario.agents[1]) == []
    assert scenario_warnings(scenario) == [
        "regularisers.0: 'position' needs kl, which the agents of agents.1 ('dots') do not have: they learn without it",
        "regularisers.1: 'velocity' needs log_prob, which the agents of agents.1 ('dots') do not have: they learn "
        "without it",
    ]
    assert scenario_warnings(mixed(MIXED + REGULARISERS)) == []


def test_regularisers_that_no_agents_can_serve_are_refused(problems: Load, sampled: None) -> None:
    text = SAMPLED.replace("  - kind: matr\n    select: [uav_0]\n", "") + REGULARISERS
    found = problems(text)
    assert [problem.path for problem in found] == ["regularisers.0", "regularisers.1"]
    assert "needs kl, which agents of kind 'dots' do not have (they have sample_distance)" in found[0].message


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        (
            {"objective": {"kind": "clip", "clip": 0.1}, "region": {"kind": "measured"}, "optimizer": {"epochs": 2}},
            True,
        ),
        ({"region": {"kind": "trpo", "bound": 0.1}, "objective": None, "optimizer": None}, True),
        ({"region": {"kind": "trpo", "bund": 0.1}}, False),
        ({"region": {"bound": 0.1}}, False),
        ({"region": {"kind": "trop"}}, False),
        ({"objective": {"kind": "surrogate", "clip": 0.1}}, False),
        ({"objective": []}, False),
        ({"region": {"kind": "measured"}, "optimizer": {"epoch": 2}}, False),
    ],
)
def test_the_json_schema_knows_them_as_the_loader_does(entry: dict[str, Any], good: bool, problems: Load) -> None:
    data = {**yaml.safe_load(MIXED), "agents": [{"kind": "gaussian", **entry}]}
    assert jsonschema.Draft202012Validator(scenario_schema()).is_valid(data) is good
    assert (problems(yaml.safe_dump(data)) == []) is good
