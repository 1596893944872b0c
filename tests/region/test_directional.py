"""Projections onto the directions of a learner's first updates."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import frozen, generator, make_flow, make_learners, make_policy, make_region, make_turn, play
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.family.directional import leading_directions, projected
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.learners import Learners
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

STEPS = OptimizerSection(learning_rate=1e-2, epochs=2, minibatches=2, max_grad_norm=None)


def region(commits: int = 2, *, optimizer: OptimizerSection = STEPS, **settings: Any) -> Any:
    return make_region("directional", optimizer=optimizer, commits=commits, **settings)


def learners_of(seed: int = 0) -> Learners:
    return make_learners(make_policy("gaussian", hidden=[8, 8], agents=2, seed=seed))


def update(learners: Learners, taken: Any, seed: int, **settings: Any) -> list[UpdateReport]:
    turn = make_turn(learners.policy, play(learners.policy, seed=seed), learners=learners, seed=seed, **settings)
    return Guard(lambda line: None).accept(taken, turn, taken.propose(turn))


def weights(learners: Learners) -> Parameters:
    return {name: p for name, p in frozen(learners.policy).items() if p.ndim == 3 and min(p.shape[1:]) > 1}


def history(learners: Learners, taken: Any, updates: int) -> list[Parameters]:
    """All parameters before each update, and after the last."""
    found = [frozen(learners.policy)]
    for seed in range(updates):
        assert {report.outcome for report in update(learners, taken, seed)} <= {"accepted", "interpolated"}
        found.append(frozen(learners.policy))
    return found


def span_of(points: list[Parameters], name: str, row: int, k: int, *, left: bool = True) -> np.ndarray:
    """Projector onto the leading singular vectors of the stacked updates, by numpy."""
    steps = [(b[name][row] - a[name][row]).double().numpy() for a, b in itertools.pairwise(points)]
    stacked = np.concatenate(steps, 1) if left else np.concatenate([s.T for s in steps], 1)
    u = np.linalg.svd(stacked)[0][:, :k]
    return u @ u.T


# Projections


def orthonormal(m: int, k: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(m, k, generator=generator(seed), dtype=torch.float64)).Q


@pytest.mark.parametrize("bases", [("first",), ("second",), ("first", "second")])
def test_a_projection_is_idempotent_never_against_the_gradient_and_whole_with_a_full_basis(bases: Any) -> None:
    sizes = {"first": 7, "second": 5}
    some = {side: orthonormal(sizes[side], 3) for side in bases}
    full = {side: orthonormal(sizes[side], sizes[side]) for side in bases}
    for seed in range(10):
        g = torch.randn(7, 5, generator=generator(seed), dtype=torch.float64)
        once = projected(g, **some)
        torch.testing.assert_close(projected(once, **some), once)
        assert float((once * g).sum()) == pytest.approx(float(once.square().sum()))
        assert 0 < float(once.norm()) < float(g.norm())
        torch.testing.assert_close(projected(g, **full), g)


def test_as_few_directions_as_hold_the_energy() -> None:
    d = torch.randn(6, 40, generator=generator(2), dtype=torch.float64) * torch.logspace(0, -2, 6).double()[:, None]
    u, s, _ = np.linalg.svd(d.numpy(), full_matrices=False)
    shares = np.cumsum(s**2) / np.sum(s**2)
    for energy in (0.5, 0.9, 0.99, 0.99999, 1.0):
        k = int(np.argmax(shares >= energy - 1e-12)) + 1
        found = leading_directions(d @ d.mT, rank=None, energy=energy)
        assert found.shape == (6, k)
        torch.testing.assert_close(found @ found.mT, torch.from_numpy(u[:, :k] @ u[:, :k].T))
    assert leading_directions(d @ d.mT, rank=4, energy=0.1).shape == (6, 4)
    assert leading_directions(d @ d.mT, rank=40, energy=0.1).shape == (6, 6)


# Learners


def test_the_first_commits_are_free() -> None:
    free, held = learners_of(), learners_of()
    plain = history(free, make_region("measured", optimizer=STEPS), 3)
    found = history(held, region(3, rank=1, apply="update"), 3)
    for a, b in zip(plain, found, strict=True):
        assert all(torch.equal(a[name], p) for name, p in b.items())


@pytest.mark.parametrize("sides", ["first", "second", "both"])
def test_every_update_after_them_stays_in_the_span_of_those(sides: str) -> None:
    learners = learners_of()
    taken = region(2, rank=3, sides=sides, apply="update")
    points = history(learners, taken, 2)
    for seed in range(2, 6):
        before = frozen(learners.policy)
        reports = update(learners, taken, seed)
        after = frozen(learners.policy)
        for row, report in enumerate(reports):
            assert report.measures[f"region/reach/learner_{row}"] < 1e-4
            assert report.measures[f"region/limit/learner_{row}"] == 1e-2
            for name in weights(learners):
                step = (after[name][row] - before[name][row]).double().numpy()
                assert np.linalg.norm(step) > 1e-3
                inside = step
                if sides in ("first", "both"):
                    inside = span_of(points, name, row, 3) @ inside
                if sides in ("second", "both"):
                    inside = inside @ span_of(points, name, row, 3, left=False)
                assert np.linalg.norm(step - inside) < 1e-4 * np.linalg.norm(step)
        # Vectors are free.
        assert not torch.equal(after["head.bias"], before["head.bias"])


def test_an_update_that_the_guard_shortens_stays_in_the_span() -> None:
    learners = learners_of()
    taken = region(2, rank=2, apply="update", bound=1e-3, optimizer=STEPS.model_copy(update={"learning_rate": 0.1}))
    points = history(learners, taken, 2)
    before = frozen(learners.policy)
    reports = update(learners, taken, 2)
    assert {report.outcome for report in reports} == {"interpolated"}
    for row in range(2):
        assert reports[row].measures[f"region/reach/learner_{row}"] < 1e-2
        for name in weights(learners):
            step = (frozen(learners.policy)[name][row] - before[name][row]).double().numpy()
            assert np.linalg.norm(step - span_of(points, name, row, 2) @ step) < 1e-2 * np.linalg.norm(step)


@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_a_full_basis_changes_nothing(apply: str) -> None:
    free, held = learners_of(), learners_of()
    plain = history(free, make_region("measured", optimizer=STEPS), 4)
    found = history(held, region(2, rank=100, sides="both", apply=apply), 4)
    for name, p in found[-1].items():
        torch.testing.assert_close(p, plain[-1][name], rtol=1e-3, atol=1e-4)


def test_projected_gradients_are_in_the_span_and_the_optimizer_may_leave_it() -> None:
    """The first moment of Adam after one step is a multiple of the gradient that it was given."""
    learners = learners_of()
    taken = region(2, rank=2, optimizer=STEPS.model_copy(update={"epochs": 1, "minibatches": 1}))
    points = history(learners, taken, 2)
    learners.moments = [{}, {}]
    turn = make_turn(learners.policy, play(learners.policy, seed=9), learners=learners)
    candidate = taken.propose(turn)
    plain = make_region("measured", optimizer=taken.optimizer).propose(turn)
    for row in range(2):
        for name in weights(learners):
            g, raw = (c.moments[row][name]["exp_avg"][0].double().numpy() for c in (candidate, plain))
            np.testing.assert_allclose(g, span_of(points, name, row, 2) @ raw, atol=1e-5 * np.abs(raw).max())
            assert (g * raw).sum() >= 0
    reach = taken.reach(turn, turn.measure(candidate.parameters))
    assert reach.limit == 1
    assert bool((reach.value > 0.05).all())
    assert bool((reach.value < 1).all())


def test_a_rejected_update_counts_nothing() -> None:
    learners = learners_of()
    taken = region(2, rank=1, apply="update")
    update(learners, taken, 0)
    saved = copy.deepcopy(learners.memory)
    poor = region(2, rank=1, apply="update", bound=1e-12)
    turn = make_turn(learners.policy, play(learners.policy, seed=1), learners=learners)
    reports = Guard(lambda line: None, max_interpolations=0).accept(poor, turn, poor.propose(turn))
    assert {report.outcome for report in reports} == {"rejected"}
    for row in range(2):
        assert learners.memory[row].keys() == saved[row].keys()
        assert learners.memory[row]["commits"] == 0
    update(learners, taken, 2)
    assert learners.memory[0]["commits"] == 1
    update(learners, taken, 3)
    assert learners.memory[0]["commits"] == 2
    # Of the sums nothing is left once the directions are known.
    assert {key.split("/")[0] for key in learners.memory[0]} == {"commits", "basis"}


def test_each_learner_counts_its_own_commits_and_has_its_own_directions() -> None:
    learners = learners_of()
    taken = region(1, rank=1, apply="update")
    update(learners, taken, 0)
    update(learners, taken, 1, rows=[0])
    assert [memory["commits"] for memory in learners.memory] == [1, 0]
    update(learners, taken, 2)
    bases = [{key: p for key, p in memory.items() if key.startswith("basis")} for memory in learners.memory]
    assert bases[0].keys() == bases[1].keys() != set()
    assert not any(torch.equal(bases[0][key], p) for key, p in bases[1].items())


@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_checkpoint_goes_on_exactly(done: int) -> None:
    """Before, at and after the moment at which the directions are known."""
    taken = region(2, sides="both", apply="update")
    whole, second = learners_of(0), learners_of(9)
    history(whole, taken, done)
    second.load_state_dict(copy.deepcopy(whole.state_dict()))
    for seed in range(10, 13):
        update(whole, taken, seed)
        update(second, taken, seed)
    expected = frozen(whole.policy)
    assert all(torch.equal(p, expected[name]) for name, p in frozen(second.policy).items())


def test_a_flow_learns_within_its_directions() -> None:
    policy = make_flow(shared=True)
    learners = make_learners(policy)
    taken = region(1, energy=0.9, apply="update")
    for seed in range(3):
        (report,) = update(learners, taken, seed)
        assert report.measures["region/reach/learner_0"] < 1e-3
    ranks = [p.shape for key, p in learners.memory[0].items() if key.startswith("basis")]
    assert ranks
    assert all(1 <= k <= m for m, k in ranks)
