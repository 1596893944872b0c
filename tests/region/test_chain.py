"""Measures by chain step against plain loops over decisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_examples import frozen, make_flow, make_learners, make_policy, make_region, make_turn, play

from marl_tr.objective.config import ClippedRatioConfig
from marl_tr.objective.ratio import ClippedRatio
from marl_tr.region.guard import Guard
from marl_tr.scenario.regularisers import PositionConfig
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

STEPS = 4


def test_measures_are_those_of_a_loop_over_decisions_and_steps() -> None:
    policy = make_flow(shared=False, steps=STEPS, sampler="cps")
    learners = make_learners(policy, PositionConfig.model_validate({"weight": 0.1}))
    objective = ClippedRatio(ClippedRatioConfig(clip=0.05, reduction="mean"))
    region = make_region("measured", optimizer=OptimizerSection(learning_rate=0.02, epochs=2))
    guard = Guard(lambda line: None)
    first = make_turn(policy, play(policy, seed=4), learners=learners, objective=objective)
    start = frozen(policy)
    guard.accept(region, first, region.propose(first))
    before, batch = frozen(policy), play(policy, seed=5)
    turn = make_turn(policy, batch, learners=learners, objective=objective)
    reports = guard.accept(region, turn, region.propose(turn))
    anchor, old, new = (policy.evaluate(p, batch) for p in (start, before, frozen(policy)))
    for row, report in enumerate(reports):
        mask = batch.mask[row]
        assert set(report.chain) == {
            "log_ratio_mean",
            "log_ratio_std",
            "clip_fraction",
            "divergence",
            "kl_anchor",
            "weight",
            "std",
        }
        assert all(len(values) == STEPS for values in report.chain.values())
        for k in range(STEPS):
            moved = (new.log_prob - old.log_prob)[row, ..., k][mask].detach().double().numpy()
            std = float(old.law.std[row, 0, 0, k])
            assert report.chain["log_ratio_mean"][k] == pytest.approx(moved.mean(), abs=1e-6)
            assert report.chain["log_ratio_std"][k] == pytest.approx(moved.std(), abs=1e-6)
            outside = np.abs(np.exp(moved / 2) - 1) > 0.05
            assert report.chain["clip_fraction"][k] == pytest.approx(outside.mean(), abs=0.02)
            assert report.chain["std"][k] == pytest.approx(std, rel=1e-6)
            for name, other in (("divergence", old), ("kl_anchor", anchor)):
                gap = (new.law.mean - other.law.mean)[row, ..., k, :][mask].detach().double().square().sum(-1)
                expected = float((gap / (2 * std**2)).mean()) if std > 0 else 0.0
                assert report.chain[name][k] == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert report.chain["divergence"][-1] == 0  # the last step of cps is deterministic
        assert sum(report.chain["divergence"]) == pytest.approx(report.accepted, rel=1e-6)
        assert sum(report.chain["kl_anchor"]) == pytest.approx(report.regularisers["kl_anchor"], rel=1e-6)


def test_a_policy_without_a_chain_has_no_measures_by_step() -> None:
    policy = make_policy("gaussian")
    region = make_region("measured", optimizer=OptimizerSection(epochs=1))
    turn = make_turn(policy, play(policy))
    reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    assert all(report.chain == {} for report in reports)
    assert all("chain" not in report.audit_line() for report in reports)
