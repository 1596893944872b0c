"""ERPD's second stage: the advantage, and where it leads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from preference_examples import PreferenceTrainer, data_of, frozen, generator, make_policy, policy_of, settings_of
from pydantic import ValidationError

from marl_tr.preference.config import ErpdConfig
from marl_tr.preference.data import BadPreferences, Candidates
from marl_tr.preference.erpd import Erpd, erpd_advantage

torch.set_num_threads(1)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("lam", [1.0, 2.5, 0.7])
def test_the_optimum_is_the_geometric_mixture(lam: float) -> None:
    teacher, base = (x.log_softmax(-1) for x in draw(0, 2, 7))
    shape = (1, 1, 7, 1)
    rho = erpd_advantage(
        teacher.reshape(shape), base.reshape(shape), torch.ones(1, 1, 7, dtype=torch.bool), normalise=False
    ).flatten()
    logits = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_p = logits.log_softmax(-1)
        loss = -(log_p.exp() * (rho - lam * (log_p - base))).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mixture = (base + (teacher - base) / lam).softmax(-1)
    torch.testing.assert_close(logits.detach().softmax(-1), mixture, rtol=0, atol=1e-6)
    if lam == 1:
        torch.testing.assert_close(mixture, teacher.exp())


def test_normalised_advantages_have_mean_0_and_deviation_1_over_what_is_masked_in() -> None:
    teacher, base = draw(1, 2, 3, 5, 2), draw(2, 2, 3, 5, 2)
    mask = torch.rand(2, 3, 5, generator=generator(3)) < 0.7
    a = erpd_advantage(teacher, base, mask)
    for row in range(2):
        kept = a[row][mask[row]]
        assert float(kept.mean()) == pytest.approx(0, abs=1e-12)
        assert float(kept.std(correction=0)) == pytest.approx(1, abs=1e-12)
        assert not a[row][~mask[row]].any()


def test_of_a_weak_teacher_only_what_agrees_with_the_outcome_is_kept() -> None:
    teacher, base, outcome = draw(4, 1, 2, 6, 1), draw(5, 1, 2, 6, 1), draw(6, 1, 2, 6)
    mask = torch.ones(1, 2, 6, dtype=torch.bool)
    a = erpd_advantage(teacher, base, mask, normalise=False, outcome=outcome)
    rho = teacher - base
    agree = (rho * outcome.unsqueeze(-1)) > 0
    assert bool(agree.any() and not agree.all())
    torch.testing.assert_close(a, torch.where(agree, rho, 0))
    scaled = erpd_advantage(teacher, base, mask, outcome=outcome)
    assert ((scaled != 0) == agree).all()
    assert float(scaled.square().mean()) == pytest.approx(1)


def test_outcomes_are_scores_less_their_groups_mean() -> None:
    shape = (1, 1, 4, 1)
    labels = {
        "group": torch.tensor([0, 1, 0, 1]).reshape(1, 1, 4),
        "score": torch.tensor([5.0, 1.0, 3.0, 2.0]).reshape(1, 1, 4),
        "reference": torch.zeros(shape),
        "teacher": torch.ones(shape),
    }
    candidates = Candidates(torch.zeros(shape), torch.zeros(shape), torch.ones(1, 1, 4, dtype=torch.bool), labels)
    advantage = Erpd(ErpdConfig(consistent=True, normalise=False)).labels(candidates)["advantage"]
    assert advantage.flatten().tolist() == [1, 0, 0, 1]


def test_it_needs_a_teacher_and_a_base_that_stays() -> None:
    policy = policy_of("categorical")
    with pytest.raises(BadPreferences, match="teacher="):
        PreferenceTrainer(policy, settings_of({"kind": "erpd"})).update(data_of(policy))
    with pytest.raises(ValidationError, match="frozen"):
        settings_of({"kind": "erpd"}, anchor={"weight": 1.0, "anchor": {"kind": "period"}})


def test_the_second_stage_goes_from_the_base_to_the_mixture() -> None:
    """On its own decisions, with lam = 2: half the teacher's way in log-probabilities."""
    policy = make_policy("categorical", agents=1, shared=True, hidden=[8])
    teacher = frozen(make_policy("categorical", agents=1, shared=True, hidden=[8], seed=3, head_gain=1.0))
    base = frozen(policy)
    settings = settings_of(
        {"kind": "erpd", "normalise": False},
        anchor={"weight": 2.0},
        optimizer={"learning_rate": 3e-3, "epochs": 2},
        bound=0.02,
    )
    trainer = PreferenceTrainer(policy, settings, teacher=teacher)
    reports: list[Any] = []
    for update in range(120):
        reports += trainer.update(data_of(policy, steps=1, candidates=256, seed=update))
    assert max(report.accepted for report in reports) <= 0.02
    probe = data_of(policy, steps=1, candidates=128, seed=999).batch
    with torch.no_grad():
        laws = [policy.law_parameters(p, probe)[0].log_softmax(-1) for p in (frozen(policy), base, teacher)]
    now, start, goal = laws
    mixture = (start + (goal - start) / 2).log_softmax(-1)

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.exp() * (a - b)).sum(-1).mean())

    assert apart(mixture, now) < 0.1 * apart(mixture, start)
    assert apart(mixture, now) < 0.3 * apart(goal, now)
