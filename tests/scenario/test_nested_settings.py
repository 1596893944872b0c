"""Settings in sections within ``env.config``: what is wrong in them is found where it stands, all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marl_tr.scenario import Problem, load_scenario

Load = Callable[..., list[Problem]]

HEAD = """\
name: nested
preset: hatrpo
env:
  id: uav/downlink-v0
  num_envs: 4
  config:
"""
TAIL = """\
agents: {kind: gaussian}
trainer: {total_steps: 1000}
"""


def scenario(*lines: str) -> str:
    return HEAD + "".join(f"    {line}\n" for line in lines) + TAIL


def told(problems: list[Problem]) -> list[tuple[int | None, int | None, str]]:
    return [(problem.line, problem.column, problem.path) for problem in problems]


def test_every_problem_in_nested_sections_has_its_line_and_column(problems: Load) -> None:
    found = problems(
        scenario(
            "flight: {dimensions: 5, pitch_max_deg: 30, wrong: 1}",  # 7
            "mobility:",
            "  kind: random_walc",  # 9
            "channel:",
            "  kind: al_hourani",
            "  sampling: {rician_k_db: high}",  # 12
            "radio:",
            "  backhaul: {place: [1, x]}",  # 14
            "battery: {}",  # 15
        )
    )
    assert told(found) == [
        (7, 26, "env.config.flight.dimensions"),
        (7, 48, "env.config.flight.wrong"),
        (9, 13, "env.config.mobility.kind"),
        (12, 31, "env.config.channel.sampling.rician_k_db"),
        (14, 25, "env.config.radio.backhaul.place"),
        (14, 29, "env.config.radio.backhaul.place.1"),
        (15, 5, "env.config.battery.capacity_j"),
    ]
    said = {problem.path.rsplit(".", 1)[1]: problem.message for problem in found}
    assert said["kind"].startswith("no kind 'random_walc'; did you mean 'random_walk'?")
    assert "keys here: dimensions" in said["wrong"]
    assert said["capacity_j"] == "is required and missing"


@pytest.mark.parametrize(
    ("lines", "path", "message"),
    [
        (["flight: {altitude_min_m: 200}"], "env.config.flight", "altitude_min_m must be below"),
        (["altitude_m: 300", "flight: {dimensions: 3}"], "env.config", "altitude_m must lie between"),
        (["starts: {kind: depot}", "num_uavs: 64", "area_m: 100"], "env.config", "64 UAVs 50 m apart need 350 m"),
        (["channel: {kind: gain_map, file: nowhere.npz}"], "env.config", "nowhere.npz"),
        (["altitude_m: 20", "channel: {kind: tr36777}"], "env.config", "uma"),
        (["hotspot_centres: [[500, 2000]]"], "env.config", "outside the area"),
        (["actions: {powers: 3}"], "env.config.actions.kind", "is required and missing"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_found_when_the_scenario_is_read(
    problems: Load, lines: list[str], path: str, message: str
) -> None:
    found = problems(scenario(*lines))
    assert [(problem.line, problem.path) for problem in found] == [(7, path)]
    assert message in found[0].message


def test_overrides_reach_into_sections_that_the_file_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario("num_uavs: 2"))
    overrides = [
        "env.config.mobility.kind=random_walk",
        "env.config.mobility.v_max=3",
        "env.config.flight.dimensions=3",
        "env.config.radio.subchannels.count=6",
        "env.config.battery.capacity_j=2e4",
        "env.config.actions={kind: hybrid, powers: 2}",
    ]
    config = load_scenario(path, overrides).env.settings
    assert (config.mobility.kind, config.mobility.v_max, config.flight.dimensions) == ("random_walk", 3.0, 3)
    assert (config.radio.subchannels.count, config.battery.capacity_j) == (6, 2e4)
    assert (config.actions.kind, config.actions.powers, config.num_uavs) == ("hybrid", 2, 2)


def test_a_wrong_override_of_a_section_is_named_with_its_place(problems: Load) -> None:
    found = problems(
        scenario("mobility: {kind: static}"), ("env.config.mobility.kind=walk", "env.config.flight.dimension=3")
    )
    assert [(problem.file, problem.path) for problem in found] == [
        ("override 1", "env.config.mobility.kind"),
        ("override 2", "env.config.flight.dimension"),
    ]
    assert "did you mean 'dimensions'?" in found[1].message
