"""Process scores beside returns, against loops over plain numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_tr.rollout import cohort_labels
from marl_tr.rollout.transforms import trust_grpo_scores, trust_weight, with_process_scores

torch.set_num_threads(1)


def columns(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def weight_of(outcome: list[float], process: list[float], **settings: Any) -> float:
    """gamma of one cohort."""
    known = settings.pop("known", torch.ones(len(outcome), 1, dtype=torch.bool))
    group = torch.zeros(len(outcome), dtype=torch.int64)
    found = trust_weight(columns(*outcome), columns(*process), known, group, **settings)
    assert bool((found == found[0]).all())
    return found[0].item()


@pytest.mark.parametrize(
    ("process", "gamma"),
    [
        ([0.9, 0.7, 0.2, 0.6], 1.0),
        ([0.5, 0.5, 0.5, 0.5], 1.0),
        ([0.1, 0.3, 0.8, 0.6], math.exp(0.2 - 0.7)),
        ([0.0, 0.0, 1.0, 1.0], math.exp(-1)),
    ],
)
def test_process_scores_are_trusted_as_far_as_right_episodes_have_the_higher_ones(
    process: list[float], gamma: float
) -> None:
    assert weight_of([1, 1, 0, 0], process) == pytest.approx(gamma)


def test_the_weight_lies_between_zero_and_one_whatever_the_scores() -> None:
    noise = torch.Generator().manual_seed(1)
    for _ in range(50):
        outcome, process = (torch.rand(8, generator=noise).tolist() for _ in range(2))
        assert 0 < weight_of(outcome, process) <= 1


def test_an_empty_class_counts_as_zero_and_with_nothing_right_the_weight_is_one() -> None:
    assert weight_of([1, 1], [0.3, 0.2]) == 1.0
    assert weight_of([1, 1], [-0.3, -0.2]) == pytest.approx(math.exp(-0.25))
    assert weight_of([0, 0], [0.3, 0.2]) == 1.0


def test_what_counts_as_right_is_a_setting_and_failed_episodes_are_left_out() -> None:
    assert weight_of([0.5, 0.4], [0.0, 1.0]) == pytest.approx(math.exp(-1))
    assert weight_of([0.5, 0.4], [0.0, 1.0], right=0.4) == 1.0
    known = torch.tensor([[True], [True], [False]])
    assert weight_of([1, 0, 0], [0.5, 0.4, 100.0], known=known) == 1.0


def test_cohorts_and_agents_are_judged_apart() -> None:
    outcome = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    process = torch.tensor([0.2, 0.8, 0.9, 0.1]).unsqueeze(-1).expand(4, 2)
    group = torch.tensor([0, 0, 1, 1])
    found = trust_grpo_scores(outcome, process, torch.ones(4, 2, dtype=torch.bool), group, weight=0.5)
    low = math.exp(-0.6)
    gamma = torch.tensor([[low, 1.0], [low, 1.0], [1.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(found, outcome + 0.5 * gamma * process)


def test_the_released_code_leaves_process_scores_out_where_everything_is_right_or_wrong() -> None:
    outcome = columns(1, 1, 1, 0, 0, 0, 1, 0.1, 0.3)
    process = columns(*[0.5] * 9)
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    known = torch.ones(9, 1, dtype=torch.bool)
    paper = trust_grpo_scores(outcome, process, known, group, weight=1.0)
    released = trust_grpo_scores(outcome, process, known, group, weight=1.0, released=True)
    torch.testing.assert_close(paper - outcome, process)
    torch.testing.assert_close(released - outcome, columns(0, 0, 0, 0, 0, 0, 0.5, 0, 0.5))


def rollout(steps: int = 4, length: int = 2, environments: int = 6, size: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    moment = torch.arange(steps) % length
    return {
        "reward": torch.rand(steps, environments, 2, generator=generator),
        "alive": torch.ones(steps, environments, 2, dtype=torch.bool),
        "starts": (moment == 0).unsqueeze(-1).expand(-1, environments),
        "done": (moment == length - 1).unsqueeze(-1).expand(-1, environments),
        "cohort": (torch.arange(environments) // size).expand(steps, -1),
    }


def test_rewards_sum_up_to_the_judged_scores_and_only_an_episodes_end_is_paid() -> None:
    given = rollout()
    process = torch.rand(4, 6, generator=torch.Generator().manual_seed(4))
    settings = {"weight": 0.3, "right": 1.0, "released": False}
    found = with_process_scores(process=process, **given, **settings)
    torch.testing.assert_close(found[0::2], given["reward"][0::2])
    score = cohort_labels(**{**given, "reward": found})["score"]
    for start in (0, 2):
        for first in (0, 3):
            for agent in range(2):
                mates = range(first, first + 3)
                returns = [float(given["reward"][start : start + 2, e, agent].sum()) for e in mates]
                means = [float(process[start : start + 2, e].mean()) for e in mates]
                right = [m for r, m in zip(returns, means, strict=True) if r >= 1.0]
                wrong = [m for r, m in zip(returns, means, strict=True) if r < 1.0]
                gap = sum(right) / max(len(right), 1) - sum(wrong) / max(len(wrong), 1)
                gamma = math.exp(gap) if right and gap < 0 else 1.0
                expected = [r + 0.3 * gamma * m for r, m in zip(returns, means, strict=True)]
                assert score[start, first : first + 3, agent].tolist() == pytest.approx(expected, rel=1e-5)


def test_once_the_weight_is_gone_the_outcome_alone_is_left() -> None:
    given = rollout()
    process = torch.full((4, 6), 100.0)
    weight = 0.3 * math.exp(-1000 / 10)
    found = with_process_scores(process=process, **given, weight=weight, right=0.5, released=False)
    torch.testing.assert_close(found, given["reward"])


def test_a_failed_episode_has_no_process_score() -> None:
    given = rollout()
    given["alive"][0:2, 1] = False
    given["reward"] = given["reward"].masked_fill(~given["alive"], 0)
    process = torch.rand(4, 6, generator=torch.Generator().manual_seed(4))
    process[1, 1] = torch.nan
    found = with_process_scores(process=process, **given, weight=0.3, right=1.0, released=False)
    assert bool(found.isfinite().all())
    assert bool((found[0:2, 1] == 0).all())
