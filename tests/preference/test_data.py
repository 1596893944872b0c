"""The data contract: groups, pairs, levels, parts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from preference_examples import data_of, generator, play, policy_of

from marl_tr.preference.config import TrDpoConfig
from marl_tr.preference.data import BadPreferences, Candidates, PreferenceData, best_as_expert, levels, paired
from marl_tr.preference.groups import Groups
from marl_tr.preference.tr_dpo import TrDpo

torch.set_num_threads(1)


def test_groups_hold_who_shares_a_number_within_a_row() -> None:
    group = torch.tensor([[3, 0, 3, 0, 7], [3, 3, 3, 1, 1]])
    present = torch.tensor([[True, True, True, True, False], [True, True, True, True, True]])
    groups = Groups.of(group, present)
    found = {(int(r), frozenset(i[v].tolist())) for r, i, v in zip(groups.row, groups.index, groups.valid, strict=True)}
    assert found == {(0, frozenset({1, 3})), (0, frozenset({0, 2})), (1, frozenset({8, 9})), (1, frozenset({5, 6, 7}))}
    mean, count = groups.mean(groups.gather(torch.arange(10.0).reshape(2, 5)), groups.valid)
    assert mean.tolist() == [1.5, 7.0]
    assert count.tolist() == [4, 5]


def test_pairs_are_those_of_higher_rank_within_a_group() -> None:
    groups = Groups.of(torch.tensor([[0, 1, 0, 0, 1]]), torch.ones(1, 5, dtype=torch.bool))
    pairs = groups.better(torch.tensor([[1.0, 2.0, 3.0, 1.0, 2.0]]))
    found = [(int(groups.index[g, i]), int(groups.index[g, j])) for g, i, j in pairs.nonzero().tolist()]
    assert found == [(2, 0), (2, 3)]


def test_no_candidate_and_nobody_present_are_empty() -> None:
    groups = Groups.of(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool))
    mean, count = groups.mean(groups.gather(torch.ones(2, 3)), groups.valid)
    assert mean.tolist() == count.tolist() == [0, 0]


def test_blocks_join_what_shares_a_group_in_any_row() -> None:
    data = data_of(policy_of("gaussian"), candidates=6, size=2)
    assert data.blocks.tolist() == [0, 0, 1, 1, 2, 2]
    crossed = replace(data, group=torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 3, 3]]))
    assert crossed.blocks.tolist() == [0, 0, 0, 0, 1, 1]
    alone = replace(data, group=None)
    assert alone.blocks.tolist() == list(range(6))


def test_a_part_has_everything_of_the_chosen() -> None:
    data = data_of(policy_of("gaussian"))
    part = data.part(torch.tensor([4, 1]))
    for name in ("group", "score", "level"):
        assert torch.equal(getattr(part, name), getattr(data, name)[:, [4, 1]])
    assert torch.equal(part.expert, data.expert[:, :, [4, 1]])
    assert torch.equal(part.batch.record["action"], data.batch.record["action"][:, :, [4, 1]])


def test_joined_parts_keep_their_groups_apart() -> None:
    parts = [data_of(policy_of("gaussian"), candidates=4, size=2, seed=seed) for seed in (1, 2, 3)]
    joined = PreferenceData.joined(parts)
    assert joined.group[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert torch.equal(joined.score, torch.cat([part.score for part in parts], -1))
    assert joined.batch.mask.shape[2] == 12
    with pytest.raises(BadPreferences, match="others do not"):
        PreferenceData.joined([parts[0], replace(parts[1], score=None)])


def test_pairs_prefer_the_chosen() -> None:
    policy = policy_of("gaussian")
    chosen, rejected = (play(policy, steps=1, environments=3, seed=seed) for seed in (1, 2))
    data = paired(chosen, rejected)
    assert data.group.tolist() == [[0, 1, 2, 0, 1, 2]] * 2
    assert data.score.tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    assert torch.equal(data.batch.record["action"][:, :, :3], chosen.record["action"])
    with pytest.raises(BadPreferences, match="rejected"):
        paired(chosen, play(policy, steps=1, environments=4, seed=2))


def test_levels_count_the_edges_above_a_score() -> None:
    assert levels(torch.tensor([[0.9, 0.5, 0.49, -3.0]]), [0.0, 0.5]).tolist() == [[1, 1, 2, 3]]


def test_the_best_of_each_group_demonstrate() -> None:
    data = data_of(policy_of("gaussian"), candidates=6, size=3)
    score = torch.tensor([[1.0, 3.0, 3.0, -1.0, -2.0, -3.0]]).expand(2, 6)
    expert = best_as_expert(replace(data, score=score)).expert
    wanted = torch.tensor([False, True, True, True, False, False]).expand(data.batch.mask.shape)
    assert torch.equal(expert, wanted & data.batch.mask)


def test_what_does_not_fit_is_refused() -> None:
    data = data_of(policy_of("gaussian"))
    with pytest.raises(BadPreferences, match="score has shape"):
        replace(data, score=data.score[:, :3])
    with pytest.raises(BadPreferences, match="from 0"):
        replace(data, group=data.group - 1)
    with pytest.raises(BadPreferences, match="not finite"):
        replace(data, score=torch.full_like(data.score, torch.nan))


def test_who_made_no_decision_is_compared_with_nobody() -> None:

    log_prob = torch.randn(1, 1, 3, 1, generator=generator(1))
    labels = {
        "group": torch.zeros(1, 1, 3, dtype=torch.int64),
        "score": torch.tensor([[[2.0, 1.0, 0.0]]]),
        "reference": torch.zeros_like(log_prob),
    }
    mask = torch.tensor([[[True, False, True]]])
    value = TrDpo(TrDpoConfig(beta=1.0))(Candidates(log_prob, log_prob, mask, labels))
    d = log_prob.flatten()
    assert value.count.tolist() == [1]
    torch.testing.assert_close(value.loss, -torch.sigmoid(d[0] - d[2]).log()[None])
