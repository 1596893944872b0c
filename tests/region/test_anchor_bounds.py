"""The Guard with several limits, on a Gaussian of variance 1 whose mean is all that can be learned.

Its KLs are half of squared distances, so every limit is an interval that can be written down.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from learning_examples import (
    frozen,
    generator,
    make_flow,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_kl,
)
from torch import Tensor, nn

from marl_tr.nn.distributions import Gaussian
from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.learners import Learners
from marl_tr.region.turn import Candidate
from marl_tr.scenario.regularisers import PositionConfig
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)


class MeanPolicy:
    """Two learners' means in front of an input that scales them, so that batches differ."""

    rows = Rows(agents=2, shared=False)
    capabilities = frozenset({Capability.LOG_PROB, Capability.KL})
    direction = "kl_old_new"
    recurrent = False
    observes = False

    def __init__(self, mean: float = 0.0) -> None:
        self.module = nn.Module()
        self.module.mean = nn.Parameter(torch.full((2, 1), mean))

    def _law(self, parameters: Parameters, batch: PolicyBatch) -> Gaussian:
        mean = parameters["mean"].reshape(-1, 1, 1, 1) * batch.observation["scale"]
        return Gaussian(mean, torch.zeros_like(mean))

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        law = self._law(parameters, batch)
        return Evaluation(log_prob=law.log_prob(batch.record["action"]).unsqueeze(-1), entropy=law.entropy(), law=law)

    def divergence(self, anchor: Gaussian, law: Gaussian) -> Tensor:
        return anchor.kl(law).unsqueeze(-1)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.module.state_dict())


def batch_of(scale: float) -> PolicyBatch:
    """Ten decisions a learner, all with input `scale`: every KL is `scale` squared times as large."""
    everything = torch.ones(2, 1, 10, dtype=torch.bool)
    noise = torch.randn(2, 1, 10, 1, generator=generator(0))
    return PolicyBatch(
        observation={"scale": torch.full((2, 1, 10, 1), scale)},
        record={"action": noise},
        memory=None,
        starts=everything,
        mask=everything,
    )


def anchored(bound: float, **settings: Any) -> PositionConfig:
    return PositionConfig.model_validate({"weight": 0.0, "bound": bound, **settings})


def propose(
    learners: Learners, mean: float, *, bound: float | None = None, scale: float = 1.0, **guard: Any
) -> tuple[list[UpdateReport], list[dict[str, Any]]]:
    """Let the Guard decide on that mean for both learners; its reports and audit lines."""
    turn = make_turn(learners.policy, batch_of(scale), learners=learners)
    candidate = Candidate(
        parameters={"mean": torch.full((2, 1), mean)},
        moments=[{"mean": {"marker": torch.tensor(1.0)}}] * 2,
        expected_gain=[None] * 2,
        cg_residual=[None] * 2,
        backtracks=[0] * 2,
        reasons=[""] * 2,
    )
    lines: list[dict[str, Any]] = []
    reports = Guard(lambda line: lines.append(dict(line)), **guard).accept(
        make_region("measured", bound=bound), turn, candidate
    )
    return reports, lines


def means(learners: Learners) -> list[float]:
    return [float(p) for p in learners.policy.module.get_parameter("mean").detach().flatten()]


def test_of_two_limits_the_nearer_one_stops_the_step() -> None:
    """From 0 to 3: the update may have length 1, the anchor at 0 may be 1/2 away, or 2."""
    for bound_to_anchor, least, most in ((0.125, 0.45, 0.5), (2.0, 0.9, 1.0)):
        learners = make_learners(MeanPolicy(), anchored(bound_to_anchor))  # type: ignore[arg-type]
        reports, _ = propose(learners, 3.0, bound=0.5)
        assert all(least < mean <= most for mean in means(learners))
        assert {report.outcome for report in reports} == {"interpolated"}
        assert learners.moments == [{}, {}]


def test_the_bound_to_an_anchor_holds_without_a_bound_on_updates_and_over_many_of_them() -> None:
    learners = make_learners(MeanPolicy(), anchored(0.5))  # type: ignore[arg-type]
    for _ in range(20):
        reports, lines = propose(learners, means(learners)[0] + 0.3)
        assert all(mean**2 / 2 <= 0.5 for mean in means(learners))
    assert all(0.95 < mean <= 1.0 for mean in means(learners))
    anchor = [line for line in lines if line["kind"] == "anchor"]
    assert [line["learner"] for line in lines] == ["learner_0", "learner_0", "learner_1", "learner_1"]
    assert reports[0].guarantee == "none"
    for line, mean in zip(anchor, means(learners), strict=True):
        assert line["guarantee"] == "hard"
        assert line["bound"] == line["limit"] == 0.5
        assert line["accepted"] == pytest.approx(mean**2 / 2, rel=1e-6)
        assert line["direction"] == "kl_anchor_new"


def test_a_moving_anchor_lets_a_policy_travel_with_it() -> None:
    learners = make_learners(MeanPolicy(), anchored(0.5, anchor={"kind": "period", "every": 2}))  # type: ignore[arg-type]
    visited = []
    for _ in range(6):
        propose(learners, means(learners)[0] + 0.8)
        visited.append(means(learners)[0])
    # Two updates may go 1 in all: the first is whole, the second is cut, then the anchor follows.
    assert visited[0] == pytest.approx(0.8)
    for leg in range(3):
        start = visited[2 * leg - 1] if leg else 0.0
        assert visited[2 * leg + 1] - start <= 1.0 + 1e-6
        assert visited[2 * leg + 1] - start > 0.9


def test_beyond_the_bound_on_another_batch_a_policy_may_come_home_but_go_no_farther() -> None:
    learners = make_learners(MeanPolicy(), anchored(0.5))  # type: ignore[arg-type]
    propose(learners, 0.9)
    # With inputs twice as large the same policy is 4 times as far: 1.62 instead of 0.405.
    _, lines = propose(learners, 1.5, scale=2.0, max_interpolations=5)
    assert lines[0]["outcome"] == "rejected"
    assert means(learners) == pytest.approx([0.9, 0.9])
    anchor = lines[1]
    assert anchor["before"] == anchor["limit"] == anchor["accepted"] == pytest.approx(1.62, rel=1e-6)
    assert anchor["proposed"] == pytest.approx(4.5, rel=1e-6)
    assert "where the policy already was on this batch" in anchor["reason"]
    _, lines = propose(learners, 0.7, scale=2.0)
    assert lines[0]["outcome"] == "accepted"
    assert lines[1]["limit"] == pytest.approx(1.62, rel=1e-6)
    assert lines[1]["accepted"] == pytest.approx(0.98, rel=1e-5)
    assert "may not go farther" in lines[1]["reason"]


def test_a_step_through_the_anchor_to_the_other_side_is_cut_there() -> None:
    learners = make_learners(MeanPolicy(), anchored(0.5))  # type: ignore[arg-type]
    propose(learners, 0.9)
    reports, _ = propose(learners, -3.0)
    assert all(-1.0 <= mean < -0.9 for mean in means(learners))
    assert {report.backtracks for report in reports} == {1}  # the parabola is exact here


def test_two_anchors_have_two_audit_lines_and_both_hold() -> None:
    terms = anchored(0.5), anchored(0.02, anchor={"kind": "period", "every": 1})
    learners = make_learners(MeanPolicy(), *terms)  # type: ignore[arg-type]
    _, lines = propose(learners, 3.0)
    assert [line["kind"] for line in lines] == ["policy", "anchor", "anchor_2"] * 2
    assert all(0.18 < mean <= 0.2 for mean in means(learners))
    assert "anchor_2" in lines[2]["reason"]


def test_where_no_interpolation_meets_both_the_row_is_rejected() -> None:
    learners = make_learners(MeanPolicy(), anchored(1e-4))  # type: ignore[arg-type]
    reports, lines = propose(learners, 1e3, bound=1e-4, max_interpolations=0)
    assert {report.outcome for report in reports} == {"rejected"}
    assert means(learners) == [0.0, 0.0]
    assert "every interpolation" in reports[0].reason
    assert lines[1]["accepted"] == 0.0


def test_a_candidate_that_is_not_finite_has_finite_anchor_lines_of_what_stays() -> None:
    learners = make_learners(MeanPolicy(), anchored(0.5))  # type: ignore[arg-type]
    propose(learners, 0.4)
    _, lines = propose(learners, math.nan)
    assert lines[0]["outcome"] == lines[1]["outcome"] == "rejected"
    assert lines[1]["accepted"] == pytest.approx(0.08, rel=1e-6)


@pytest.mark.parametrize("name", ["measured", "trpo"])
@pytest.mark.parametrize("kind", ["gaussian", "categorical", "flow"])
def test_no_adversarial_update_leaves_the_bound_to_a_frozen_anchor(name: str, kind: str) -> None:
    """Wild advantages, one batch for all updates: the distance from the start never exceeds its bound."""
    bound, noise = 0.02, generator(3)
    policy = make_flow(shared=False) if kind == "flow" else make_policy(kind, agents=2, hidden=[6])
    learners = make_learners(policy, anchored(bound))
    start, batch = frozen(policy), play(policy, steps=3, environments=6)
    optimizer = OptimizerSection(learning_rate=0.05, epochs=2, max_grad_norm=1e6)
    settings = {"subsample": 1.0, "damping": 1e-3, "bound": 0.01} if name == "trpo" else {}
    region = make_region(name, optimizer=optimizer, **settings)
    reached = 0.0
    for update in range(12):
        advantage = 10.0 * torch.randn(batch.mask.shape, generator=noise)
        turn = make_turn(policy, batch, learners=learners, advantage=advantage, seed=update)
        Guard(lambda line: None).accept(region, turn, region.propose(turn))
        if kind == "flow":
            apart = policy.divergence(
                policy.evaluate(start, batch).law, policy.evaluate(frozen(policy), batch).law
            ).detach()
            divergence = mean_over(apart.double().sum(-1), batch.mask)
        else:
            divergence = mean_over(torch_kl(kind, policy, start, frozen(policy), batch), batch.mask)
        assert max(divergence) <= bound * (1 + 1e-4)
        reached = max(reached, *divergence)
    assert reached > 0.5 * bound
