"""Positive-only drift: who is learned from, how it is weighed, what is skipped; that modes stay or go as derived."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import frozen, generator, make_learners, make_region, make_turn, play
from test_generator import build
from torch import Tensor

from marl_tr.agents.drifting.config import BalancedPodpoConfig, PodpoConfig
from marl_tr.agents.drifting.field import drift
from marl_tr.agents.drifting.podpo import Podpo
from marl_tr.policy import PolicyBatch
from marl_tr.region.guard import Guard
from marl_tr.region.turn import Turn
from marl_tr.scenario import ScenarioError, load_scenario
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)

FREE = OptimizerSection(learning_rate=1e-3, epochs=2, minibatches=2, max_grad_norm=None)


def turn_of(policy: Any, *, batch: PolicyBatch | None = None, advantage: Tensor | None = None, **settings: Any) -> Turn:
    objective = Podpo(PodpoConfig(**{"minimum_positives": 1, **settings}))
    return make_turn(policy, batch or play(policy), objective=objective, advantage=advantage)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_only_decisions_of_positive_advantage_are_learned_from(network: str) -> None:
    policy = build(network=network, shared=False)
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(9))
    bad = ~((advantage > 0) & batch.mask)

    def gradient(record: Tensor) -> list[Tensor]:
        changed = {**batch.record, "action": torch.where(bad[..., None], record, batch.record["action"])}
        own = PolicyBatch(batch.observation, changed, batch.memory, batch.starts, batch.mask)
        turn = turn_of(policy, batch=own, advantage=advantage)
        leaves = {name: p.requires_grad_() for name, p in turn.learners.parameters(turn.rows).items()}
        turn.objective.estimate(turn, leaves, turn.objective.samples(turn)).gain.sum().backward()
        return [p.grad for p in leaves.values() if p.grad is not None]

    first, second = gradient(batch.record["action"]), gradient(torch.full_like(batch.record["action"], 50.0))
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_gradient_is_that_of_samples_pulled_along_the_field() -> None:
    """``-2 F / (unit B G D)`` at each sample, by the field itself and one backward pass through the generator."""
    policy = build(agents=1)
    turn = turn_of(policy, samples=4, temperatures=[0.2, 0.7], weights="uniform")
    samples = turn.objective.samples(turn)
    leaves = {name: p.requires_grad_() for name, p in turn.learners.parameters(turn.rows).items()}
    turn.generator.manual_seed(11)
    estimate = turn.objective.estimate(turn, leaves, samples)
    found = torch.autograd.grad(estimate.gain.sum(), list(leaves.values()))

    kept = samples.batch.mask[0, 0]
    count = samples.batch.mask.shape[2]
    noise = torch.randn(1, count, 4, policy.latent, generator=generator(11))
    x = policy.generate(leaves, policy.features(leaves, samples.batch)[:, 0], noise)[0, kept]
    action = samples.batch.record["action"][0, 0, kept]
    field = drift(x.detach(), action[:, None], temperatures=[0.2, 0.7])
    pull = (2 * field.force / (field.unit * field.force.numel())).detach()
    expected = torch.autograd.grad((pull * x).sum(), list(leaves.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights": "linear", "weight_cap": 2.0}, [0.5, 1.0, 2.0, 2.0]),
        ({"weights": "linear", "weight_power": 2.0}, [0.25, 1.0, 4.0, 16.0]),
        ({"weights": "uniform"}, [1.0, 1.0, 1.0, 1.0]),
        ({"weights": "exp", "weight_cap": 2.0}, np.exp([0.5, 1.0, 2.0, 2.0]).tolist()),
    ],
)
def test_weights_are_those_of_the_advantage_with_mean_one(settings: dict[str, Any], expected: list[float]) -> None:
    policy = build(agents=1)
    objective = Podpo(PodpoConfig(**settings))
    problems = _Problem(torch.tensor([[0.5, 1.0, 2.0, 9.0, 7.0]]), torch.zeros(1, 5, 2))
    mask = torch.tensor([[True, True, True, True, False]])
    found = objective._weights(problems, torch.randn(1, 5, 8, policy.dimensions), mask, 0.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[0, :4], np.array(expected) / np.mean(expected), rtol=1e-6)
    assert found[0, 4] == 0


def test_balance_divides_by_the_kernel_density_of_the_action_among_the_samples() -> None:
    samples, actions = torch.randn(1, 3, 6, 2, generator=generator(1)), torch.randn(1, 3, 2, generator=generator(2))
    config = BalancedPodpoConfig(weights="uniform", balance=0.5, density_bandwidth=0.4, balance_cap=100)
    mask = torch.ones(1, 3, dtype=torch.bool)
    problems = _Problem(torch.ones(1, 3), actions)
    found = Podpo(config)._weights(problems, samples, mask, 0.0)  # type: ignore[arg-type]
    x, a = samples[0].double().numpy(), actions[0].double().numpy()
    pairs = [np.linalg.norm(s[i] - s[j]) for s in x for i in range(6) for j in range(6) if i != j]
    density = [
        np.exp(-np.linalg.norm(s - b, axis=1) / (0.4 * np.mean(pairs))).mean() for s, b in zip(x, a, strict=True)
    ]
    raw = (np.array(density) + 0.05) ** -0.5
    np.testing.assert_allclose(found[0], raw / raw.mean(), rtol=1e-5)


def test_the_exponent_moves_over_the_run_where_it_is_to() -> None:
    samples, actions = torch.randn(1, 3, 6, 2, generator=generator(1)), torch.randn(1, 3, 2, generator=generator(2))
    mask, problems = torch.ones(1, 3, dtype=torch.bool), _Problem(torch.ones(1, 3), actions)
    moving = Podpo(BalancedPodpoConfig(weights="uniform", balance=1.0, final_balance=0.0))
    for progress, balance in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        fixed = Podpo(BalancedPodpoConfig(weights="uniform", balance=balance))
        a, b = (o._weights(problems, samples, mask, progress) for o in (moving, fixed))  # type: ignore[arg-type]
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("advantage", ["negative", "one"])
def test_without_enough_positives_nothing_moves_and_nothing_is_nan(advantage: str) -> None:
    policy = build(agents=2, shared=False)
    batch = play(policy)
    values = -torch.ones(batch.mask.shape)
    if advantage == "one":
        row, t, n = batch.mask.nonzero()[0].tolist()
        values[row, t, n] = 1.0
    before, lines = frozen(policy), []
    turn = turn_of(policy, batch=batch, advantage=values, minimum_positives=2)
    region = make_region("measured", optimizer=FREE)
    candidate = region.propose(turn)
    reports = Guard(lines.append).accept(region, turn, candidate)
    assert all(r.outcome == "rejected" and "held enough of this learner's decisions" in r.reason for r in reports)
    assert all(torch.equal(before[name], p) for name, p in frozen(policy).items())
    assert all(line["surrogate_gain"] in (None, 0.0) and line["direction"] == "squared_step" for line in lines)
    assert candidate.losses["drift/skipped/learner_0"] == 1
    assert all(math.isfinite(value) for value in candidate.losses.values())


def test_one_positive_is_enough_where_one_may_be() -> None:
    policy = build(agents=1)
    batch = play(policy)
    values = torch.where(batch.mask, -1.0, 0.0)
    t, n = batch.mask[0].nonzero()[0].tolist()
    values[0, t, n] = 1.0
    batch.record["action"][0, t, n] = torch.tensor([1.0, -1.0])
    turn = turn_of(policy, batch=batch, advantage=values)
    region = make_region("measured", optimizer=OptimizerSection(learning_rate=1e-2, epochs=60, max_grad_norm=None))
    (report,) = Guard(lambda line: None).accept(region, turn, region.propose(turn))
    assert report.outcome == "accepted"
    assert math.isfinite(report.accepted)
    features = policy.features(frozen(policy), batch)[:, t, n]
    with torch.no_grad():
        samples = policy.generate(frozen(policy), features, torch.randn(1, 200, 2, generator=generator(5)))
    assert samples[0, :, 0].mean() > 0.1
    assert samples[0, :, 1].mean() < -0.1


def test_learners_with_unlike_numbers_of_positives_each_keep_their_own() -> None:
    policy = build(agents=2, shared=False)
    batch = play(policy)
    advantage = torch.randn(batch.mask.shape, generator=generator(4))
    advantage[1] -= 1.0
    together = turn_of(policy, batch=batch, advantage=advantage)
    counts = together.objective.samples(together).batch.mask.sum((1, 2)).tolist()
    assert counts[0] != counts[1]
    assert counts == [int(((a > 0) & m).sum()) for a, m in zip(advantage, batch.mask, strict=True)]
    packed = together.objective.samples(together)
    for row in range(2):
        kept = packed.batch.mask[row, 0]
        expected = batch.record["action"][row][(advantage[row] > 0) & batch.mask[row]]
        assert torch.equal(packed.batch.record["action"][row, 0, kept], expected)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_the_guard_keeps_a_bound_on_the_drift_distance(network: str) -> None:
    policy, lines = build(network=network, shared=False), []
    turn = turn_of(policy)
    region = make_region(
        "measured", bound=1e-4, optimizer=OptimizerSection(learning_rate=1e-2, epochs=5, max_grad_norm=None)
    )
    before = frozen(policy)
    candidate = region.propose(turn)
    reports = Guard(lines.append).accept(region, turn, candidate)
    with torch.no_grad():
        old, new = (policy.evaluate(p, turn.batch).law.action.double() for p in (before, frozen(policy)))
    for row, report in enumerate(reports):
        mask = turn.batch.mask[row]
        step = float((new - old)[row][mask].square().mean())
        assert report.proposed > 1e-4 >= report.accepted
        assert report.accepted == pytest.approx(step, rel=1e-6)
        assert report.outcome == "interpolated"
        assert report.measures[f"drift/step/learner_{row}"] == pytest.approx(math.sqrt(step), rel=1e-6)
        assert report.measures[f"drift/modes/learner_{row}"] >= 1
        # Nearly N(0, 0.5^2) on each axis: beyond one half-range with probability 0.0455.
        assert report.measures[f"drift/clipped_fraction/learner_{row}"] == pytest.approx(0.0455, abs=0.04)
        assert report.measures[f"drift/clipped_fraction/learner_{row}"] > 0.01
    assert [line["bound"] for line in lines] == [1e-4, 1e-4]


def train(policy: Any, config: PodpoConfig, advantage_of: Any, *, iterations: int, optimizer: OptimizerSection) -> None:
    """Rounds of acting in one-step episodes on random contexts, and learning from `advantage_of`."""
    noise, learners, region = generator(21), make_learners(policy), make_region("measured", optimizer=optimizer)
    for _ in range(iterations):
        observation = 2 * torch.rand(1, 1024, 4, generator=noise) - 1
        with torch.no_grad():
            action = policy.act({"observation": observation}, None, noise)
        everyone = torch.ones(1, 1, 1024, dtype=torch.bool)
        batch = PolicyBatch(
            {"observation": observation[:, None]},
            {leaf: x[:, None] for leaf, x in action.record.items()},
            None,
            everyone,
            everyone,
        )
        advantage = advantage_of(observation[0], action.record["action"][0], noise)[None, None]
        turn = make_turn(policy, batch, objective=Podpo(config), advantage=advantage, learners=learners)
        turn.generator.manual_seed(int(torch.randint(2**31, (1,), generator=noise)))
        Guard(lambda line: None).accept(region, turn, region.propose(turn))


def test_noise_in_place_of_advantages_leaves_a_policy_with_its_spread_while_attraction_collapses_it() -> None:
    """Derivation D4 at the level of the network; the particle version is in test_field."""

    def spread(config: PodpoConfig) -> tuple[float, float]:
        policy = build(agents=1, initial_spread=0.5, exploration=0.0, reach=10.0)
        optimizer = OptimizerSection(learning_rate=3e-4, epochs=2, minibatches=2, max_grad_norm=None)

        def noise_only(observation: Tensor, action: Tensor, noise: torch.Generator) -> Tensor:
            return torch.randn(len(action), generator=noise)

        train(policy, config, noise_only, iterations=60, optimizer=optimizer)
        with torch.no_grad():
            sampled = policy.act({"observation": torch.zeros(1, 4000, 4)}, None, generator(1)).record["action"][0]
        return float(sampled.std(0).mean()), float(sampled.mean(0).norm())

    joint, offset = spread(PodpoConfig(temperatures=[0.1, 0.3]))
    assert joint == pytest.approx(0.5, abs=0.1)
    assert offset < 0.15
    collapsed, _ = spread(PodpoConfig(temperatures=[0.1, 0.3], field="attraction"))
    assert collapsed < 0.25


def two_bumps(observation: Tensor, action: Tensor, noise: torch.Generator) -> Tensor:
    """The bandit of specification 3.5: two equally good answers that turn with the context."""
    angle = 0.5 * (math.pi / 2 * observation[:, 0] + math.pi / 4 * observation[:, 1])
    mode = 0.7 * torch.stack([angle.cos(), angle.sin()], -1)
    reward = torch.stack([torch.exp(-(action - s * mode).square().sum(-1) / 0.08) for s in (1, -1)]).amax(0)
    # The value, of which a learned critic is an estimate.
    return reward + 0.1 * torch.randn(len(action), generator=noise) - reward.mean()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("balance", "keeps"), [(1.0, True), (0.0, False)])
def test_balanced_drift_keeps_both_answers_of_a_bandit_and_plain_drift_loses_one(balance: float, keeps: bool) -> None:
    policy = build(agents=1, hidden=[64], head=[64])
    config = BalancedPodpoConfig(balance=balance)
    optimizer = OptimizerSection(learning_rate=1e-3, epochs=20, minibatches=2, max_grad_norm=None)
    train(policy, config, two_bumps, iterations=14, optimizer=optimizer)
    observation = (2 * torch.rand(1, 200, 4, generator=generator(3)) - 1).repeat_interleave(64, 1)
    with torch.no_grad():
        action = policy.act({"observation": observation}, None, generator(4)).record["action"][0]
    angle = 0.5 * (math.pi / 2 * observation[0, :, 0] + math.pi / 4 * observation[0, :, 1])
    side = (action * torch.stack([angle.cos(), angle.sin()], -1)).sum(-1) > 0
    share = side.reshape(200, 64).float().mean(1)
    both = float((torch.minimum(share, 1 - share) >= 0.1).float().mean())
    assert (both >= 0.95) is keeps
    if not keeps:
        assert both <= 0.2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objective.samples=1", "greater than or equal to 2"),
        ("objective.temperatures=[0.1, 0]", "greater than 0"),
        ("objective.temperatures=[]", "at least 1 item"),
        ("objective.positive_only=false", "use weights: exp or uniform"),
        ("objective={kind: podpo, weights: exp, weight_power: 2}", "weight_power is of weights: linear"),
        (
            "objective.kind=clip",
            "agents of kind 'drifting' do not have.*objective podpo, podpo_balanced",
        ),
        ("region.kind=trpo", "needs kl, log_prob, which agents of kind 'drifting' do not have"),
        ("agents={kind: gaussian}", "needs sample_distance, which agents of kind 'gaussian' do not have"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_the_scenario_is_read(override: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        load_scenario("podpo_bandit", [override])


class _Problem:
    def __init__(self, advantage: Tensor, action: Tensor) -> None:
        self.advantage, self.action = advantage, action
