"""APO (arXiv 2602.05717): what a bad action loses goes to choices that a reference holds likely."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_examples import policy_of, region_of, turn_for
from learning_examples import make_learners, make_policy
from test_family import gradient_of, moved
from torch import Tensor

from marl_tr.nn.discrete import Categorical
from marl_tr.policy import masked_mean
from marl_tr.region.family.apo import anchor_ratio, supported
from marl_tr.region.turn import Turn
from marl_tr.scenario import ScenarioError, load_scenario
from marl_tr.scenario.regularisers import PositionConfig

torch.set_num_threads(1)

OLD = torch.tensor([0.35, 0.3, 0.2, 0.1, 0.05], dtype=torch.float64)


def signed(turn: Turn, sign: int) -> Turn:
    return replace(turn, advantage=sign * turn.advantage.abs())


@pytest.mark.parametrize("sign", [1, -1])
def test_without_pull_and_push_it_is_ppos_clip_and_good_actions_are_never_touched(sign: int) -> None:
    turn = signed(turn_for(policy_of("categorical")), sign)
    point = moved(turn, 0.2)
    clip = gradient_of(region_of("ppo_clip"), turn, point)
    torch.testing.assert_close(gradient_of(region_of("apo", pull=0.0, push=1.0), turn, point), clip)
    usual = gradient_of(region_of("apo", top_k=3), turn, point)
    assert torch.allclose(usual, clip, atol=1e-6) == (sign == 1)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_the_safe_choices_are_the_references_likeliest_without_the_one_taken(taken: int) -> None:
    new = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=torch.float64)
    safe = [i for i in range(3) if i != taken]
    expected = new[safe].sum() / OLD[safe].sum()
    found = anchor_ratio(new.log(), supported(OLD.log(), 3), torch.tensor(taken))
    torch.testing.assert_close(found, expected)
    # Where nothing is safe but the choice taken there is nothing to pull to.
    assert float(anchor_ratio(new.log(), supported(OLD.log(), 1), torch.tensor(0))) == 0


def test_the_pull_raises_safe_choices_and_lowers_all_others() -> None:
    logits = OLD.log().requires_grad_()
    ratio = anchor_ratio(Categorical(logits).log_probabilities, supported(OLD.log(), 3), torch.tensor(0))
    (slope,) = torch.autograd.grad(ratio, logits)
    assert bool((slope[[1, 2]] > 0).all())
    assert bool((slope[[0, 3, 4]] < 0).all())
    step = 1e-6
    for i in range(5):
        shifted = [
            anchor_ratio(
                Categorical(OLD.log() + s * torch.eye(5, dtype=torch.float64)[i]).log_probabilities,
                supported(OLD.log(), 3),
                torch.tensor(0),
            )
            for s in (step, -step)
        ]
        assert float((shifted[0] - shifted[1]) / (2 * step)) == pytest.approx(float(slope[i]), abs=1e-8)


def test_beside_ppos_gradient_a_bad_action_raises_safe_logits_and_lowers_unsafe_ones() -> None:
    """One step from the old policy, on the logits themselves: against ``w A`` alone."""
    logits = OLD.log().requires_grad_()
    law = Categorical(logits)
    ratio = (law.log_prob(torch.tensor(1)) - OLD[1].log()).exp()
    anchor = anchor_ratio(law.log_probabilities, supported(OLD.log(), 3), torch.tensor(1))
    plain = torch.autograd.grad(-ratio, logits, retain_graph=True)[0]
    apo = torch.autograd.grad(-(1.05 * ratio - 0.1 * anchor), logits)[0]
    assert bool((apo[[0, 2]] > plain[[0, 2]]).all())
    assert bool((apo[[3, 4]] < plain[[3, 4]]).all())


def test_what_the_pull_adds_is_the_gradient_of_the_safe_choices_share_of_the_loss() -> None:
    turn = signed(turn_for(policy_of("categorical")), -1)
    point = moved(turn, 0.2)
    added = gradient_of(region_of("apo", pull=0.5, push=1.0, top_k=3), turn, point)
    added = added - gradient_of(region_of("ppo_clip"), turn, point)
    leaves = {name: p.clone().requires_grad_() for name, p in point.items()}
    new = turn.learners.policy.evaluate(leaves, turn.batch).law.parameters()[0].softmax(-1)
    old = turn.old.law.parameters()[0].softmax(-1)
    safe = old >= old.sort(-1, descending=True).values[..., 2:3]
    safe = safe & (torch.arange(5) != turn.batch.record["action"].unsqueeze(-1))
    share = (new * safe).sum(-1) / (old * safe).sum(-1)
    wanted = masked_mean(0.5 * turn.advantage.abs() * share, turn.batch.mask).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(wanted, list(leaves.values()))])
    torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("choices", ["categorical", "multidiscrete"])
def test_forbidden_choices_are_never_safe_and_several_choices_work(choices: str) -> None:
    masked = Categorical(OLD.log(), torch.tensor([True, False, True, True, False]))
    found = supported(masked.log_probabilities, 4)
    assert torch.isfinite(found).tolist() == [True, False, True, True, False]
    policy = make_policy(choices, agents=2, hidden=[6])
    turn = signed(turn_for(policy), -1)
    assert bool(torch.isfinite(gradient_of(region_of("apo"), turn, moved(turn, 0.1))).all())


def anchored(policy: Any, shift: float) -> Turn:
    """A turn of learners whose anchor is another policy than the one that acted."""
    learners = make_learners(policy, PositionConfig(weight=0.0))
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.module.parameters():
            p += shift * torch.randn(p.shape, generator=noise)
    turn = turn_for(policy)
    return signed(replace(turn, learners=learners, terms=learners.regularisers.terms(turn.rows, 0.0)), -1)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_anchor_of_a_regulariser_can_be_the_reference(shift: float) -> None:
    turn = anchored(policy_of("categorical"), shift)
    point: dict[str, Tensor] = turn.learners.parameters(turn.rows)
    old = gradient_of(region_of("apo", top_k=2), turn, point)
    anchor = gradient_of(region_of("apo", top_k=2, reference="anchor"), turn, point)
    assert torch.allclose(old, anchor, atol=1e-7) == (shift == 0)


def test_an_anchor_that_no_regulariser_has_is_refused_when_the_scenario_is_read() -> None:
    text = {
        "name": "x",
        "env": {"id": "games/matrix-v0"},
        "agents": {"kind": "gaussian"},
        "objective": {"kind": "surrogate"},
        "region": {"kind": "apo", "reference": "anchor"},
        "schedule": {"kind": "simultaneous"},
        "critic": {"kind": "mlp"},
        "optimizer": {},
        "trainer": {"total_steps": 10},
    }
    with pytest.raises(ScenarioError, match="goes by an anchor here, and no regulariser has one"):
        load_scenario(text)
    load_scenario(text | {"regularisers": [{"kind": "position", "weight": 0}]})
