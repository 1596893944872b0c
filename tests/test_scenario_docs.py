"""docs/scenarios.md names every setting of every built-in model, with the range and default that the model has."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.types import StringConstraints

from marl_tr import registry
from marl_tr.critic.config import AdamFitConfig, TrustRegionFitConfig
from marl_tr.envs.uav.actions_config import ContinuousActions, DiscreteActions, HybridActions, VelocityActions
from marl_tr.envs.uav.channel_config import (
    AlHouraniConfig,
    GainMapConfig,
    PowerLawConfig,
    SamplingConfig,
    Tr36777Config,
)
from marl_tr.envs.uav.flight_config import BatteryConfig, DepotStarts, FlightConfig, UniformStarts
from marl_tr.envs.uav.mobility_config import (
    GaussMarkovConfig,
    GroupConfig,
    RandomWalkConfig,
    RandomWaypointConfig,
    StaticConfig,
    TraceConfig,
)
from marl_tr.envs.uav.radio_config import BackhaulConfig, RadioConfig, SubchannelsConfig
from marl_tr.envs.uav.reward_config import AlphaFairUtility, RateUtility
from marl_tr.envs.uav.traffic_config import FullBufferConfig, PoissonConfig
from marl_tr.objective.config import NucleusSupport, TopKSupport
from marl_tr.scenario.presets import PRESETS
from marl_tr.scenario.regularisers import (
    ControllerWeight,
    FrozenAnchor,
    PeriodAnchor,
    PositionConfig,
    SmoothConfig,
    SoftAnchor,
    TwoStageWeight,
    VelocityConfig,
)
from marl_tr.scenario.schema import (
    PARTS,
    AdvantageSection,
    AgentPart,
    EnvSection,
    EvaluationSection,
    OptimizerSection,
    Part,
    PretrainingSection,
    Scenario,
    TrainerSection,
)
from marl_tr.scenario.transforms import TrustGrpoConfig
from marl_tr.scenario.velocity import (
    LoraConfig,
    MlpVelocityConfig,
    ResidualVelocityConfig,
    TransformerVelocityConfig,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scenarios.md"
REGIONS = PAGE.with_name("trust-regions.md")
SECTIONS: dict[str, type[BaseModel]] = {
    "The file itself": Scenario,
    "env": EnvSection,
    "env.config.radio": RadioConfig,
    "env.config.radio.subchannels": SubchannelsConfig,
    "env.config.radio.backhaul": BackhaulConfig,
    "env.config.traffic: full_buffer": FullBufferConfig,
    "env.config.traffic: poisson": PoissonConfig,
    "agents": AgentPart,
    "network: mlp": MlpVelocityConfig,
    "network: residual": ResidualVelocityConfig,
    "network: transformer": TransformerVelocityConfig,
    "network.lora": LoraConfig,
    "advantage": AdvantageSection,
    "advantage.transform: trust_grpo": TrustGrpoConfig,
    "optimizer": OptimizerSection,
    "regularisers: position": PositionConfig,
    "regularisers: velocity": VelocityConfig,
    "regularisers: smooth": SmoothConfig,
    "regularisers.anchor: frozen": FrozenAnchor,
    "regularisers.anchor: period": PeriodAnchor,
    "regularisers.anchor: soft": SoftAnchor,
    "regularisers.weight: two_stage": TwoStageWeight,
    "regularisers.weight: controller": ControllerWeight,
    "entropy_support: top_k": TopKSupport,
    "entropy_support: nucleus": NucleusSupport,
    "trainer": TrainerSection,
    "evaluation": EvaluationSection,
    "pretraining": PretrainingSection,
    "critic.fit: trust_region": TrustRegionFitConfig,
    "critic.fit: adam": AdamFitConfig,
    "env.config.channel: al_hourani": AlHouraniConfig,
    "env.config.channel: power_law": PowerLawConfig,
    "env.config.channel: tr36777": Tr36777Config,
    "env.config.channel: gain_map": GainMapConfig,
    "env.config.channel.sampling": SamplingConfig,
    "env.config.starts: uniform": UniformStarts,
    "env.config.starts: depot": DepotStarts,
    "env.config.flight": FlightConfig,
    "env.config.battery": BatteryConfig,
    "env.config.actions: continuous": ContinuousActions,
    "env.config.actions: velocity": VelocityActions,
    "env.config.actions: discrete": DiscreteActions,
    "env.config.actions: hybrid": HybridActions,
    "env.config.mobility: static": StaticConfig,
    "env.config.mobility: random_walk": RandomWalkConfig,
    "env.config.mobility: random_waypoint": RandomWaypointConfig,
    "env.config.mobility: gauss_markov": GaussMarkovConfig,
    "env.config.mobility: group": GroupConfig,
    "env.config.mobility: trace": TraceConfig,
    "env.config.utility: rate": RateUtility,
    "env.config.utility: alpha_fair": AlphaFairUtility,
}


def built_in(kind: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, entry in registry.names(kind).items():
        model = entry.load_config()
        if model is not None and model.__module__.startswith("marl_tr."):
            yield name, model


def documented() -> list[tuple[str, type[BaseModel]]]:
    parts = [(f"{section}: {name}", model) for section, kind in PARTS.items() for name, model in built_in(kind)]
    return [*SECTIONS.items(), *parts, *((f"env.config: {name}", model) for name, model in built_in("envs"))]


def nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models that a field of `model` may hold."""
    open_types = [field.annotation for field in model.model_fields.values()]
    while open_types:
        annotation = open_types.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        open_types += typing.get_args(annotation)


def row_start(name: str, field: FieldInfo) -> str:
    """How the table's row of a field begins; the meaning that follows is for the writer."""
    return f"| `{name}` | {allowed(field)} | {default(field)} |"


def allowed(field: FieldInfo) -> str:
    """Type and range: ``whole number ≥ 1``, ``number in (0, 1], or empty``."""
    text, empty = _type(field.annotation)
    lower: tuple[str, str] | None = None
    upper: tuple[str, str] | None = None
    for constraint in field.metadata:
        match constraint:
            case annotated_types.Ge(ge=value):
                lower = ("≥", f"[{_number(value)}")
            case annotated_types.Gt(gt=value):
                lower = (">", f"({_number(value)}")
            case annotated_types.Le(le=value):
                upper = ("≤", f"{_number(value)}]")
            case annotated_types.Lt(lt=value):
                upper = ("<", f"{_number(value)})")
            case annotated_types.MinLen():
                text += ", not empty"
            case StringConstraints(pattern=str()):
                text += f", at most {constraint.max_length} of letters, digits, `_`, `.`, `-`"
            case StringConstraints():
                text += ", not empty"
    if lower and upper:
        text += f" in {lower[1]}, {upper[1]}"
    elif lower:
        text += f" {lower[0]} {lower[1][1:]}"
    return f"{text}, or empty" if empty else text


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{{kind: {value.kind}}}`" if hasattr(value, "kind") else "`{}`"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return "`[" + ", ".join(f'"{v}"' if v == "*" else str(v) for v in value) + "]`"
    return '`""`' if value == "" else f"`{value if isinstance(value, str) else _number(value)}`"


def _type(annotation: Any) -> tuple[str, bool]:
    """A type in words, and whether the field may be left empty."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments), False
    if origin in (types.UnionType, typing.Union):
        kinds = [_type(argument)[0] for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(kinds)), type(None) in arguments
    if origin is tuple:
        return f"list of {len(arguments)} {_plural(arguments[0])}", False
    if origin is list:
        return f"list of {_plural(arguments[0])}", False
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping", False
    words = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Any: "anything"}
    return words[annotation], False


def _plural(annotation: Any) -> str:
    one = _type(annotation)[0]
    return f"{one}s" if one in ("whole number", "number", "mapping") else one


def _number(value: Any) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:g}".replace("e+0", "e") if isinstance(value, float) else f"{value}"


def table(heading: str) -> list[str]:
    """Rows of the table under the heading, up to the next heading; of most regions on a page of their own."""
    page = REGIONS if heading.startswith("region: ") and heading.split()[1] not in ("trpo", "measured") else PAGE
    lines = page.read_text("utf-8").splitlines()
    titles = [f"{level} {mark}{heading}{mark}" for level in ("##", "###") for mark in ("", "`")]
    start = next((i for i, line in enumerate(lines) if line in titles), None)
    assert start is not None, f"{page.name} has no heading {heading!r}"
    rows = []
    for line in lines[start + 1 :]:
        if line.startswith("#"):
            break
        if line.startswith("| `"):
            rows.append(line)
    return rows


@pytest.mark.parametrize(("heading", "model"), documented(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_field_has_a_row_with_the_range_and_default_of_its_model(heading: str, model: type[BaseModel]) -> None:
    expected = [row_start(name, field) for name, field in model.model_fields.items()]
    rows = table(heading)
    assert [row[: len(start)] for row, start in zip(rows, expected, strict=False)] == expected
    assert len(rows) == len(expected)
    assert all(row.removesuffix("|")[len(start) :].strip() for row, start in zip(rows, expected, strict=True))


def test_every_mapping_that_a_documented_field_may_hold_has_a_table_too() -> None:
    models = {model for _, model in documented()}
    # The fields of a part are those of its kind, which come from the registry.
    assert {inner for model in models for inner in nested(model)} - models - {Part} == set()


def test_the_presets_table_says_what_the_presets_fill_in() -> None:
    rows = {row.split("`")[1]: row for row in table("Presets")}
    assert list(rows) == list(PRESETS)
    for name, preset in PRESETS.items():
        told = [cell.strip().strip("`") for cell in rows[name].split("|")]
        critic = preset["critic"]
        assert told[2:8] == [
            preset["agents"]["sharing"],
            preset["objective"]["kind"],
            preset["region"]["kind"],
            preset["schedule"]["kind"],
            f"{critic['scope']} {critic['kind']}, {critic['fit']['kind']}",
            "yes" if "optimizer" in preset else "no",
        ]


def test_the_table_of_regions_says_what_the_regions_say() -> None:
    rows = {
        row.split("`")[1]: [cell.strip() for cell in row.split("|")[1:-1]]
        for row in REGIONS.read_text("utf-8").splitlines()
        if row.startswith("| [`")
    }
    assert list(rows) == [name for name, _ in built_in("regions")]
    for name, entry in registry.names("regions").items():
        model: Any = entry.load_config()
        _, summary, guarantee, status, paper = rows[name]
        assert (summary, guarantee, status) == (entry.summary, model.guarantee, model.status)
        assert paper == (f"[{model.paper}](https://arxiv.org/abs/{model.paper})" if model.paper else "")
