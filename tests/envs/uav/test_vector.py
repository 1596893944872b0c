import numpy as np
import pytest

from marl_tr.envs.uav import vector
from marl_tr.envs.uav.vector import make
from marl_tr.registry import find
from marl_tr.vector.check import check_env
from marl_tr.vector.contract import Trajectory, VectorEnv

HORIZON = 4


def actions(envs, uavs=2, seed=0, steps=HORIZON + 2):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (steps, envs, uavs, 3)).astype(np.float32)


def small(num_envs, **config):
    return make(num_envs=num_envs, num_uavs=2, num_users=6, horizon=HORIZON, **config)


def arrays(step):
    """Every array of a step, by name."""
    group = step.groups["uav"]
    found = {f"state/{name}": leaf for name, leaf in step.state.items()}
    found |= {f"metrics/{name}": leaf for name, leaf in step.metrics.items()}
    found |= {"observation": group.observation["observation"], "reward": group.reward, "done": step.done}
    found |= {"truncated": group.truncated, "terminated": group.terminated}
    if group.final_observation is not None:
        found["final"] = group.final_observation["observation"]
        found |= {f"final_state/{name}": leaf for name, leaf in step.final_state.items()}
    return found


def run(env, seed, chosen):
    steps = [env.reset(seed)]
    steps += [env.step({"uav": {"action": array}}) for array in chosen]
    return [arrays(step) for step in steps]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_the_registered_factory_makes_a_vector_env():
    entry = find("envs", "uav/downlink-v0")
    assert entry.native
    env = entry.load()(num_envs=2, **entry.load_config()(num_uavs=2).model_dump())
    assert isinstance(env, VectorEnv)
    assert env.spec.own_state
    assert env.spec.horizon == 100
    assert env.spec.agents == ("uav_0", "uav_1")


def test_shapes_are_those_of_the_spec():
    env = small(3)
    step = env.reset(0)
    group = env.spec.groups[0]
    assert step.groups["uav"].observation["observation"].shape == (3, 2, *group.observation["observation"].shape)
    assert {name: leaf.shape for name, leaf in step.state.items()} == {
        name: (3, *space.shape) for name, space in env.spec.state.items()
    }
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for leaf in step.state.values())
    assert step.groups["uav"].alive.all()
    assert step.metrics == {}


@pytest.mark.parametrize("observation", ["flat", "entities"])
def test_it_keeps_the_contract_in_both_forms_of_observation(observation):
    report = check_env("uav/downlink-v0", {"num_users": 3, "horizon": 3, "observation": observation})
    assert report.passed, report.render()


@pytest.mark.parametrize("envs", [1, 63, 64, 65, 1024])
def test_an_environment_of_any_batch_equals_a_batch_of_one(envs, monkeypatch):
    monkeypatch.setattr(vector, "_LINKS", 64 * 12)
    chosen = actions(envs)
    batch = run(small(envs), 9, chosen)
    for j in sorted({0, envs // 2, envs - 1}):
        alone = run(small(1, env_offset=j), 9, chosen[:, j : j + 1])
        for one, many in zip(alone, batch, strict=True):
            assert one.keys() == many.keys()
            for name, array in one.items():
                assert np.array_equal(many[name][j], array[0]), name


def test_equal_seeds_give_equal_episodes_and_others_do_not():
    env = small(5)
    first = run(env, 1, actions(5))
    assert all(map(same, first, run(env, 1, actions(5))))
    other = env.reset(2)
    assert (other.state["users"][..., :2] != first[0]["state/users"][..., :2]).any(axis=(1, 2)).all()
    assert (other.state["uavs"][..., :2] != first[0]["state/uavs"][..., :2]).any(axis=(1, 2)).all()


def test_environments_and_episodes_differ_from_each_other():
    env = small(3)
    begun = [env.reset(1).state["users"]]
    for array in actions(3, steps=HORIZON):
        step = env.step({"uav": {"action": array}})
    begun.append(step.state["users"])
    scenes = np.concatenate(begun)[..., :2].reshape(6, -1)
    assert len(np.unique(scenes, axis=0)) == 6


def test_the_horizon_truncates_and_keeps_the_final_observation():
    env = small(3)
    env.reset(1)
    for t, array in enumerate(actions(3, steps=HORIZON), start=1):
        step = env.step({"uav": {"action": array}})
        group = step.groups["uav"]
        assert not group.terminated.any()
        assert group.truncated.all() == (t == HORIZON)
        assert step.done.all() == (t == HORIZON)
        assert (group.final_observation is not None) == (t == HORIZON)
    time = 7  # place of t / T in an observation
    assert (group.final_observation["observation"][..., time] == 1).all()
    assert (step.final_state["time"] == 1).all()
    assert (group.observation["observation"][..., time] == 0).all()
    assert (step.state["time"] == 0).all()
    assert (group.reward != 0).all()
    assert np.array_equal(step.final_state["users"][..., :2] == step.state["users"][..., :2], np.zeros((3, 6, 2)))


def test_a_kept_step_is_not_overwritten_by_later_ones():
    env = small(2)
    kept = arrays(env.reset(0))
    before = {name: array.copy() for name, array in kept.items()}
    for array in actions(2):
        env.step({"uav": {"action": array}})
    assert same(kept, before)


@pytest.mark.parametrize(
    ("envs", "uavs", "users"), [(1, 4, 20), (1024, 4, 20), (1700, 4, 20), (64, 5, 999), (3, 64, 9999)]
)
def test_blocks_cover_all_environments_in_even_parts_of_bounded_size(envs, uavs, users):
    rows = vector._blocks(envs, uavs * users)
    assert [index for part in rows for index in range(part.start, part.stop)] == list(range(envs))
    sizes = [part.stop - part.start for part in rows]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * uavs * users <= max(2**17, uavs * users)


@pytest.mark.parametrize("after", [0, 2, HORIZON, HORIZON + 1])
def test_a_restored_state_goes_on_exactly(after, monkeypatch):
    monkeypatch.setattr(vector, "_LINKS", 64 * 12)
    chosen = actions(65, steps=2 * HORIZON)
    env = small(65)
    env.reset(5)
    for array in chosen[:after]:
        env.step({"uav": {"action": array}})
    saved = env.state_dict()
    expected = [arrays(env.step({"uav": {"action": array}})) for array in chosen[after:]]
    other = small(65)
    other.reset(77)
    other.load_state_dict(saved)
    found = [arrays(other.step({"uav": {"action": array}})) for array in chosen[after:]]
    assert all(map(same, expected, found))


def test_a_state_of_another_size_is_refused(monkeypatch):
    monkeypatch.setattr(vector, "_LINKS", 64 * 12)
    with pytest.raises(ValueError, match="does not fit"):
        small(3).load_state_dict(small(2).state_dict())
    with pytest.raises(ValueError, match="blocks"):
        small(3).load_state_dict(small(65).state_dict())


def test_wrong_actions_are_refused_with_both_shapes():
    env = small(3)
    env.reset(0)
    with pytest.raises(ValueError, match=r"\(3, 2\), expected \(3, 2, 3\)"):
        env.step({"uav": {"action": np.zeros((3, 2))}})


def test_no_environments_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        make(num_envs=0)


def test_metrics_are_one_number_an_environment():
    env = small(3)
    env.reset(0)
    step = env.step({"uav": {"action": actions(3)[0]}})
    wanted = {"throughput_mbps", "jain", "p5_rate_mbps", "std_rate_mbps", "mean_rate_mbps", "mean_sinr_db"}
    assert wanted | {"collisions", "out_of_bounds", "energy_j"} <= step.metrics.keys()
    assert all(array.shape == (3,) and np.isfinite(array).all() for array in step.metrics.values())


def test_orthogonal_bands_run_without_interference():
    env = small(3, resources="orthogonal")
    env.reset(0)
    step = env.step({"uav": {"action": actions(3)[0]}})
    edges = step.state["edges"]
    floor = np.float32(0.1 * np.log10(np.float32(1e-3)))
    assert edges[:, 0, 1, 3] == pytest.approx(floor, rel=1e-6)
    assert (edges[:, [0, 1], [0, 1], 3].max(axis=1) > 0).all()


def test_media_shows_the_tracks_and_the_flight():
    env = small(1)
    states, rewards = [env.reset(0).state], []
    for array in actions(1, steps=HORIZON):
        step = env.step({"uav": {"action": array}})
        states.append(step.final_state or step.state)
        rewards.append(step.groups["uav"].reward[0])
    trajectory = Trajectory(
        state={name: np.stack([state[name][0] for state in states]) for name in states[0]},
        actions={},
        reward={"uav": np.stack(rewards)},
        metrics={},
    )
    media = env.media(trajectory)
    assert media["tracks"].shape == (720, 960, 3)
    film = media["flight"]()
    assert film.shape == (HORIZON + 1, 480, 640, 3)
    assert film.dtype == np.uint8
    assert all((frame != film[0]).any() for frame in film[1:])


def test_render_shows_the_first_environment():
    env = small(2)
    env.reset(0)
    before = env.render()
    env.step({"uav": {"action": actions(2)[0]}})
    assert before.shape == (480, 640, 3)
    assert (env.render() != before).any()
