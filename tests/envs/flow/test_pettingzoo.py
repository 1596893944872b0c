import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from marl_tr.envs.cohorts import UnequalCohorts
from marl_tr.envs.flow import mixture as mixture_module
from marl_tr.envs.flow import video
from marl_tr.envs.flow.pettingzoo import GenerationParallelEnv, mixture, moving_shapes

CASES = [
    (moving_shapes, video.make, {"segments": 2}),
    (moving_shapes, video.make, {"view": "steps", "steps": 3}),
    (mixture, mixture_module.make, {}),
    (mixture, mixture_module.make, {"view": "steps", "steps": 3, "curve": "moons"}),
]
IDS = ["video, clip", "video, steps", "mixture, clip", "mixture, steps"]


def sampled(game):
    return {agent: game.action_space(agent).sample() for agent in game.agents}


@pytest.mark.parametrize(("view", "make", "config"), CASES, ids=IDS)
def test_pettingzoos_tests_pass(view, make, config):
    game = view(**config)
    parallel_api_test(game, num_cycles=10)
    parallel_seed_test(lambda: view(**config), num_cycles=5)
    assert game.metadata["is_parallelizable"]


@pytest.mark.parametrize(("view", "make", "config"), CASES, ids=IDS)
def test_the_view_is_the_batch_with_one_copy(view, make, config):
    game, batch = view(**config), make(num_envs=1, **config)
    (group,) = batch.spec.groups
    observations, infos = game.reset(seed=3)
    step = batch.reset(3)
    assert not any(infos.values())
    for _ in range(batch.spec.horizon):
        leaves = step.groups[group.name].observation
        for k, agent in enumerate(game.agents):
            assert game.observation_space(agent).contains(observations[agent])
            own = observations[agent] if isinstance(observations[agent], dict) else {"": observations[agent]}
            for mine, theirs in zip(own.values(), leaves.values(), strict=True):
                assert np.array_equal(mine, theirs[0, k])
        actions = sampled(game)
        observations, rewards, terminations, truncations, infos = game.step(actions)
        step = batch.step({group.name: {"action": np.stack(list(actions.values()))[None]}})
        assert list(rewards.values()) == step.groups[group.name].reward[0].tolist()
        assert not any(truncations.values())
    assert all(terminations.values())
    assert game.agents == []
    for info in infos.values():
        assert info == {name: float(x[0]) / batch.spec.horizon for name, x in step.metrics.items()}


def test_reset_without_a_seed_goes_on_to_the_next_episode():
    game, batch = mixture(arcs=8), mixture_module.make(arcs=8)
    batch.reset(1)
    expected = [batch.next_episode().groups["point"].observation["condition"][0, 0] for _ in range(4)]
    game.reset(seed=1)
    found = []
    for played in (True, False, True, True):
        if played:
            game.step(sampled(game))
        found.append(game.reset()[0]["point_0"])
    assert np.array_equal(found, expected)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="rgb_array"):
        mixture(render_mode="human")
    with pytest.raises(UnequalCohorts):
        mixture(cohort=2)
    with pytest.raises(ValueError, match="one copy"):
        GenerationParallelEnv(mixture_module.make(num_envs=2), name="two")
    game = moving_shapes(segments=2)
    with pytest.raises(RuntimeError, match="reset"):
        game.step({})
    game.reset(seed=0)
    with pytest.raises(ValueError, match="segment_1"):
        game.step({"segment_0": np.zeros((1, 8, 16, 16), np.float32)})


@pytest.mark.parametrize(("view", "make", "config"), CASES, ids=IDS)
def test_what_has_been_made_can_be_seen(view, make, config):
    game = view(render_mode="rgb_array", **config)
    with pytest.raises(RuntimeError, match="reset"):
        game.render()
    game.reset(seed=0)
    before = game.render()
    game.step(sampled(game))
    after = game.render()
    assert before.shape == after.shape
    assert before.dtype == np.uint8
    assert not np.array_equal(before, after)
    assert view(**config).render() is None
