"""Every space of Gymnasium that has a size, from the environment's values to arrays and back."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from vector_examples import Clerk, Mixed

from marl_tr.vector import BadEnvironmentData, InProcessVectorEnv, UnsupportedSpace
from marl_tr.vector.actions import ActionCodec
from marl_tr.vector.observations import ObservationCodec
from marl_tr.vector.sampling import random_actions, sample

FLIP = spaces.Discrete(2)


def random_space(rng, depth=3):
    """A space of any supported kind, nested at random."""
    kind = rng.integers(9 if depth else 6)
    shape = tuple(int(n) for n in rng.integers(1, 4, size=rng.integers(3)))
    if kind == 0:
        high = rng.uniform(0.1, 5, shape)
        high[rng.random(shape) < 0.2] = np.inf
        dtype = rng.choice([np.float16, np.float32, np.float64])
        return spaces.Box((-high).astype(dtype), high.astype(dtype), shape, dtype)
    if kind == 1:
        dtype = rng.choice([np.int64, np.int16])
        return spaces.Discrete(int(rng.integers(1, 7)), start=int(rng.integers(-3, 3)), dtype=dtype)
    if kind == 2:
        dtype = rng.choice([np.int64, np.int8])
        return spaces.MultiDiscrete(
            rng.integers(1, 5, shape or (2,)), dtype=dtype, start=rng.integers(-2, 3, shape or (2,))
        )
    if kind == 3:
        return spaces.MultiBinary(list(shape or (3,)))
    if kind == 4:
        low = rng.integers(-4, 1, shape)
        dtype = rng.choice([np.int64, np.int8])
        return spaces.Box(np.asarray(low, dtype), np.asarray(low + rng.integers(0, 5, shape), dtype), shape, dtype)
    if kind == 5:
        return spaces.Box(0, 1, shape, np.bool_)
    parts = [random_space(rng, depth - 1) for _ in range(rng.integers(1, 4))]
    if kind == 6:
        return spaces.Tuple(parts)
    return spaces.Dict({f"part{index}": part for index, part in enumerate(parts)})


def same_kind(a, b):
    """Equal types and dtypes all the way down."""
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same_kind(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_kind, a, b))
    # Gymnasium draws a number from an integer Box without axes, which its own `contains` asks to be an array.
    return (type(a) is type(b) or (isinstance(a, np.ndarray) and a.shape == ())) and (a.dtype, a.shape) == (
        b.dtype,
        b.shape,
    )


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
@pytest.mark.parametrize("seed", range(12))
def test_decoded_actions_are_of_the_space_in_structure_type_and_value(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        space = random_space(rng)
        space.seed(seed)
        codec = ActionCodec.of(space, where="environment 'x', agent 'a'")
        assert len({leaf.name for leaf in codec.leaves}) == len(codec.leaves)
        for leaf in codec.leaves:
            assert isinstance(leaf.space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete)
        for _ in range(3):
            action = codec.decode([sample(leaf.space, (), rng) for leaf in codec.leaves])
            assert space.contains(action), (space, action)
            assert same_kind(action, space.sample()), (space, action)


def test_every_value_of_a_discrete_space_is_reached_and_only_once():
    space = spaces.Tuple((spaces.Box(-2, 1, (2,), np.int8), spaces.MultiBinary(2), spaces.Discrete(3, start=-1)))
    codec = ActionCodec.of(space, where="x")
    grids = [range(int(n)) for leaf in codec.leaves for n in getattr(leaf.space, "nvec", [getattr(leaf.space, "n", 0)])]
    seen = set()
    for values in np.array(np.meshgrid(*grids)).reshape(len(grids), -1).T:
        box, bits, number = codec.decode([values[:2], values[2:4], values[4]])
        seen.add((*box.tolist(), *bits.tolist(), int(number)))
    assert seen == {
        (a, b, c, d, e) for a in range(-2, 2) for b in range(-2, 2) for c in (0, 1) for d in (0, 1) for e in (-1, 0, 1)
    }


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
@pytest.mark.parametrize("seed", range(8))
def test_observation_leaves_end_to_end_are_what_gymnasium_flattens_to(seed):
    rng = np.random.default_rng(100 + seed)
    for _ in range(25):
        space = random_space(rng)
        space.seed(seed)
        codec = ObservationCodec.of(space, where="environment 'x', agent 'a'")
        value = space.sample()
        rows = {leaf.name: np.full((1, *leaf.space.shape), np.nan, np.float32) for leaf in codec.leaves}
        codec.write(value, rows, 0)
        with np.errstate(over="ignore"):
            expected = np.asarray(flatten(space, value)).astype(np.float32)
        np.testing.assert_array_equal(np.concatenate([row.reshape(-1) for row in rows.values()]), expected)
        for leaf in codec.leaves:
            assert leaf.space.contains(rows[leaf.name][0])


def test_a_dict_becomes_leaves_named_by_path_and_an_action_comes_back_in_its_own_form():
    made = []
    env = InProcessVectorEnv("clerk", lambda: made.append(Clerk()) or made[-1], num_envs=2)
    (group,) = env.spec.groups
    assert {leaf: space.shape for leaf, space in group.observation.items()} == {
        "camera": (2, 4, 3),
        "desk/0": (3,),
        "desk/1": (4,),
        "doors": (2,),
        "pos/grid": (5,),
        "pos/x": (1,),
        "table": (5, 2),
    }
    assert {leaf: str(space) for leaf, space in group.action.items()} == {
        "0": "Box(-1.0, 1.0, (2,), float32)",
        "1/lamps": "MultiDiscrete([2 2 2 2])",
        "1/stamp": "Discrete(3)",
        "2": "MultiDiscrete([6 6])",
    }
    step = env.reset(0)
    for _ in range(30):  # asserts in step that each action lies in the space
        for copy in range(2):
            seen, rows = made[copy].seen[-1], step.groups["agent"].observation
            np.testing.assert_array_equal(rows["camera"][copy, 0], seen["camera"])
            np.testing.assert_array_equal(rows["desk/0"][copy, 0], np.eye(3)[seen["desk"][0] - 5])
            np.testing.assert_array_equal(rows["table"][copy, 0], seen["table"])
            assert rows["pos/x"][copy, 0] == np.float32(seen["pos"]["x"])
        step = env.step(random_actions(env.spec, np.random.default_rng(1), step))
    assert step.groups["agent"].observation["camera"].dtype == np.float32
    actions = {
        "0": np.full((2, 1, 2), 0.5, np.float32),
        "1/lamps": np.array([[[0, 1, 1, 0]]] * 2),
        "1/stamp": np.array([[0], [2]]),
        "2": np.array([[[0, 5]]] * 2),
    }
    env.step({"agent": actions})
    drive, desk, box = made[1].given[-1]
    assert (drive.tolist(), desk["stamp"], desk["lamps"].tolist()) == ([0.5, 0.5], 1, [[0, 1], [1, 0]])
    assert box.tolist() == [-2, 3]
    with pytest.raises(ValueError, match=r"group 'agent' lack the leaf '1/stamp'"):
        env.step({"agent": {leaf: rows for leaf, rows in actions.items() if leaf != "1/stamp"}})
    with pytest.raises(ValueError, match=r"leaf '2', have shape \(2, 2\), expected \(2, 1, 2\)"):
        env.step({"agent": actions | {"2": np.zeros((2, 2), np.int64)}})


def without(key):
    return lambda seen: {name: value for name, value in seen.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("doors"), r"observation leaf 'doors' is malformed: has no key 'doors'"),
        (
            lambda seen: seen | {"table": seen["table"].T},
            r"observation leaf 'table' is malformed: shape \(2, 5\) .* has \(5, 2\)",
        ),
        (
            lambda seen: seen | {"desk": (9, seen["desk"][1])},
            r"observation leaf 'desk/0' is malformed: 9 is outside Discrete",
        ),
        (lambda seen: seen | {"desk": seen["desk"][:1]}, r"observation leaf 'desk/1' is malformed: has 1 parts, not 2"),
        (lambda seen: seen | {"pos": 3}, r"observation leaf 'pos/grid' is malformed: is int where part 'grid'"),
        (
            lambda seen: seen | {"pos": {"x": 0.0, "grid": [0, 3]}},
            r"observation leaf 'pos/grid' is malformed: .* outside Multi",
        ),
        (lambda seen: seen | {"pos": {"x": "far", "grid": [0, 1]}}, r"observation leaf 'pos/x' is malformed"),
        (
            lambda seen: seen | {"pos": {"x": "1.5", "grid": [0, 1]}},
            r"observation leaf 'pos/x' is malformed: str of <U3 where real numbers",
        ),
        (
            lambda seen: seen | {"pos": {"x": None, "grid": [0, 1]}},
            r"observation leaf 'pos/x' is malformed: NoneType of object where",
        ),
        (
            lambda seen: seen | {"table": seen["table"] + 1j},
            r"observation leaf 'table' is malformed: ndarray of complex\d+ where",
        ),
        (
            lambda seen: seen | {"desk": (5.5, seen["desk"][1])},
            r"observation leaf 'desk/0' is malformed: 5.5 is outside Discrete",
        ),
        (
            lambda seen: seen | {"table": torch.zeros(5, 2, requires_grad=True)},
            r"observation leaf 'table' is malformed: Can't call numpy\(\) on Tensor that requires grad",
        ),
        (lambda seen: seen | {"pos": {"x": np.nan, "grid": [0, 1]}}, r"observation leaf 'pos/x' is not finite"),
    ],
)
def test_a_malformed_part_is_named_with_leaf_agent_copy_and_step(change, message):
    class Careless(Clerk):
        def _observe(self):
            seen = super()._observe()
            return change(seen) if self.t == 2 else seen

    env = InProcessVectorEnv("team/clerk-v0", Careless, num_envs=2)
    env.reset(0)
    env.step(random_actions(env.spec, np.random.default_rng(0)))
    with pytest.raises(BadEnvironmentData, match=rf"'team/clerk-v0', copy 0, agent 'agent_0', step 2: {message}"):
        env.step(random_actions(env.spec, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Text(5), FLIP, r"agent 'robot_0': observation space Text.*supported are Box.*MultiDiscrete of fixed"),
        (spaces.Dict(a=FLIP, b=spaces.Sequence(FLIP)), FLIP, r"\(leaf 'b'\) is not supported.*filled up with zeros"),
        (spaces.Graph(FLIP, None), FLIP, "nodes as a Box"),
        (FLIP, spaces.Tuple((FLIP, spaces.OneOf((FLIP, FLIP)))), r"action space OneOf.*\(leaf '1'\).*which one"),
        (FLIP, spaces.Box(0, 10**6, (2,), np.int64), r"an entry has 1,000,001 values.*Box of floats and round"),
        (spaces.Box(0, 1, (0,)), FLIP, "observation space Box"),
        (spaces.Dict({}), FLIP, "is empty; give it at least one part"),
        (spaces.Dict({"a/b": FLIP, "a": spaces.Dict(b=FLIP)}), FLIP, "two parts called 'a/b'; rename"),
        (spaces.Dict(action_mask=spaces.MultiBinary(2)), FLIP, "holds a mask and nothing else"),
        (
            spaces.Dict(observation=FLIP, action_mask=spaces.MultiBinary(2)),
            spaces.Dict(move=FLIP, aim=spaces.Box(-1, 1)),
            r"observation 'action_mask' has no part for any choice of the action \(move\); nest it",
        ),
        (spaces.Discrete(2**40), FLIP, "table of features too long; give the number as a Box of floats"),
    ],
)
def test_what_has_no_fixed_size_is_named_with_agent_leaf_and_a_cure(observation, action, message):
    with pytest.raises(UnsupportedSpace, match=f"'team/robots-v0', .*{message}"):
        InProcessVectorEnv("team/robots-v0", lambda: Mixed({"robot_0": (observation, action)}), num_envs=1)


def test_a_state_that_is_no_array_is_refused_with_a_cure():
    class Parted(Mixed):
        def state(self):
            return {"a": np.zeros(2)}

    with pytest.raises(UnsupportedSpace, match=r"state\(\) returns dict; return one array of numbers"):
        InProcessVectorEnv("parted", Parted, num_envs=1)
