"""What regions of gradient steps share: slots, memory, labels, minibatches that hold what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from family_examples import policy_of, turn_for, whole_episodes
from learning_examples import generator, make_flow, make_learners, make_policy, make_turn, play
from torch import Tensor

from marl_tr.policy import Parameters
from marl_tr.region.config import GradientConfig, ReshapedConfig
from marl_tr.region.gradient import GradientRegion, Update
from marl_tr.region.guard import Guard
from marl_tr.region.needs import Need, blocks_of, trajectories
from marl_tr.region.reshaped import ReshapedGain, segment_mean, segment_sum
from marl_tr.region.samples import Pass, Samples, passes_of_an_epoch
from marl_tr.region.turn import Estimate, Turn
from marl_tr.scenario.schema import OptimizerSection

torch.set_num_threads(1)


class Asking(GradientRegion):
    """Asks for everything and does nothing with it."""

    needs = frozenset({Need.OLD_LAW, Need.COHORT})


class Counting(GradientRegion):
    """Writes down which slots are called, and counts its steps in what it remembers."""

    def __init__(self, config: GradientConfig, optimizer: OptimizerSection) -> None:
        super().__init__(config, optimizer)
        self.calls: list[str] = []

    def prepare(self, update: Update) -> None:
        self.calls.append("prepare")

    def estimate(self, update: Update, parameters: Parameters, samples: Samples) -> Estimate:
        self.calls.append("estimate")
        return super().estimate(update, parameters, samples)

    def transform_gradients(self, update: Update) -> None:
        assert all(p.grad is not None for row in update.rows for p in row.parameters.values())
        self.calls.append("transform_gradients")

    def after_step(self, update: Update, seen: Sequence[Samples]) -> None:
        self.calls.append(f"after_step {len(seen)}")
        update.remember("steps", [count + 1 for count in update.remembered("steps", 0)])

    def after_epoch(self, update: Update) -> None:
        self.calls.append(f"after_epoch {update.epoch}")

    def finish(self, update: Update) -> None:
        self.calls.append("finish")


def steps(**settings: Any) -> OptimizerSection:
    return OptimizerSection(**{"learning_rate": 1e-3, "epochs": 2, "minibatches": 3, "max_grad_norm": None} | settings)


def test_slots_are_called_in_their_order() -> None:
    turn = turn_for(policy_of("gaussian"))
    region = Counting(GradientConfig(), steps(epochs=2, minibatches=3, accumulate=2))
    region.propose(turn)
    pair = ["estimate", "estimate", "transform_gradients", "after_step 2"]
    last = ["estimate", "transform_gradients", "after_step 1"]
    expected = ["prepare", *pair, *last, "after_epoch 0", *pair, *last, "after_epoch 1", "finish"]
    assert region.calls == expected


def test_what_is_remembered_is_committed_with_the_step_and_goes_on_from_there() -> None:
    policy = policy_of("gaussian")
    learners = make_learners(policy)
    turn = turn_for(policy, learners=learners)
    region, guard = Counting(GradientConfig(), steps()), Guard(lambda line: None)
    candidate = region.propose(turn)
    assert learners.memory == [{}, {}]
    guard.accept(region, turn, candidate)
    assert learners.memory == [{"steps": 6.0}, {"steps": 6.0}]
    guard.accept(region, turn, region.propose(turn))
    assert learners.memory == [{"steps": 12.0}, {"steps": 12.0}]
    restored = make_learners(policy_of("gaussian", seed=1))
    restored.load_state_dict(learners.state_dict())
    assert restored.memory == learners.memory


def test_a_rejected_row_remembers_nothing_new_and_an_interpolated_one_does() -> None:
    policy = policy_of("gaussian")
    learners = make_learners(policy)
    turn = turn_for(policy, learners=learners)
    region = Counting(GradientConfig(bound=1e-6), steps(learning_rate=0.05))
    candidate = replace(region.propose(turn), reasons=["", "it did not want to"])
    reports = Guard(lambda line: None).accept(region, turn, candidate)
    assert [report.outcome for report in reports] == ["interpolated", "rejected"]
    assert learners.memory == [{"steps": 6.0}, {}]
    assert learners.moments == [{}, {}]


@pytest.mark.parametrize("kind", ["gaussian", "categorical", "flow"])
def test_a_minibatch_has_the_old_law_and_labels_of_its_own_decisions(kind: str) -> None:
    """Against the old policy evaluated anew on just these decisions, and labels that spell where each comes from."""
    if kind == "flow":
        policy = make_flow(shared=True, agents=2)
    else:
        policy = make_policy(kind, agents=2, hidden=[6])
    turn = turn_for(policy)
    mask = turn.batch.mask
    spelt = torch.arange(mask.numel()).reshape(mask.shape)
    turn = replace(turn, labels=turn.labels | {"score": spelt, "raw_advantage": turn.advantage})
    settings = steps(chain_batch=2) if kind == "flow" else steps()
    samples = Asking(GradientConfig(), settings)._samples(turn)
    old = turn.learners.parameters(turn.rows)
    found = []
    for chosen in passes_of_an_epoch(samples, settings, generator(3)):
        part = samples.part(chosen)
        anew = policy.evaluate(old, part.batch)
        kept = part.batch.mask
        assert torch.equal(part.labels["raw_advantage"][kept], part.advantage[kept])
        divergence = policy.divergence(part.law, anew.law)
        torch.testing.assert_close(divergence, torch.zeros_like(divergence), rtol=0, atol=1e-6)
        torch.testing.assert_close(part.old_log_prob, anew.log_prob, rtol=1e-4, atol=1e-4)
        found.append(part.labels["score"][kept])
    times = 2 if kind == "flow" else 1
    assert torch.equal(torch.cat(found).sort().values, spelt[mask].repeat_interleave(times).sort().values)


def test_cohorts_stay_whole_in_minibatches() -> None:
    class Whole(GradientRegion):
        needs = frozenset({Need.WHOLE_COHORTS})

    turn = turn_for(policy_of("gaussian"), environments=8)
    cohort = torch.tensor([0, 1, 2, 3, 2, 1, 0, 3]).expand(2, 4, 8).clone()
    turn = replace(turn, labels=turn.labels | {"cohort": cohort})
    samples = Whole(GradientConfig(), steps())._samples(turn)
    seen: list[int] = []
    for chosen in passes_of_an_epoch(samples, steps(minibatches=3), generator(5)):
        members = cohort[0, 0, chosen.index].tolist()
        assert all(members.count(name) == 2 for name in members)
        seen += chosen.index.tolist()
    assert sorted(seen) == list(range(8))


def test_blocks_are_what_is_connected_through_cohorts_of_any_row_and_step() -> None:
    cohort = torch.tensor([[[0, 0, 1, 2, 3]], [[4, 5, 5, 6, 7]]])
    assert blocks_of(cohort).tolist() == [0, 0, 0, 1, 2]
    assert blocks_of(torch.arange(5).reshape(1, 1, 5)).tolist() == [0, 1, 2, 3, 4]


def test_lives_are_numbered_apart_within_a_learner() -> None:
    starts = torch.tensor([[[True, False], [False, False], [True, True], [False, False]]])
    numbers = trajectories(starts)[0]
    assert numbers[0, 0] == numbers[1, 0] != numbers[2, 0] == numbers[3, 0]
    assert numbers[0, 1] == numbers[1, 1] != numbers[2, 1] == numbers[3, 1]
    assert len(numbers.unique()) == 4


def test_segments_are_summed_row_by_row() -> None:
    noise = generator(1)
    x = torch.randn(2, 3, 4, 2, generator=noise, dtype=torch.float64)
    segment = torch.randint(0, 3, (2, 3, 4), generator=noise)
    mask = torch.rand(2, 3, 4, generator=noise) < 0.7
    total, mean = segment_sum(x, segment, mask), segment_mean(x, segment, mask)
    for index in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        row, t, n = index
        members = x[row][(segment[row] == segment[row, t, n]) & mask[row]]
        torch.testing.assert_close(total[row, t, n], members.sum(0))
        torch.testing.assert_close(mean[row, t, n], members.sum(0) / max(1, len(members)))


@pytest.mark.parametrize("aggregation", ["token_mean", "trajectory_mean", "trajectory_sum"])
def test_aggregates_are_those_of_a_loop_over_trajectories(aggregation: Any) -> None:
    policy = policy_of("categorical")
    turn = make_turn(policy, play(policy, steps=6, environments=5))
    region = ReshapedGain(ReshapedConfig(aggregation=aggregation), steps())
    update = Update(turn, region._rows(turn, 1.0), region._samples(turn), [{}, {}])
    region.prepare(update)
    whole = update.samples.part(Pass(torch.arange(update.samples.advantage.shape[2]), None))
    found = region.estimate(update, turn.learners.parameters(turn.rows), whole).gain
    number, mask = trajectories(turn.batch.starts), turn.batch.mask
    for row in range(2):
        advantage = turn.advantage[row].double()
        lives = [advantage[(number[row] == life) & mask[row]] for life in number[row].unique()]
        lives = [life for life in lives if len(life)]
        expected = {
            "token_mean": torch.cat(lives).mean(),
            "trajectory_mean": torch.stack([life.mean() for life in lives]).mean(),
            "trajectory_sum": torch.stack([life.sum() for life in lives]).mean(),
        }[aggregation]
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_what_all_regions_are_compared_by_is_that_of_torch_distributions() -> None:
    policy = policy_of("gaussian")
    turn = turn_for(policy)
    lines: list[Any] = []
    region = GradientRegion(GradientConfig(), steps(learning_rate=0.02))
    before = turn.learners.parameters(turn.rows)
    reports = Guard(lines.append).accept(region, turn, region.propose(turn))
    after = turn.learners.parameters(turn.rows)
    for row, report in enumerate(reports):
        old, new = (_normal(policy, parameters, turn)[row] for parameters in (before, after))
        mask = turn.batch.mask[row]
        forward = torch.distributions.kl_divergence(old, new)[mask]
        raw = turn.batch.record["action"][row].double()
        weight = (new.log_prob(raw) - old.log_prob(raw)).exp()[mask]
        name = report.learner
        expected = {
            "region/max_divergence": forward.max(),
            "region/reverse": torch.distributions.kl_divergence(new, old)[mask].mean(),
            "region/ess": weight.sum() ** 2 / (len(weight) * (weight**2).sum()),
        }
        for tag, value in expected.items():
            assert report.measures[f"{tag}/{name}"] == pytest.approx(float(value), rel=1e-3)


def _normal(policy: Any, parameters: Parameters, turn: Turn) -> list[Any]:
    with torch.no_grad():
        mean, log_std = (p.double() for p in policy.law_parameters(parameters, turn.batch))

    def of(row: int) -> torch.distributions.Distribution:
        normal = torch.distributions.Normal(mean[row], log_std[row].exp())
        return torch.distributions.Independent(normal, 1)

    return [of(row) for row in range(len(mean))]


def test_whole_trajectories_are_not_cut_by_minibatches() -> None:
    class Whole(GradientRegion):
        needs = frozenset({Need.WHOLE_TRAJECTORIES})

    policy = policy_of("gaussian")
    turn = make_turn(policy, whole_episodes(play(policy, steps=5, environments=6)))
    samples = Whole(GradientConfig(), steps())._samples(turn)
    for chosen in passes_of_an_epoch(samples, steps(minibatches=3), generator(2)):
        part = samples.part(chosen)
        assert part.advantage.shape == (2, 5, 2)
        assert all(len(column.unique()) == 1 for column in _columns(part.labels["trajectory"]))


def _columns(x: Tensor) -> list[Tensor]:
    return [x[row, :, n] for row in range(x.shape[0]) for n in range(x.shape[2])]
