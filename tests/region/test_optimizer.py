"""Optimizers against torch's own on one learner's slices, and gradients in parts against the whole."""

from __future__ import annotations

from dataclasses import replace
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
    play,
)
from optimizer_examples import HIDDEN, gradients, run, stacked
from pydantic import ValidationError
from torch import Tensor

from marl_tr.objective.config import ClippedRatioConfig
from marl_tr.objective.ratio import ClippedRatio
from marl_tr.policy import Evaluation, Parameters, PolicyBatch
from marl_tr.region.guard import Guard
from marl_tr.region.optimizer import RowOptimizer, hidden_matrices
from marl_tr.region.turn import Candidate
from marl_tr.scenario.regularisers import PositionConfig, VelocityConfig
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)


def torchs(kind: str, parameters: Parameters, steps: list[Parameters]) -> Parameters:
    """The same steps by torch's optimizers on plain tensors without the learners' axis."""
    plain = {name: p[0].clone().requires_grad_() for name, p in parameters.items()}
    matrices = [plain[name] for name in plain if kind == "muon" and name in HIDDEN]
    rest = [p for name, p in plain.items() if not (kind == "muon" and name in HIDDEN)]
    used: list[torch.optim.Optimizer] = []
    if kind == "adam":
        used.append(torch.optim.Adam(rest, lr=1e-2, eps=1e-5))
    else:
        used.append(torch.optim.AdamW(rest, lr=3e-3 if kind == "muon" else 1e-2, weight_decay=0.1, eps=1e-8))
    if matrices:
        used.append(torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    for step in steps:
        for name, p in plain.items():
            p.grad = step[name][0].clone()
        for optimizer in used:
            optimizer.step()
    return {name: p.detach() for name, p in plain.items()}


SETTINGS: dict[str, OptimizerSection] = {
    "adam": OptimizerSection(learning_rate=1e-2),
    "adamw": OptimizerSection(kind="adamw", learning_rate=1e-2, weight_decay=0.1),
    "muon": OptimizerSection(kind="muon", learning_rate=1e-2, adamw_learning_rate=3e-3, weight_decay=0.1),
}


def test_hidden_matrices_are_neither_first_nor_last_nor_vectors_nor_embeddings() -> None:
    assert hidden_matrices(stacked(3)) == HIDDEN


@pytest.mark.parametrize("kind", SETTINGS)
def test_steps_are_torchs(kind: str) -> None:
    parameters = stacked()
    steps = gradients(parameters, 4)
    row = RowOptimizer("x", {name: p.clone() for name, p in parameters.items()}, {}, SETTINGS[kind])
    run(row, steps)
    for name, p in torchs(kind, parameters, steps).items():
        torch.testing.assert_close(row.parameters[name][0], p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SETTINGS)
def test_moments_carry_on_exactly_in_another_optimizer(kind: str) -> None:
    parameters = stacked()
    steps = gradients(parameters, 6)
    whole = RowOptimizer("x", {name: p.clone() for name, p in parameters.items()}, {}, SETTINGS[kind])
    run(whole, steps)
    first = RowOptimizer("x", {name: p.clone() for name, p in parameters.items()}, {}, SETTINGS[kind])
    run(first, steps[:3])
    saved = first.moments()
    assert set(saved) == set(parameters)
    half = {name: p.detach().clone() for name, p in first.parameters.items()}
    second = RowOptimizer("x", half, saved, SETTINGS[kind])
    run(second, steps[3:])
    assert all(torch.equal(second.parameters[name], p) for name, p in whole.parameters.items())


@pytest.mark.parametrize("kind", SETTINGS)
def test_moments_of_every_kind_survive_the_commit_row_by_row(kind: str) -> None:
    policy = make_policy("gaussian", hidden=[8, 8, 8])
    learners = make_learners(policy)
    settings = SETTINGS[kind].model_copy(update={"epochs": 1})
    region, guard = make_region("measured", optimizer=settings), Guard(lambda line: None)
    turn = make_turn(policy, play(policy), learners=learners, rows=[1])
    guard.accept(region, turn, region.propose(turn))
    assert learners.moments[0] == learners.moments[2] == {}
    assert set(learners.moments[1]) == set(frozen(policy))
    muon = [name for name, state in learners.moments[1].items() if "momentum_buffer" in state]
    assert bool(muon) == (kind == "muon")
    assert all(learners.moments[1][name]["momentum_buffer"].shape == (8, 8) for name in muon)


@pytest.mark.parametrize("kind", SETTINGS)
def test_rows_are_independent(kind: str) -> None:
    policy = make_policy("gaussian", hidden=[8, 8, 8])
    settings = SETTINGS[kind].model_copy(update={"epochs": 2})
    batch, region = play(policy), make_region("measured", optimizer=settings)
    together = region.propose(make_turn(policy, batch))
    for row in range(3):
        alone = region.propose(make_turn(policy, batch, rows=[row]))
        for name, p in alone.parameters.items():
            torch.testing.assert_close(p[0], together.parameters[name][row], rtol=1e-3, atol=1e-4)


def test_a_stopped_row_keeps_its_parameters_and_the_ones_before_them() -> None:
    parameters = stacked()
    row = RowOptimizer("x", parameters, {}, SETTINGS["muon"], previous=stacked())
    run(row, gradients(parameters, 1))
    now = {name: p.detach().clone() for name, p in row.parameters.items()}
    before = row.previous
    row.stopped = True
    run(row, gradients(parameters, 1))
    assert all(torch.equal(row.parameters[name], p) for name, p in now.items())
    assert row.previous is before


def test_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ValidationError, match="weight_decay is of 'adamw'"):
        OptimizerSection(weight_decay=0.1)
    with pytest.raises(ValidationError, match="adamw_learning_rate is of 'muon'"):
        OptimizerSection(kind="adamw", adamw_learning_rate=1e-3)


# Gradients in parts


class Witness:
    """A policy that writes down what it was asked to evaluate with gradients."""

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


def proposed(policy: Any, batch: PolicyBatch, *terms: Any, **settings: Any) -> Candidate:
    optimizer = OptimizerSection(**{"epochs": 1, "learning_rate": 1e-3, "max_grad_norm": 1e6, **settings})
    clip = ClippedRatio(ClippedRatioConfig(entropy=0.01))
    turn = make_turn(policy, batch, objective=clip, learners=make_learners(policy, *terms))
    return make_region("measured", optimizer=optimizer).propose(turn)


def first_moment(candidate: Candidate) -> Tensor:
    """Proportional to the one gradient that the optimizer has seen."""
    return torch.cat([state["exp_avg"].flatten() for moments in candidate.moments for state in moments.values()])


TERMS = (
    PositionConfig.model_validate({"weight": 0.3, "reduction": "mean"}),
    VelocityConfig.model_validate({"weight": 0.2, "form": "monte_carlo"}),
)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_the_accumulated_gradient_of_minibatches_is_that_of_one_big_batch(network: str) -> None:
    """Seven unequal minibatches with unequal masks."""
    policy = make_policy("gaussian", network)
    batch = play(policy)
    whole = first_moment(proposed(policy, batch, *TERMS))
    parts = first_moment(proposed(policy, batch, *TERMS, minibatches=7, accumulate=7))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    # The step's count says how many there were: seven passes, one step.
    some = proposed(policy, batch, minibatches=7, accumulate=3).moments[0]
    # Of the recurrent policy's eight trajectories, seven minibatches are four of two.
    assert {float(state["step"]) for state in some.values()} == {2.0 if network == "gru" else 3.0}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chain_batch", [1, 3])
def test_the_accumulated_gradient_of_chain_steps_is_that_of_the_whole_chain(chain_batch: int, shared: bool) -> None:
    policy = make_flow(shared=shared)
    batch = play(policy)
    whole = first_moment(proposed(policy, batch, *TERMS))
    chunks = first_moment(proposed(policy, batch, *TERMS, chain_batch=chain_batch, minibatches=2, accumulate=100))
    torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-6)


def test_each_decision_has_a_permutation_of_its_own_and_sees_every_chain_step_once_an_epoch() -> None:
    witness = Witness(make_flow(steps=5))
    batch = play(witness, steps=3, environments=4)
    proposed(witness, batch, chain_batch=2, epochs=2)
    passes = [part.chain for part in witness.seen]
    assert [None if chain is None else chain.shape[-1] for chain in passes] == [2, 2, 1] * 2
    epochs = [torch.cat([chain for chain in passes[i : i + 3] if chain is not None], -1) for i in (0, 3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort(-1).values, torch.arange(5).expand_as(epoch))
        assert len(epoch.reshape(-1, 5).unique(dim=0)) > 10
    assert not torch.equal(*epochs)


def test_a_fraction_of_the_chain_is_drawn_anew_for_every_decision_and_epoch() -> None:
    witness = Witness(make_flow(steps=5))
    batch = play(witness, steps=6, environments=8)
    proposed(witness, batch, chain_fraction=0.4, epochs=3)
    chains = [part.chain for part in witness.seen]
    assert len(chains) == 3
    for chain in chains:
        assert chain is not None
        assert chain.shape[-1] == 2
        assert bool((chain[..., 0] != chain[..., 1]).all())
        assert chain.unique().tolist() == [0, 1, 2, 3, 4]


def test_the_gradient_of_a_fraction_of_the_chain_is_right_on_average() -> None:
    policy = make_flow(steps=4)
    batch = play(policy)
    whole = first_moment(proposed(policy, batch, *TERMS))
    settings = OptimizerSection(epochs=1, chain_fraction=0.5, max_grad_norm=1e6)
    region = make_region("measured", optimizer=settings)
    clip = ClippedRatio(ClippedRatioConfig(entropy=0.01))
    turn = make_turn(policy, batch, objective=clip, learners=make_learners(policy, *TERMS))
    draws = [first_moment(region.propose(replace(turn, generator=generator(seed)))) for seed in range(200)]
    half = torch.stack(draws)
    error = (half.mean(0) - whole).norm() / whole.norm()
    assert error < 4 * float(half.std(0).norm() / whole.norm()) / 200**0.5


@pytest.mark.parametrize("settings", [{"chain_batch": 1}, {"chain_fraction": 0.5}])
def test_chain_settings_leave_a_policy_without_a_chain_as_it_is(settings: dict[str, Any]) -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    plain = proposed(policy, batch, epochs=3, minibatches=2)
    chained = proposed(policy, batch, epochs=3, minibatches=2, **settings)
    assert all(torch.equal(chained.parameters[name], p) for name, p in plain.parameters.items())


def test_early_stopping_compares_the_divergence_of_the_whole_chain() -> None:
    policy = make_flow(steps=4)
    batch = play(policy)
    steps = []
    for chain_batch in (None, 1):
        optimizer = OptimizerSection(learning_rate=1e-2, epochs=40, chain_batch=chain_batch, accumulate=4)
        turn = make_turn(policy, batch, learners=make_learners(policy))
        held = make_region("measured", optimizer=optimizer, stop_at=0.5).propose(turn)
        steps.append(float(next(iter(held.moments[0].values()))["step"]))
    assert max(steps) < 40
    assert 0.3 < steps[1] / steps[0] < 2
