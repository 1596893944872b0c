"""Penalties on a divergence: PPO's with a target, and mirror descent's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_examples import policy_of, turn_for
from learning_examples import (
    frozen,
    generator,
    make_learners,
    make_policy,
    make_region,
    make_turn,
    mean_over,
    play,
    torch_kl,
    torch_log_prob,
)
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.family.mdpo import mirror_weight
from marl_tr.region.gradient import Update
from marl_tr.region.guard import Guard
from marl_tr.region.samples import Pass, Samples
from marl_tr.region.turn import Turn
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

LAWS = ["gaussian", "beta", "categorical", "multidiscrete"]


def moved(old: Parameters, scale: float, seed: int = 3) -> Parameters:
    noise = generator(seed)
    return {name: p + scale * torch.randn(p.shape, generator=noise) for name, p in old.items()}


def all_of(region: Any, turn: Turn, memory: list[dict[str, Any]]) -> tuple[Update, Samples]:
    samples = region._samples(turn)
    update = Update(turn=turn, rows=region._rows(turn, 1.0), samples=samples, memory=memory)
    region.prepare(update)
    return update, samples.part(Pass(torch.arange(samples.advantage.shape[2]), None))


def surrogate_by_hand(law: str, turn: Turn, new: Parameters) -> list[float]:
    policy, raw = turn.learners.policy, turn.batch.record["action"]
    before, after = (
        torch_log_prob(law, policy.law_parameters(p, turn.batch), raw).detach()
        for p in (turn.learners.parameters(turn.rows), new)
    )
    return mean_over((after - before).exp() * turn.advantage, turn.batch.mask)


@pytest.mark.parametrize("law", LAWS)
def test_ppos_penalty_is_each_learners_weight_times_the_divergence_of_the_new_policy_from_the_old(law: str) -> None:
    turn = make_turn(make_policy(law), play(make_policy(law)))
    region = make_region("ppo_penalty", beta=0.7)
    update, samples = all_of(region, turn, [{"beta": 3.0}, {}, {"beta": 0.2}])
    new = moved(frozen(turn.learners.policy), 0.1)
    gain = region.estimate(update, new, samples).gain
    divergence = mean_over(
        torch_kl(law, turn.learners.policy, frozen(turn.learners.policy), new, turn.batch), turn.batch.mask
    )
    surrogate = surrogate_by_hand(law, turn, new)
    expected = [s - beta * d for s, beta, d in zip(surrogate, (3.0, 0.7, 0.2), divergence, strict=True)]
    torch.testing.assert_close(gain.tolist(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", LAWS)
def test_mirror_descents_penalty_is_the_divergence_of_the_old_policy_from_the_new(law: str) -> None:
    turn = make_turn(make_policy(law), play(make_policy(law)), progress=0.75)
    region = make_region("mdpo", weight=0.5)
    update, samples = all_of(region, turn, [{}, {}, {}])
    new = moved(frozen(turn.learners.policy), 0.1)
    gain = region.estimate(update, new, samples).gain
    divergence = mean_over(
        torch_kl(law, turn.learners.policy, new, frozen(turn.learners.policy), turn.batch), turn.batch.mask
    )
    surrogate = surrogate_by_hand(law, turn, new)
    expected = [s - 0.5 / 0.25 * d for s, d in zip(surrogate, divergence, strict=True)]
    torch.testing.assert_close(gain.tolist(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ppo_penalty", "mdpo", "fixpo"])
def test_parts_of_a_chain_say_on_average_what_the_whole_chain_says(name: str) -> None:
    turn = turn_for(policy_of("flow"))
    region = make_region(name)
    update, _ = all_of(region, turn, [{}])
    count = update.samples.advantage.shape[2]
    new = moved(frozen(turn.learners.policy), 0.05)
    turn = replace(turn, advantage=torch.zeros_like(turn.advantage))
    update, _ = all_of(region, turn, [{}])

    def gain(*steps: int) -> Tensor:
        chain = torch.tensor(steps).expand(1, 1, count, len(steps))
        return region.estimate(update, new, update.samples.part(Pass(torch.arange(count), chain))).gain

    whole = gain(0, 1, 2, 3)
    assert float(whole) < 0
    torch.testing.assert_close((gain(0, 2) + gain(1, 3)) / 2, whole, rtol=1e-4, atol=1e-7)


def test_beta_follows_the_target_each_learner_its_own() -> None:
    """Two gain nothing and stand still, one moves far: the first two weights are halved, the other is doubled."""
    policy = make_policy("gaussian")
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    advantage[[0, 2]] = 0
    learners = make_learners(policy)
    region = make_region("ppo_penalty", optimizer=OptimizerSection(learning_rate=0.02), target=1e-3)
    turn = make_turn(policy, batch, advantage=advantage, learners=learners)
    candidate = region.propose(turn)
    reached = turn.measure(candidate.parameters).divergence
    assert reached[0] < 1e-6
    assert reached[1] > 1.5e-3
    Guard(lambda line: None).accept(region, turn, candidate)
    assert [memory["beta"] for memory in learners.memory] == [0.5, 2.0, 0.5]
    assert candidate.losses["region/beta/learner_1"] == 1.0
    turn = make_turn(policy, batch, advantage=advantage, learners=learners)
    again = region.propose(turn)
    assert [memory["beta"] for memory in again.memory][1] in (2.0, 4.0)
    assert again.losses["region/beta/learner_1"] == 2.0


@pytest.mark.parametrize(("share", "beta"), [(1.4, 1.0), (0.7, 1.0), (1.6, 2.0), (0.6, 0.5)])
def test_beta_stays_between_the_targets_two_thirds_and_three_halves(share: float, beta: float) -> None:
    policy = make_policy("categorical", shared=True)
    turn = make_turn(policy, play(policy))
    settings = OptimizerSection(learning_rate=0.01)
    reached = float(turn.measure(make_region("ppo_penalty", optimizer=settings).propose(turn).parameters).divergence)
    candidate = make_region("ppo_penalty", optimizer=settings, target=reached / share).propose(turn)
    assert candidate.memory == [{"beta": beta}]


def test_the_penalty_draws_updates_to_its_target() -> None:
    """The same rollout again and again, from the same old policy: only beta is remembered."""
    policy = make_policy("gaussian", shared=True)
    turn = make_turn(policy, play(policy, steps=16))
    settings = OptimizerSection(learning_rate=0.01, epochs=40)
    region = make_region("ppo_penalty", optimizer=settings, target=0.01)
    reached = []
    for _ in range(15):
        candidate = region.propose(turn)
        reached.append(float(turn.measure(candidate.parameters).divergence))
        turn.learners.memory[0] = candidate.memory[0]
    assert reached[0] > 0.02
    assert 0.01 / 2 < sum(reached[-6:]) / 6 < 0.01 * 2
    assert float(region.reach(turn, turn.measure(candidate.parameters)).value) == reached[-1]


def test_t_falls_to_one_over_the_number_of_updates_and_the_ceiling_cuts_the_rest() -> None:
    count = 50
    weights = [mirror_weight(k / count, weight=1.0, ceiling=1e9) for k in range(count)]
    assert weights == pytest.approx([1 / (1 - k / count) for k in range(count)])
    assert weights[-1] == pytest.approx(count)
    assert mirror_weight(0.99, weight=1.0, ceiling=20.0) == 20.0
    assert mirror_weight(1.0, weight=1.0, ceiling=20.0) == 20.0
    assert mirror_weight(0.5, weight=0.0, ceiling=20.0) == 0.0


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"epochs": 4, "weight": 0.0}], ids=["one step", "no weight"])
def test_one_step_and_no_weight_are_the_plain_policy_gradient(settings: dict[str, Any]) -> None:
    policy = make_policy("gaussian")
    turn = make_turn(policy, play(policy))
    epochs = OptimizerSection(learning_rate=3e-3, epochs=settings.pop("epochs"), max_grad_norm=None)
    plain = make_region("measured", optimizer=epochs).propose(turn).parameters
    for name, p in make_region("mdpo", optimizer=epochs, **settings).propose(turn).parameters.items():
        torch.testing.assert_close(p, plain[name], rtol=1e-5, atol=1e-7)


def test_mirror_descent_goes_less_far_the_later_in_the_run() -> None:
    policy = make_policy("categorical", shared=True)
    settings = OptimizerSection(learning_rate=0.01, epochs=30)
    reached = []
    for progress in (0.0, 0.5, 0.9, 0.98):
        turn = make_turn(policy, play(policy), progress=progress)
        reached.append(float(turn.measure(make_region("mdpo", optimizer=settings).propose(turn).parameters).divergence))
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] < 0.1 * reached[0]
    constant = make_region("mdpo", optimizer=settings, schedule="constant").propose(turn)
    assert float(turn.measure(constant.parameters).divergence) == pytest.approx(reached[0], rel=1e-4)
