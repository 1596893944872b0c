"""The Guard: accepts, interpolates or rejects, commits one row at a time, and writes it down."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from learning_examples import (
    frozen,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_kl,
)
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.own_limit import OWN, OWN_TOLERANCE, own_slack
from marl_tr.region.turn import Candidate, Learners, Turn
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

FAST = OptimizerSection(learning_rate=0.05, epochs=4)
AUDIT_FIELDS = {
    "learner",
    "kind",
    "guarantee",
    "bound",
    "direction",
    "proposed",
    "accepted",
    "outcome",
    "backtracks",
    "surrogate_gain",
    "expected_gain",
    "cg_residual",
    "reason",
}


def shifted(turn: Turn, by: float) -> Candidate:
    """A candidate that moves every parameter, with moments that can be told apart."""
    return candidate({name: p + by for name, p in turn.learners.parameters(turn.rows).items()}, len(turn.rows))


def candidate(parameters: Parameters, rows: int) -> Candidate:
    return Candidate(
        parameters=parameters,
        moments=[{"marker": torch.tensor(float(row + 1))} for row in range(rows)],
        expected_gain=[0.5] * rows,
        cg_residual=[None] * rows,
        backtracks=[2] * rows,
        reasons=[""] * rows,
    )


def bits(learners: Learners) -> tuple[Parameters, list[Any]]:
    return frozen(learners.policy), [dict(m) for m in learners.moments]


def warmed_up() -> tuple[Any, Learners, Turn]:
    """A policy whose learners have Adam moments, and its next turn."""
    policy = make_policy("gaussian")
    learners = make_learners(policy)
    region = make_region("measured", optimizer=OptimizerSection(epochs=1))
    turn = make_turn(policy, play(policy, seed=5), learners=learners)
    Guard(lambda line: None).accept(region, turn, region.propose(turn))
    assert all(learners.moments)
    return policy, learners, make_turn(policy, play(policy, seed=6), learners=learners)


def test_a_small_step_is_accepted_as_proposed() -> None:
    policy = make_policy("beta", "gru")
    turn = make_turn(policy, play(policy))
    before, proposal = frozen(policy), shifted(turn, 1e-3)
    reports = Guard(lambda line: None).accept(make_region("measured", bound=1.0), turn, proposal)
    divergence = mean_over(torch_kl("beta", policy, before, frozen(policy), turn.batch), turn.batch.mask)
    assert [r.outcome for r in reports] == ["accepted"] * 3
    assert [r.accepted for r in reports] == [r.proposed for r in reports]
    assert [r.accepted for r in reports] == pytest.approx(divergence, rel=1e-4)
    assert all(torch.equal(p, proposal.parameters[name]) for name, p in frozen(policy).items())
    assert turn.learners.moments == proposal.moments


def test_a_step_beyond_the_bound_is_interpolated_onto_it() -> None:
    policy, _, turn = warmed_up()
    before, proposal = frozen(policy), shifted(turn, 0.3)
    reports = Guard(lambda line: None).accept(make_region("measured", bound=0.01), turn, proposal)
    after = frozen(policy)
    divergence = mean_over(torch_kl("gaussian", policy, before, after, turn.batch), turn.batch.mask)
    for row, report in enumerate(reports):
        assert report.outcome == "interpolated"
        assert report.proposed > 0.01
        assert 0.002 < report.accepted <= 0.01  # near it: the first parabola may fall short
        assert report.accepted == pytest.approx(divergence[row], rel=1e-4)
        assert report.backtracks > 2
        assert "exceeded" in report.reason
        shares = {
            round(float(((after[n][row] - before[n][row]) / 0.3).mean()), 3) for n in before
        }  # one share for all parameters
        assert len(shares) == 1
        assert 0 < shares.pop() < 1


def test_an_interpolation_resets_the_moments() -> None:
    _, learners, turn = warmed_up()
    Guard(lambda line: None).accept(make_region("measured", bound=0.01), turn, shifted(turn, 0.3))
    assert learners.moments == [{}, {}, {}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", [None, 0.01])
def test_a_candidate_that_is_not_finite_is_rejected_bit_identically(value: float, bound: float | None) -> None:
    policy, learners, turn = warmed_up()
    parameters, moments = bits(learners)
    proposal = shifted(turn, 1e-4)
    next(iter(proposal.parameters.values()))[1].view(-1)[0] = value
    reports = Guard(lambda line: None).accept(make_region("measured", bound=bound), turn, proposal)
    assert [r.outcome for r in reports] == ["accepted", "rejected", "accepted"]
    assert "not finite" in reports[1].reason
    assert reports[1].accepted == 0
    assert not reports[1].log_ratio.any()
    assert math.isfinite(reports[1].entropy)
    assert all(torch.equal(p[1], parameters[name][1]) for name, p in frozen(policy).items())
    assert _same(learners.moments[1], moments[1])
    assert learners.moments[0] == proposal.moments[0]


def test_a_regions_own_hard_limit_is_kept_and_written_down() -> None:
    policy, _, turn = warmed_up()
    before, proposal = frozen(policy), shifted(turn, 0.3)
    lines: list[Any] = []
    reports = Guard(lines.append).accept(make_region("fixpo", epsilon=0.01), turn, proposal)
    kl = torch_kl("gaussian", policy, before, frozen(policy), turn.batch)
    largest = torch.where(turn.batch.mask, kl, 0).flatten(1).amax(1).tolist()
    own = [line for line in lines if line["kind"] == OWN]
    assert [line["kind"] for line in lines] == ["policy", OWN] * 3
    assert [report.outcome for report in reports] == ["interpolated"] * 3
    for line, value in zip(own, largest, strict=True):
        assert (line["guarantee"], line["bound"], line["limit"], line["before"]) == ("hard", 0.01, 0.01, 0.0)
        assert line["proposed"] > 0.01
        assert 0.002 < value <= 0.01 + own_slack(0.01)
        assert line["accepted"] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 30.0])
def test_a_regions_own_limit_may_be_exceeded_by_a_share_of_it(limit: float) -> None:
    """Not by a number in nobody's unit: of a limit of 1e-3, 1e-5 would be a percent."""
    assert own_slack(limit) == pytest.approx(limit * OWN_TOLERANCE)


def test_a_regions_own_limit_of_zero_leaves_room_for_rounding() -> None:
    assert 0 < own_slack(0.0) <= 1e-9


def test_where_a_regions_own_limit_holds_nowhere_the_row_is_rejected() -> None:
    policy, learners, turn = warmed_up()
    parameters, moments = bits(learners)
    lines: list[Any] = []
    guard = Guard(lines.append, max_interpolations=0)
    reports = guard.accept(make_region("fixpo", epsilon=1e-3), turn, shifted(turn, 0.3))
    assert {report.outcome for report in reports} == {"rejected"}
    assert all("the region's own measure" in report.reason for report in reports)
    assert [line["accepted"] for line in lines if line["kind"] == OWN] == [0.0] * 3
    assert all(torch.equal(p, parameters[name]) for name, p in frozen(policy).items())
    assert all(_same(now, then) for now, then in zip(learners.moments, moments, strict=True))


def test_where_no_interpolation_fits_the_row_is_rejected_bit_identically() -> None:
    policy, learners, turn = warmed_up()
    parameters, moments = bits(learners)
    guard = Guard(lambda line: None, max_interpolations=0)
    reports = guard.accept(make_region("measured", bound=1e-4), turn, shifted(turn, 0.3))
    assert {r.outcome for r in reports} == {"rejected"}
    assert all("every interpolation" in r.reason for r in reports)
    assert all(torch.equal(p, parameters[name]) for name, p in frozen(policy).items())
    assert all(_same(now, then) for now, then in zip(learners.moments, moments, strict=True))


def test_a_row_that_proposes_nothing_keeps_its_parameters_and_moments() -> None:
    policy, learners, turn = warmed_up()
    parameters, moments = bits(learners)
    proposal = replace(shifted(turn, 1e-4), reasons=["", "the gradient is zero", ""])
    reports = Guard(lambda line: None).accept(make_region("measured"), turn, proposal)
    assert reports[1].reason == "the gradient is zero"
    assert reports[1].outcome == "rejected"
    assert all(torch.equal(p[1], parameters[name][1]) for name, p in frozen(policy).items())
    assert _same(learners.moments[1], moments[1])


def test_without_a_bound_a_long_step_is_measured_and_committed() -> None:
    policy = make_policy("categorical")
    turn = make_turn(policy, play(policy))
    reports = Guard(lambda line: None).accept(make_region("measured"), turn, shifted(turn, 0.5))
    assert {r.outcome for r in reports} == {"accepted"}
    assert {r.guarantee for r in reports} == {"none"}
    assert all(r.bound is None and r.accepted > 0.01 for r in reports)


def test_a_turn_of_one_row_commits_that_row_only() -> None:
    policy, learners, _ = warmed_up()
    parameters, moments = bits(learners)
    turn = make_turn(policy, play(policy), learners=learners, rows=[2])
    Guard(lambda line: None).accept(make_region("measured"), turn, shifted(turn, 1e-3))
    after = frozen(policy)
    assert all(torch.equal(after[name][:2], p[:2]) for name, p in parameters.items())
    assert all(not torch.equal(after[name][2], p[2]) for name, p in parameters.items())
    assert all(_same(learners.moments[row], moments[row]) for row in (0, 1))


def test_every_row_gets_an_audit_line_with_all_fields() -> None:
    lines: list[dict[str, Any]] = []
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))
    proposal = shifted(turn, 0.1)
    next(iter(proposal.parameters.values()))[0] = math.nan
    region = make_region("measured", bound=0.02)
    reports = Guard(lambda line: lines.append(dict(line))).accept(region, turn, proposal)
    assert [line["learner"] for line in lines] == ["learner_0", "learner_1", "learner_2"]
    for line, report in zip(lines, reports, strict=True):
        assert set(line) == AUDIT_FIELDS
        assert line["kind"] == "policy"
        assert line["guarantee"] == "hard"
        assert line["direction"] == "kl_old_new"
        assert line["bound"] == 0.02
        assert line["expected_gain"] == 0.5
        assert line["outcome"] == report.outcome
        assert line["accepted"] <= 0.02
        assert not any(isinstance(value, Tensor) for value in line.values())


def test_reported_log_ratio_gain_and_entropy_are_of_what_is_in_force() -> None:
    policy = make_policy("beta")
    turn = make_turn(policy, play(policy))
    reports: list[UpdateReport] = Guard(lambda line: None).accept(
        make_region("measured", bound=0.01), turn, shifted(turn, 0.4)
    )
    assert {r.outcome for r in reports} == {"interpolated"}
    with torch.no_grad():
        now = policy.evaluate(frozen(policy), turn.batch)
    for row, report in enumerate(reports):
        mask = turn.batch.mask[row]
        log_ratio = now.log_prob[row] - turn.old.log_prob[row]
        torch.testing.assert_close(report.log_ratio, log_ratio)
        gain = ((log_ratio.squeeze(-1).exp() - 1) * turn.advantage[row])[mask].mean()
        assert report.surrogate_gain == pytest.approx(float(gain), abs=1e-6)
        assert report.entropy == pytest.approx(float(now.entropy[row][mask].mean()), abs=1e-6)


def test_learners_restore_what_they_saved() -> None:
    policy, learners, turn = warmed_up()
    saved = copy.deepcopy(learners.state_dict())
    parameters, moments = bits(learners)
    Guard(lambda line: None).accept(make_region("measured"), turn, shifted(turn, 0.1))
    assert not torch.equal(next(iter(frozen(policy).values())), next(iter(parameters.values())))
    restored = make_learners(make_policy("gaussian", seed=9))
    restored.load_state_dict(saved)
    assert all(torch.equal(p, parameters[name]) for name, p in frozen(restored.policy).items())
    assert all(_same(now, then) for now, then in zip(restored.moments, moments, strict=True))


def test_as_many_names_as_rows_are_needed() -> None:
    with pytest.raises(ValueError, match="3 learners need as many names"):
        Learners(make_policy("gaussian"), ["one"])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)
