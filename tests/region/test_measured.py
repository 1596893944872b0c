"""Gradient steps against torch's own Adam, one learner at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from learning_examples import (
    frozen,
    generator,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    play,
    torch_log_prob,
)
from torch import Tensor

from marl_tr.errors import Diverged
from marl_tr.objective.config import ClippedRatioConfig
from marl_tr.objective.ratio import ClippedRatio
from marl_tr.policy import Evaluation, Parameters, PolicyBatch
from marl_tr.region.guard import Guard
from marl_tr.region.turn import Turn
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

CLIP = ClippedRatio(ClippedRatioConfig(clip=0.2, entropy=0.01))


def adam_by_hand(law: str, turn: Turn, row: int, settings: OptimizerSection) -> Parameters:
    """Epochs of one minibatch for one learner alone: torch.distributions, PPO's loss as printed, torch's Adam."""
    policy, single = turn.learners.policy, turn.only(row)
    batch, mask = single.batch, single.batch.mask
    parameters = {k: p.clone().requires_grad_() for k, p in single.learners.parameters(single.rows).items()}
    optimizer = torch.optim.Adam(list(parameters.values()), lr=settings.learning_rate, eps=1e-5)
    old = torch_log_prob(law, policy.law_parameters(parameters, batch), batch.record["action"]).detach()
    for _ in range(settings.epochs):
        law_parameters = policy.law_parameters(parameters, batch)
        log_prob = torch_log_prob(law, law_parameters, batch.record["action"])
        ratio, advantage = (log_prob - old).exp(), single.advantage
        clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        entropy = policy.evaluate(parameters, batch).entropy
        loss = -(clipped + 0.01 * entropy)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm)
        optimizer.step()
    return {k: p.detach() for k, p in parameters.items()}


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(("law", "network"), [("gaussian", "mlp"), ("beta", "gru"), ("categorical", "mlp")])
def test_whole_batch_epochs_are_torchs_adam_on_each_learner(law: str, network: str, shared: bool, epochs: int) -> None:
    policy = make_policy(law, network, shared=shared)
    settings = OptimizerSection(learning_rate=3e-3, epochs=epochs, minibatches=1, max_grad_norm=0.05)
    turn = make_turn(policy, play(policy), objective=CLIP)
    proposed = make_region("measured", optimizer=settings).propose(turn)
    for row in range(policy.rows.learners):
        expected = adam_by_hand(law, turn, row, settings)
        for name, p in expected.items():
            torch.testing.assert_close(proposed.parameters[name][row], p[0], rtol=1e-4, atol=2e-6)


def test_moments_survive_the_commit_row_by_row() -> None:
    """Two proposals of one epoch, with a commit between, are two epochs of one optimizer."""
    policy = make_policy("gaussian")
    learners = make_learners(policy)
    batch = play(policy)
    one = OptimizerSection(learning_rate=3e-3, epochs=1, max_grad_norm=100.0)
    turn = make_turn(policy, batch, objective=CLIP, learners=learners)
    expected = [adam_by_hand("gaussian", turn, row, one.model_copy(update={"epochs": 2})) for row in range(3)]
    region, guard = make_region("measured", optimizer=one), Guard(lambda line: None)
    guard.accept(region, turn, region.propose(turn))
    assert all(float(state["step"]) == 1 for moments in learners.moments for state in moments.values())
    again = replace(turn, generator=generator(3))  # the same anchor, so that this is a second epoch
    guard.accept(region, again, region.propose(again))
    for row in range(3):
        for name, p in expected[row].items():
            torch.testing.assert_close(frozen(policy)[name][row], p[0], rtol=1e-4, atol=2e-6)


def test_a_turn_of_one_row_leaves_the_other_rows_moments() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy)
    region, guard = make_region("measured", optimizer=OptimizerSection(epochs=2)), Guard(lambda line: None)
    turn = make_turn(policy, play(policy), learners=learners, rows=[1])
    guard.accept(region, turn, region.propose(turn))
    assert learners.moments[0] == {}
    assert learners.moments[2] == {}
    assert set(learners.moments[1]) == set(frozen(policy))


def test_rows_together_learn_as_rows_alone() -> None:
    policy = make_policy("beta", "gru")
    settings = OptimizerSection(epochs=3, minibatches=2, learning_rate=1e-2)
    batch, region = play(policy), make_region("measured", optimizer=settings)
    together = region.propose(make_turn(policy, batch))
    for row in range(3):
        alone = region.propose(make_turn(policy, batch, rows=[row]))
        for name, p in alone.parameters.items():
            torch.testing.assert_close(p[0], together.parameters[name][row], rtol=1e-3, atol=1e-5)


class Witness:
    """A policy that writes down the batches it was asked to evaluate with gradients."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.seen: list[PolicyBatch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        if torch.is_grad_enabled():
            self.seen.append(batch)
        evaluation: Evaluation = self._policy.evaluate(parameters, batch)
        return evaluation


def _witnessed(network: str, minibatches: int, epochs: int = 2) -> tuple[list[PolicyBatch], PolicyBatch]:
    witness = Witness(make_policy("gaussian", network, shared=True))
    batch = play(witness, steps=5, environments=4)
    settings = OptimizerSection(epochs=epochs, minibatches=minibatches)
    make_region("measured", optimizer=settings).propose(make_turn(witness, batch))
    return witness.seen, batch


def test_minibatches_of_a_recurrent_policy_keep_trajectories_whole() -> None:
    seen, batch = _witnessed("gru", minibatches=3)
    assert len(seen) == 6
    assert batch.memory is not None
    whole = batch.observation["observation"][0]
    for epoch in (seen[:3], seen[3:]):
        taken: list[int] = []
        for part in epoch:
            assert part.memory is not None
            for n in range(part.mask.shape[2]):
                matches = [
                    k
                    for k in range(whole.shape[1])
                    if torch.equal(whole[:, k], part.observation["observation"][0, :, n])
                ]
                assert len(matches) == 1
                assert torch.equal(part.memory[0, n], batch.memory[0, matches[0]])
                assert torch.equal(part.starts[0, :, n], batch.starts[0, :, matches[0]])
                taken += matches
        assert sorted(taken) == list(range(12))


def test_minibatches_of_a_policy_without_memory_are_decisions_of_who_was_to_move_each_once_an_epoch() -> None:
    seen, batch = _witnessed("mlp", minibatches=7)
    assert len(seen) == 14
    assert not bool(batch.mask.all())
    assert all(bool(part.mask.all()) for part in seen)
    assert {part.mask.numel() for part in seen} <= {int(batch.mask.sum()) // 7, -(-int(batch.mask.sum()) // 7)}
    for epoch in (seen[:7], seen[7:]):
        rows = torch.cat([part.observation["observation"].flatten(0, 2) for part in epoch])
        assert _sorted(rows).equal(_sorted(batch.observation["observation"][batch.mask]))
    assert not torch.equal(seen[0].observation["observation"], seen[7].observation["observation"])


def test_more_minibatches_than_trajectories_are_as_many_as_there_are() -> None:
    seen, _ = _witnessed("gru", minibatches=100, epochs=1)
    assert len(seen) == 12


def test_epochs_stop_where_the_divergence_says_so() -> None:
    batch_policy = make_policy("gaussian")
    batch = play(batch_policy)
    settings = OptimizerSection(learning_rate=0.05, epochs=30)
    free, held = (
        make_region("measured", optimizer=settings, stop_at=limit).propose(make_turn(batch_policy, batch))
        for limit in (None, 0.02)
    )
    turn = make_turn(batch_policy, batch)
    for divergence, unheld in zip(
        turn.measure(held.parameters).divergence.tolist(),
        turn.measure(free.parameters).divergence.tolist(),
        strict=True,
    ):
        assert divergence < unheld
        assert divergence > 0.02  # it stops once it is beyond, so the last step is the first too far
    steps = {int(state["step"]) for moments in held.moments for state in moments.values()}
    assert max(steps) < 30
    assert all(int(state["step"]) == 30 for moments in free.moments for state in moments.values())


def test_a_row_that_stops_early_does_not_stop_the_others() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(1))
    advantage[1] = 0  # no gradient: this row never moves, so it never stops
    turn = make_turn(policy, batch, advantage=advantage)
    settings = OptimizerSection(learning_rate=0.05, epochs=20)
    held = make_region("measured", optimizer=settings, stop_at=0.02).propose(turn)
    steps = [int(next(iter(moments.values()))["step"]) for moments in held.moments]
    assert steps[1] == 20
    assert steps[0] < 20


def test_learning_rate_falls_with_progress_where_it_anneals() -> None:
    policy = make_policy("gaussian")
    turn = replace(make_turn(policy, play(policy)), progress=0.75)
    for anneal, expected in ((True, 2.5e-4), (False, 1e-3)):
        settings = OptimizerSection(learning_rate=1e-3, anneal=anneal)
        losses = make_region("measured", optimizer=settings).propose(turn).losses
        assert losses["charts/learning_rate"] == pytest.approx(expected)


def test_a_gradient_that_is_not_finite_names_the_learner_and_commits_nothing() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    advantage = torch.zeros(batch.mask.shape)
    advantage[1][batch.mask[1]] = float("inf")
    turn = make_turn(policy, batch, advantage=advantage)
    before = frozen(policy)
    with pytest.raises(Diverged, match="learner 'learner_1'"):
        make_region("measured").propose(turn)
    assert all(torch.equal(p, before[name]) for name, p in frozen(policy).items())


def test_guarantee_is_hard_only_with_a_bound() -> None:
    assert make_region("measured").guarantee == "none"
    assert make_region("measured", bound=0.1).guarantee == "hard"


def _sorted(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort()]
