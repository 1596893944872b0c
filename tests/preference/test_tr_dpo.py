"""Trust-region DPO: pairs, and a reference that follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from preference_examples import (
    PreferenceTrainer,
    candidates_of,
    data_of,
    frozen,
    generator,
    policy_of,
    settings_of,
)

from marl_tr.preference.config import TrDpoConfig
from marl_tr.preference.tr_dpo import TrDpo

torch.set_num_threads(1)

LN2 = math.log(2)


def trained(anchor: dict[str, Any] | None, updates: int, *, beta: float = 0.5) -> tuple[Any, list[float], Any]:
    """Losses of the first learner before each update, and after the last."""
    policy = policy_of("categorical")
    data = data_of(policy)
    extra = {} if anchor is None else {"anchor": {"weight": 0, "anchor": anchor}}
    settings = settings_of(
        {"kind": "tr_dpo", "beta": beta}, optimizer={"learning_rate": 0.02, "epochs": 1, "max_grad_norm": 2.0}, **extra
    )
    trainer = PreferenceTrainer(policy, settings)
    losses = [float(trainer.loss(data)[0])]
    for _ in range(updates):
        trainer.update(data)
        losses.append(float(trainer.loss(data)[0]))
    return policy, losses, trainer


def test_loss_is_that_of_pairs_by_hand() -> None:
    log_prob = torch.randn(5, generator=generator(1), dtype=torch.float64)
    reference = torch.randn(5, generator=generator(2), dtype=torch.float64)
    score = torch.tensor([1.0, 2.0, 2.0, 0.0, 9.0])
    group = torch.tensor([0, 0, 0, 1, 1])
    value = TrDpo(TrDpoConfig(beta=0.3))(candidates_of(log_prob, reference=reference, group=group, score=score))
    d = log_prob - reference
    pairs = [(1, 0), (2, 0), (4, 3)]  # equal scores are no pair
    losses = [-torch.sigmoid(0.3 * (d[w] - d[b])).log() for w, b in pairs]
    torch.testing.assert_close(value.loss, torch.stack(losses).mean()[None])
    assert value.count.tolist() == [3]
    agreement = sum(float(d[w] > d[b]) for w, b in pairs) / 3
    assert float(value.scalars["preference/agreement"]) == pytest.approx(agreement)


def test_loss_is_ln_2_at_every_sync() -> None:
    _, losses, _ = trained({"kind": "period", "every": 3}, 7)
    for update, loss in enumerate(losses):
        if update % 3 == 0:
            assert loss == pytest.approx(LN2, abs=1e-6)
        else:
            assert loss < LN2 - 1e-3


def test_soft_with_rate_1_is_hard_at_every_step() -> None:
    soft, losses, _ = trained({"kind": "soft", "rate": 1.0}, 4)
    hard, others, _ = trained({"kind": "period", "every": 1}, 4)
    assert losses == others
    assert all(torch.equal(p, frozen(hard)[name]) for name, p in frozen(soft).items())


def test_soft_with_rate_1_at_marks_is_hard_at_marks() -> None:
    soft, _, _ = trained({"kind": "soft", "rate": 1.0, "every": 3}, 5)
    hard, _, _ = trained({"kind": "period", "every": 3}, 5)
    assert all(torch.equal(p, frozen(hard)[name]) for name, p in frozen(soft).items())


def test_a_soft_anchor_between_marks_stays() -> None:
    _, losses, trainer = trained({"kind": "soft", "rate": 0.6, "every": 4}, 3)
    before = trainer.learners.regularisers.terms([0], 0.0)[0].reference
    assert losses[-1] < losses[0]
    data = data_of(trainer.learners.policy)
    trainer.update(data)
    after = trainer.learners.regularisers.terms([0], 0.0)[0].reference
    new = trainer.learners.parameters([0])
    for name, p in after.items():
        torch.testing.assert_close(p, before[name] + 0.6 * (new[name] - before[name]))


def test_a_rate_of_almost_0_is_dpo() -> None:
    still, losses, _ = trained({"kind": "soft", "rate": 1e-12}, 6)
    dpo, others, _ = trained(None, 6)
    assert losses == pytest.approx(others, abs=1e-6)
    for name, p in frozen(dpo).items():
        torch.testing.assert_close(frozen(still)[name], p, rtol=1e-5, atol=1e-7)


def test_the_default_anchor_is_the_policy_at_the_start() -> None:
    policy = policy_of("categorical")
    start = frozen(policy)
    data = data_of(policy)
    trainer = PreferenceTrainer(policy, settings_of({"kind": "tr_dpo", "beta": 0.5}))
    for _ in range(3):
        trainer.update(data)
    with torch.no_grad():
        now = policy.evaluate(frozen(policy), data.batch).log_prob
        then = policy.evaluate(start, data.batch).log_prob
    ratio = torch.where(data.batch.mask, (now - then).squeeze(-1), 0).sum(1)
    expected = []
    for row in range(len(ratio)):
        losses = [
            -torch.sigmoid(0.5 * (ratio[row, i] - ratio[row, j])).log()
            for i in range(ratio.shape[1])
            for j in range(ratio.shape[1])
            if data.group[row, i] == data.group[row, j] and data.score[row, i] > data.score[row, j]
        ]
        expected.append(torch.stack(losses).mean())
    torch.testing.assert_close(trainer.loss(data), torch.stack(expected), rtol=1e-5, atol=1e-6)
