import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from marl_tr.envs.cohorts import UnequalCohorts
from marl_tr.envs.games import bandit as bandit_module
from marl_tr.envs.games import meeting as meeting_module
from marl_tr.envs.games import reach as reach_module
from marl_tr.envs.games.pettingzoo import bandit, matrix, meeting, reach
from marl_tr.envs.view import BatchParallelEnv
from marl_tr.vector.check import check_env

CASES = [
    (bandit, bandit_module.make, {"modes": 4}),
    (reach, reach_module.make, {"steps": 5}),
    (meeting, meeting_module.make, {}),
]
IDS = ["bandit", "reach", "meeting"]


def sampled(game):
    return {agent: game.action_space(agent).sample() for agent in game.agents}


@pytest.mark.parametrize(("view", "make", "config"), CASES, ids=IDS)
def test_pettingzoos_tests_pass(view, make, config):
    parallel_api_test(view(**config), num_cycles=20)
    parallel_seed_test(lambda: view(**config), num_cycles=10)
    assert view(**config).metadata["is_parallelizable"]


@pytest.mark.parametrize("name", IDS)
def test_the_view_passes_check_env_too(name):
    report = check_env(f"marl_tr.envs.games.pettingzoo:{name}", {}, cycles=26)
    assert report.passed, report.render()


@pytest.mark.parametrize(("view", "make", "config"), CASES, ids=IDS)
def test_the_view_is_the_batch_with_one_copy(view, make, config):
    game, batch = view(**config), make(num_envs=1, **config)
    (group,) = batch.spec.groups
    observations, infos = game.reset(seed=3)
    step = batch.reset(3)
    assert not any(infos.values())
    for _ in range(batch.spec.horizon):
        for k, agent in enumerate(game.agents):
            assert game.observation_space(agent).contains(observations[agent])
            assert np.array_equal(observations[agent], step.groups[group.name].observation["observation"][0, k])
        actions = sampled(game)
        observations, rewards, terminations, truncations, infos = game.step(actions)
        step = batch.step({group.name: {"action": np.stack(list(actions.values()))[None]}})
        assert list(rewards.values()) == step.groups[group.name].reward[0].tolist()
        assert not any(truncations.values())
    assert all(terminations.values())
    assert game.agents == []
    for k, agent in enumerate(group.agents):
        assert np.array_equal(observations[agent], step.groups[group.name].final_observation["observation"][0, k])
        assert infos[agent] == {name: float(x[0]) / batch.spec.horizon for name, x in step.metrics.items()}


def test_reset_without_a_seed_goes_on_to_the_next_episode():
    game, batch = bandit(), bandit_module.make()
    batch.reset(1)
    expected = [batch.next_episode().groups["player"].observation["observation"][0, 0] for _ in range(4)]
    game.reset(seed=1)
    found = []
    for plays in (True, False, True, True):
        if plays:
            game.step(sampled(game))
        found.append(game.reset()[0]["player_0"])
    assert np.array_equal(found, expected)


def test_a_game_whose_metrics_are_a_steps_tells_them_in_every_step():
    game = matrix(game="prisoners_dilemma", rounds=2)
    game.reset(seed=0)
    for over in (False, True):
        _, rewards, terminations, _, infos = game.step({"player_0": 0, "player_1": 1})
        assert rewards == {"player_0": 0, "player_1": 5}
        assert infos["player_1"] == {"payoff_player_0": 0, "payoff_player_1": 5, "payoff_mean": 2.5}
        assert set(terminations.values()) == {over}
    assert game.metadata["render_modes"] == []
    with pytest.raises(ValueError, match="not offered; None"):
        matrix(render_mode="rgb_array")


def test_misuse_is_named():
    with pytest.raises(ValueError, match="rgb_array"):
        bandit(render_mode="human")
    with pytest.raises(UnequalCohorts):
        bandit(cohort=2)
    with pytest.raises(ValueError, match="one copy"):
        BatchParallelEnv(bandit_module.make(num_envs=2), name="two")
    game = meeting()
    with pytest.raises(RuntimeError, match="reset"):
        game.step({})
    game.reset(seed=0)
    with pytest.raises(ValueError, match="guest_1"):
        game.step({"guest_0": np.zeros(2, np.float32)})


@pytest.mark.parametrize(("view", "make", "config"), CASES, ids=IDS)
def test_what_has_been_done_can_be_seen(view, make, config):
    game = view(render_mode="rgb_array", **config)
    with pytest.raises(RuntimeError, match="reset"):
        game.render()
    game.reset(seed=0)
    before = game.render()
    while game.agents:
        game.step(sampled(game))
    after = game.render()
    assert before.shape == after.shape
    assert before.dtype == np.uint8
    assert not np.array_equal(before, after)
    assert view(**config).render() is None
