"""From a scenario's name, path or mapping to a validated `Scenario`, or to everything that is wrong with it.

Two stages, both always run, so that all problems come at once: the `Scenario` model, then the remaining
fields of each part (and ``env.config``) with the model that its registry entry names.
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

from marl_tr.scenario.checks import cross_checks
from marl_tr.scenario.document import Document, dump_yaml, read_document
from marl_tr.scenario.overrides import apply_overrides
from marl_tr.scenario.presets import PRESETS, fill_in
from marl_tr.scenario.problems import Place, Problem, ScenarioError, did_you_mean
from marl_tr.scenario.schema import Scenario
from marl_tr.scenario.validation import Validated, validate

__all__ = ["load_scenario", "resolved", "scenario_yaml", "shipped"]


def load_scenario(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Scenario:
    """Read, complete and check a scenario.

    Args:
        source: Name of a shipped scenario, path of a YAML file, or the scenario as a mapping.
        overrides: ``"section.key=value"``, values in YAML; checked like the file.

    Returns:
        The scenario; each part's `config` and ``env.settings`` hold validated models.

    Raises:
        ScenarioError: With every problem and its position.

    Example:
        >>> load_scenario("uav_quick", ["env.num_envs=8", "seed=3"]).env.num_envs
        8
    """
    if isinstance(source, Mapping):
        document = Document("scenario", data=copy.deepcopy(dict(source)))
    else:
        document = _locate(source)
    if not isinstance(document.data, dict):
        raise ScenarioError([*document.problems, _not_a_mapping(document)])
    _list_agents(document)
    apply_overrides(document, overrides)
    _list_agents(document)
    _apply_preset(document)
    checked = validate(document)
    problems = [*document.problems, *checked.problems, *cross_checks(document, checked)]
    if problems:
        raise ScenarioError(problems)
    return _assemble(document, checked)


def resolved(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data with every default written out; loading it again gives an equal scenario."""
    data: dict[str, Any] = scenario.model_dump(mode="json")
    return data


def scenario_yaml(scenario: Scenario) -> str:
    """`resolved`, as YAML."""
    return dump_yaml(resolved(scenario))


def shipped() -> dict[str, FilePath]:
    """The scenarios that come with the package: ``{name: path}``, sorted."""
    folder = files("marl_tr.scenarios")
    found = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return {name: FilePath(str(found[name])) for name in sorted(found)}


def _locate(source: str | os.PathLike[str]) -> Document:
    text = os.fspath(source)
    looks_like_path = not isinstance(source, str) or FilePath(text).suffix in (".yaml", ".yml") or os.sep in text
    if looks_like_path or not text or FilePath(text).is_dir():
        return read_document(FilePath(text), text or "''")
    known = shipped()
    if text in known:
        return read_document(known[text])
    hint = did_you_mean(text, known)
    message = f"no scenario of that name{hint} ('marl-tr scenarios' lists all; a file of your own: {text}.yaml)"
    raise ScenarioError([Problem(text, None, None, "", message)])


def _not_a_mapping(document: Document) -> Problem:
    data = document.data
    kind = "is empty" if data is None else f"is {'a list' if isinstance(data, list) else 'a single value'}"
    return Problem.at(document.place(()), "", f"{kind}; a scenario is a mapping of sections (name:, env:, agents: ...)")


def _list_agents(document: Document) -> None:
    """`agents:` may be one mapping; inside it is always a list."""
    if not isinstance(document.data.get("agents"), dict):
        return
    document.data["agents"] = [document.data["agents"]]
    document.single_agent = True
    for places in (document.keys, document.values):
        inner: dict[Any, Place] = {path: place for path, place in places.items() if path[0:1] == ("agents",)}
        for path, place in inner.items():
            if len(path) > 1:
                del places[path]
            places[("agents", 0, *path[1:])] = place


def _apply_preset(document: Document) -> None:
    preset = document.data.get("preset")
    if preset is None or not isinstance(preset, str):
        return
    if preset in PRESETS:
        document.data = fill_in(document.data, preset)
        return
    message = f"no preset {preset!r}{did_you_mean(preset, PRESETS)} (presets: {', '.join(PRESETS)})"
    document.problems.append(document.problem(("preset",), message))
    # Sections that the preset would have filled in are no problems of their own.
    nearest = difflib.get_close_matches(preset, PRESETS, n=1) or list(PRESETS)
    document.data = fill_in(document.data, nearest[0])


def _assemble(document: Document, checked: Validated) -> Scenario:
    """The scenario with defaults written out in its parts, and the parts' models attached."""
    data = copy.deepcopy(document.data)
    for path, config in checked.configs.items():
        section: Any = data
        for step in path:
            section = section[step]
        section.update(config.model_dump(mode="json") if hasattr(config, "model_dump") else config)
    if checked.env_config is not None:
        data["env"]["config"] = checked.env_config.model_dump(mode="json")
    scenario = Scenario.model_validate(data)
    for path, config in checked.configs.items():
        part: Any = scenario
        for step in path:
            part = part[step] if isinstance(step, int) else getattr(part, step)
        part._config = config
    scenario.env._config = checked.env_config
    return scenario
