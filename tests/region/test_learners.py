"""Averages of committed parameters, and policies that act by them."""

from __future__ import annotations

import pytest
import torch
from learning_examples import frozen, make_learners, make_policy, make_region, make_turn, play

from marl_tr.region.guard import Guard
from marl_tr.region.learners import Learners
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)


def update(learners: Learners, seed: int, *, bound: float | None = None, rows: list[int] | None = None) -> None:
    region = make_region("measured", optimizer=OptimizerSection(epochs=1, learning_rate=0.01), bound=bound)
    turn = make_turn(learners.policy, play(learners.policy, seed=seed), learners=learners, rows=rows)
    Guard(lambda line: None, max_interpolations=0).accept(region, turn, region.propose(turn))


def test_the_average_is_the_closed_form_over_committed_updates() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy, average=0.8)
    history = [frozen(policy)]
    for k in range(5):
        update(learners, k)
        history.append(frozen(policy))
    update(learners, 9, bound=1e-12)  # rejected: no update
    with learners.averaged():
        average = frozen(policy)
    for name, p in average.items():
        terms = [history[0][name] * 0.8**5] + [0.2 * 0.8 ** (5 - k) * history[k][name] for k in range(1, 6)]
        torch.testing.assert_close(p, torch.stack(terms).sum(0), rtol=1e-5, atol=1e-6)


def test_a_row_that_did_not_learn_keeps_its_average() -> None:
    policy = make_policy("gaussian")
    start = frozen(policy)
    learners = make_learners(policy, average=0.5)
    update(learners, 0, rows=[1])
    with learners.averaged():
        for name, p in frozen(policy).items():
            assert torch.equal(p[[0, 2]], start[name][[0, 2]])
            assert not torch.equal(p[1], start[name][1])


def test_parameters_come_back_to_the_bit_even_after_an_error() -> None:
    policy = make_policy("gaussian", "gru")
    learners = make_learners(policy, average=0.5)
    update(learners, 0)
    before = frozen(policy)

    def fail() -> None:
        with learners.averaged():
            assert any(not torch.equal(p, before[name]) for name, p in frozen(policy).items())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert all(torch.equal(p, before[name]) for name, p in frozen(policy).items())


def test_without_an_average_a_policy_acts_as_it_is() -> None:
    learners = make_learners(make_policy("gaussian"))
    update(learners, 0)
    before = frozen(learners.policy)
    with learners.averaged():
        assert all(torch.equal(p, before[name]) for name, p in frozen(learners.policy).items())


def test_an_average_that_a_checkpoint_does_not_hold_begins_at_its_parameters() -> None:
    saved = make_learners(make_policy("gaussian", seed=3))
    update(saved, 0)
    restored = make_learners(make_policy("gaussian"), average=0.9)
    restored.load_state_dict(saved.state_dict())
    with restored.averaged():
        assert all(torch.equal(p, frozen(saved.policy)[name]) for name, p in frozen(restored.policy).items())
