"""The JSON Schema (2020-12) of scenarios, with the fields of every registered part.

A part's remaining fields depend on its `kind`: one ``if``/``then`` a kind. Under a preset, sections and kinds
that the file leaves out are the preset's. What needs two sections at once (a region that refuses an
objective) is the loader's business alone.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from marl_tr import registry
from marl_tr.scenario.presets import PRESETS
from marl_tr.scenario.schema import ENTRY_PARTS, PARTS, AgentPart, Part, Scenario

__all__ = ["scenario_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{model}"


def scenario_schema() -> dict[str, Any]:
    """The schema, with what is registered in this process."""
    models = _models()
    references, shared = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: dict[str, Any] = shared["$defs"]
    names = {model: reference["$ref"].rsplit("/", 1)[1] for (model, _), reference in references.items()}
    root: dict[str, Any] = definitions.pop(names[Scenario])
    for own in (Part, AgentPart):
        definitions.pop(names[own], None)
    for section, kind in PARTS.items():
        own_model = AgentPart if section == "agents" else Part
        definitions[f"part-{section}"] = _part(section, kind, own_model, definitions, names)
        root["properties"][section] = {"$ref": f"#/$defs/part-{section}"}
    root["properties"]["agents"] = {
        "description": Scenario.model_fields["agents"].description,
        "anyOf": [
            {"$ref": "#/$defs/part-agents"},
            {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/part-agents"}},
        ],
    }
    root["properties"]["preset"] = {
        "description": Scenario.model_fields["preset"].description,
        "enum": [*PRESETS, None],
    }
    root["properties"]["env"] = _environment(definitions, names)
    root["required"] = [name for name in root["required"] if name not in _preset_sections()]
    root["allOf"] = _presets()
    used = _reachable(root, definitions)
    return {
        "$schema": _DIALECT,
        "title": "marl-tr scenario",
        **{key: value for key, value in root.items() if key != "title"},
        "$defs": {name: definitions[name] for name in sorted(used)},
    }


def _models() -> list[Any]:
    """`Scenario` and every config model that a registry entry names."""
    models: dict[Any, None] = {Scenario: None, AgentPart: None, Part: None}
    for kind in ("envs", *PARTS.values()):
        for entry in registry.names(kind).values():
            model = entry.load_config()
            if model is not None and issubclass(model, BaseModel):
                models[model] = None
    return list(models)


def _part(
    section: str, kind: str, own_model: type[Part], definitions: dict[str, Any], names: dict[Any, str]
) -> dict[str, Any]:
    entries = registry.names(kind)
    own = own_model.model_json_schema()["properties"]
    own["kind"] = {
        "description": own["kind"].get("description", ""),
        "anyOf": [{"enum": list(entries)}, {"type": "string", "pattern": ":"}],
    }
    if section == "agents":
        own |= _entry_parts(own)
    branches = []
    for name, entry in entries.items():
        model = entry.load_config()
        if model is None:
            continue
        fields = copy.deepcopy(definitions[names[model]])
        fields["properties"] = {**dict.fromkeys(own, True), **fields.get("properties", {})}
        definitions[f"{section}-{name}"] = fields
        branches.append(
            {
                "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{section}-{name}"},
            }
        )
    return {
        "type": "object",
        "description": Scenario.model_fields[section].description,
        "properties": own,
        "allOf": branches,
        # Agents always say what they are; the other parts may leave it to a preset.
        **({"required": ["kind"]} if section == "agents" else {}),
    }


def _entry_parts(own: dict[str, Any]) -> dict[str, Any]:
    """An entry's own parts; no preset names their kinds."""
    return {
        section: {
            "description": own[section]["description"],
            "anyOf": [{"$ref": f"#/$defs/part-{section}", "required": ["kind"]}, {"type": "null"}],
            "default": None,
        }
        for section in ENTRY_PARTS
    }


def _environment(definitions: dict[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    branches = []
    for name, entry in registry.names("envs").items():
        model = entry.load_config()
        if model is not None:
            branches.append(
                {
                    "if": {"properties": {"id": {"const": name}}, "required": ["id"]},
                    "then": {"properties": {"config": {"$ref": f"#/$defs/{names[model]}"}}},
                }
            )
    env: dict[str, Any] = definitions["EnvSection"]
    env["allOf"] = branches
    return {"$ref": "#/$defs/EnvSection"}


def _preset_sections() -> set[str]:
    return {"objective", "region", "schedule", "critic"}


def _presets() -> list[dict[str, Any]]:
    """Without a preset every section and its kind is required; with one, a missing kind is the preset's."""
    sections = sorted(_preset_sections())
    named = {"properties": {"preset": {"type": "string"}}, "required": ["preset"]}
    explicit = {
        "required": sections,
        "properties": {section: {"required": ["kind"]} for section in sections},
    }
    rules: list[dict[str, Any]] = [{"if": named, "else": explicit}]
    for name, preset in PRESETS.items():
        kinds = {section: preset[section]["kind"] for section in sections}
        rules.append(
            {
                "if": {"properties": {"preset": {"const": name}}, "required": ["preset"]},
                "then": {
                    "properties": {
                        section: {
                            "if": {"not": {"required": ["kind"]}},
                            "then": {"$ref": f"#/$defs/{section}-{kind}"},
                        }
                        for section, kind in kinds.items()
                    }
                },
            }
        )
    return rules


def _reachable(root: Any, definitions: dict[str, Any]) -> set[str]:
    """Names of the definitions that `root` leads to."""
    found: set[str] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            reference = item.get("$ref")
            if isinstance(reference, str):
                name = reference.rsplit("/", 1)[1]
                if name not in found:
                    found.add(name)
                    waiting.append(definitions[name])
            waiting += item.values()
    return found
