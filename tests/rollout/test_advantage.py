"""Advantages against the sum that defines them, term by term."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import generator
from torch import Tensor

from marl_tr.rollout.advantage import Advantage, generalised_advantage, normalise

GAMMA = 0.9
SHAPE = (12, 4, 3)


def arrays(seed: int, *, ends: float = 0.15, deaths: float = 0.2) -> dict[str, Tensor]:
    noise = generator(seed)

    def happens(share: float) -> Tensor:
        return torch.rand(SHAPE, generator=noise) < share

    terminated = happens(ends)
    return {
        "reward": torch.randn(SHAPE, generator=noise, dtype=torch.float64),
        "value": torch.randn(SHAPE, generator=noise, dtype=torch.float64),
        "next_value": torch.randn(SHAPE, generator=noise, dtype=torch.float64),
        "terminated": terminated,
        "truncated": happens(ends) & ~terminated,
        "alive": ~happens(deaths),
    }


def estimate(data: dict[str, Any], lam: float) -> Advantage:
    return generalised_advantage(**data, gamma=GAMMA, lam=lam)


def brute_force(data: dict[str, Tensor], lam: float) -> Tensor:
    """``A_t = sum_k (gamma lam)^k delta_{t+k}`` up to the first end or absence, for each element alone: O(T^2)."""
    x = {name: array.numpy() for name, array in data.items()}
    result = np.zeros(SHAPE)
    for t, e, a in np.ndindex(*SHAPE):
        for k in range(SHAPE[0] - t):
            s = t + k, e, a
            if not x["alive"][s]:
                break
            beyond = 0.0 if x["terminated"][s] else x["next_value"][s]
            result[t, e, a] += (GAMMA * lam) ** k * (x["reward"][s] + GAMMA * beyond - x["value"][s])
            if x["terminated"][s] or x["truncated"][s]:
                break
    return torch.from_numpy(result)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_advantage_is_the_sum_of_its_definition(seed: int, lam: float) -> None:
    data = arrays(seed)
    found = estimate(data, lam)
    torch.testing.assert_close(found.raw, brute_force(data, lam), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.target, found.raw + torch.where(data["alive"], data["value"], 0))


def test_lambda_zero_is_the_td_error() -> None:
    data = arrays(1, ends=0.0, deaths=0.0)
    expected = data["reward"] + GAMMA * data["next_value"] - data["value"]
    torch.testing.assert_close(estimate(data, 0.0).raw, expected)


def test_lambda_one_is_the_discounted_return_minus_the_value() -> None:
    data = arrays(2, ends=0.0, deaths=0.0)
    data["next_value"][:-1] = data["value"][1:]
    running = data["next_value"][-1]
    for t in reversed(range(SHAPE[0])):
        running = data["reward"][t] + GAMMA * running
        torch.testing.assert_close(estimate(data, 1.0).raw[t], running - data["value"][t])


def test_truncation_bootstraps_and_termination_does_not() -> None:
    for kind, beyond in (("terminated", 0.0), ("truncated", 10.0)):
        data = arrays(3, ends=0.0, deaths=0.0)
        data[kind][5] = True
        data["next_value"][5] = 10.0
        raw = estimate(data, 0.7).raw
        torch.testing.assert_close(raw[5], data["reward"][5] + GAMMA * beyond - data["value"][5])


def test_nothing_leaks_over_an_episodes_end() -> None:
    for kind in ("terminated", "truncated"):
        data = arrays(4, ends=0.0, deaths=0.0)
        data[kind][5] = True
        before = estimate(data, 0.95).raw[:6].clone()
        data["reward"][6:] += 1e6
        data["value"][6:] -= 1e6
        assert torch.equal(estimate(data, 0.95).raw[:6], before)


def test_the_dead_have_no_advantage_and_give_none() -> None:
    data = arrays(5, deaths=0.3)
    found = estimate(data, 0.95)
    assert not found.raw[~data["alive"]].any()
    assert not found.target[~data["alive"]].any()
    dead = ~data["alive"]
    for name in ("reward", "value", "next_value"):
        data[name] = torch.where(dead, 1e9, data[name])
    assert torch.equal(estimate(data, 0.95).raw, found.raw)


def test_normalised_advantages_have_mean_zero_and_deviation_one_over_each_learners_decisions() -> None:
    advantage = 50 + 7 * torch.randn(3, 10, 8, generator=generator(), dtype=torch.float64)
    mask = torch.rand(3, 10, 8, generator=generator(1)) < 0.6
    result = normalise(torch.where(mask, advantage, 1e6), mask)
    for row in range(3):
        taken = advantage[row][mask[row]].numpy()
        torch.testing.assert_close(result[row][mask[row]], torch.from_numpy((taken - taken.mean()) / taken.std()))
    assert not result[~mask].any()


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_equal_advantages_say_nothing(value: float) -> None:
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    advantage = torch.full((1, 8, 8), value)
    assert not normalise(advantage, mask).any()
    rounded = advantage * (1 + 1e-7 * torch.randn(1, 8, 8, generator=generator()))
    assert not normalise(rounded, mask).any()


def test_a_learner_without_decisions_has_zero_advantages() -> None:
    result = normalise(torch.randn(2, 4, 4, generator=generator()), torch.zeros(2, 4, 4, dtype=torch.bool))
    assert not result.any()
    assert bool(torch.isfinite(result).all())


def test_normalising_does_not_care_for_the_rewards_unit() -> None:
    advantage, mask = torch.randn(1, 20, 20, generator=generator()), torch.ones(1, 20, 20, dtype=torch.bool)
    for unit in (1e-10, 1e5):
        torch.testing.assert_close(normalise(unit * advantage, mask), normalise(advantage, mask), rtol=1e-4, atol=1e-5)
