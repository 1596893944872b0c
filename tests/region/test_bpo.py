"""Bounded policy optimization: the wanted ratios against independent solvers, and the median that they need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from core_examples import decisions_of, slope_of
from family_examples import policy_of, turn_for
from learning_examples import FEATURES, generator, make_learners, make_policy, make_region, make_turn, play
from scipy.optimize import brentq, linprog, minimize
from scipy.special import expit
from torch import Tensor

from marl_tr.policy import PolicyBatch
from marl_tr.region.family.bpo import Bpo, bounded_target
from marl_tr.region.family.median import MedianHead, median_loss
from marl_tr.region.guard import Guard
from marl_tr.region.samples import Samples
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.schedule.assignment import Assignment

torch.set_num_threads(1)


def law_and_values(seed: int, count: int = 7) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    noise = np.random.default_rng(seed)
    return noise.dirichlet(np.ones(count)), noise.normal(size=count)


def target(x: np.ndarray[Any, Any], low: float, high: float, temperature: float) -> np.ndarray[Any, Any]:
    return np.asarray(bounded_target(torch.from_numpy(x), low=low, high=high, temperature=temperature))


@pytest.mark.parametrize("seed", range(5))
def test_without_temperature_it_is_the_linear_programs_optimum_but_for_the_median_action(seed: int) -> None:
    p, q = law_and_values(seed)
    best = linprog(-p * q, A_eq=p[None], b_eq=[1.0], bounds=[(0.7, 1.3)] * len(p)).x
    order = np.argsort(q)
    median = order[np.searchsorted(np.cumsum(p[order]), 0.5)]
    found = target(q - q[median], 0.3, 0.3, 1e-6)
    others = np.arange(len(p)) != median
    np.testing.assert_allclose(found[others], best[others], atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.3), (0.2, 0.5)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_with_temperature_it_is_the_regularised_optimum(low: float, high: float, temperature: float) -> None:
    p, q = law_and_values(3)
    share = low / (low + high)
    mu = brentq(lambda m: p @ expit((q - m) / temperature) - share, -30, 30)
    found = target(q - mu, low, high, temperature)
    assert p @ found == pytest.approx(1)

    def loss(rho: np.ndarray[Any, Any]) -> float:
        s = np.clip((rho - 1 + low) / (low + high), 1e-12, 1 - 1e-12)
        entropy = -s * np.log(s) - (1 - s) * np.log1p(-s)
        return -float(p @ (rho * q + (low + high) * temperature * entropy))

    solved = minimize(
        loss,
        np.ones(len(p)),
        method="SLSQP",
        bounds=[(1 - low, 1 + high)] * len(p),
        constraints={"type": "eq", "fun": lambda rho: p @ rho - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found, solved.x, atol=1e-4)
    assert loss(found) <= solved.fun + 1e-9


def test_the_published_head_loss_is_a_logarithm_of_a_hyperbolic_cosine() -> None:
    x = torch.linspace(-5, 5, 21, dtype=torch.float64)
    torch.testing.assert_close(median_loss(x, temperature=1.0), (2 * torch.cosh(x / 2)).log())


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.5), (0.05, 0.5), (0.3, 2 / 7)])
def test_the_head_loss_is_least_at_the_smoothed_quantile(temperature: float, share: float) -> None:
    y = np.random.default_rng(1).exponential(size=400)
    root = brentq(lambda m: expit((y - m) / temperature).mean() - share, -50, 50)
    m = torch.tensor(root, dtype=torch.float64, requires_grad=True)
    loss = median_loss(torch.from_numpy(y) - m, temperature=temperature, share=share).mean()
    (slope,) = torch.autograd.grad(loss, m)
    assert float(slope) == pytest.approx(0, abs=1e-9)
    beside = median_loss(torch.from_numpy(y) - root - 0.1, temperature=temperature, share=share).mean()
    assert float(beside) > float(loss.detach())


def rollout_of(raw: Tensor, observation: Tensor | None = None) -> Samples:
    """Decisions ``[R, n]`` at one observation, or at the given ones ``[R, n, D]``."""
    rows, count = raw.shape
    true = torch.ones(rows, 1, count, dtype=torch.bool)
    features = torch.full((rows, count, FEATURES), 0.3) if observation is None else observation
    batch = PolicyBatch({"observation": features.unsqueeze(1)}, {}, None, true, true)
    zeros = torch.zeros(rows, 1, count)
    return Samples(batch, zeros.unsqueeze(-1), zeros, labels={"raw_advantage": raw.unsqueeze(1)})


def fitted(region: Bpo, samples: Samples, *, steps: int, rate: float) -> MedianHead:
    """A head after steps at falling rates: the gradient of a quantile does not shrink near it."""
    rows = samples.advantage.shape[0]
    memory: list[dict[str, Any]] = [{}] * rows
    for decay in (1.0, 0.1, 0.01):
        settings = OptimizerSection(learning_rate=rate * decay)
        names = [f"learner_{k}" for k in range(rows)]
        head = MedianHead(memory, names, samples, hidden=[8], settings=settings, generator=generator())
        for _ in range(steps):
            head.step([samples], temperature=region._head_temperature, share=region._head_share)
        memory = head.state()
    return head


@pytest.mark.parametrize(
    ("mu_temp", "scale", "mean"),
    [
        ("code", 0.02, 0.922),
        ("code", 1.0, 0.939),
        ("code", 20.0, 0.999),
        ("consistent", 0.02, 1.0),
        ("consistent", 1.0, 1.0),
        ("consistent", 20.0, 1.0),
    ],
)
def test_wanted_ratios_are_one_on_average_with_the_consistent_head_alone(
    mu_temp: str, scale: float, mean: float
) -> None:
    """Values with an exponential law, at its quantiles; the official code's head misses by up to 8 percent."""
    count = 500
    values = -scale * torch.log1p(-(torch.arange(count) + 0.5) / count)
    region = make_region("bpo", mu_temp=mu_temp)
    samples = rollout_of(values.unsqueeze(0))
    head = fitted(region, samples, steps=80, rate=0.05)
    with torch.no_grad():
        wanted = bounded_target(values - head(samples.batch)[0, 0], low=0.3, high=0.3, temperature=1e-3)
    assert float(wanted.mean()) == pytest.approx(mean, abs=3e-3)


def test_with_unlike_bounds_the_consistent_head_takes_another_quantile() -> None:
    count = 500
    values = -torch.log1p(-(torch.arange(count) + 0.5) / count)
    samples = rollout_of(values.unsqueeze(0))
    found = {}
    for mu_temp in ("code", "consistent"):
        region = make_region("bpo", mu_temp=mu_temp, epsilon=0.2, epsilon_high=0.5, temperature=0.01)
        head = fitted(region, samples, steps=80, rate=0.05)
        with torch.no_grad():
            wanted = bounded_target(values - head(samples.batch)[0, 0], low=0.2, high=0.5, temperature=0.01)
        found[mu_temp] = float(wanted.mean())
    assert found["consistent"] == pytest.approx(1, abs=3e-3)
    assert abs(found["code"] - 1) > 0.05


def test_the_head_knows_the_observation_and_each_learner_has_its_own() -> None:
    count = 400
    noise = generator(6)
    side = (torch.rand(2, count, generator=noise) < 0.5).float() * 2 - 1
    observation = 50 + 10 * side.unsqueeze(-1).expand(2, count, FEATURES)
    spread = torch.rand(2, count, generator=noise) ** 3
    raw = 100 * (torch.tensor([[1.0], [-2.0]]) * side + spread)
    head = fitted(make_region("bpo"), rollout_of(raw, observation), steps=150, rate=0.04)
    said = head(rollout_of(raw, observation).batch)[:, 0].detach()
    for row in range(2):
        for value in (-1, 1):
            chosen = side[row] == value
            assert float(said[row][chosen].mean()) == pytest.approx(float(raw[row][chosen].median()), abs=6)
    assert all(kept["moments"] for kept in head.state())


def at_zero() -> Any:
    return SimpleNamespace(scratch={"head": lambda batch: torch.zeros_like(batch.mask, dtype=torch.float64)})


@pytest.mark.parametrize("raw", [1.7, -0.4])
def test_inside_the_bounds_the_slope_is_ppos_and_outside_it_points_back(raw: float) -> None:
    region, clip = make_region("bpo", epsilon=0.2), make_region("ppo_clip", clip=0.2)
    ratio = torch.tensor([0.5, 0.75, 0.85, 1.0, 1.15, 1.25, 2.0], dtype=torch.float64)
    advantage = torch.full_like(ratio, raw)
    leaf = ratio.clone().requires_grad_()
    gain = region.gain(decisions_of(leaf, advantage, raw_advantage=advantage), cast(Any, at_zero()))
    (slope,) = torch.autograd.grad(gain.sum(), leaf)
    plain = slope_of(clip, ratio, advantage)
    inside = (ratio - 1).abs() < 0.2
    torch.testing.assert_close(slope[inside], plain[inside])
    beyond = (ratio - 1) * raw > 0.2 * abs(raw)
    assert bool((plain[beyond] == 0).all())
    torch.testing.assert_close(slope[beyond], -advantage[beyond])
    # Where a ratio has gone the wrong way both bring it back alike.
    wrong = (ratio - 1) * raw < -0.2 * abs(raw)
    torch.testing.assert_close(slope[wrong], plain[wrong])


def test_below_the_median_even_a_positive_advantage_is_pushed_down() -> None:
    region = make_region("bpo", epsilon=0.2)
    update = SimpleNamespace(scratch={"head": lambda batch: torch.ones_like(batch.mask, dtype=torch.float64)})
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    raw = torch.tensor([0.5], dtype=torch.float64)
    (slope,) = torch.autograd.grad(region.gain(decisions_of(one, raw, raw_advantage=raw), cast(Any, update)).sum(), one)
    assert float(slope) == -0.5
    plain = make_region("bpo", epsilon=0.2, weighted=False)
    (slope,) = torch.autograd.grad(plain.gain(decisions_of(one, raw, raw_advantage=raw), cast(Any, update)).sum(), one)
    assert float(slope) == -1.0


def test_ratios_of_a_learner_that_has_time_come_to_where_they_are_wanted() -> None:
    policy = make_policy("gaussian", shared=True, hidden=[64])
    turn = turn_for(policy, steps=2, environments=4)
    region = make_region("bpo", optimizer=OptimizerSection(learning_rate=2e-3, epochs=200), weighted=False)
    parameters = region.propose(turn).parameters
    measured = turn.measure(parameters)
    deviation = (measured.log_prob - turn.old.log_prob).exp()[turn.batch.mask] - 1
    assert float((deviation.abs() - 0.3).abs().median()) < 0.1
    assert float(region.reach(turn, measured).value) < 0.5


def test_the_head_is_remembered_with_the_step_each_learner_its_own() -> None:
    policy = make_policy("gaussian")
    learners = make_learners(policy)
    batch = play(policy)
    region = make_region("bpo")
    labels = {"raw_advantage": 5 * torch.randn(batch.mask.shape, generator=generator(8))}

    def turn() -> Any:
        made = make_turn(policy, batch, learners=learners)
        made.labels.update(labels)
        return made

    first = region.propose(turn())
    assert set(first.losses) >= {f"region/wanted_ratio/learner_{row}" for row in range(3)}
    Guard(lambda line: None).accept(region, turn(), first)
    kept = [memory["head"] for memory in learners.memory]
    assert all(float(state["step"]) == 5 for head in kept for state in head["moments"].values())
    assert not torch.equal(kept[0]["parameters"]["layers.2.bias"], kept[1]["parameters"]["layers.2.bias"])
    restored = make_learners(policy)
    restored.load_state_dict(learners.state_dict())
    assert torch.equal(restored.memory[2]["head"]["unit"], kept[2]["unit"])
    second = region.propose(turn())
    assert all(float(state["step"]) == 10 for memory in second.memory for state in memory["head"]["moments"].values())
    assert all(torch.equal(memory["head"]["unit"], kept[k]["unit"]) for k, memory in enumerate(second.memory))
    # What a proposal does to its copies leaves the learners' memory as it was.
    assert all(float(state["step"]) == 5 for head in kept for state in head["moments"].values())


def test_what_other_learners_did_weighs_the_raw_advantage_too() -> None:
    policy = policy_of("categorical")
    turn = turn_for(policy, steps=3, environments=2)
    assignment = Assignment(
        learners=turn.learners,
        batch=turn.batch,
        advantage=turn.labels["raw_advantage"],
        normalise=False,
        objective=turn.objective,
        region=make_region("bpo"),
        log=lambda losses: None,
        labels=turn.labels,
    )
    weight = torch.rand(3, 2, generator=generator(3))
    found = assignment.turn([1], weight=weight, generator=generator(), progress=0.0)
    torch.testing.assert_close(found.labels["raw_advantage"], turn.labels["raw_advantage"][[1]] * weight)
    torch.testing.assert_close(found.labels["raw_advantage"], found.advantage)
    torch.testing.assert_close(found.labels["score"], turn.labels["score"][[1]])
