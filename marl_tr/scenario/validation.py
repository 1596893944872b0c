"""The two stages of validation, with pydantic's answers turned into problems of the file."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from marl_tr import registry
from marl_tr.scenario.document import Document
from marl_tr.scenario.problems import Path, Problem, did_you_mean
from marl_tr.scenario.schema import ENTRY_PARTS, PARTS, AgentPart, Part, Scenario

__all__ = ["Validated", "check_model", "validate"]

SYSTEM_ARGUMENTS = frozenset({"num_envs"})
"""Arguments of environment factories that the trainer gives itself, from `env`'s own fields."""


@dataclass
class Validated:
    """What the stages found.

    Attributes:
        scenario: The model of the whole, or None where it has problems.
        configs: ``{path of a part: its config}`` for the parts whose fields are good.
        env_config: The environment's settings, or None where it has no model of them.
        problems: Everything that is wrong.
    """

    scenario: Scenario | None = None
    configs: dict[Path, Any] = field(default_factory=dict)
    env_config: BaseModel | None = None
    problems: list[Problem] = field(default_factory=list)


def validate(document: Document) -> Validated:
    """Check ``document.data`` (sections as a mapping, `agents` as a list) against all models."""
    result = Validated()
    scenario, problems = check_model(Scenario, document.data, document, ())
    result.scenario = scenario
    result.problems += problems
    for path, kind, own in _parts(document.data):
        _check_part(document, path, kind, own, result)
    _check_env(document, result)
    return result


def _parts(data: dict[str, Any]) -> Iterator[tuple[Path, str, type[Part]]]:
    for section, kind in PARTS.items():
        value = data.get(section)
        if isinstance(value, list) and section == "agents":
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield (section, index), kind, AgentPart
                    for own in ENTRY_PARTS:
                        if isinstance(entry.get(own), dict):
                            yield (section, index, own), PARTS[own], Part
        elif isinstance(value, dict):
            yield (section,), kind, Part


def _check_part(document: Document, path: Path, kind: str, own: type[Part], result: Validated) -> None:
    section: Any = document.data
    for step in path:
        section = section[step]
    name = section.get("kind")
    if not isinstance(name, str):
        return  # the first stage says so
    model = _config_model(document, kind, name, (*path, "kind"), result)
    if isinstance(model, _Unknown):
        return
    fields = {key: value for key, value in section.items() if key not in own.model_fields}
    if model is None:
        result.configs[path] = fields
        return
    config, problems = check_model(model, fields, document, path, also=tuple(own.model_fields))
    result.problems += problems
    if config is not None:
        result.configs[path] = config


def _check_env(document: Document, result: Validated) -> None:
    env = document.data.get("env")
    if not isinstance(env, dict) or not isinstance(env.get("id"), str):
        return
    model = _config_model(document, "envs", env["id"], ("env", "id"), result)
    config = env.get("config", {})
    if isinstance(model, _Unknown) or not isinstance(config, dict):
        return
    path: Path = ("env", "config")
    if model is not None:
        result.env_config, problems = check_model(model, config, document, path)
        result.problems += problems
    else:
        result.problems += _check_arguments(registry.find("envs", env["id"]), config, document, path)


class _Unknown:
    """The name leads nowhere; the problem is noted."""


def _config_model(document: Document, kind: str, name: str, path: Path, result: Validated) -> Any:
    try:
        return registry.find(kind, name).load_config()
    except (registry.UnknownName, registry.BadTarget) as error:
        result.problems.append(document.problem(path, str(error)))
        return _Unknown()


def check_model(
    model: type[Any], data: Any, document: Document, prefix: Path, *, also: tuple[str, ...] = ()
) -> tuple[Any, list[Problem]]:
    """Validate `data`, which lies at `prefix` of the document; `also` are sibling keys worth suggesting.

    By way of JSON and strictly: "16" is not 16 and true is not 1, while lists still fill tuples.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        problems: dict[tuple[Path, bool], list[str]] = {}
        for item in error.errors(include_url=False):
            path, is_key, message = _translate(model, data, item, also)
            told = problems.setdefault((path, is_key), [])
            if message not in told:
                told.append(message)
        return None, [
            document.problem(prefix + path, ", or ".join(messages), key=is_key)
            for (path, is_key), messages in problems.items()
        ]


def _translate(model: type[Any], data: Any, item: Any, also: tuple[str, ...]) -> tuple[Path, bool, str]:
    """One of pydantic's errors as (path in the data, whether its key is what is wrong, message)."""
    kind, context = item["type"], item.get("ctx", {})
    path: list[str | int] = []
    here = data
    for step in item["loc"]:
        known = isinstance(here, dict) and step in here
        if known or (isinstance(here, list) and isinstance(step, int) and step < len(here)):
            here = here[step]
            path.append(step)
        # Anything else is the tag of a union's member, or the key that is missing (added below).
    if kind == "missing":
        return (*path, item["loc"][-1]), True, "is required and missing"
    if kind == "extra_forbidden":
        key = str(path[-1])
        fields = _fields_at(model, data, tuple(path[:-1]))
        candidates = [*fields, *(also if len(path) == 1 else ())]
        listed = f" (keys here: {', '.join(candidates)})" if candidates else " (there are no settings here)"
        hint = did_you_mean(key, candidates)
        return tuple(path), True, f"unknown key {key!r}{hint or listed}"
    if kind == "literal_error" and isinstance(here, str):
        return (
            tuple(path),
            False,
            f"must be {context['expected']}, not {here!r}{did_you_mean(here, _quoted(context))}",
        )
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        tag = str(context["tag"])
        key = context["discriminator"].strip("'")
        return (*path, key), False, f"no {key} {tag!r}{did_you_mean(tag, tags)} (one of {', '.join(tags)})"
    if kind == "union_tag_not_found":
        return (*path, context["discriminator"].strip("'")), True, "is required and missing"
    return tuple(path), False, _message(item, here)


_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "must be letters, digits, '_', '.' and '-', beginning with a letter or digit",
}
"""What this package's regular expressions ask for, in words."""


def _message(item: Any, value: Any) -> str:
    message: str = item["msg"]
    if item["type"] == "string_pattern_mismatch":
        pattern = item["ctx"]["pattern"]
        message = _PATTERNS.get(pattern, f"must match the pattern '{pattern}'")
    message = message.removeprefix("Value error, ").replace("Input should be", "must be").replace("Input must", "must")
    message = re.sub(r"^(List|Tuple) should have (.*) after validation", r"must have \2", message)
    message = message.replace("a valid integer", "a whole number").replace("a valid dictionary", "a mapping")
    message = message.replace("an object", "a mapping").replace("a valid array", "a list")
    message = message.replace("a valid list", "a list").replace("a valid boolean", "true or false")
    message = message.replace("a valid string", "text").replace("a valid number", "a number")
    if isinstance(value, dict | list) or "value_error" in item["type"]:
        return message
    shown = {True: "true", False: "false", None: "nothing"}.get(value, repr(value)) if _simple(value) else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    quoted = isinstance(value, str) and item["type"] in ("int_type", "float_type", "bool_type")
    return f"{message}, not {shown}" + (" (text; leave out the quotes)" if quoted and _looks_plain(value) else "")


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _looks_plain(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True


def _quoted(context: Any) -> list[str]:
    expected = str(context["expected"])
    return expected.split("'")[1::2]


def _fields_at(model: type[Any], data: Any, path: Path) -> list[str]:
    """Names of the fields of the model that `path` of `data` is validated with."""
    annotation: Any = model
    for step in path:
        if typing.get_origin(annotation) is dict:
            annotation, data = typing.get_args(annotation)[1], data[step]
            continue
        candidates = list(_models(annotation))
        chosen = _choose(candidates, data)
        if chosen is None:
            return []
        if isinstance(step, str):
            if step not in chosen.model_fields:
                return []
            annotation = chosen.model_fields[step].annotation
        data = data[step]
    chosen = _choose(list(_models(annotation)), data)
    return list(chosen.model_fields) if chosen is not None else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that an annotation can mean: through unions, lists and `Annotated`."""
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _choose(candidates: list[type[BaseModel]], data: Any) -> type[BaseModel] | None:
    """The one of a union whose `kind` the data names, else the first."""
    for candidate in candidates:
        kind = candidate.model_fields.get("kind")
        if kind is not None and isinstance(data, dict) and data.get("kind", kind.default) == kind.default:
            return candidate
    return candidates[0] if candidates else None


def _check_arguments(entry: registry.Entry, config: dict[str, Any], document: Document, path: Path) -> list[Problem]:
    """`config` against the factory's own keyword arguments, where they can be read."""
    try:
        factory = entry.load()
    except registry.BadTarget as error:
        return [document.problem(("env", "id"), str(error))]
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return []  # written in C, or hiding its signature: the factory itself will complain
    problems = []
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and not (entry.native and name in SYSTEM_ARGUMENTS)
    }
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in config:
            if key not in named:
                listed = f" (it takes {', '.join(named)})" if named else " (it takes none)"
                message = f"the environment takes no argument {key!r}{did_you_mean(key, named) or listed}"
                problems.append(document.problem((*path, key), message, key=True))
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in config:
            problems.append(document.problem((*path, name), "is required by the environment and missing", key=True))
    return problems
