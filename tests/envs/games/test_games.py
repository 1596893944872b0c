"""What the games have in common, and each one's numbers against formulas written out again."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import integrate, stats

from marl_tr.envs.cohorts import UnequalCohorts
from marl_tr.envs.games import bandit, meeting, reach
from marl_tr.registry import find
from marl_tr.trainer.evaluation import evaluate_act
from marl_tr.vector import make_vector_env
from marl_tr.vector.check import check_env
from marl_tr.vector.sampling import random_actions

GAMES = {
    "games/bandit-v0": {"modes": 4, "heights": [1, 0.5, 1, 0.5]},
    "games/reach-v0": {"modes": 3, "steps": 4},
    "games/meeting-v0": {"modes": 3},
}


def observed(step):
    (part,) = step.groups.values()
    return part.observation["observation"]


def reward(step):
    (part,) = step.groups.values()
    return part.reward


def played(env, name, seed=1):
    """Episodes of the environment's reference of that name."""
    (reference,) = [r for r in env.references() if r.name == name]
    return evaluate_act(env, reference.act, seed=seed, window=None)


def acting(env, places):
    """A step in which every agent chooses `places`, ``[E, A, 2]``."""
    return env.step({env.game.group: {"action": np.asarray(places, np.float32)}})


def on_circle(angle, k, modes, radius=0.7):
    at = np.asarray(angle) + 2 * np.pi * k / modes
    return radius * np.stack((np.cos(at), np.sin(at)), -1)


@pytest.mark.parametrize("id", GAMES)
@pytest.mark.parametrize("cohort", [1, 3])
def test_check_env_has_nothing_to_say(id, cohort):
    if cohort == 1:
        report = check_env(id, GAMES[id], cycles=5)
        assert report.passed, report.render()
    entry = find("envs", id)
    assert entry.native
    assert entry.load_config()(**GAMES[id], cohort=cohort).cohort == cohort


@pytest.mark.parametrize("id", GAMES)
@pytest.mark.parametrize("size", [1, 63, 64, 65])
def test_a_copy_plays_the_same_in_a_batch_of_any_size(id, size):
    make = find("envs", id).load()
    batch = make(num_envs=size, **GAMES[id])
    firsts = [batch.reset(7)]
    generator = np.random.default_rng(0)
    moves = [random_actions(batch.spec, generator) for _ in range(6)]
    firsts += [batch.step(move) for move in moves]
    for j in {0, size // 2, size - 1}:
        alone = make(num_envs=1, env_offset=j, **GAMES[id])
        steps = [alone.reset(7)]
        own = [{g: {leaf: x[j : j + 1] for leaf, x in leaves.items()} for g, leaves in move.items()} for move in moves]
        steps += [alone.step(move) for move in own]
        for mine, theirs in zip(steps, firsts, strict=True):
            assert np.array_equal(observed(mine)[0], observed(theirs)[j])
            assert np.array_equal(reward(mine)[0], reward(theirs)[j])
            assert np.array_equal(mine.state["context"][0], theirs.state["context"][j])
            assert all(mine.metrics[name][0] == theirs.metrics[name][j] for name in theirs.metrics)


@pytest.mark.parametrize("id", GAMES)
def test_equal_seeds_give_equal_episodes_and_later_episodes_differ(id):
    def stream(seed):
        env = make_vector_env(id, num_envs=4, config=GAMES[id])
        generator, first = np.random.default_rng(1), env.reset(seed)
        steps = [env.step(random_actions(env.spec, generator)) for _ in range(2 * env.spec.horizon)]
        starts = [observed(first), *(observed(s) for s in steps if s.done.all())]
        return np.stack(starts), np.stack([reward(s) for s in steps])

    (seen, paid), (again, paid_again), (other, _) = stream(3), stream(3), stream(4)
    assert np.array_equal(seen, again)
    assert np.array_equal(paid, paid_again)
    assert not np.array_equal(seen, other)
    for episode in range(2):
        assert not np.array_equal(seen[episode], seen[episode + 1])
    assert len(np.unique(seen[0], axis=0)) == 4


@pytest.mark.parametrize("id", GAMES)
def test_a_restored_batch_goes_on_bit_for_bit_and_measures_the_same(id):
    def batch():
        return make_vector_env(id, num_envs=4, config={**GAMES[id], "cohort": 2})

    env, generator = batch(), np.random.default_rng(2)
    env.reset(5)
    for _ in range(env.spec.horizon + 2):
        actions = random_actions(env.spec, generator)
        env.step(actions)
    saved, twin = env.state_dict(), batch()
    more = [random_actions(env.spec, generator) for _ in range(env.spec.horizon + 1)]
    expected = [env.step(move) for move in more]
    twin.load_state_dict(saved)
    for move, step in zip(more, expected, strict=True):
        same = twin.step(move)
        assert np.array_equal(reward(same), reward(step))
        assert np.array_equal(observed(same), observed(step))
    cohort = np.array([0, 0, 1, 1])
    assert twin.measures(more[-1], cohort) == env.measures(more[-1], cohort)
    with pytest.raises(ValueError, match="expected"):
        make_vector_env(id, num_envs=3, config=GAMES[id]).load_state_dict(saved)


@pytest.mark.parametrize("id", GAMES)
def test_a_cohort_shares_the_episode_and_nothing_else(id):
    env = make_vector_env(id, num_envs=12, config={**GAMES[id], "cohort": 4})
    step = env.reset(0)
    assert step.cohort.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for _ in range(3):
        seen = observed(step)
        assert len(np.unique(seen, axis=0)) == 3
        assert np.array_equal(seen, np.repeat(seen[::4], 4, axis=0))
        nothing = np.zeros((12, len(env.spec.agents), 2), np.float32)
        for _ in range(env.spec.horizon):
            step = acting(env, nothing)
    if id != "games/reach-v0":  # the only one whose reward has no noise
        assert len(np.unique(reward(step)[:4, 0])) == 4
    with pytest.raises(UnequalCohorts, match="cohorts of 5"):
        make_vector_env(id, num_envs=12, config={**GAMES[id], "cohort": 5})


@pytest.mark.parametrize("id", GAMES)
def test_an_episode_ends_by_termination_and_hands_over_its_last_observation(id):
    env = make_vector_env(id, num_envs=2, config=GAMES[id])
    env.reset(0)
    for slot in range(1, env.spec.horizon + 1):
        step = acting(env, np.full((2, len(env.spec.agents), 2), 0.5))
        (part,) = step.groups.values()
        over = slot == env.spec.horizon
        assert step.done.all() == part.terminated.all() == over
        assert not part.truncated.any()
    assert np.array_equal(part.final_observation["observation"][:, 0], step.final_state["context"])
    assert np.array_equal(part.observation["observation"][:, 0], step.state["context"])
    assert not np.array_equal(part.final_observation["observation"], part.observation["observation"])


@pytest.mark.parametrize("id", GAMES)
def test_actions_are_cut_off_at_their_bounds_and_must_be_finite(id):
    env = make_vector_env(id, num_envs=2, config=GAMES[id])
    agents = len(env.spec.agents)
    wild = np.full((2, agents, 2), (3.0, -0.4))
    env.reset(0)
    far = acting(env, wild)
    env.reset(0)
    assert np.array_equal(reward(acting(env, np.clip(wild, -1, 1))), reward(far))
    wild[1, -1, 0] = np.nan
    with pytest.raises(ValueError, match=f"{env.spec.agents[-1]} in environment 1 .* is not finite"):
        acting(env, wild)
    with pytest.raises(ValueError, match="have shape"):
        acting(env, wild[:1])


def test_impossible_settings_are_refused():
    with pytest.raises(ValidationError, match="3 numbers for 2 modes"):
        bandit.make(heights=[1, 1, 1])
    with pytest.raises(ValidationError):
        bandit.make(modes=17)
    with pytest.raises(ValidationError):
        reach.make(goals=3)
    with pytest.raises(ValueError, match="at least 1"):
        meeting.make(num_envs=0)


# Bandit


def test_two_modes_are_plus_and_minus_the_stated_point():
    env = bandit.make(num_envs=200, noise=0.0)
    context = observed(env.reset(3))[:, 0].astype(np.float64)
    assert np.abs(context).max() <= 1
    th = 0.5 * (np.pi / 2 * context[:, 0] + np.pi / 4 * context[:, 1])
    mode = 0.7 * np.stack((np.cos(th), np.sin(th)), -1)
    for sign in (1, -1):
        env.reset(3)
        step = acting(env, sign * mode[:, None])
        assert np.allclose(step.metrics["value"], 1, atol=1e-5)
        assert np.allclose(reward(step), 1, atol=1e-5)
    # One width aside, across the circle: the bump alone, the other mode being far.
    env.reset(3)
    across = np.stack((-np.sin(th), np.cos(th)), -1)
    assert np.allclose(acting(env, (mode + 0.2 * across)[:, None]).metrics["value"], np.exp(-0.5), atol=1e-5)


def test_contexts_fill_their_square():
    context = observed(bandit.make(num_envs=2000).reset(0))[:, 0]
    for axis in range(2):
        assert stats.kstest(context[:, axis], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(context.T)[0, 1]) < 0.08


@pytest.mark.parametrize("rotation", [0.0, 1.0, 2.0])
def test_modes_turn_with_the_context_as_far_as_is_said(rotation):
    env = bandit.make(num_envs=50, modes=3, heights=[1, 0.5, 0.25], rotation=rotation, noise=0.0)
    context = observed(env.reset(1))[:, 0].astype(np.float64)
    th = rotation * 0.5 * (np.pi / 2 * context[:, 0] + np.pi / 4 * context[:, 1])
    for k, height in enumerate((1, 0.5, 0.25)):
        env.reset(1)
        step = acting(env, on_circle(th, k, 3)[:, None])
        assert np.allclose(step.metrics["value"], height, atol=1e-4)
        assert (step.metrics["in_mode"] == 1).all()


def test_reward_noise_is_gaussian_and_new_for_every_copy_and_episode():
    env = bandit.make(num_envs=1000, noise=0.3, cohort=500)
    env.reset(0)
    steps = [acting(env, np.zeros((1000, 1, 2))) for _ in range(2)]
    noise = [(reward(step)[:, 0] - step.metrics["value"]) / 0.3 for step in steps]
    for one in noise:
        assert stats.kstest(one, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.12


def test_bandit_references_earn_what_integrals_say():
    env = bandit.make(num_envs=6400, cohort=64)
    any_mode, one_mode, chance = (played(env, name) for name in ("a random mode", "always mode 0", "uniform"))
    assert np.allclose(any_mode.metrics["value"], 1, atol=1e-5)
    assert np.allclose(one_mode.metrics["value"], 1, atol=1e-5)
    assert any_mode.returns.std() == pytest.approx(0.1, rel=0.05)

    def value(y, x):
        return max(np.exp(-((x - c) ** 2 + y**2) / 0.08) for c in (0.7, -0.7)) / 4

    # The square's corners are turned away from the modes' axis by th; by symmetry over a quarter of the circle.
    means = []
    for th in np.linspace(-3 * np.pi / 8, 3 * np.pi / 8, 7):

        def turned(y, x, th=th):
            cos, sin = np.cos(th), np.sin(th)
            return value(-x * sin + y * cos, x * cos + y * sin)

        means.append(integrate.dblquad(turned, -1, 1, -1, 1, epsabs=1e-4)[0])
    assert min(means) - 0.008 < chance.metrics["value"].mean() < max(means) + 0.008
    assert max(means) < 2 * 2 * np.pi * 0.04 / 4  # all of both bumps


# Reach


def test_flying_straight_earns_the_sum_written_out():
    env = reach.make(num_envs=40, spread=0.0, modes=5)
    best = played(env, "nearest goal")
    distance = np.maximum(0.8 - 0.1 * np.arange(1, 26), 0)
    inside = distance <= 0.1 + 1e-9
    low = np.mean(1.0 * (distance < 0.05) - distance / 0.8)  # a goal may be reached a rounding error later
    assert ((best.returns >= low - 1e-5) & (best.returns <= np.mean(inside - distance / 0.8) + 1e-5)).all()
    assert np.allclose(best.metrics["final_distance"], 0, atol=1e-6)
    assert (best.metrics["reached"] == 1).all()
    still = played(reach.make(num_envs=3, spread=0.0, speed=1e-9), "a random goal")
    assert np.allclose(still.returns, -1, atol=1e-5)
    assert np.allclose(still.metrics["final_distance"], 0.8, atol=1e-6)


def test_no_policy_does_better_than_the_nearest_goal_and_any_goal_is_nearly_as_good():
    env = reach.make(num_envs=640, cohort=64)
    best, any_goal, chance = (played(env, name) for name in ("nearest goal", "a random goal", "uniform"))
    assert (best.returns >= any_goal.returns - 1e-6).all()
    # The farther goal is at most as much farther as the start is from the middle, twice; a step's reward differs by
    # that over the radius, for as long as the way takes, and by the bonus of the steps that it takes longer.
    assert (best.returns - any_goal.returns).max() < 2 * 2**0.5 * 0.05 / 0.8 * 10 / 25 + 2 / 25
    assert any_goal.metrics["reached"].all()
    assert chance.returns.mean() < -0.5


def test_the_mass_moves_as_it_is_told_equally_fast_in_all_directions():
    env = reach.make(num_envs=3, spread=0.3, steps=30)
    seen = observed(env.reset(2))[:, 0].astype(np.float64)
    assert np.abs(seen[:, :2]).max() <= 0.3
    assert np.allclose(np.hypot(seen[:, 2], seen[:, 3]), 1)
    assert np.allclose(seen[:, 4], 1)
    moves = np.array([[0.3, -0.4], [1.0, 1.0], [-1.0, 0.0]])
    after = observed(acting(env, moves[:, None]))[:, 0]
    expected = seen[:, :2] + 0.1 * np.array([[0.3, -0.4], [0.5**0.5, 0.5**0.5], [-1, 0]])
    assert np.allclose(after[:, :2], expected, atol=1e-6)
    assert np.array_equal(after[:, 2:4], seen[:, 2:4].astype(np.float32))
    assert np.allclose(after[:, 4], 29 / 30)
    for _ in range(28):
        after = observed(acting(env, moves[:, None]))[:, 0]
    assert np.allclose(after[1, :2], 1)  # the wall
    goals = np.stack([on_circle(np.arctan2(seen[:, 3], seen[:, 2]), k, 4, 0.8) for k in range(4)], 1)
    last = acting(env, np.zeros((3, 1, 2)))
    nearest = np.linalg.norm(after[:, None, :2] - goals, axis=2).min(1)
    assert np.allclose(last.metrics["final_distance"] / 30, nearest, atol=1e-5)
    assert np.allclose(reward(last)[:, 0], ((nearest <= 0.1) - nearest / 0.8) / 30, atol=1e-6)


def test_goals_are_turned_by_any_angle():
    seen = observed(reach.make(num_envs=2000).reset(0))[:, 0]
    angle = np.arctan2(seen[:, 3], seen[:, 2])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3


# Meeting


@pytest.mark.parametrize("modes", [1, 2, 8])
def test_meeting_references_earn_their_closed_forms(modes):
    env = meeting.make(num_envs=4000, modes=modes)
    together, apart = (played(env, name) for name in ("always point 0", "independent random points"))
    assert np.allclose(together.metrics["value"], 1, atol=1e-5)
    assert (together.metrics["met"] == 1).all()
    # Two points at which they stand alone: the better of them is worth its bump at the other's distance.
    chord = 2 * 0.7 * np.sin(np.pi * np.arange(modes) / modes)
    expected = np.exp(-(chord**2) / 0.08).mean()
    assert apart.metrics["value"].mean() == pytest.approx(expected, abs=0.025)
    assert apart.metrics["met"].mean() == pytest.approx(1 / modes, abs=0.025)


def test_the_meeting_reward_is_its_formula_and_shared():
    env = meeting.make(num_envs=100, modes=3, noise=0.0)
    seen = observed(env.reset(0)).astype(np.float64)
    assert np.array_equal(seen[:, 0], seen[:, 1])
    angle = np.arctan2(seen[:, 0, 1], seen[:, 0, 0])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
    places = np.random.default_rng(0).uniform(-1, 1, (100, 2, 2)).astype(np.float32)
    modes = np.stack([on_circle(angle, k, 3) for k in range(3)], 1)
    squares = np.square(places[:, :, None] - modes[:, None]).sum(-1)
    expected = np.exp(-squares.sum(1) / 0.08).max(1)
    step = acting(env, places)
    assert np.allclose(reward(step), expected[:, None], atol=1e-6)
    assert np.allclose(step.metrics["value"], expected, atol=1e-6)
    same = squares.argmin(2)
    met = (same[:, 0] == same[:, 1]) & (squares.min(2) <= 0.36).all(1)
    assert np.array_equal(step.metrics["met"], met)
    assert 0 < met.sum() < 100
    noisy = meeting.make(num_envs=100, modes=3)
    noisy.reset(0)
    paid = reward(acting(noisy, places))
    assert np.array_equal(paid[:, 0], paid[:, 1])
    assert np.std(paid[:, 0] - expected) == pytest.approx(0.05, rel=0.3)
    assert find("envs", "games/meeting-v0").load_config()().shared_reward
