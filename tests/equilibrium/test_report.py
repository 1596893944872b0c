"""What a report says of its own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl_tr.equilibrium.figure import gap_figure
from marl_tr.equilibrium.report import HEADING, markdown, remarks, scalars, write_section


def agent(gap: float, *, low: float | None = None, exact: float | None = None, **more: Any) -> dict[str, Any]:
    return {
        "gap": {"estimate": gap, "ci_low": gap - 0.1 if low is None else low, "ci_high": gap + 0.1},
        "exact_gap": exact,
        "return_policy": 1.0,
        "return_random": 0.0,
        "relative_gap": gap,
        "responder": "fresh_0, mode, after 100 steps",
        "learned": True,
        "converged": True,
        "resolution": 0.01,
        "noise_share": 0.5,
        "levels": [{"steps": 100, "gap": gap, "growth": None, "growth_error": None}],
        **more,
    }


def audit(name: str, **agents: dict[str, Any]) -> dict[str, Any]:
    known = [own["exact_gap"] for own in agents.values()]
    total = sum(own["gap"]["estimate"] for own in agents.values())
    return {
        "subject": name,
        "omniscient": False,
        "nash_conv": {"estimate": total, "ci_low": total - 0.2, "ci_high": total + 0.2},
        "nash_conv_by_symmetry": False,
        "epsilon": {"estimate": total, "ci_low": total - 0.2, "ci_high": total + 0.2},
        "converged": all(own["converged"] for own in agents.values()),
        "found": any(own["gap"]["ci_low"] > 0 for own in agents.values()),
        "exact_nash_conv": None if None in known else sum(known),
        "agents": agents,
    }


def report(*controls: dict[str, Any], policy: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "scenario": "tiny",
        "step": 1000,
        "payoff": "own",
        "budget": 100,
        "settings": {"fresh": 1, "warm": 1, "doublings": 1, "episodes": 16},
        "policy": policy or audit("policy", a=agent(0.5), b=agent(0.02)),
        "controls": list(controls),
        "omniscient": None,
        "cross_play": None,
    }


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (audit("random", a=agent(0.5)), "Positive control 'random': the same auditor finds a gap"),
        (audit("random", a=agent(0.5, exact=0.52)), "96% of the exact gap at least"),
        (audit("random", a=agent(0.4, exact=0.5)), "Weak auditor: on 'random' it found 80% of an exact gap"),
        (audit("random", a=agent(0.01, exact=0.0)), "it controls nothing"),
        (audit("random", a=agent(0.01)), "Weak auditor, or nothing to gain: on 'random'"),
        (audit("random", a=agent(0.5, learned=False)), "Weak learner: on 'random' a gap is found"),
    ],
)
def test_a_control_says_how_far_the_auditor_can_be_trusted(control: dict[str, Any], said: str) -> None:
    assert sum(said in remark for remark in remarks(report(control))) == 1


def test_a_small_gap_is_called_no_equilibrium_and_a_growing_one_not_converged() -> None:
    small = remarks(report(policy=audit("policy", a=agent(0.001))))
    assert "no proof of an equilibrium" in small[0]
    assert any(remark.startswith("No responder was found to gain anything") for remark in small)
    growing = remarks(report(policy=audit("policy", a=agent(0.5, converged=False), b=agent(0.5))))
    assert any(remark.startswith("Not converged: the gap of a still grew") for remark in growing)


def test_the_section_is_written_once_and_leaves_the_rest(tmp_path: Path) -> None:
    assert not write_section(tmp_path, report())
    path = tmp_path / "report.md"
    path.write_text("# tiny\n\nwhat was there\n")
    for _ in range(2):
        assert write_section(tmp_path, report())
    text = path.read_text()
    assert text.startswith("# tiny\n\nwhat was there\n")
    assert text.count(HEADING) == 1
    path.write_text(text + "\n## Later\n\nmore\n")
    assert write_section(tmp_path, report())
    assert path.read_text().endswith("## Later\n\nmore\n")
    assert path.read_text().count(HEADING) == 1


def test_every_interval_is_a_scalar_with_its_ends() -> None:
    found = scalars(report(audit("random", a=agent(0.5, exact=0.52))))
    assert found["nash_gap/policy/a"] == 0.5
    assert found["nash_gap/policy/nash_conv/ci_low"] == pytest.approx(0.32)
    assert found["nash_gap/control/random/a/exact"] == 0.52


def test_the_table_has_a_row_an_agent_and_the_figure_a_line() -> None:
    told = report(audit("random", a=agent(0.5, exact=0.52)))
    rows = [line for line in markdown(told).splitlines() if line.startswith("| policy |")]
    assert [row.split("|")[2].strip() for row in rows] == ["a", "b", "NashConv", "epsilon"]
    figure = gap_figure([told["policy"], *told["controls"]], title="tiny")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["policy: a", "policy: b", "random: a"]
    with pytest.raises(ValueError, match="no audit"):
        gap_figure([], title="")
