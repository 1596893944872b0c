"""Schedules on the game ``r = a1 a2`` with known steps, and the compounding factor by brute force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from learning_examples import (
    frozen,
    generator,
    make_policy,
    make_region,
    play,
    torch_log_prob,
)
from torch import Tensor, nn

from marl_tr.nn.distributions import Gaussian
from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.region.guard import Guard, UpdateReport
from marl_tr.region.turn import Candidate, Learners, Turn
from marl_tr.rollout.advantage import normalise
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.schedule.assignment import Assignment, Schedule
from marl_tr.schedule.config import SequentialConfig, SimultaneousConfig
from marl_tr.schedule.sequential import Sequential
from marl_tr.schedule.simultaneous import Simultaneous

torch.set_num_threads(1)


def no_log(losses: Mapping[str, float]) -> None:
    del losses


def guard() -> Guard:
    return Guard(lambda line: None)


# The game r = a1 a2: Gaussians of variance 1 at (-1/4, 1/4), mean KL of at most 1/2, so that a step has length 1.


class MeanPolicy:
    """Two Gaussians of variance 1 whose means are all that can be learned."""

    rows = Rows(agents=2, shared=False)
    capabilities = frozenset({Capability.LOG_PROB, Capability.KL})
    direction = "kl_old_new"
    recurrent = False

    def __init__(self) -> None:
        self.module = nn.Module()
        self.module.mean = nn.Parameter(torch.tensor([[-0.25], [0.25]]))

    def _law(self, parameters: Parameters, batch: PolicyBatch) -> Gaussian:
        mean = parameters["mean"].reshape(-1, 1, 1, 1).expand(*batch.mask.shape, 1)
        return Gaussian(mean, torch.zeros_like(mean))

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        law = self._law(parameters, batch)
        return Evaluation(log_prob=law.log_prob(batch.record["action"]).unsqueeze(-1), entropy=law.entropy(), law=law)

    def divergence(self, anchor: Gaussian, law: Gaussian) -> Tensor:
        return anchor.kl(law).unsqueeze(-1)

    def law_parameters(self, parameters: Parameters, batch: PolicyBatch) -> tuple[Tensor, ...]:
        return self._law(parameters, batch).parameters()

    def fisher_product(self, law: Gaussian, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return law.fisher_product(tangents)


def product_game(policy: MeanPolicy) -> Assignment:
    """Every pair of 101 quantiles of either Gaussian is one environment: expectations to 1e-2, signs exactly."""
    quantiles = torch.special.ndtri((torch.arange(101, dtype=torch.float64) + 0.5) / 101).float()
    noise = torch.cartesian_prod(quantiles, quantiles).T  # [2, E]
    action = policy.module.get_parameter("mean").detach() + noise
    everything = torch.ones(2, 1, noise.shape[1], dtype=torch.bool)
    batch = PolicyBatch(
        observation={}, record={"action": action[:, None, :, None]}, memory=None, starts=everything, mask=everything
    )
    return Assignment(
        learners=Learners(policy, ["first", "second"]),  # type: ignore[arg-type]
        batch=batch,
        advantage=(action[0] * action[1]).expand(2, 1, -1),
        normalise=False,
        objective=Surrogate(SurrogateConfig()),
        region=make_region("trpo", bound=0.5 * (1 + 1e-9), damping=0.0, subsample=1.0),
        log=no_log,
    )


def played(schedule: Schedule, seed: int) -> tuple[list[float], list[UpdateReport]]:
    policy = MeanPolicy()
    reports = schedule.update([product_game(policy)], guard(), generator(seed), 0.0)
    return policy.module.get_parameter("mean").flatten().tolist(), reports


def test_simultaneous_steps_lose_in_the_product_game() -> None:
    """Each learner's best step against the old other: J falls from -1/16 to -9/16 (specification 4.1)."""
    means, reports = played(Simultaneous(SimultaneousConfig()), seed=0)
    assert means == pytest.approx([0.75, -0.75], abs=1e-5)
    assert means[0] * means[1] == pytest.approx(-0.5625, abs=1e-5)
    assert all(r.outcome == "accepted" and r.surrogate_gain > 0 for r in reports)


@pytest.mark.parametrize("seed", range(4))
def test_sequential_steps_win_in_the_product_game_in_either_order(seed: int) -> None:
    means, reports = played(Sequential(SequentialConfig(factor_limit=1e6)), seed)
    first_begins = reports[0].learner == "first"
    assert means == pytest.approx([0.75, 1.25] if first_begins else [-1.25, -0.75], abs=1e-5)
    assert means[0] * means[1] == pytest.approx(0.9375, abs=1e-5)


def test_without_the_factor_sequential_steps_lose_like_simultaneous_ones() -> None:
    means, _ = played(Sequential(SequentialConfig(factor_limit=1.0)), seed=0)
    assert means[0] * means[1] == pytest.approx(-0.5625, abs=1e-5)


# The factor.


class Recording:
    """A region that writes down its turns and what every parameter was then."""

    def __init__(self, region: Any) -> None:
        self._region = region
        self.turns: list[Turn] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._region, name)

    def propose(self, turn: Turn) -> Candidate:
        self.turns.append(turn)
        proposed: Candidate = self._region.propose(turn)
        return proposed


def assignment(region: Any, *, seed: int = 0, agents: int = 3, shared: bool = False, scale: float = 1.0) -> Assignment:
    policy = make_policy("beta", "gru", agents=agents, seed=seed, shared=shared)
    batch = play(policy, seed=seed + 10)
    return Assignment(
        learners=Learners(policy, [f"{seed}/{row}" for row in range(policy.rows.learners)]),
        batch=batch,
        advantage=scale * torch.randn(batch.mask.shape, generator=generator(seed + 20)) + 3.0,
        normalise=True,
        objective=Surrogate(SurrogateConfig()),
        region=region,
        log=no_log,
    )


def ratio(part: Assignment, before: Parameters, row: int) -> Tensor:
    """New to old of one learner by torch.distributions, ``[T, N]``, 1 where it did not act."""
    policy = part.learners.policy
    values = []
    for parameters in (frozen(policy), before):
        with torch.no_grad():
            law = policy.law_parameters(parameters, part.batch)
        values.append(torch_log_prob("beta", law, part.batch.record["action"]))
    new, old = values
    return torch.where(part.batch.mask, (new - old).exp(), 1.0)[row]


@pytest.mark.parametrize("limit", [10.0, 1.05])
@pytest.mark.parametrize("name", ["trpo", "measured"])
def test_factor_is_the_product_of_the_ratios_in_force_and_weighs_the_normalised_advantage(
    name: str, limit: float
) -> None:
    """With ``measured`` the proposals are far too long: the ratios are those after the Guard."""
    region = Recording(
        make_region(name, bound=0.01, optimizer=OptimizerSection(learning_rate=0.05))
        if name == "measured"
        else make_region(name, bound=0.01)
    )
    parts = [assignment(region, seed=0), assignment(region, seed=1, agents=2)]
    before = [frozen(part.learners.policy) for part in parts]
    reports = Sequential(SequentialConfig(factor_limit=limit)).update(parts, guard(), generator(3), 0.0)
    assert len(region.turns) == 5
    if name == "measured":
        assert {r.outcome for r in reports} == {"interpolated"}
    factor = torch.ones(6, 8, dtype=torch.float64)
    for turn, report in zip(region.turns, reports, strict=True):
        which, row = (int(x) for x in report.learner.split("/"))
        plain = normalise(parts[which].advantage[[row]], parts[which].batch.mask[[row]])
        expected = plain[0].double() * factor.clamp(1 / limit, limit)
        torch.testing.assert_close(turn.advantage[0].double(), expected, rtol=1e-4, atol=1e-5)
        factor = factor * ratio(parts[which], before[which], row)
    assert float((factor - 1).abs().max()) > 0.1


def test_factor_of_a_learner_with_several_agents_is_the_product_over_them() -> None:
    part = assignment(make_region("trpo"), shared=True)
    log_ratio = torch.randn(6, 24, 1, generator=generator(1))
    summed = part.environment_log_ratio(0, log_ratio)
    by_hand = torch.zeros(6, 8)
    for t in range(6):
        for e in range(8):
            for a in range(3):
                if part.batch.mask[0, t, e * 3 + a]:
                    by_hand[t, e] += log_ratio[t, e * 3 + a, 0]
    torch.testing.assert_close(summed, by_hand)


def test_weight_reaches_every_agent_of_its_environment() -> None:
    part = assignment(make_region("trpo"), shared=True)
    weight = torch.rand(6, 8, generator=generator(1)) + 0.5
    plain = part.turn((0,), weight=None, generator=generator(), progress=0.0)
    weighed = part.turn((0,), weight=weight, generator=generator(), progress=0.0)
    for t in range(6):
        for n in range(24):
            expected = plain.advantage[0, t, n] * weight[t, n // 3]
            assert float(weighed.advantage[0, t, n]) == pytest.approx(float(expected))


def test_rejected_learners_leave_the_factor_at_one() -> None:
    region = Recording(make_region("trpo", max_backtracks=0, accept_ratio=1.0, bound=5.0))
    reports = Sequential(SequentialConfig()).update([assignment(region)], guard(), generator(), 0.0)
    assert {r.outcome for r in reports} == {"rejected"}
    for turn, report in zip(region.turns, reports, strict=True):
        row = int(report.learner[-1])
        torch.testing.assert_close(turn.advantage, normalise(*_row(assignment(region), row)))


def test_order_is_random_fair_and_repeats_with_the_generator() -> None:
    def order(seed: int) -> str:
        part = assignment(make_region("measured", optimizer=OptimizerSection(epochs=1)))
        reports = Sequential(SequentialConfig()).update([part], guard(), generator(seed), 0.0)
        return "".join(report.learner[-1] for report in reports)

    orders = [order(seed) for seed in range(40)]
    assert orders[:5] == [order(seed) for seed in range(5)]
    assert set(orders) == {"012", "021", "102", "120", "201", "210"}


@pytest.mark.parametrize("schedule", [Simultaneous(SimultaneousConfig()), Sequential(SequentialConfig())])
def test_every_learner_updates_once_and_repeats_bit_for_bit(schedule: Schedule) -> None:
    runs = []
    for _ in range(2):
        parts = [assignment(make_region("trpo"), seed=seed) for seed in (0, 1)]
        reports = schedule.update(parts, guard(), generator(5), 0.0)
        assert sorted(r.learner for r in reports) == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
        runs.append([p for part in parts for p in frozen(part.learners.policy).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_simultaneous_turns_see_unweighted_normalised_advantages_of_all_rows() -> None:
    region = Recording(make_region("trpo"))
    part = assignment(region, scale=100.0)
    Simultaneous(SimultaneousConfig()).update([part], guard(), generator(), 0.0)
    (turn,) = region.turns
    assert turn.rows == (0, 1, 2)
    for row in range(3):
        seen = turn.advantage[row][part.batch.mask[row]].double()
        assert float(seen.mean()) == pytest.approx(0, abs=1e-5)
        assert float(seen.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not turn.advantage[~part.batch.mask].any()


def test_losses_of_a_proposal_reach_the_log() -> None:
    seen: list[dict[str, float]] = []
    part = assignment(make_region("trpo"))
    part = replace(part, log=lambda losses: seen.append(dict(losses)))
    Simultaneous(SimultaneousConfig()).update([part], guard(), generator(), 0.0)
    assert set(seen[0]) == {"losses/policy_loss"}


def _row(part: Assignment, row: int) -> tuple[Tensor, Tensor]:
    return part.advantage[[row]], part.batch.mask[[row]]


# Learners without a likelihood.


class Mute(MeanPolicy):
    """The same, but it cannot say how likely its actions are."""

    capabilities = frozenset({Capability.SAMPLE_DISTANCE})

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        evaluation = super().evaluate(parameters, batch)
        return Evaluation(log_prob=torch.zeros_like(evaluation.log_prob), entropy=None, law=evaluation.law)


@pytest.mark.parametrize("seed", range(6))
def test_learners_without_a_likelihood_go_last_and_see_the_factor_of_those_before_them(seed: int) -> None:
    speaking, mute = product_game(MeanPolicy()), product_game(Mute())
    mute = replace(mute, learners=Learners(mute.learners.policy, ["third", "fourth"]))
    regions = [Recording(speaking.region), Recording(Still())]
    assignments = [replace(a, region=region) for a, region in zip((mute, speaking), regions[::-1], strict=True)]
    reports = Sequential(SequentialConfig(factor_limit=1e6)).update(assignments, guard(), generator(seed), 0.0)
    assert {r.learner for r in reports[:2]} == {"first", "second"}
    assert {r.learner for r in reports[2:]} == {"third", "fourth"}
    log_factor = sum(speaking.environment_log_ratio(row, r.log_ratio) for row, r in _rows(reports[:2]))
    assert isinstance(log_factor, Tensor)
    assert log_factor.abs().max() > 0.1
    for turn in regions[1].turns:
        torch.testing.assert_close(turn.advantage[0], mute.advantage[turn.rows[0]] * log_factor.exp())


def _rows(reports: list[UpdateReport]) -> list[tuple[int, UpdateReport]]:
    return [({"first": 0, "second": 1}[report.learner], report) for report in reports]


class Still:
    """A region that proposes what there is."""

    guarantee, bound, requires = "none", None, frozenset[Capability]()

    def propose(self, turn: Turn) -> Candidate:
        old = turn.learners.parameters(turn.rows)
        return Candidate(old, [{}], [None], [None], [0], [""])
