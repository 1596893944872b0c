"""Spaces, groups and the actions that reach the environment."""

import numpy as np
from gymnasium import spaces
from vector_examples import Mixed

from marl_tr.vector import InProcessVectorEnv
from marl_tr.vector.codec import group_agents
from marl_tr.vector.sampling import sample

BOX = spaces.Box(-1, 1, (2,), np.float32)
WIDE = spaces.Box(-1, 1, (3,), np.float32)
FLIP = spaces.Discrete(2)


def groups_of(**agents):
    observation = {agent: pair[0] for agent, pair in agents.items()}
    action = {agent: pair[1] for agent, pair in agents.items()}
    return {g.name: g.agents for g in group_agents(list(agents), observation, action, env_id="x")}


def test_agents_with_equal_spaces_form_a_group_called_by_their_common_prefix():
    groups = groups_of(adversary_0=(BOX, FLIP), agent_0=(WIDE, FLIP), adversary_1=(BOX, FLIP), agent_1=(WIDE, FLIP))
    assert groups == {"adversary": ("adversary_0", "adversary_1"), "agent": ("agent_0", "agent_1")}


def test_equal_prefixes_with_unequal_spaces_are_numbered():
    assert groups_of(uav_0=(BOX, FLIP), uav_1=(WIDE, FLIP)) == {"group_0": ("uav_0",), "group_1": ("uav_1",)}


def test_agents_without_a_common_prefix_are_numbered_and_others_keep_their_name():
    assert groups_of(red=(BOX, FLIP), blue=(BOX, FLIP), judge=(WIDE, FLIP)) == {
        "group_0": ("red", "blue"),
        "judge": ("judge",),
    }


def test_names_never_collide_with_numbers():
    groups = groups_of(group_1_0=(BOX, FLIP), red=(WIDE, FLIP), blue=(WIDE, FLIP))
    assert list(groups) == ["group_0", "group_1"]


def test_a_name_is_never_empty():
    assert groups_of(_0=(BOX, FLIP), _1=(BOX, FLIP)) == {"group_0": ("_0", "_1")}


def test_bounds_that_differ_by_little_are_different_bounds():
    weak, strong = (spaces.Dict(power=spaces.Box(0, watts, (1,), np.float64)) for watts in (1e-9, 1e-8))
    assert weak == strong  # to Gymnasium
    assert groups_of(uav_0=(BOX, weak), uav_1=(BOX, strong)) == {"group_0": ("uav_0",), "group_1": ("uav_1",)}
    assert groups_of(uav_0=(weak, FLIP), uav_1=(strong, FLIP)) == {"group_0": ("uav_0",), "group_1": ("uav_1",)}


def test_every_supported_space_reaches_the_arrays_and_the_environment():
    made = []
    env = InProcessVectorEnv("mixed", lambda: made.append(Mixed()) or made[-1], num_envs=2)
    step = env.reset(0)
    by_name = {group.name: group for group in env.spec.groups}
    assert list(by_name) == ["seller", "buyer", "judge"]
    np.testing.assert_array_equal(
        step.groups["seller"].observation["observation"], np.tile(np.float32([0, 0, 1, 0]), (2, 2, 1))
    )
    assert step.groups["buyer"].observation["observation"].shape == (2, 1, 6)
    assert step.groups["buyer"].observation["observation"].dtype == np.float32
    assert by_name["seller"].action["action"] == spaces.Discrete(3)
    assert by_name["buyer"].action["action"].shape == (4,)
    assert by_name["judge"].action["action"] == spaces.MultiDiscrete([3, 5])
    env.step(
        {
            "seller": {"action": np.array([[0, 2], [1, 1]])},
            "buyer": {"action": np.full((2, 1, 4), 0.1, np.float32)},
            "judge": {"action": np.array([[[2, 4]], [[0, 1]]])},
        }
    )
    given = made[0].given[0]
    assert given["seller_0"] == -1
    assert given["seller_1"] == 1
    assert given["judge"].tolist() == [2, 4]
    # float32's 0.1 is above float64's; the action stays in the space all the same.
    assert given["buyer_0"].shape == (2, 2)
    for agent, action in given.items():
        assert made[0].action_space(agent).contains(action)


def test_samples_fill_bounded_spaces_and_respect_single_bounds():
    generator = np.random.default_rng(0)
    box = spaces.Box(np.float32([-2, 0, -np.inf, -np.inf]), np.float32([3, np.inf, 1, np.inf]))
    drawn = sample(box, (4000,), generator)
    assert drawn.dtype == np.float32
    assert all(box.contains(row) for row in drawn[:200])
    np.testing.assert_allclose(drawn.mean(axis=0), [0.5, 1.0, 0.0, 0.0], atol=0.1)
    counts = np.bincount(sample(spaces.Discrete(4), (4000,), generator), minlength=4)
    assert counts.min() > 850
