"""Cohort-relative advantages, and episodes whose reward failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_tr.rollout import BadCohorts, cohort_advantage


def problem(steps: int = 6, length: int = 3, environments: int = 8, size: int = 4, agents: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    starts = (torch.arange(steps) % length == 0).unsqueeze(-1).expand(-1, environments)
    done = (torch.arange(steps) % length == length - 1).unsqueeze(-1).expand(-1, environments)
    return {
        "reward": torch.randn(steps, environments, agents, generator=generator),
        "alive": torch.ones(steps, environments, agents, dtype=torch.bool),
        "starts": starts,
        "done": done,
        "cohort": (torch.arange(environments) // size).expand(steps, -1),
        "clip": 5.0,
    }


def by_hand(reward: Tensor, alive: Tensor, length: int, size: int) -> Tensor:
    """NumPy, episode by episode; an agent that is dead throughout an episode is left out."""
    steps, environments, agents = reward.shape
    out = np.zeros(reward.shape)
    r, living = reward.double().numpy(), alive.numpy()
    for t in range(0, steps, length):
        for c in range(0, environments, size):
            for a in range(agents):
                members = [e for e in range(c, c + size) if living[t : t + length, e, a].any()]
                returns = {e: r[t : t + length, e, a].sum() for e in members}
                values = np.array(list(returns.values()))
                for e in members:
                    out[t : t + length, e, a] = (returns[e] - values.mean()) / max(values.std(), 1e-6)
    return torch.from_numpy(out).float() * alive


def test_it_is_the_return_in_standard_deviations_of_its_cohort() -> None:
    given = problem()
    torch.testing.assert_close(cohort_advantage(**given), by_hand(given["reward"], given["alive"], 3, 4))


def test_a_failed_sample_enters_neither_mean_nor_deviation() -> None:
    given = problem()
    given["alive"][0:3, 2] = False
    given["reward"] = given["reward"].masked_fill(~given["alive"], 0)
    result = cohort_advantage(**given)
    torch.testing.assert_close(result, by_hand(given["reward"], given["alive"], 3, 4))
    assert (result[0:3, 2] == 0).all()
    # With reward 0 in place of being left out, as published, the others' advantages would be others.
    as_zero = cohort_advantage(**{**given, "alive": torch.ones_like(given["alive"])})
    assert not torch.allclose(as_zero[0:3, 0], result[0:3, 0])


def test_equal_returns_say_nothing_and_outliers_are_clipped() -> None:
    given = problem(size=8)
    given["reward"] = torch.ones_like(given["reward"])
    assert (cohort_advantage(**given) == 0).all()
    given["reward"][:, 0] = 100.0
    # Seven of 0 and one of 300: (300 - 37.5) / 99.2 = sqrt(7).
    torch.testing.assert_close(cohort_advantage(**given)[:, 0], torch.full((6, 2), 7.0).sqrt())
    assert cohort_advantage(**{**given, "clip": 2.0}).max() == 2.0


def test_a_cohort_that_comes_back_later_is_another_one() -> None:
    given = problem()
    later = given["reward"].clone()
    later[3:] += 100
    torch.testing.assert_close(
        cohort_advantage(**{**given, "reward": later}), cohort_advantage(**given), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cohort": None}, "forms no cohorts"),
        (
            {"cohort": torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]).expand(6, -1)},
            r"unequal sizes, 3 to 5 \(0 \(from step 0\): 3",
        ),
        ({"cohort": torch.arange(8).expand(6, -1)}, "one sample each"),
        ({"done": torch.zeros(6, 8, dtype=torch.bool)}, "multiple of the episodes' length"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_cure(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadCohorts, match=said):
        cohort_advantage(**{**problem(), **change})
