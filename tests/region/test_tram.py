"""TRAM against its two passes written out, and against the plain step where it has no radius."""

from __future__ import annotations

from collections.abc import Sequence
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
    torch_law,
    torch_log_prob,
)
from torch import Tensor
from torch.distributions import kl_divergence

from marl_tr.policy import Parameters, Policy
from marl_tr.region.family.parameter_config import TramConfig
from marl_tr.region.family.tram import Tram, ascent
from marl_tr.region.gradient import Update
from marl_tr.region.samples import Samples
from marl_tr.region.turn import Turn
from marl_tr.scenario.regularisers import VelocityConfig
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

RATE = 0.03


def region(epochs: int = 3, minibatches: int = 1, *, name: str = "tram", **settings: Any) -> Any:
    optimizer = OptimizerSection(learning_rate=RATE, epochs=epochs, minibatches=minibatches, max_grad_norm=None)
    return make_region(name, optimizer=optimizer, **settings)


def by_hand(turn: Turn, row: int, *, epochs: int, target: str, adaptive: bool) -> tuple[Parameters, list[float]]:
    """Adam on gradients at ``w + e``, by torch alone, on the whole batch."""
    policy, single = turn.learners.policy, turn.only(row)
    batch, mask = single.batch, single.batch.mask
    w = {k: p.clone() for k, p in single.learners.parameters(single.rows).items()}
    old = {k: p.clone() for k, p in w.items()}
    before = old
    leaves = {k: p.clone().requires_grad_() for k, p in w.items()}
    adam = torch.optim.Adam(list(leaves.values()), lr=RATE, eps=1e-5)

    def law(at: Parameters) -> Any:
        return torch_law("gaussian", policy.law_parameters(at, batch))

    def gradient(at: Parameters) -> Parameters:
        points = {k: p.detach().clone().requires_grad_() for k, p in at.items()}
        log_prob = torch_log_prob("gaussian", policy.law_parameters(points, batch), batch.record["action"])
        ratio = (log_prob - single.old.log_prob[..., 0]).exp()
        loss = -(ratio * single.advantage)[mask].mean()
        found = torch.autograd.grad(loss, list(points.values()), allow_unused=True)
        return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(points.items(), found, strict=True)}

    radii = []
    for _ in range(epochs):
        reference = old if target == "old" else before
        w = {k: p.detach().clone() for k, p in leaves.items()}
        with torch.no_grad():
            d = float(kl_divergence(law(reference), law(w))[mask].mean())
        radii.append(d)
        g = gradient(w)
        scaled = {k: w[k] * g[k] for k in w} if adaptive else g
        norm = torch.cat([x.flatten() for x in scaled.values()]).norm()
        e = {k: d * (w[k] ** 2 * g[k] if adaptive else g[k]) / norm for k in w}
        there = gradient({k: w[k] + e[k] for k in w})
        for k, leaf in leaves.items():
            leaf.grad = there[k]
        adam.step()
        before = w
    return {k: p.detach() for k, p in leaves.items()}, radii


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("target", ["previous", "old"])
def test_steps_are_adams_on_the_gradient_a_kl_up_the_slope(target: str, adaptive: bool) -> None:
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))
    proposed = region(4, target=target, adaptive=adaptive).propose(turn)
    plain = region(4, name="measured").propose(turn)
    for row in range(3):
        expected, radii = by_hand(turn, row, epochs=4, target=target, adaptive=adaptive)
        assert radii[0] < 1e-9
        assert min(radii[1:]) > 1e-3
        for name, p in expected.items():
            torch.testing.assert_close(proposed.parameters[name][row], p[0], rtol=1e-3, atol=1e-4)
        said = proposed.losses[f"region/ascent/learner_{row}"]
        assert said == pytest.approx(sum(radii) / 4, rel=1e-2)
    apart = max(float((p - plain.parameters[name]).abs().max()) for name, p in proposed.parameters.items())
    assert apart > 1e-3


def test_the_ascent_is_along_the_gradient_with_the_radius_as_its_length() -> None:
    noise = generator(1)
    parameters = {name: torch.randn(1, *shape, generator=noise) for name, shape in {"a": (3, 4), "b": (5,)}.items()}
    gradients = {name: torch.randn(p.shape, generator=noise) for name, p in parameters.items()}
    for name, p in parameters.items():
        p.requires_grad_().grad = gradients[name].clone()
    e = ascent(parameters, 0.2, adaptive=False)
    flat, g = (torch.cat([x.flatten() for x in y.values()]) for y in (e, gradients))
    torch.testing.assert_close(flat, 0.2 * g / g.norm())
    adaptive = ascent(parameters, 0.2, adaptive=True)
    flat = torch.cat([x.flatten() for x in adaptive.values()])
    w = torch.cat([p.detach().flatten() for p in parameters.values()])
    torch.testing.assert_close(flat, 0.2 * w**2 * g / (w * g).norm())
    # In units of the weights it is as long as the radius.
    assert float((flat / w).norm()) == pytest.approx(0.2, rel=1e-5)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    assert not any(bool(x.any()) for x in ascent(parameters, 0.2, adaptive=False).values())


@pytest.mark.parametrize("kind", ["gaussian", "categorical", "flow"])
@pytest.mark.parametrize("target", ["previous", "old"])
def test_without_a_distance_the_step_is_the_plain_one_to_the_bit(kind: str, target: str) -> None:
    """The first of a rollout."""
    policy: Policy = make_flow() if kind == "flow" else make_policy(kind)
    batch = play(policy)
    tram = region(1, target=target).propose(make_turn(policy, batch))
    plain = region(1, name="measured").propose(make_turn(policy, batch))
    assert all(torch.equal(tram.parameters[name], p) for name, p in plain.parameters.items())
    two = region(2, target=target).propose(make_turn(policy, batch))
    plain = region(2, name="measured").propose(make_turn(policy, batch))
    assert not all(torch.equal(two.parameters[name], p) for name, p in plain.parameters.items())


def test_a_velocity_regulariser_remembers_the_policy_before_across_rollouts() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    learners = make_learners(policy, VelocityConfig.model_validate({"weight": 0.0}))
    (before,) = learners.regularisers.copies()
    with torch.no_grad():
        for p in before.values():
            p += 0.1
    turn = make_turn(policy, batch, learners=learners)
    tram = region(1).propose(turn)
    assert tram.losses["region/ascent/learner_0"] > 1e-3
    plain = region(1, name="measured").propose(turn)
    assert not all(torch.equal(tram.parameters[name], p) for name, p in plain.parameters.items())


def test_rows_are_independent_and_nothing_in_force_moves() -> None:
    policy = make_policy("gaussian")
    batch, start = play(policy), frozen(policy)
    together = region().propose(make_turn(policy, batch))
    for row in range(3):
        alone = region().propose(make_turn(policy, batch, rows=[row]))
        for name, p in alone.parameters.items():
            torch.testing.assert_close(p[0], together.parameters[name][row], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(p, start[name]) for name, p in frozen(policy).items())


def test_the_parts_of_an_accumulated_step_are_measured_and_ascended_together() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    whole = region(3).propose(make_turn(policy, batch))
    settings = OptimizerSection(learning_rate=RATE, epochs=3, minibatches=5, accumulate=5, max_grad_norm=None)
    parts = make_region("tram", optimizer=settings).propose(make_turn(policy, batch))
    for name, p in whole.parameters.items():
        torch.testing.assert_close(parts.parameters[name], p, rtol=1e-3, atol=1e-4)


def test_the_distance_of_some_chain_steps_is_that_of_all() -> None:
    policy = make_flow(shared=True)
    batch = play(policy)
    radii = []
    for chain in ({}, {"chain_batch": 1, "accumulate": 4}):
        settings = OptimizerSection(learning_rate=RATE, epochs=3, max_grad_norm=None, **chain)
        radii.append(make_region("tram", optimizer=settings).propose(make_turn(policy, batch)).losses)
    tags = [tag for tag in radii[0] if tag.startswith("region/ascent")]
    assert tags
    for tag in tags:
        assert radii[0][tag] == pytest.approx(radii[1][tag], rel=2e-2)


def test_the_point_that_is_looked_at_does_not_stop_anybody() -> None:
    """Only where the policy is counts for `stop_at`; the step is taken from there, however far the look went."""
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))

    class FarLooking(Tram):
        def _distance(self, update: Update, seen: Sequence[Samples], shares: Tensor) -> Tensor:
            return torch.full_like(shares[0], 5.0)

    settings = OptimizerSection(learning_rate=1e-6, epochs=3, max_grad_norm=None)
    candidate = FarLooking(TramConfig(stop_at=1e-3), settings).propose(turn)
    for moments in candidate.moments:
        assert {float(state["step"]) for state in moments.values()} == {3.0}
    start = frozen(policy)
    for name, p in candidate.parameters.items():
        torch.testing.assert_close(p, start[name], rtol=0, atol=1e-5)
