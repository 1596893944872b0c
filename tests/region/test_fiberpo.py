"""Budgets of levels: what passes, what is cut off, and by whom."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cohort_examples import column, decisions_of, gain_and_gradient
from family_examples import policy_of, region_of, turn_for
from learning_examples import generator
from pydantic import ValidationError
from torch import Tensor

torch.set_num_threads(1)

FORMS: list[dict[str, Any]] = [{}, {"base_gate": "apc"}, {"levels": "domain"}]
IDS = ["clip", "apc", "domain"]
COHORT = (torch.arange(6) // 2).expand(1, 4, 6)


def gated(log_ratio: Tensor, **settings: Any) -> Tensor:
    """``log w~`` of ``[R, T, N, k]``: a gain with advantages of 1 is ``w~``."""
    mask = settings.pop("mask", None)
    labels = settings.pop("labels", {"cohort": (torch.arange(log_ratio.shape[2]) // 2).expand(log_ratio.shape[:3])})
    return region_of("fiberpo", **settings).gain(decisions_of(log_ratio, 1.0, mask=mask, labels=labels), None).log()


def jacobian(log_ratio: Tensor, **settings: Any) -> Tensor:
    """Of ``log w~`` in the log-ratios, ``[T N k, T N k]``."""
    found = torch.autograd.functional.jacobian(lambda x: gated(x, **settings), log_ratio)
    return found.reshape(log_ratio.numel(), log_ratio.numel())


def wild(shape: tuple[int, ...], scale: float, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("settings", FORMS, ids=IDS)
def test_at_the_old_policy_the_jacobian_is_the_identity(settings: dict[str, Any]) -> None:
    found = jacobian(torch.zeros(1, 4, 6, 2, dtype=torch.float64), **settings)
    torch.testing.assert_close(found, torch.eye(48, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("settings", FORMS, ids=IDS)
def test_within_all_budgets_nothing_is_changed(settings: dict[str, Any]) -> None:
    x = wild((1, 4, 6, 2), 0.02)
    torch.testing.assert_close(gated(x, **settings), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("drift", [0.5, -0.5])
def test_a_drift_of_a_whole_trajectory_is_cut_to_the_budget_and_does_not_leak_through_the_decisions(
    drift: float,
) -> None:
    """0.2, where residuals against the gated mean would let 0.4 through."""
    passed = gated(column(*[drift] * 5))
    torch.testing.assert_close(passed, torch.full_like(passed, math.copysign(0.2, drift)))


def test_the_fiber_is_cut_by_its_own_budget_about_the_mean() -> None:
    passed = gated(column(0.6, -0.4, 0.1, 0.1), delta=0.3, epsilon=0.25)
    torch.testing.assert_close(passed.flatten(), torch.tensor([0.35, -0.15, 0.1, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("base_gate", ["clip", "apc"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-0.5, -0.19, 0.0, 0.19, 0.5])
def test_one_decision_alone_has_a_two_sided_clip(log_ratio: float, advantage: float, base_gate: str) -> None:
    gain, gradient = gain_and_gradient("fiberpo", column(log_ratio), advantage, base_gate=base_gate)
    clipped = min(max(log_ratio, -0.2), 0.2)
    assert gain.item() == pytest.approx(math.exp(clipped) * advantage)
    assert gradient.item() == pytest.approx(advantage * math.exp(log_ratio) if abs(log_ratio) < 0.2 else 0)


@pytest.mark.parametrize(
    ("settings", "most"), [({}, 0.4), ({"base_gate": "apc"}, 0.4), ({"levels": "domain"}, 0.65)], ids=IDS
)
def test_no_ratio_exceeds_the_sum_of_the_budgets(settings: dict[str, Any], most: float) -> None:
    largest = 0.0
    for seed in range(40):
        found = gated(wild((1, 4, 6, 1), 0.1 * 1.2**seed, seed) + wild((1, 1, 6, 1), 0.3, seed), **settings)
        largest = max(largest, float(found.abs().max()))
    assert 0.9 * most < largest <= most + 1e-12


@pytest.mark.parametrize("settings", FORMS[:2], ids=IDS[:2])
def test_of_two_levels_the_jacobian_is_block_diagonal_over_trajectories(settings: dict[str, Any]) -> None:
    found = jacobian(wild((1, 4, 6, 1), 0.15), **settings).reshape(4, 6, 4, 6)
    for n in range(6):
        for m in range(6):
            if n != m:
                assert bool((found[:, n, :, m] == 0).all())
    blocks = found.diagonal(dim1=1, dim2=3)
    assert bool((blocks.abs().sum((0, 1)) > 0).any())


def test_of_four_levels_trajectories_of_a_cohort_hang_together_once_a_budget_is_spent() -> None:
    """Trajectory 0 is cut at 0.2 above its cohort, whose mean its mate moves; the others' cohorts have no part."""
    x = torch.zeros(1, 4, 6, 1, dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 0.25, -0.25
    found = jacobian(x, levels="domain").reshape(4, 6, 4, 6)
    torch.testing.assert_close(found[:, 0, :, 1], torch.full((4, 4), 1 / 8, dtype=torch.float64))
    torch.testing.assert_close(found[:, 0, :, 5], torch.zeros(4, 4, dtype=torch.float64))


def test_four_levels_by_loops_over_plain_numbers() -> None:
    x = wild((1, 4, 6, 1), 0.4, seed=3)
    mask = torch.rand(1, 4, 6, generator=generator(4)) < 0.7
    domain = torch.tensor([0, 0, 0, 0, 1, 1]).expand(1, 4, 6)
    passed = gated(x, levels="domain", mask=mask, labels={"cohort": COHORT, "domain": domain})
    values = x[0, ..., 0]

    def mean(columns: list[int]) -> float:
        return float(torch.cat([values[mask[0, :, n], n] for n in columns]).mean())

    def cut(value: float, budget: float) -> float:
        return min(max(value, -budget), budget)

    for t, n in mask[0].nonzero().tolist():
        far = mean([0, 1, 2, 3] if n < 4 else [4, 5])
        near, own = mean([n - n % 2, n - n % 2 + 1]), mean([n])
        expected = cut(far, 0.1) + cut(near - far, 0.15) + cut(own - near, 0.2) + cut(float(values[t, n]) - own, 0.2)
        assert float(passed[0, t, n, 0]) == pytest.approx(expected)


def test_without_domains_all_decisions_are_of_one() -> None:
    x = wild((2, 4, 6, 1), 0.4, seed=6)
    cohort = COHORT.expand(2, 4, 6)
    one = torch.zeros(2, 4, 6, dtype=torch.int64)
    mine = gated(x, levels="domain", labels={"cohort": cohort})
    torch.testing.assert_close(mine, gated(x, levels="domain", labels={"cohort": cohort, "domain": one}))
    # Learners are apart.
    alone = gated(x[:1], levels="domain", labels={"cohort": COHORT})
    torch.testing.assert_close(mine[:1], alone)


def test_apc_gives_each_decision_what_the_others_leave() -> None:
    """B_t = max(0, T delta - sum of the others): 0.8 in all for four decisions, the residuals free here."""
    for values in ([0.3, -0.3, 0.1, 0.0], [0.5, 0.2, -0.1, 0.15], [0.9, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]):
        limits = [max(0.0, 0.8 - sum(abs(v) for j, v in enumerate(values) if j != i)) for i in range(4)]
        base = sum(min(max(v, -b), b) for v, b in zip(values, limits, strict=True)) / 4
        mean = sum(values) / 4
        expected = torch.tensor([base + v - mean for v in values], dtype=torch.float64)
        passed = gated(column(*values), base_gate="apc", epsilon=100.0).flatten()
        torch.testing.assert_close(passed, expected)
    assert gated(column(0.5, 0.5, 0.5, 0.5), base_gate="apc").abs().max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("drift", "advantage"), [(0.5, 1.0), (0.5, -1.0), (-0.5, 1.0), (-0.5, -1.0)])
def test_the_pessimistic_form_keeps_the_gradient_that_leads_back(drift: float, advantage: float) -> None:
    shut = gain_and_gradient("fiberpo", column(drift, drift), advantage)[1]
    assert bool((shut == 0).all())
    gain, gradient = gain_and_gradient("fiberpo", column(drift, drift), advantage, pessimistic=True)
    back = drift * advantage < 0
    passed = drift if back else math.copysign(0.2, drift)
    torch.testing.assert_close(gain, torch.full_like(gain, math.exp(passed) * advantage))
    expected = advantage * math.exp(drift) if back else 0.0
    torch.testing.assert_close(gradient, torch.full_like(gradient, expected))


def test_gradients_agree_with_finite_differences() -> None:
    for settings in FORMS[::2]:
        x = wild((1, 3, 4, 2), 0.2, seed=9).requires_grad_()
        assert torch.autograd.gradcheck(lambda y, s=settings: gated(y, **s), x)


def test_it_says_how_much_of_its_budget_the_fullest_level_uses() -> None:
    turn = turn_for(policy_of("gaussian"))
    measured = turn.measure({name: p + 0.05 for name, p in turn.learners.parameters(turn.rows).items()})
    gaps, mask = (measured.log_prob - turn.old.log_prob).squeeze(-1), turn.batch.mask
    reach = region_of("fiberpo", delta=0.1, epsilon=0.3).reach(turn, measured)
    for row in range(2):
        shares = []
        for n in range(mask.shape[2]):
            own = gaps[row, :, n][mask[row, :, n]]
            if len(own):
                shares += [abs(float(own.mean())) / 0.1, float((own - own.mean()).abs().max()) / 0.3]
        assert float(reach.value[row]) == pytest.approx(max(shares), rel=1e-4)


def test_apc_is_refused_for_four_levels() -> None:
    with pytest.raises(ValidationError, match="of two levels"):
        region_of("fiberpo", levels="domain", base_gate="apc")


def test_each_form_asks_for_what_it_compares() -> None:
    for settings, needs in (({}, {"trajectory", "whole_trajectories"}), (FORMS[2], {"trajectory", "whole_cohorts"})):
        region = region_of("fiberpo", **settings)
        assert {str(need) for need in region.needs} == set(region.config.needs) == needs
