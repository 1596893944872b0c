"""How answers for one context divide among modes, and how that is shown."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.games import bandit, meeting, reach
from marl_tr.envs.games.circle import mode_measures
from marl_tr.trainer.evaluation import evaluate_act

GAMES = {
    "bandit": (bandit, "a random mode", "always mode 0"),
    "reach": (reach, "a random goal", "nearest goal"),
    "meeting": (meeting, "independent random points", "always point 0"),
}


def played(env, name, seed=1):
    (reference,) = [r for r in env.references() if r.name == name]
    return evaluate_act(env, reference.act, seed=seed, window=None)


def measured(counts):
    """Of one context whose modes have so many samples."""
    mode = np.repeat(np.arange(len(counts)), counts)[:, None]
    return mode_measures(mode, np.zeros(len(mode), np.int64), modes=len(counts))


@pytest.mark.parametrize("minor", [0, 6, 7, 32])
def test_of_two_modes_both_are_kept_where_the_minor_has_a_tenth(minor):
    found = measured([64 - minor, minor])
    both = minor >= 0.1 * 64
    assert found["all_modes_share"] == both
    assert found["modes_per_context"] == 1 + both
    assert found["mode_entropy"] == pytest.approx(stats.entropy([64 - minor, minor], base=2))


def test_of_more_modes_each_must_have_a_fifth_of_an_even_share():
    assert measured([17, 17, 17, 13])["all_modes_share"] == 1
    assert measured([61, 1, 1, 1])["modes_per_context"] == 1
    eight = measured([50, 2, 2, 2, 2, 2, 2, 2])
    assert eight["all_modes_share"] == 1  # a fifth of 8 is 1.6
    assert eight["mode_entropy"] == pytest.approx(stats.entropy([50, *[2] * 7]) / np.log(8))
    assert measured([32, 16, 8, 8, 0, 0, 0, 0])["modes_per_context"] == 4
    assert measured([5]) == {"modes_per_context": 1, "all_modes_share": 1}


def test_measures_are_means_over_contexts_and_agents():
    # Two contexts, in mixed order: one where both agents use both modes, one where only the second does.
    cohort = np.array([4, 9, 4, 9])
    mode = np.array([[0, 0], [1, 0], [1, 1], [1, 1]])
    found = mode_measures(mode, cohort, modes=2)
    assert found == {"modes_per_context": 1.75, "all_modes_share": 0.75, "mode_entropy": 0.75}
    assert mode_measures(mode, np.arange(4), modes=2) == {}


def test_the_entropy_of_few_samples_is_too_small_by_what_is_said():
    rng = np.random.default_rng(0)
    mode, cohort = rng.integers(2, size=(64 * 2000, 1)), np.arange(64 * 2000) // 64
    found = mode_measures(mode, cohort, modes=2)["mode_entropy"]
    assert found == pytest.approx(1 - 1 / (2 * 64 * np.log(2)), abs=1e-3)


@pytest.mark.parametrize("game", GAMES)
def test_a_policy_with_all_modes_is_told_from_one_with_one(game):
    module, several, single = GAMES[game]
    env = module.make(num_envs=64 * 8, cohort=64, modes=4)
    many, one = played(env, several).measures, played(env, single).measures
    assert many["all_modes_share"] == 1
    assert many["modes_per_context"] == 4
    assert many["mode_entropy"] > 0.95
    assert one == {"modes_per_context": 1, "all_modes_share": 0, "mode_entropy": 0}
    assert played(module.make(num_envs=8), single).measures == {}


def test_answers_are_judged_in_the_context_that_they_were_given_for():
    """Modes that turn by up to 270 degrees: in the next episode's contexts the same actions mean others."""
    env = bandit.make(num_envs=64 * 20, cohort=64, rotation=4.0)
    (reference,) = [r for r in env.references() if r.name == "always mode 0"]
    step, cohort = env.reset(0), np.arange(64 * 20) // 64
    for _ in range(3):
        actions = reference.act(step)
        assert step.groups["player"].observation["observation"].shape == (1280, 1, 2)
        step = env.step(actions)
        assert env.measures(actions, cohort)["mode_entropy"] == 0
        wrong = env.game.answers(env._place, actions["player"]["action"])
        assert 0 < wrong.mean() < 1
        assert (env.game.answers(env._ended, actions["player"]["action"]) == 0).all()


def test_reach_is_measured_by_where_episodes_ended_and_not_by_their_last_action():
    env = reach.make(num_envs=64, cohort=64)
    episodes = played(env, "a random goal")
    still = {"walker": {"action": np.zeros((64, 1, 2))}}
    assert env.measures(still, np.zeros(64, np.int64)) == episodes.measures


@pytest.mark.parametrize(("game", "cohort"), [("bandit", 1), ("reach", 8), ("meeting", 8)])
def test_answers_are_shown_over_what_they_are_worth(game, cohort):
    module, several, single = GAMES[game]
    env = module.make(num_envs=16, cohort=cohort)
    many, one = played(env, several), played(env, single)
    first, second = (env.gallery(e.trajectories)["answers"] for e in (many, one))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)
    both = env.before_after(many.trajectories, one.trajectories)["before_after"]
    assert both.shape[0] == 2 * first.shape[0]
    for picture in (first, both):
        assert picture.dtype == np.uint8
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
        assert (np.ptp(picture.astype(int), axis=-1) > 100).any()  # all else is grey
