"""Every registered region that promises a hard bound, pushed as hard as it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_examples import pairs, policy_of, region_of, turn_for
from learning_examples import (
    LAWS,
    frozen,
    generator,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_kl,
)

from marl_tr.region.guard import Guard
from marl_tr.region.learners import Learners
from marl_tr.registry import find, names
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

BOUND = 0.01
WHOLE = ("trpo", "measured")
"""With every law: those whose steps all others are variations of."""
OTHERS = [pair for pair in pairs() if pair[0] not in WHOLE]
OWN = [(name, kind) for name, kind in OTHERS if region_of(name).own_guarantee == "hard"]


def test_every_region_with_a_bound_is_hard() -> None:
    assert {make_region(name, bound=BOUND).guarantee for name in names("regions")} == {"hard"}
    assert {"fixpo", "trpl"} <= {name for name, _ in OWN}


@pytest.mark.parametrize(("name", "kind"), OTHERS)
def test_the_guard_keeps_the_mean_of_whatever_a_mechanism_proposes(name: str, kind: str) -> None:
    noise = generator(8)
    learners = _learners(name, kind)
    for update in range(3):
        turn = turn_for(learners.policy, steps=3, environments=4, seed=update, learners=learners)
        turn = replace(turn, advantage=_wild(turn.batch.mask.shape, noise))
        region = region_of(name, learning_rate=0.05, bound=BOUND)
        Guard(lambda line: None).accept(region, turn, region.propose(turn))
        committed = turn.measure(learners.parameters(turn.rows)).divergence
        assert float(committed.max()) <= BOUND * (1 + 1e-6), f"update {update}"


@pytest.mark.parametrize("updates", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "kind"), OWN)
def test_no_adversarial_update_leaves_a_mechanisms_own_hard_limit(name: str, kind: str, updates: int) -> None:
    """Without a bound on the mean: what is committed is within what the mechanism itself promises."""
    noise = generator(9)
    learners = _learners(name, kind)
    for update in range(updates):
        turn = turn_for(learners.policy, steps=2, environments=4, seed=update, learners=learners)
        turn = replace(turn, advantage=_wild(turn.batch.mask.shape, noise))
        region = region_of(name, learning_rate=0.1 * 10 ** (-2 * float(torch.rand((), generator=noise))))
        (*reports,) = Guard(lambda line: None).accept(region, turn, region.propose(turn))
        for report in reports:
            reach = report.measures[f"region/reach/{report.learner}"]
            limit = report.measures[f"region/limit/{report.learner}"]
            assert reach <= limit + max(1e-5 * limit, 1e-9), f"update {update}"


def _learners(name: str, kind: str) -> Learners:
    deployed = getattr(region_of(name), "deployed", None)
    policy = policy_of(kind)
    return make_learners(policy if deployed is None else deployed(policy))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", WHOLE)
def test_no_adversarial_update_leaves_the_bound(name: str, law: str) -> None:
    """Twenty-five updates a law, a hundred a region: wild advantages, rates up to 0.1, parameters that drift on."""
    noise = generator(7)
    policy = make_policy(law, "gru" if law in ("beta", "categorical") else "mlp", agents=2, hidden=[6])
    learners = make_learners(policy)
    outcomes: list[str] = []
    for update in range(25):
        batch = play(policy, steps=3, environments=5, seed=update)
        turn = make_turn(policy, batch, learners=learners, advantage=_wild(batch.mask.shape, noise), seed=update)
        region = _region(name, float(torch.rand((), generator=noise)))
        before = frozen(policy)
        reports = Guard(lambda line: None).accept(region, turn, region.propose(turn))
        divergence = mean_over(torch_kl(law, policy, before, frozen(policy), batch), batch.mask)
        assert max(divergence) <= BOUND * (1 + 1e-6), f"update {update}"
        for report, measured in zip(reports, divergence, strict=True):
            assert report.accepted <= BOUND
            # In float32 a divergence is known to about the rounding of its law's parameters.
            assert report.accepted == pytest.approx(measured, rel=1e-3, abs=1e-7)
        outcomes += [report.outcome for report in reports]
    assert outcomes.count("rejected") < len(outcomes) / 2


def _wild(shape: torch.Size, noise: torch.Generator) -> torch.Tensor:
    scale = 10 ** (6 * torch.rand((), generator=noise) - 3)
    tails = torch.randn(shape, generator=noise) / torch.rand(shape, generator=noise).clamp_min(1e-2)
    return scale * tails


def _region(name: str, share: float) -> Any:
    config = find("regions", name).load_config()
    rate = 0.1 * 10 ** (-2 * share)
    optimizer = OptimizerSection(learning_rate=rate, epochs=3, minibatches=2, max_grad_norm=1e6)
    settings: dict[str, Any] = {"bound": BOUND}
    if "subsample" in getattr(config, "model_fields", {}):
        # Of fifteen decisions a share says nothing of the rest, and nearly every line search would fail.
        settings |= {"subsample": 1.0, "damping": 1e-3}
    return make_region(name, optimizer=optimizer, **settings)
