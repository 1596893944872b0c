"""The JSON Schema agrees with the loader; `jsonschema` is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from marl_tr.scenario import ScenarioError, load_scenario, resolved, shipped
from marl_tr.scenario.document import read_document
from marl_tr.scenario.json_schema import scenario_schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = scenario_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_scenarios_satisfy_the_schema(name: str, validator: jsonschema.Draft202012Validator) -> None:
    assert list(validator.iter_errors(read_document(shipped()[name]).data)) == []
    assert list(validator.iter_errors(resolved(load_scenario(name)))) == []


def good() -> dict[str, Any]:
    return {
        "name": "g",
        "preset": "hatrpo",
        "env": {"id": "uav/downlink-v0"},
        "agents": {"kind": "gaussian"},
        "trainer": {"total_steps": 10},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"sead": 1},
        {"seed": "1"},
        {"seed": -1},
        {"preset": "hapo"},
        {"preset": None},
        {"env": {"id": "uav/downlink-v0", "config": {"num_uaws": 3}}},
        {"env": {"num_envs": 3}},
        {"agents": {"kind": "gausian"}},
        {"agents": {"kind": "gaussian", "hiden": [1]}},
        {"agents": {"hidden": [1]}},
        {"agents": []},
        {"agents": [{"kind": "matr"}, {"kind": "matr", "law": "gama"}]},
        {"region": {"kind": "trpo", "bund": 1}},
        {"region": {"bund": 1}},
        {"region": {"kind": "measured", "damping": 1}, "optimizer": {}},
        {"critic": {"kind": "mlp", "fit": {"kind": "adm"}}},
        {"critic": {"kind": "mlp", "fit": {"kind": "adam", "bound": 1}}},
        {"evaluation": {"policies": ["best"]}},
    ],
)
def test_what_the_loader_refuses_the_schema_refuses(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    assert validator.is_valid(good())
    assert load_scenario(good()).name == "g"
    bad = good() | change
    assert not validator.is_valid(bad)
    with pytest.raises(ScenarioError):
        load_scenario(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"agents": [{"kind": "matr", "select": ["uav_0"]}, {"kind": "gaussian"}]},
        {"region": {"bound": 0.02}},
        {"critic": {"kind": "graph_recurrent", "width": 64, "fit": {"kind": "adam"}}},
        {"env": {"id": "my_package:make", "config": {"anything": 1}}},
        {"objective": {"kind": "my_package:Objective", "anything": 1}},
    ],
)
def test_what_is_allowed_satisfies_the_schema(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    assert list(validator.iter_errors(good() | change)) == []


def test_every_setting_has_a_description() -> None:
    schema = scenario_schema()
    bare = [
        f"{name}.{key}"
        for name, definition in schema["$defs"].items()
        for key, field in definition.get("properties", {}).items()
        if isinstance(field, dict) and "description" not in field and key != "kind"
    ]
    assert bare == []


def test_the_schema_that_ships_is_current() -> None:
    shipped_schema = json.loads((Path(next(iter(shipped().values()))).parent / "schema.json").read_text("utf-8"))
    assert shipped_schema == scenario_schema(), "run: make schema"


@pytest.mark.parametrize("name", list(shipped()))
def test_each_scenario_names_the_schema_for_editors(name: str) -> None:
    path = shipped()[name]
    first = path.read_text("utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert (path.parent / "schema.json").is_file()
