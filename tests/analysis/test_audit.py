import json
import math
from pathlib import Path
from typing import Any

import pytest

from marl_tr.analysis.audit import AuditError, audit
from marl_tr.errors import UserError
from marl_tr.events.audit_log import AuditLog

NOT_KEPT = "NOT KEPT: 1 of 3 updates committed under a hard bound exceed it."


def line(index: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "iteration": index,
        "step": index * 100,
        "learner": "uav_0",
        "kind": "policy",
        "guarantee": "hard",
        "bound": 0.01,
        "direction": "kl_old_new",
        "proposed": 0.009,
        "accepted": 0.009,
        "outcome": "accepted",
        "backtracks": 0,
        "surrogate_gain": 0.1,
        "expected_gain": None,
        "cg_residual": 1e-9,
        "reason": "",
        **changes,
    }


def write(run: Path, *lines: dict[str, Any]) -> Path:
    run.mkdir(exist_ok=True)
    log = AuditLog(run)
    for fields in lines:
        log.append(fields)
    log.close()
    return run


def test_a_run_that_kept_its_bounds_is_counted_and_passes(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run-a",
        line(0, accepted=0.0099, backtracks=1),
        line(0, learner="critic", kind="critic", bound=0.5, accepted=0.1),
        line(1, outcome="interpolated", proposed=0.02, accepted=0.00999),
        line(2, outcome="rejected", proposed=math.inf, accepted=0.0, backtracks=10, reason="not finite"),
        line(3, accepted=0.01 * (1 + 5e-7), backtracks=1),
    )
    report = audit([run])
    assert report.ok
    policy, critic = report.rows
    assert (policy.learner, policy.kind, policy.guarantee, policy.updates) == ("uav_0", "policy", "hard", 4)
    assert policy.outcomes == {"accepted": 2, "interpolated": 1, "rejected": 1}
    assert policy.largest_ratio == pytest.approx(1 + 5e-7, rel=1e-12)
    assert policy.mean_backtracks == 3.0
    assert critic.largest_ratio == pytest.approx(0.2)
    text = report.render()
    assert text.splitlines()[-1].startswith("OK: all 4 updates committed under a hard bound kept it")
    assert "run-a" in text
    assert "1.0000" in text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"accepted": 0.01 * (1 + 3e-6)}, "exceeds its bound 0.01 (kl_old_new)"),
        ({"accepted": 0.02, "outcome": "interpolated"}, "divergence 0.02"),
        ({"accepted": math.nan}, "divergence nan"),
        ({"accepted": -math.inf}, "divergence -inf"),
        ({"accepted": math.inf, "bound": math.inf}, "divergence inf"),
        ({"bound": None}, "without a bound"),
        ({"bound": math.nan}, "bound nan"),
    ],
)
def test_a_broken_hard_bound_is_found_with_its_line(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    report = audit([write(tmp_path / "run", line(0), line(1, **changes), line(2))])
    (finding,) = report.findings
    assert finding.where.endswith("audit.jsonl:2")
    assert what in finding.what
    assert not report.ok
    assert report.render().splitlines()[-1] == NOT_KEPT


@pytest.mark.parametrize(
    "changes",
    [
        {"guarantee": "soft", "accepted": 5.0},
        {"guarantee": "none", "accepted": 5.0, "bound": None},
        {"outcome": "rejected", "accepted": 5.0},
    ],
)
def test_what_was_not_promised_or_not_committed_is_no_violation(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = audit([write(tmp_path / "run", line(0, **changes))])
    assert report.ok
    assert "OK" in report.render()


def edited(run: Path, edit: Any) -> None:
    path = run / "audit.jsonl"
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("".join(text + "\n" for text in lines))


@pytest.mark.parametrize(
    ("edit", "rows"),
    [
        (lambda lines: lines.__setitem__(1, lines[1].replace("0.009", "0.008")), [2]),
        (lambda lines: lines.__setitem__(1, lines[1].replace('"kind"', ' "kind"')), [2]),
        (lambda lines: lines.__setitem__(1, lines[1].replace('{"', '{"accepted":0.5,"', 1)), [2]),
        (lambda lines: lines.pop(1), [2]),
        (lambda lines: lines.pop(0), [1]),
        (lambda lines: lines.insert(1, lines[0]), [2]),
        (lambda lines: lines.reverse(), [1, 2, 3, 4]),
    ],
    ids=["number", "space", "hidden key", "dropped", "first dropped", "repeated", "reordered"],
)
def test_an_edited_log_is_found(tmp_path: Path, edit: Any, rows: list[int]) -> None:
    run = write(tmp_path / "run", *(line(i) for i in range(4)))
    edited(run, edit)
    report = audit([run])
    found = [int(f.where.rpartition(":")[2]) for f in report.findings if "wrong digest" in f.what]
    assert found == rows
    assert not report.ok
    assert "NOT TRUSTWORTHY" in report.render()


def test_an_edited_line_with_a_digest_that_fits_breaks_the_next(tmp_path: Path) -> None:
    run = write(tmp_path / "run", *(line(i) for i in range(3)))
    forged = write(tmp_path / "forged", line(0), line(1, accepted=0.001))
    second = (forged / "audit.jsonl").read_text().splitlines()[1]
    edited(run, lambda lines: lines.__setitem__(1, second))
    (finding,) = audit([run]).findings
    assert finding.where.endswith("audit.jsonl:3")


def test_iterations_that_go_back_are_found(tmp_path: Path) -> None:
    report = audit([write(tmp_path / "run", line(0), line(5), line(3))])
    assert [finding.what for finding in report.findings] == [
        "iteration goes back from 5 to 3",
        "step goes back from 500 to 300",
    ]


def test_several_runs_share_one_report_and_many_findings_are_cut_short(tmp_path: Path) -> None:
    good = write(tmp_path / "good", line(0))
    bad = write(tmp_path / "bad", *(line(i, accepted=1.0) for i in range(50)))
    report = audit([good, bad])
    assert [row.run.name for row in report.rows] == ["good", "bad"]
    assert len(report.findings) == 50
    text = report.render()
    assert "... and 30 more" in text
    assert "NOT KEPT: 50 of 51" in text


def test_logs_that_cannot_be_audited_are_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no runs"):
        audit([])
    with pytest.raises(AuditError, match=r"no such run: .*missing"):
        audit([tmp_path / "missing"])
    with pytest.raises(AuditError, match=r"has no audit\.jsonl"):
        audit([tmp_path])
    (tmp_path / "audit.jsonl").write_text("")
    with pytest.raises(AuditError, match="is empty") as caught:
        audit([tmp_path])
    assert isinstance(caught.value, UserError)
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditError, match="cannot read"):
        audit([tmp_path])


def test_a_log_that_is_cut_off_is_refused_at_every_length(tmp_path: Path) -> None:
    run = write(tmp_path / "run", line(0), line(1))
    path = run / "audit.jsonl"
    whole = path.read_bytes()
    ends = {index + 1 for index, byte in enumerate(whole) if byte == ord("\n")}
    for length in set(range(1, len(whole))) - ends:
        path.write_bytes(whole[:length])
        with pytest.raises(AuditError, match=r"audit\.jsonl:[12]: the last line is cut off"):
            audit([run])


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "maybe"},
        {"guarantee": "firm"},
        {"iteration": -1},
        {"backtracks": 1.5},
        {"accepted": "much"},
        {"bound": True},
        {"learner": 3},
    ],
)
def test_a_field_of_another_kind_is_refused_with_its_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = write(tmp_path / "run", line(0), line(1, **changes))
    with pytest.raises(AuditError, match=r"audit\.jsonl:2: not an audit line"):
        audit([run])


@pytest.mark.parametrize("text", ["not json", "[]", "3", "{}", json.dumps({"digest": "x"}), "\xff"])
def test_a_line_that_is_no_audit_line_is_refused(tmp_path: Path, text: str) -> None:
    run = write(tmp_path / "run", line(0))
    with (run / "audit.jsonl").open("ab") as file:
        file.write(text.encode("latin-1") + b"\n")
    with pytest.raises(AuditError, match=r"audit\.jsonl:2: not an audit line"):
        audit([run])


def anchor_line(index: int = 0, **changes: Any) -> dict[str, Any]:
    """What the Guard writes of a bound to an anchor."""
    return {
        "iteration": index,
        "step": index * 100,
        "learner": "uav_0",
        "kind": "anchor",
        "guarantee": "hard",
        "bound": 0.05,
        "before": 0.03,
        "limit": 0.05,
        "direction": "kl_anchor_new",
        "proposed": 0.08,
        "accepted": 0.049,
        "outcome": "interpolated",
        "backtracks": 0,
        "reason": "",
        **changes,
    }


def test_bounds_to_anchors_have_rows_of_their_own(tmp_path: Path) -> None:
    beyond = {"before": 0.07, "limit": 0.07, "accepted": 0.06}
    report = audit([write(tmp_path / "run", line(0), anchor_line(0), line(1), anchor_line(1, **beyond))])
    assert report.ok
    policy, anchor = report.rows
    assert (policy.kind, policy.updates, policy.began_beyond) == ("policy", 2, 0)
    assert (anchor.kind, anchor.updates, anchor.began_beyond) == ("anchor", 2, 1)
    assert anchor.largest_ratio == pytest.approx(0.049 / 0.05)
    assert "(1 began beyond it on their batch, and went no farther)" in report.render()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"accepted": 0.0501}, "divergence 0.0501 exceeds its bound 0.05 (kl_anchor_new)"),
        ({"before": 0.07, "limit": 0.07, "accepted": 0.0701}, "beyond which it began at 0.07"),
        ({"limit": 0.08}, "limit 0.08 is neither the bound 0.05 nor where the policy was"),
        ({"before": math.nan, "limit": math.nan}, "limit nan is neither"),
    ],
)
def test_a_policy_that_went_farther_from_its_anchor_than_it_may_is_found(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    report = audit([write(tmp_path / "run", line(0), anchor_line(0, **changes))])
    assert any(what in finding.what for finding in report.findings)
    assert not report.ok


def test_the_bound_of_an_update_is_not_loosened_by_a_distance_before_it(tmp_path: Path) -> None:
    report = audit([write(tmp_path / "run", line(0, before=1.0, accepted=0.5))])
    assert not report.ok


def shares(iteration: int, *bounds: float, joint: float = 0.03, **changes: Any) -> list[dict[str, Any]]:
    """Lines of learners that have a bound together; each spends all of its share."""
    return [
        line(iteration, learner=f"uav_{k}", bound=bound, joint_bound=joint, **{"accepted": bound, **changes})
        for k, bound in enumerate(bounds)
    ]


def test_shares_of_a_joint_bound_are_added_up_an_iteration(tmp_path: Path) -> None:
    run = write(tmp_path / "run", *shares(0, 0.02, 0.004, 0.006), *shares(1, 0.01, 0.01, 0.01))
    report = audit([run])
    assert report.ok
    assert [row.largest_ratio for row in report.rows] == [1.0] * 3


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (shares(0, 0.02, 0.02), "shares come to 0.04, more than the joint bound 0.03"),
        (shares(0, 0.02, 0.02, accepted=0.001), "shares come to 0.04, more than the joint bound 0.03"),
        ([*shares(0, 0.02), *shares(0, 0.01, joint=0.04)], "joint bound 0.04, and 0.03 for others"),
        ([*shares(0, 0.015), *shares(0, None, guarantee="none", accepted=0.5)], "a joint bound without a share"),  # type: ignore[arg-type]
    ],
)
def test_shares_that_are_more_than_the_joint_bound_are_findings(
    tmp_path: Path, lines: list[dict[str, Any]], what: str
) -> None:
    report = audit([write(tmp_path / "run", *lines)])
    assert any(what in finding.what for finding in report.findings)
    assert not report.ok


def test_divergences_that_are_together_beyond_the_joint_bound_are_a_finding(tmp_path: Path) -> None:
    """Each is within its own share but for one, whose violation is a finding of its own."""
    run = write(tmp_path / "run", *shares(0, 0.015), *shares(0, 0.015, accepted=0.02))
    found = [finding.what for finding in audit([run]).findings]
    assert any("divergences come to 0.035, more than the joint bound 0.03" in what for what in found)
    assert any("exceeds its bound 0.015" in what for what in found)
