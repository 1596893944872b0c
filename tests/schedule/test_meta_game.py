"""The meta-game schedule on matrix games with exact gradients, and what it hands to Guard, trials and log."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from learning_examples import frozen, generator, make_policy, make_region, play
from numpy.typing import NDArray
from torch import Tensor, nn

from marl_tr.objective.config import SurrogateConfig
from marl_tr.objective.ratio import Surrogate
from marl_tr.policy import Capability, Evaluation, Parameters, PolicyBatch, Rows
from marl_tr.region.guard import Guard
from marl_tr.region.turn import Candidate, Learners, Turn
from marl_tr.scenario.schema import OptimizerSection
from marl_tr.schedule.assignment import Assignment, Profile
from marl_tr.schedule.config import MetaGameConfig, SimultaneousConfig
from marl_tr.schedule.meta_game import MetaGame, ratio_payoffs
from marl_tr.schedule.meta_nash import expected_payoffs, gains_of_moving, solve_meta_game
from marl_tr.schedule.simultaneous import Simultaneous

torch.set_num_threads(1)

Table = NDArray[np.float64]
MATCHING_PENNIES = np.array([[[1.0, -1], [-1, 1]], [[-1, 1], [1, -1]]])
ROTATION = np.array([[[0.0, 3], [1, 2]], [[3, 2], [0, 1]]])
CHICKEN = np.array([[[0.0, -1], [1, -10]], [[0, 1], [-1, -10]]])
EDGE = 1e-9


# A matrix game whose every expectation is exact: one environment a joint action, advantages times their probability.


@dataclass(frozen=True)
class Coin:
    """Probability of the first choice, ``[L, T, N]``."""

    first: Tensor

    def map(self, function: Any) -> Coin:
        return Coin(function(self.first))


class CoinPolicy:
    """Players of two choices each; what is learned is the probability of the first, in float64."""

    capabilities = frozenset({Capability.LOG_PROB, Capability.KL})
    direction = "kl_old_new"
    recurrent = False
    observes = False

    def __init__(self, start: Sequence[float]) -> None:
        self.rows = Rows(agents=len(start), shared=False)
        self.module = nn.Module()
        self.module.first = nn.Parameter(torch.tensor(start, dtype=torch.float64)[:, None])

    @property
    def first(self) -> Table:
        found: Table = self.module.get_parameter("first").detach().flatten().numpy().copy()
        return found

    def evaluate(self, parameters: Parameters, batch: PolicyBatch) -> Evaluation:
        p = parameters["first"].reshape(-1, 1, 1).expand(batch.mask.shape)
        chosen = torch.where(batch.record["action"] == 0, p, 1 - p)
        return Evaluation(log_prob=chosen.log().unsqueeze(-1), entropy=None, law=Coin(p))

    def divergence(self, anchor: Coin, law: Coin) -> Tensor:
        p, q = anchor.first, law.first
        return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).unsqueeze(-1)


class Ascent:
    """One step of clipped gradient ascent on the probability."""

    guarantee, bound, requires = "none", None, frozenset({Capability.LOG_PROB})

    def __init__(self, step: float) -> None:
        self._step = step

    def propose(self, turn: Turn) -> Candidate:
        old = turn.learners.parameters(turn.rows)["first"]
        sign = torch.where(turn.batch.record["action"] == 0, 1.0, -1.0)
        slope = (sign * turn.advantage / turn.old.log_prob[..., 0].exp()).mean((1, 2))
        moved = (old + self._step * slope[:, None]).clamp(EDGE, 1 - EDGE)
        rows = len(turn.rows)
        return Candidate({"first": moved}, [{}] * rows, [None] * rows, [None] * rows, [0] * rows, [""] * rows)


class ExactTrials:
    """Plays no episode: returns are expectations."""

    def __init__(self, policy: CoinPolicy, table: Table) -> None:
        self._policy, self._table, self.asked = policy, table, 0

    def returns(self, profiles: Sequence[Profile], *, episodes: int, seed: int) -> list[dict[str, Table]]:
        del seed
        self.asked += len(profiles)
        found = []
        for profile in profiles:
            p = self._policy.first
            for name, parameters in profile.items():
                p[int(name)] = float(parameters["first"])
            found.append({str(i): np.full(episodes, v) for i, v in enumerate(expected_payoffs(self._table, 1 - p))})
        return found


def matrix_game(policy: CoinPolicy, table: Table, *, step: float, log: Any = lambda losses: None) -> Assignment:
    n = len(table)
    joint = torch.tensor(list(itertools.product((0, 1), repeat=n))).T  # [n, 2^n]
    first = torch.tensor(policy.first)[:, None]
    probability = torch.where(joint == 0, first, 1 - first).prod(0)
    payoff = torch.tensor(table.reshape(n, -1))
    everything = torch.ones(n, 1, joint.shape[1], dtype=torch.bool)
    return Assignment(
        learners=Learners(policy, [str(i) for i in range(n)]),  # type: ignore[arg-type]
        batch=PolicyBatch({}, {"action": joint[:, None]}, None, everything, everything),
        advantage=(payoff * probability * joint.shape[1])[:, None],
        normalise=False,
        objective=Surrogate(SurrogateConfig()),
        region=Ascent(step),
        log=log,
        trials=ExactTrials(policy, table),
    )


def schedule(**settings: Any) -> MetaGame:
    return MetaGame(MetaGameConfig(**{"ratio_clip": 1e30, "factor_limit": 1e30, **settings}))


def guard() -> Guard:
    return Guard(lambda line: None)


def value(table: Table, p: Table) -> Table:
    return expected_payoffs(table, 1 - p)


def exact_step(table: Table, p: Table, *, step: float, meta: bool, best_response: bool) -> Table:
    """The same by hand; `tests/schedule/test_meta_nash.py` has the published table of it."""

    def moved(at: Table) -> Table:
        return np.clip(p - step * gains_of_moving(table, 1 - at), EDGE, 1 - EDGE)

    candidate, share = moved(p), np.ones(len(p))
    if meta:
        payoffs = np.zeros(table.shape)
        for b in itertools.product((0, 1), repeat=len(p)):
            payoffs[(slice(None), *b)] = value(table, np.where(b, candidate, p)) - value(table, p)
        share = solve_meta_game(payoffs).move
    mixed = p + share * (candidate - p)
    return moved(mixed) if best_response else mixed


@pytest.mark.parametrize(
    ("table", "step"), [(MATCHING_PENNIES, 0.3), (MATCHING_PENNIES, 0.02), (ROTATION, 0.1), (CHICKEN, 0.1)]
)
@pytest.mark.parametrize("payoffs", ["ratios", "rollouts", "none"])
@pytest.mark.parametrize("best_response", [False, True])
def test_play_with_exact_gradients_is_that_of_the_specification(
    table: Table, step: float, payoffs: str, best_response: bool
) -> None:
    """By ratios and by returns alike; of the variants, matching pennies at .3 is drawn to (1/2, 1/2) by both
    together."""
    policy, p = CoinPolicy([0.9, 0.2]), np.array([0.9, 0.2])
    for k in range(40):
        update = schedule(payoffs=payoffs, best_response=best_response)
        update.update([matrix_game(policy, table, step=step)], guard(), generator(k), 0.0)
        p = exact_step(table, p, step=step, meta=payoffs != "none", best_response=best_response)
        np.testing.assert_allclose(policy.first, p, atol=1e-6)
        # Circling play would blow rounding up.
        p = policy.first
    if best_response and payoffs != "none" and table is MATCHING_PENNIES and step == 0.3:
        assert np.abs(p - 0.5).max() < 0.05


def test_payoffs_of_ratios_are_the_means_of_the_specification() -> None:
    noise = np.random.default_rng(0)
    advantages, ratios = noise.standard_normal((3, 4, 5)), np.exp(0.1 * noise.standard_normal((3, 4, 5)))
    found = ratio_payoffs([torch.tensor(a) for a in advantages], [torch.tensor(w) for w in ratios], clip=0.1)
    for b in itertools.product((0, 1), repeat=3):
        product = np.ones((4, 5))
        for j in range(3):
            if b[j]:
                product = product * np.clip(ratios[j], 0.9, 1.1)
        for i in range(3):
            expected = (advantages[i] * product).mean() - advantages[i].mean()
            assert found[(i, *b)] == pytest.approx(expected, abs=1e-12)


def test_raw_advantages_and_not_normalised_ones_make_the_payoffs() -> None:
    """Everybody gains 3 from a step that the first takes: of a mean of zero that would be lost."""
    advantage = torch.full((2, 1, 6), 3.0)
    ratio = torch.full((1, 6), 1.05)
    table = ratio_payoffs([advantage[0], advantage[1]], [ratio, torch.ones(1, 6)], clip=0.1)
    np.testing.assert_allclose(table[:, 1, 0], 0.15, atol=1e-6)


# Real policies, under a bound.


def assignment(region: Any, *, agents: int = 3, seed: int = 0, log: Any = lambda losses: None) -> Assignment:
    policy = make_policy("beta", "gru", agents=agents, seed=seed)
    batch = play(policy, seed=seed + 10)
    return Assignment(
        learners=Learners(policy, [f"{seed}/{row}" for row in range(agents)]),
        batch=batch,
        advantage=torch.randn(batch.mask.shape, generator=generator(seed + 20)) + 3.0,
        normalise=True,
        objective=Surrogate(SurrogateConfig()),
        region=region,
        log=log,
    )


FAR = OptimizerSection(learning_rate=0.05)


@pytest.mark.parametrize("best_response", [False, True])
def test_what_is_committed_is_measured_by_the_guard_after_mixing(
    best_response: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposals go far beyond the bound; whatever the mixture, what is in force is within it."""
    monkeypatch.setattr(
        "marl_tr.schedule.meta_game.solve_meta_game",
        lambda table: replace(solve_meta_game(table), move=np.array([1.0, 0.6, 0.0])),
    )
    lines: list[Mapping[str, Any]] = []
    part = assignment(make_region("measured", bound=0.01, optimizer=FAR))
    before = frozen(part.learners.policy)
    reports = MetaGame(MetaGameConfig(best_response=best_response)).update(
        [part], Guard(lines.append), generator(3), 0.0
    )
    assert [r.learner for r in reports] == ["0/0", "0/1", "0/2"] == [line["learner"] for line in lines]
    turn = part.turn((0, 1, 2), weight=None, generator=generator(), progress=0.0)
    now, then = frozen(part.learners.policy), before
    with torch.no_grad():
        law, old = (part.learners.policy.evaluate(p, turn.batch).law.map(Tensor.double) for p in (now, then))
    kl = torch.where(part.batch.mask, part.learners.policy.divergence(old, law)[..., 0], 0).sum((1, 2))
    kl = kl / part.batch.mask.sum((1, 2))
    for report, line, divergence in zip(reports, lines, kl.tolist(), strict=True):
        assert report.accepted == pytest.approx(divergence, rel=1e-6, abs=1e-12)
        assert line["accepted"] == report.accepted <= 0.01
    if best_response:
        # Each answers from its own old policy, the one who keeps as well.
        assert {r.outcome for r in reports} == {"interpolated"}
    else:
        assert [r.outcome for r in reports][1:] == ["accepted", "rejected"]
        assert "keeps the old policy" in reports[2].reason
        assert 0.3 * reports[0].accepted < reports[1].accepted < 0.5 * reports[0].accepted
        assert all(torch.equal(now[name][2], then[name][2]) for name in now)


def test_candidates_are_no_updates() -> None:
    part = assignment(make_region("measured", bound=0.01, optimizer=FAR))
    before = frozen(part.learners.policy)
    turn = part.turn((0, 1, 2), weight=None, generator=generator(1), progress=0.0)
    proposed = part.region.propose(turn)
    lines: list[Mapping[str, Any]] = []
    within = Guard(lines.append).within(part.region, turn, proposed)
    assert not lines
    assert all(torch.equal(p, before[name]) for name, p in frozen(part.learners.policy).items())
    assert not any(part.learners.moments)
    measured = turn.measure(within.parameters)
    assert bool((measured.divergence <= 0.01).all())
    # Exactly what the Guard commits.
    Guard(lines.append).accept(part.region, turn, proposed)
    assert all(torch.equal(p, within.parameters[name]) for name, p in frozen(part.learners.policy).items())


def test_when_all_keep_answers_are_simultaneous_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "marl_tr.schedule.meta_game.solve_meta_game",
        lambda table: replace(solve_meta_game(table), move=np.zeros(len(table))),
    )
    kept, plain = (assignment(make_region("trpo", subsample=1.0)) for _ in range(2))
    MetaGame(MetaGameConfig()).update([kept], guard(), generator(3), 0.0)
    Simultaneous(SimultaneousConfig()).update([plain], guard(), generator(3), 0.0)
    for (name, a), b in zip(frozen(kept.learners.policy).items(), frozen(plain.learners.policy).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("agents", [1, 4, 6])
def test_more_learners_than_a_table_takes_play_in_random_groups(agents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(table: Table) -> Any:
        shapes.append(table.shape)
        return solve_meta_game(table)

    monkeypatch.setattr("marl_tr.schedule.meta_game.solve_meta_game", watched)
    logged: dict[str, float] = {}
    part = assignment(make_region("measured", bound=0.01), agents=agents, log=logged.update)
    reports = MetaGame(MetaGameConfig()).update([part], guard(), generator(3), 0.0)
    assert len(reports) == agents
    assert [len(shape) - 1 for shape in shapes] == {1: [1], 4: [4], 6: [4, 2]}[agents]
    assert {tag for tag in logged if tag.startswith("meta/move/")} == {f"meta/move/0/{row}" for row in range(agents)}
    assert logged["meta/regret"] == pytest.approx(0, abs=1e-9)
    assert 0 < logged["meta/effective_sample_share"] <= 1


def test_rollouts_are_asked_for_once_a_profile_and_refused_where_nobody_plays() -> None:
    policy = CoinPolicy([0.9, 0.2])
    game = matrix_game(policy, MATCHING_PENNIES, step=0.1)
    schedule(payoffs="rollouts").update([game], guard(), generator(), 0.0)
    assert isinstance(game.trials, ExactTrials)
    assert game.trials.asked == 4
    with pytest.raises(ValueError, match="trials"):
        schedule(payoffs="rollouts").update([replace(game, trials=None)], guard(), generator(), 0.0)


@pytest.mark.parametrize("payoffs", ["ratios", "none"])
def test_updates_repeat_bit_for_bit(payoffs: str) -> None:
    runs = []
    for _ in range(2):
        parts = [assignment(make_region("trpo"), agents=3, seed=seed) for seed in (0, 1)]
        MetaGame(MetaGameConfig(payoffs=payoffs)).update(parts, guard(), generator(5), 0.0)  # type: ignore[arg-type]
        runs.append([p for part in parts for p in frozen(part.learners.policy).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
