import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test

from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.pettingzoo import DownlinkParallelEnv, env, parallel_env
from marl_tr.envs.uav.vector import make


def sampled(game):
    return {agent: game.action_space(agent).sample() for agent in game.agents}


def test_pettingzoos_parallel_test_passes():
    game = parallel_env(horizon=20)
    parallel_api_test(game, num_cycles=100)
    assert game.possible_agents == ["uav_0", "uav_1", "uav_2"]


def test_pettingzoos_seed_tests_pass():
    parallel_seed_test(lambda: parallel_env(horizon=20), num_cycles=30)
    seed_test(lambda: env(horizon=20), num_cycles=30)
    assert parallel_env().metadata["is_parallelizable"]


@pytest.mark.filterwarnings("ignore:Agent's .* observation space value is:UserWarning")
def test_pettingzoos_turn_based_test_passes():
    game = env(horizon=10)
    api_test(game, num_cycles=50)
    assert game.num_agents <= 3


def test_the_view_is_the_batch_with_one_environment():
    game, batch = parallel_env(num_uavs=2, horizon=5), make(num_envs=1, num_uavs=2, horizon=5)
    observations, _ = game.reset(seed=3)
    step = batch.reset(3)
    rng = np.random.default_rng(0)
    for t in range(5):
        group = step.groups["uav"]
        for u, agent in enumerate(game.agents):
            assert (observations[agent] == group.observation["observation"][0, u]).all()
        array = rng.uniform(-1, 1, (1, 2, 3)).astype(np.float32)
        observations, rewards, terminations, truncations, _ = game.step(dict(zip(game.agents, array[0], strict=True)))
        step = batch.step({"uav": {"action": array}})
        assert list(rewards.values()) == pytest.approx(step.groups["uav"].reward[0])
        assert not any(terminations.values())
        assert all(truncations.values()) == (t == 4)
    for u, agent in enumerate(observations):
        assert (observations[agent] == step.groups["uav"].final_observation["observation"][0, u]).all()
    assert game.agents == []


def test_observations_and_state_lie_in_their_spaces():
    game = parallel_env()
    observations, _ = game.reset(seed=0)
    for _ in range(5):
        for agent, seen in observations.items():
            assert game.observation_space(agent) is game.observation_space(agent)
            assert game.observation_space(agent).contains(seen)
        assert game.state_space.contains(game.state())
        observations, *_ = game.step(sampled(game))


def test_infos_hold_what_is_promised():
    game = parallel_env(num_uavs=2)
    _, infos = game.reset(seed=0)
    assert infos == {"uav_0": {}, "uav_1": {}}
    *_, infos = game.step(sampled(game))
    own = {"rate_sum", "n_users", "energy_J", "power_W", "collision", "out", "objectives"}
    common = {"rates", "sinr_db", "jain", "p5_rate", "std_rate", "sum_rate"}
    assert all(info.keys() == own | common for info in infos.values())
    assert sum(info["n_users"] for info in infos.values()) == 20
    total = sum(info["rate_sum"] for info in infos.values())
    assert total == pytest.approx(infos["uav_0"]["sum_rate"], rel=1e-5)
    assert infos["uav_0"]["rates"].std() == pytest.approx(infos["uav_0"]["std_rate"], rel=1e-4)


def test_reset_without_a_seed_goes_on_to_another_episode_that_repeats():
    game = parallel_env()
    first = game.reset(seed=1)[0]["uav_0"]
    second = game.reset()[0]["uav_0"]
    assert (first != second).any()
    game.reset(seed=1)
    assert (game.reset()[0]["uav_0"] == second).all()
    fresh = parallel_env().reset()[0]["uav_0"]
    assert (fresh != parallel_env().reset()[0]["uav_0"]).any()


def test_render_gives_a_picture_of_the_moment():
    game = parallel_env(render_mode="rgb_array")
    game.reset(seed=0)
    before = game.render()
    game.step(sampled(game))
    assert before.shape == (480, 640, 3)
    assert before.dtype == np.uint8
    assert (game.render() != before).any()
    quiet = parallel_env()
    quiet.reset(seed=0)
    assert quiet.render() is None
    game.close()


def test_misuse_is_answered_with_the_cure():
    game = parallel_env()
    with pytest.raises(RuntimeError, match="call reset"):
        game.step({})
    with pytest.raises(RuntimeError, match="call reset"):
        parallel_env(render_mode="rgb_array").render()
    game.reset(seed=0)
    with pytest.raises(ValueError, match="no action for uav_1, uav_2"):
        game.step({"uav_0": np.zeros(3)})
    with pytest.raises(ValueError, match="uav_0 has 3 numbers"):
        game.step({agent: np.zeros(2) for agent in game.agents})
    chooser = parallel_env(actions={"kind": "discrete"})
    chooser.reset(seed=0)
    with pytest.raises(ValueError, match="uav_1 in environment 0 is not among the choices"):
        chooser.step({agent: np.array([0.0, 0.5 * (agent == "uav_1")]) for agent in chooser.agents})
    with pytest.raises(ValueError, match="rgb_array"):
        DownlinkParallelEnv(DownlinkConfig(), render_mode="human")
    with pytest.raises(ValueError, match="seed must be in"):
        game.reset(seed=-1)


@pytest.mark.parametrize("action", [np.zeros(3), None, {"move": np.zeros(2)}, {"alloc": np.zeros(1, int)}])
def test_an_action_without_its_parts_names_the_agent_and_the_parts(action):
    env = parallel_env(num_uavs=2, num_users=3, actions={"kind": "hybrid"})
    env.reset(seed=1)
    whole = env.action_space("uav_0").sample()
    with pytest.raises(ValueError, match=r"action of uav_1 must be a mapping with 'move', 'alloc'; got "):
        env.step({"uav_0": whole, "uav_1": action})
    env.step(dict.fromkeys(env.agents, whole))
