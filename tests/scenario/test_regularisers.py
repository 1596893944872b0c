"""Regularisers and optimizers as scenarios say them: what is read, and what is refused with its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from marl_tr import registry
from marl_tr.registry import Entry
from marl_tr.scenario import Problem, load_scenario, resolved
from marl_tr.scenario.regularisers import ControllerWeight, PeriodAnchor, PositionConfig, VelocityConfig
from marl_tr.scenario.schema import Scenario, Strict

Load = Callable[..., list[Problem]]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scenarios.md"

BASE = """\
name: x
preset: mappo
env: {id: uav/downlink-v0}
agents: {kind: gaussian}
trainer: {total_steps: 10}
"""


def documented() -> dict[str, list[dict[str, Any]]]:
    """The variants of the ablation, from the page's own block."""
    (block,) = re.findall(r"```yaml\n(no_kl:.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    variants: dict[str, list[dict[str, Any]]] = yaml.safe_load(block)
    return variants


def scenario(**settings: Any) -> Scenario:
    return load_scenario({**yaml.safe_load(BASE), **settings})


def test_the_page_shows_the_six_variants_of_the_ablation() -> None:
    """Specification 4.6: use_kl, anchor, weight of the position, weight of the velocity."""
    shapes = {}
    for name, terms in documented().items():
        read = scenario(regularisers=terms).regularisers
        position = next((term for term in read if isinstance(term, PositionConfig)), None)
        velocity = next((term for term in read if isinstance(term, VelocityConfig)), None)
        anchor = position and position.anchor.kind
        shapes[name] = (anchor, position and position.weight, velocity and velocity.weight)
        assert all(term.reduction == "mean" for term in read)
        if isinstance(position and position.anchor, PeriodAnchor):
            assert position.anchor.every == 10
    one, tenth = 0.01, 0.001
    assert shapes == {
        "no_kl": (None, None, None),
        "fixed_kl": ("frozen", one, None),
        "step_wise_kl": (None, None, one),
        "moving_kl": ("period", one, None),
        "dual_fixed": ("frozen", one, tenth),
        "dual_moving": ("period", one, tenth),
    }


def test_a_scenario_with_regularisers_survives_being_written_out() -> None:
    terms = [
        {
            "kind": "position",
            "anchor": {"kind": "soft", "rate": 0.1},
            "weight": {"kind": "controller", "target": 0.1, "initial": 1, "least": 0.1, "most": 2},
            "bound": 0.5,
        },
        {"kind": "velocity", "weight": {"kind": "two_stage", "early": 0, "late": 1}},
    ]
    read = scenario(regularisers=terms, optimizer={"kind": "muon", "accumulate": 3})
    assert isinstance(read.regularisers[0].weight, ControllerWeight)
    again = load_scenario(resolved(read))
    assert again == read
    assert again.optimizer is not None
    assert again.optimizer.kind == "muon"


@pytest.mark.parametrize(
    ("lines", "path", "said"),
    [
        ("regularisers: [{kind: positon, weight: 1}]", "regularisers.0.kind", "did you mean 'position'?"),
        ("regularisers: [{kind: position}]", "regularisers.0.weight", "is required and missing"),
        ("regularisers: [{kind: velocity, weight: 1, bound: 2}]", "regularisers.0.bound", "unknown key 'bound'"),
        ("regularisers: [{kind: position, weight: -1}]", "regularisers.0.weight", "greater than or equal to 0"),
        (
            "regularisers: [{kind: position, weight: {kind: two_stage, early: 1}}]",
            "regularisers.0.weight.late",
            "is required and missing",
        ),
        (
            "regularisers:\n  - kind: position\n    weight: 1\n    anchor: {kind: period, every: 0}",
            "regularisers.0.anchor.every",
            "greater than or equal to 1",
        ),
        (
            "regularisers:\n  - kind: position\n"
            "    weight: {kind: controller, target: 1, initial: 5, least: 1, most: 2}",
            "regularisers.0.weight",
            "least <= initial <= most must hold, not 1, 5, 2",
        ),
        ("optimizer: {weight_decay: 0.1}", "optimizer", "weight_decay is of 'adamw', 'muon'"),
        ("optimizer: {kind: moun}", "optimizer.kind", "did you mean 'muon'?"),
        ("region: {kind: trpo}\nobjective: {kind: surrogate}\noptimizer: {kind: muon}", "optimizer", "its own step"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(problems: Load, lines: str, path: str, said: str) -> None:
    found = problems(BASE + lines + "\n")
    assert any(problem.path == path and said in problem.message for problem in found), found


class SampleOnlyConfig(Strict):
    """Agents with likelihoods and no divergence."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"log_prob"})


def test_a_regulariser_that_agents_cannot_serve_is_refused(problems: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered["agents"], "blunt", Entry("json:loads", config=SampleOnlyConfig))
    text = BASE.replace("gaussian", "blunt") + (
        "regularisers:\n"
        "  - {kind: velocity, form: monte_carlo, weight: 1}\n"
        "  - {kind: velocity, weight: 1}\n"
        "  - {kind: position, weight: 1}\n"
    )
    found = [problem for problem in problems(text) if problem.path.startswith("regularisers")]
    assert [(problem.path, problem.line) for problem in found] == [("regularisers.1", 8), ("regularisers.2", 9)]
    assert all("needs kl, which agents of kind 'blunt' do not have (they have log_prob)" in p.message for p in found)
