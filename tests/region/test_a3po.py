"""A-3PO (arXiv 2512.06547): an anchor that goes along with the policy, a version behind it."""

from __future__ import annotations

import math

import pytest
import torch
from family_examples import policy_of, turn_for
from learning_examples import make_region
from shaping_examples import grid, slope, steps_taken

from marl_tr.region.family.a3po import A3po, proximal
from marl_tr.region.gradient import Update
from marl_tr.region.reshaped import Decisions
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)


@pytest.mark.parametrize("version", [0, 1])
def test_within_a_version_of_the_rollout_it_is_ppo(version: int) -> None:
    ratio, advantage = grid()
    found = slope(make_region("a3po"), ratio, advantage, update=steps_taken(version))
    torch.testing.assert_close(found, slope(make_region("ppo_clip"), ratio, advantage))


@pytest.mark.parametrize("version", [2, 5])
def test_of_d_versions_the_anchor_is_one_ds_share_of_the_way_to_the_policy_that_acted(version: int) -> None:
    now, old = torch.tensor([[-1.0, -3.0]]).double(), torch.tensor([[-2.0, -0.5]]).double()
    anchor = proximal(now, old, [version])
    torch.testing.assert_close((now - anchor).exp(), ((now - old) / version).exp())
    # As the released code writes it: between behaviour and the version before the current one.
    share = (version - 1) / version
    torch.testing.assert_close(anchor, old + share * (now - old))
    straight = proximal(now, old, [version], linear=True)
    torch.testing.assert_close(straight.exp(), old.exp() / version + (1 - 1 / version) * now.exp())


@pytest.mark.parametrize("version", [2, 4])
def test_the_root_of_the_ratio_is_clipped_and_the_rest_is_a_capped_weight(version: int) -> None:
    ratio, advantage = grid()
    region = make_region("a3po", clip=0.2, cap=3.0)
    root = ratio ** (1 / version)
    stopped = ((advantage > 0) & (root > 1.2)) | ((advantage < 0) & (root < 0.8))
    weight = (ratio / root).clamp_max(3.0)
    found = slope(region, ratio, advantage, update=steps_taken(version))
    torch.testing.assert_close(found, torch.where(stopped, 0, weight * root * advantage))
    # So that a ratio beyond PPO's interval still counts.
    assert float(slope(region, torch.tensor([1.4]), torch.ones(1), update=steps_taken(version))) > 0


def test_versions_are_each_learners_steps_within_the_update() -> None:
    seen: list[list[int]] = []

    class Spy(A3po):
        def gain(self, decisions: Decisions, update: Update) -> torch.Tensor:
            seen.append([row.steps for row in update.rows])
            return super().gain(decisions, update)

    optimizer = OptimizerSection(learning_rate=1e-3, epochs=2, minibatches=2, max_grad_norm=None)
    region = Spy(make_region("a3po").config, optimizer)
    turn = turn_for(policy_of("gaussian"))
    region.propose(turn)
    assert seen == [[0, 0], [1, 1], [2, 2], [3, 3]]
    now, old = torch.zeros(2, 3), torch.ones(2, 3)
    torch.testing.assert_close(proximal(now, old, [1, 4]), torch.tensor([[1.0], [0.25]]).expand(2, 3))
    assert math.isfinite(float(proximal(now, old, [1, 4], linear=True).sum()))
