"""The trainer: every loss learns, and every update is measured and kept within its bounds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from preference_examples import (
    POLICIES,
    PreferenceTrainer,
    data_of,
    frozen,
    generator,
    make_policy,
    mean_over,
    play,
    policy_of,
    settings_of,
    torch_kl,
)
from pydantic import ValidationError

from marl_tr.errors import UserError
from marl_tr.policy import Policy
from marl_tr.preference import LOSSES
from marl_tr.preference.data import BadPreferences, Candidates, PreferenceData, best_as_expert, levels
from marl_tr.preference.trainer import train_preferences
from marl_tr.region.config import Status

torch.set_num_threads(1)

BOUND = 0.01
PAIRS = [(name, kind) for name in LOSSES for kind in POLICIES]


def loss_of(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    by_quantile = {"of": "quantile"} if name == "trsft" and kind != "categorical" else {}
    return {"kind": name, **by_quantile, **settings}


def teacher_of(name: str, policy: Policy, kind: str) -> dict[str, Any]:
    return {"teacher": frozen(policy_of(kind, seed=9))} if name == "erpd" else {}


def chosen_well(policy: Policy, best: int, *, seed: int, count: int = 256) -> PreferenceData:
    """Groups of eight choices each in one situation; `best` is the best of the five, and the next is second best."""
    batch = play(policy, steps=1, environments=count, seed=seed)
    group = (torch.arange(count) // 8).expand(1, count)
    seen = batch.observation["observation"][:, :, ::8].repeat_interleave(8, 2)
    with torch.no_grad():
        action = policy.act({"observation": seen[:, 0]}, None, generator(seed + 1))
    choice = action.record["action"]
    score = -((choice - best) % 5).float()
    mask = torch.ones_like(batch.mask)
    record = {leaf: x.unsqueeze(1) for leaf, x in action.record.items()}
    made = replace(batch, observation={"observation": seen}, record=record, mask=mask)
    return best_as_expert(PreferenceData(made, group=group, score=score, level=levels(score, [-0.5, -1.5])))


def share_of(policy: Policy, best: int) -> float:
    batch = play(policy, steps=1, environments=256, seed=777)
    with torch.no_grad():
        (logits,) = policy.law_parameters(frozen(policy), batch)
    return float(logits.softmax(-1)[..., best].mean())


LEARNING = {
    "adpo": ({}, {}),
    "tr_dpo": ({"beta": 0.5}, {"anchor": {"kind": "soft", "rate": 0.5}, "weight": 0}),
    "trpa": ({"beta": 0.5}, {"anchor": {"kind": "period", "every": 5}, "weight": 0}),
    "trsft": ({}, {"weight": 0}),
    "psft": ({}, {"weight": 0}),
}


@pytest.mark.parametrize("name", LEARNING)
def test_a_bandits_preferred_action_becomes_likelier_and_every_update_keeps_the_bound(name: str) -> None:
    loss, anchor = LEARNING[name]
    policy = make_policy("categorical", agents=1, shared=True, hidden=[16], head_gain=0.01)
    lines: list[dict[str, Any]] = []
    settings = settings_of(
        {"kind": name, **loss},
        bound=BOUND,
        batch=16,
        updates=10,
        optimizer={"learning_rate": 0.01, "epochs": 2, "minibatches": 2, "max_grad_norm": 2.0},
        **({"anchor": anchor} if anchor else {}),
    )
    trainer = PreferenceTrainer(policy, settings, audit=lambda line: lines.append(dict(line)))
    before = share_of(policy, 3)
    assert before == pytest.approx(0.2, abs=0.02)
    for round_ in range(6):
        trainer.train(chosen_well(policy, 3, seed=round_))
    assert share_of(policy, 3) > 0.5
    assert [line["update"] for line in lines] == list(range(60))
    assert all(line["guarantee"] == "hard" and line["bound"] == BOUND for line in lines)
    assert max(line["accepted"] for line in lines) <= BOUND


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_no_adversarial_update_leaves_the_bound(name: str, kind: str) -> None:
    """Wild scores, rates up to 0.1, parameters that drift on; the divergence is taken by torch.distributions."""
    policy = policy_of(kind)
    noise = generator(7)
    trainers = []
    for rate in (0.1, 0.03, 0.1):
        settings = settings_of(
            loss_of(name, kind),
            bound=BOUND,
            optimizer={"learning_rate": rate, "epochs": 3, "minibatches": 2, "max_grad_norm": 1e6},
        )
        trainers.append(PreferenceTrainer(policy, settings, **teacher_of(name, policy, kind)))
    outcomes: list[str] = []
    for update in range(15):
        data = data_of(policy, seed=update)
        wild = 10 ** (6 * torch.rand((), generator=noise) - 3) / torch.rand(data.score.shape, generator=noise)
        data = replace(data, score=wild * data.score)
        before = frozen(policy)
        reports = trainers[update % 3].update(data)
        if kind == "flow":
            with torch.no_grad():
                laws = [policy.evaluate(p, data.batch).law for p in (before, frozen(policy))]
            std = laws[0].std.double().unsqueeze(-1)
            moved = torch.where(std > 0, (laws[0].mean - laws[1].mean).double() / std.clamp_min(1e-9), 0)
            divergence = mean_over(0.5 * moved.square().sum((-1, -2)), data.batch.mask)
        else:
            divergence = mean_over(torch_kl(kind, policy, before, frozen(policy), data.batch), data.batch.mask)
        assert max(divergence) <= BOUND * (1 + 1e-6)
        for report, measured in zip(reports, divergence, strict=True):
            assert report.accepted <= BOUND
            assert report.accepted == pytest.approx(measured, rel=1e-3, abs=1e-7)
        outcomes += [report.outcome for report in reports]
    assert outcomes.count("interpolated") > 0
    assert outcomes.count("rejected") < len(outcomes) / 2


def test_the_bound_to_the_anchor_is_kept_over_a_whole_training() -> None:
    policy = policy_of("gaussian")
    start, data = frozen(policy), data_of(policy)
    settings = settings_of(
        {"kind": "tr_dpo", "beta": 1.0},
        anchor={"weight": 0, "bound": 0.05},
        updates=15,
        optimizer={"learning_rate": 0.05, "epochs": 2},
    )
    reports = train_preferences(policy, data, settings)
    assert any("anchor" in report.reason for report in reports)
    final = mean_over(torch_kl("gaussian", policy, start, frozen(policy), data.batch), data.batch.mask)
    assert max(final) <= 0.05 * (1 + 1e-6)
    assert max(final) > 0.02


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_reported_gain_is_the_fall_of_the_loss(name: str, kind: str) -> None:
    policy = policy_of(kind)
    data = data_of(policy)
    frozen_anchor = {"anchor": "reference"} if name == "adpo" else {}
    settings = settings_of(loss_of(name, kind, **frozen_anchor), optimizer={"learning_rate": 1e-3, "epochs": 1})
    trainer = PreferenceTrainer(policy, settings, **teacher_of(name, policy, kind))
    turn = trainer._turn(data, 0.0)
    (first, *_) = reports = trainer.update(data)
    with torch.no_grad():
        now = policy.evaluate(frozen(policy), data.batch).log_prob
    loss = turn.objective.loss
    before, after = (
        loss(Candidates(x, turn.old.log_prob, data.batch.mask, turn.labels)).loss for x in (turn.old.log_prob, now)
    )
    for row, report in enumerate(reports):
        assert report.surrogate_gain == pytest.approx(float(before[row] - after[row]), abs=1e-5)
    assert first.surrogate_gain > 0


@pytest.mark.parametrize("name", ["adpo", "tr_dpo", "trpa"])
def test_groups_stay_whole_in_minibatches_and_batches(name: str) -> None:
    policy = policy_of("categorical")
    data = data_of(policy, candidates=24, size=3)
    shuffled = data.part(torch.randperm(data.batch.mask.shape[2], generator=generator(3)))
    seen: list[Candidates] = []
    settings = settings_of({"kind": name}, batch=5, updates=4, optimizer={"epochs": 2, "minibatches": 2})
    trainer = PreferenceTrainer(policy, settings)
    loss = trainer._objective.loss

    class Watched:
        labels = staticmethod(loss.labels)

        def __call__(self, candidates: Candidates) -> Any:
            seen.append(candidates)
            return loss(candidates)

    trainer._objective.loss = Watched()
    trainer.train(shuffled)
    sizes = [[int(c) for c in x.of_candidate("group")[0].unique(return_counts=True)[1]] for x in seen]
    assert all(set(size) == {3} for size in sizes)
    assert {len(size) for size in sizes} == {2, 3, 5}


def test_every_group_has_its_turn_once_an_order() -> None:
    data = data_of(policy_of("categorical"), candidates=24, size=4)
    trainer = PreferenceTrainer(policy_of("categorical"), settings_of({"kind": "adpo"}, batch=2, updates=3))
    batches = trainer._batches(data)
    drawn = torch.cat([next(batches).group[0] for _ in range(3)])
    assert sorted(drawn.tolist()) == sorted(data.group[0].tolist())


def test_a_row_without_a_pair_stands_still() -> None:
    policy = policy_of("categorical")
    data = data_of(policy)
    score = data.score.clone()
    score[1] = 1.0
    before = frozen(policy)
    reports = PreferenceTrainer(policy, settings_of({"kind": "tr_dpo"})).update(replace(data, score=score))
    after = frozen(policy)
    assert all(torch.equal(after[name][1], p[1]) for name, p in before.items())
    assert any(not torch.equal(after[name][0], p[0]) for name, p in before.items())
    assert [report.outcome for report in reports] == ["accepted", "rejected"]


def test_training_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    settings = settings_of({"kind": "tr_dpo"}, anchor={"weight": 0.1, "anchor": {"kind": "soft", "rate": 0.3}})
    policies = [policy_of("gaussian"), policy_of("gaussian")]
    data = data_of(policies[0])
    whole = PreferenceTrainer(policies[0], settings)
    for _ in range(2):
        whole.update(data)
    other = PreferenceTrainer(policies[1], settings)
    other.load_state_dict(whole.state_dict())
    for trainer in (whole, other):
        trainer.update(data)
    assert whole.updates == other.updates == 3
    assert all(torch.equal(p, frozen(policies[1])[name]) for name, p in frozen(policies[0]).items())


def test_what_a_loss_lacks_is_said() -> None:
    policy = policy_of("categorical")
    data = data_of(policy)
    with pytest.raises(BadPreferences, match="'trpa' needs data with level"):
        PreferenceTrainer(policy, settings_of({"kind": "trpa"})).update(replace(data, level=None))
    one = PreferenceData(data.batch.rows([0]), group=data.group[:1], score=data.score[:1])
    with pytest.raises(BadPreferences, match="of 1 learners for a policy of 2"):
        PreferenceTrainer(policy, settings_of({"kind": "adpo"})).update(one)
    with pytest.raises(UserError, match="chain_batch"):
        PreferenceTrainer(policy_of("flow"), settings_of({"kind": "adpo"}, optimizer={"chain_batch": 2}))
    with pytest.raises(ValidationError):
        settings_of({"kind": "dpo"})


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_where_it_is_from(name: str) -> None:
    config: Any = LOSSES[name].load_config()
    assert config().kind == name
    assert config.status in Status.__args__
    assert len(config.paper) == len("2404.09656")
    assert LOSSES[name].load()(config()) is not None


def test_names_and_settings_load_no_torch() -> None:
    script = (
        "import sys; from marl_tr.preference import LOSSES; [entry.load_config() for entry in LOSSES.values()]; "
        "import marl_tr.preference.config; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("law", ["beta", "multidiscrete"])
def test_other_laws_and_recurrent_policies_learn_within_the_bound(law: str, network: str) -> None:
    policy = make_policy(law, network, agents=2, hidden=[6])
    data = data_of(policy, steps=3)
    settings = settings_of(
        {"kind": "tr_dpo", "beta": 0.5}, bound=BOUND, optimizer={"learning_rate": 0.01, "epochs": 2, "minibatches": 2}
    )
    trainer = PreferenceTrainer(policy, settings)
    first = trainer.loss(data)
    for _ in range(5):
        before = frozen(policy)
        trainer.update(data)
        divergence = mean_over(torch_kl(law, policy, before, frozen(policy), data.batch), data.batch.mask)
        assert max(divergence) <= BOUND * (1 + 1e-5)
    assert (trainer.loss(data) < first - 0.01).all()
