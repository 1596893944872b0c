"""FixPO: no decision of a batch moves farther than epsilon, whatever the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_examples import policy_of, turn_for
from learning_examples import frozen, generator, make_learners, make_policy, make_region, make_turn, play, torch_kl
from pydantic import ValidationError
from torch import Tensor

from marl_tr.region.family.fixpo import Multiplier, longest_within
from marl_tr.region.guard import Guard
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

WILD = OptimizerSection(learning_rate=0.05, epochs=10, minibatches=2, max_grad_norm=0.5)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def largest(law: str, turn: Any, parameters: Any) -> Tensor:
    """The largest KL(old || new) of each learner by torch.distributions, ``[R]``."""
    kl = torch_kl(law, turn.learners.policy, frozen(turn.learners.policy), parameters, turn.batch)
    return torch.where(turn.batch.mask, kl, 0).flatten(1).amax(-1)


def pairs(candidate: Any, policy: Any) -> list[tuple[Tensor, Tensor]]:
    """Each parameter as it was proposed, and as it was."""
    old = frozen(policy)
    return [(p, old[name]) for name, p in candidate.parameters.items()]


def test_the_multiplier_is_moved_by_torchs_adam_and_not_below_zero() -> None:
    leaf = numbers(0.02, 1.0).requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.01)
    mine = Multiplier(numbers(0.02, 1.0), numbers(0, 0), numbers(0, 0), numbers(0, 0))
    for gradient in ([0.2, -1.0], [0.1, -3.0], [0.2, 0.5], [-0.4, 0.1], [0.3, 0.1]):
        leaf.grad = numbers(*gradient)
        adam.step()
        with torch.no_grad():
            leaf.clamp_(min=0)
        mine = mine.stepped(numbers(*gradient), 0.01, torch.tensor([True, True]))
        torch.testing.assert_close(mine.value, leaf.detach())
    assert float(mine.value[0]) < 0.02
    still = mine.stepped(numbers(5, 5), 0.01, torch.tensor([False, True]))
    assert [x[0] for x in still] == [x[0] for x in mine]
    assert still.value[1] < mine.value[1]


@pytest.mark.parametrize(
    ("law", "network", "settings"),
    [
        ("gaussian", "mlp", {}),
        ("beta", "mlp", {}),
        ("categorical", "gru", {}),
        ("gaussian", "mlp", {"fixup": "end"}),
        ("gaussian", "mlp", {"statistic": "mean"}),
        ("categorical", "gru", {"max_fixup_steps": 0}),
    ],
)
def test_no_decision_moves_farther_than_epsilon_under_wild_steps(
    law: str, network: str, settings: dict[str, Any]
) -> None:
    policy = make_policy(law, network)
    turn = make_turn(policy, play(policy))
    free = make_region("measured", optimizer=WILD).propose(turn)
    assert bool((largest(law, turn, free.parameters) > 0.5).all())
    region = make_region("fixpo", optimizer=WILD, epsilon=0.1, **settings)
    candidate = region.propose(turn)
    found = largest(law, turn, candidate.parameters)
    assert bool((found <= 0.1 * (1 + 1e-5)).all())
    assert bool((found > 0.001).all())
    assert candidate.reasons == ["", "", ""]


def test_what_the_guard_commits_is_within_the_limit_in_its_own_measure() -> None:
    """Adversarial updates one after the other: large steps, random advantages, a batch of their own each."""
    policy = make_policy("gaussian")
    learners = make_learners(policy)
    region = make_region("fixpo", optimizer=WILD, epsilon=0.05, max_fixup_steps=3)
    reports = []
    shortened = 0
    for seed in range(12):
        batch = play(policy, steps=4, environments=4, seed=seed)
        turn = make_turn(policy, batch, learners=learners, seed=seed)
        candidate = region.propose(turn)
        shortened += sum(tries > 0 for tries in candidate.backtracks)
        reports += Guard(lambda line: None).accept(region, turn, candidate)
    for report in reports:
        assert report.outcome == "accepted"
        reached, limit = (report.measures[f"region/{tag}/{report.learner}"] for tag in ("reach", "limit"))
        assert 0 < reached <= limit == 0.05
    assert shortened > 3


def test_steps_back_come_back_by_themselves() -> None:
    """With steps enough nothing is shortened, and the moments of the optimizer are kept."""
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))
    settings = OptimizerSection(learning_rate=0.02, epochs=4)
    candidate = make_region("fixpo", optimizer=settings, epsilon=0.05, caution=1.0, max_fixup_steps=1000).propose(turn)
    assert candidate.backtracks == [0, 0, 0]
    assert all(candidate.moments)
    assert all(candidate.losses[f"region/fixup_steps/learner_{row}"] > 0 for row in range(3))
    assert bool((largest("gaussian", turn, candidate.parameters) <= 0.05 * (1 + 1e-5)).all())


def test_a_cautious_aim_needs_no_steps_back() -> None:
    policy = make_policy("categorical", shared=True)
    settings = OptimizerSection(learning_rate=5e-4, epochs=60)
    steps = {}
    for caution in (1.0, 3.0):
        turn = make_turn(policy, play(policy))
        region = make_region("fixpo", optimizer=settings, epsilon=0.02, caution=caution, beta_learning_rate=0.5)
        steps[caution] = region.propose(turn).losses["region/fixup_steps/learner_0"]
    assert steps[3.0] == 0 < steps[1.0]


def test_beta_stands_still_with_the_learner() -> None:
    """A learner whose epochs have been stopped takes no steps; neither does its beta."""
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))
    settings = OptimizerSection(learning_rate=1e-3, epochs=5)
    candidate = make_region("fixpo", optimizer=settings, epsilon=10.0, stop_at=1e-9).propose(turn)
    # The second pass finds all of them beyond, and is not followed by a step.
    assert [memory["beta_steps"] for memory in candidate.memory] == [1, 1, 1]


def test_an_aim_outside_the_limit_is_refused() -> None:
    """Below 1 beta would fall while decisions are beyond the limit."""
    with pytest.raises(ValidationError, match="caution"):
        make_region("fixpo", caution=0.9)


def test_beta_that_may_not_move_from_zero_ends_too() -> None:
    """In the source this never ends: a step back of weight 0 goes nowhere."""
    policy = make_policy("gaussian", shared=True)
    turn = make_turn(policy, play(policy))
    region = make_region("fixpo", optimizer=WILD, epsilon=0.01, beta=0.0, beta_learning_rate=0.0, max_fixup_steps=20)
    candidate = region.propose(turn)
    assert candidate.backtracks[0] > 0
    assert candidate.moments == [{}]
    assert 0.001 < float(largest("gaussian", turn, candidate.parameters)) <= 0.01 * (1 + 1e-5)
    assert candidate.losses["region/fixup_steps/learner_0"] == 20


@pytest.mark.parametrize(("minibatches", "learning_rate", "epsilon"), [(1, 0.05, 0.05), (2, 1e-5, 1e-7)])
def test_each_learner_comes_back_alone_and_remembers_its_own_beta(
    minibatches: int, learning_rate: float, epsilon: float
) -> None:
    """One whose advantages are zero never leaves; the others' steps back do not move it, and its beta falls.

    Of one minibatch the law is the old one to the last bit, so that the penalty has no gradient at all. Of two it has
    one of rounding, which Adam carries off at larger rates: near its minimum a penalty of curvature h repels steps of
    ``learning_rate h / eps > 2``, and the learner then swings about its old law by a learning rate.
    """
    policy = make_policy("gaussian")
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    advantage[1] = 0
    learners = make_learners(policy)
    settings = WILD.model_copy(update={"minibatches": minibatches, "learning_rate": learning_rate})
    region = make_region("fixpo", optimizer=settings, epsilon=epsilon)
    turn = make_turn(policy, batch, advantage=advantage, learners=learners)
    candidate = region.propose(turn)
    assert candidate.losses["region/fixup_steps/learner_1"] == 0 < candidate.losses["region/fixup_steps/learner_0"]
    moved = [max(float((p - old)[row].abs().max()) for p, old in pairs(candidate, policy)) for row in range(3)]
    assert moved[1] <= (0 if minibatches == 1 else 1e-6)
    assert min(moved[0], moved[2]) > learning_rate
    Guard(lambda line: None).accept(region, turn, candidate)
    betas = [memory["beta"] for memory in learners.memory]
    assert betas[1] < 1 < betas[0]
    assert learners.memory[1]["beta_steps"] == settings.epochs * minibatches


def test_a_learners_update_is_what_it_is_alone() -> None:
    policy = make_policy("gaussian")
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    few = WILD.model_copy(update={"minibatches": 1, "epochs": 3})
    region = make_region("fixpo", optimizer=few, epsilon=0.05)
    together = region.propose(make_turn(policy, batch, advantage=advantage))
    steps = [together.losses[f"region/fixup_steps/learner_{row}"] for row in range(3)]
    assert len(set(steps)) > 1
    for row in range(3):
        alone = region.propose(make_turn(policy, batch, advantage=advantage, rows=[row]))
        assert alone.losses[f"region/fixup_steps/learner_{row}"] == steps[row]
        for name, p in together.parameters.items():
            torch.testing.assert_close(alone.parameters[name][0], p[row], rtol=0, atol=1e-4)


def test_epochs_that_were_stopped_early_still_come_back() -> None:
    policy = make_policy("gaussian", shared=True)
    turn = make_turn(policy, play(policy))
    region = make_region("fixpo", optimizer=WILD, epsilon=0.02, stop_at=0.02, max_fixup_steps=500)
    candidate = region.propose(turn)
    assert candidate.losses["region/fixup_steps/learner_0"] > 0
    assert candidate.backtracks == [0]
    assert float(largest("gaussian", turn, candidate.parameters)) <= 0.02 * (1 + 1e-5)


def test_of_a_flow_the_whole_chain_counts() -> None:
    policy = policy_of("flow")
    turn = turn_for(policy)
    settings = OptimizerSection(learning_rate=0.02, epochs=4, chain_batch=2)
    candidate = make_region("fixpo", optimizer=settings, epsilon=0.05).propose(turn)
    with torch.no_grad():
        before, after = (policy.evaluate(p, turn.batch).law for p in (frozen(policy), candidate.parameters))
    gap = (after.mean.double() - before.mean.double()).square().sum(-1)
    per_step = torch.where(before.stochastic, gap / (2 * before.std.double().square()), 0)
    found = torch.where(turn.batch.mask, per_step.sum(-1), 0).max()
    assert 0.001 < float(found) <= 0.05 * (1 + 1e-5)


def test_only_shares_that_were_tried_are_taken() -> None:
    tried = []

    def within(share: float) -> bool:
        tried.append(share)
        return share < 0.3 or 0.6 < share < 0.7

    share, tries = longest_within(within)
    assert share in tried
    assert within(share)
    assert tries == len(tried) - 1
    assert longest_within(lambda share: False) == (0.0, 20)
