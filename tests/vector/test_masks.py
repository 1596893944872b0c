"""Masks of choices: where they are found, what is drawn, and what is said of malformed ones."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from vector_examples import Vault

from marl_tr.vector import BadEnvironmentData, InProcessVectorEnv, make_vector_env
from marl_tr.vector.actions import ActionCodec
from marl_tr.vector.check_vector import contract_problems, step_digest
from marl_tr.vector.masks import MaskCodec
from marl_tr.vector.sampling import random_actions, sample


def play(env, steps):
    """A reset and `steps` steps of allowed actions; the last."""
    generator, step = np.random.default_rng(0), env.reset(0)
    for _ in range(steps):
        step = env.step(random_actions(env.spec, generator, step))
    return step


def bits(space, mask):
    """What a mask of `space` becomes, ``{leaf: [n]}``."""
    codec = MaskCodec.in_info(mask, ActionCodec.of(space, where="x"), where="x")
    rows = {leaf.name: np.zeros((1, *leaf.space.shape), np.int8) for leaf in codec.leaves}
    codec.write(mask, rows, 0)
    return {name: row[0].tolist() for name, row in rows.items()}


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (spaces.Discrete(3), np.int8([1, 0, 1]), {"action_mask": [1, 0, 1]}),
        (spaces.Discrete(3), [True, False, True], {"action_mask": [1, 0, 1]}),
        (spaces.MultiDiscrete([2, 3]), np.int8([1, 0, 0, 1, 1]), {"action_mask": [1, 0, 0, 1, 1]}),
        (spaces.MultiDiscrete([2, 3]), (np.int8([1, 0]), np.int8([0, 1, 1])), {"action_mask": [1, 0, 0, 1, 1]}),
        (
            spaces.MultiDiscrete([[2, 1], [1, 2]]),
            ((np.int8([1, 0]), np.int8([1])), (np.int8([1]), np.int8([0, 1]))),
            {"action_mask": [1, 0, 1, 1, 0, 1]},
        ),
        (spaces.MultiBinary(3), np.int8([0, 1, 2]), {"action_mask": [1, 0, 0, 1, 1, 1]}),
        (spaces.MultiBinary(2), np.int8([1, 1, 0, 1]), {"action_mask": [1, 1, 0, 1]}),
        (
            spaces.Dict(aim=spaces.Box(-1, 1, (2,)), fire=spaces.Discrete(2), gear=spaces.MultiDiscrete([2, 2])),
            {"fire": np.int8([1, 0]), "gear": (np.int8([1, 1]), np.int8([0, 1]))},
            {"action_mask/fire": [1, 0], "action_mask/gear": [1, 1, 0, 1]},
        ),
        (
            spaces.Dict(fire=spaces.Discrete(2), gear=spaces.Discrete(2)),
            {"gear": np.int8([0, 1]), "fire": None},
            {"action_mask/gear": [0, 1]},
        ),
        (
            spaces.Tuple((spaces.Discrete(2), spaces.Discrete(1))),
            (np.int8([0, 1]), np.int8([1])),
            {"action_mask/0": [0, 1], "action_mask/1": [1]},
        ),
    ],
)
def test_masks_are_read_as_gymnasium_samples_by_them(space, mask, expected):
    assert bits(space, mask) == expected


@pytest.mark.parametrize("seed", range(3))
def test_what_gymnasium_draws_by_a_mask_is_what_our_bits_allow(seed):
    rng = np.random.default_rng(seed)
    space = spaces.MultiDiscrete([3, 4, 2])
    space.seed(seed)
    mask = tuple(np.int8(rng.permutation([1] + [int(rng.integers(2)) for _ in range(n - 1)])) for n in (3, 4, 2))
    allowed = np.array(bits(space, mask)["action_mask"])
    theirs = {tuple(space.sample(mask=mask)) for _ in range(300)}
    drawn = sample(space, (300,), rng, np.tile(allowed, (300, 1)))
    assert {tuple(row) for row in drawn} == theirs


def test_draws_are_uniform_over_what_is_allowed_and_zeros_forbid_nothing():
    rng = np.random.default_rng(0)
    mask = np.tile(np.int8([1, 0, 1, 1, 0]), (6000, 1))
    counts = np.bincount(sample(spaces.Discrete(5), (6000,), rng, mask), minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(counts[[0, 2, 3]] / 6000, 1 / 3, atol=0.03)
    free = sample(spaces.Discrete(5), (500,), rng, np.zeros((500, 5), np.int8))
    assert set(free.tolist()) == set(range(5))


@pytest.mark.parametrize("tuples", [True, False])
def test_masks_in_infos_are_kept_by_draws_and_shown_as_int8(tuples):
    env = InProcessVectorEnv("vault", lambda: Vault(tuples=tuples), num_envs=3)
    dialler, lookout = env.spec.groups
    assert dialler.masks == lookout.masks == {"action": "action_mask"}
    assert (dialler.observation["action_mask"], lookout.observation["action_mask"]) == (
        spaces.MultiBinary(8),
        spaces.MultiBinary(4),
    )
    assert set(lookout.features) == {"observation"}
    generator, before = np.random.default_rng(0), None
    step = env.reset(0)
    for _ in range(40):  # the environment asserts that nothing forbidden is done
        assert contract_problems(env.spec, step, before) == []
        assert step.groups["lookout"].observation["action_mask"].any(axis=-1).all()
        before, step = step, env.step(random_actions(env.spec, generator, step))
    with pytest.raises(AssertionError, match=r"a closed door|a blocked place"):
        [env.step(random_actions(env.spec, generator)) for _ in range(20)]


def test_the_mask_of_the_last_observation_allows_nothing_and_is_not_asked_for():
    class Ends(Vault):
        def _infos(self):
            infos = super()._infos()
            return {agent: {} for agent in infos} if self.t == self.horizon else infos

    env = InProcessVectorEnv("vault", lambda: Ends(horizon=2), num_envs=1)
    step = play(env, 2)
    assert step.done.all()
    assert not step.groups["lookout"].final_observation["action_mask"].any()
    assert step.groups["lookout"].observation["action_mask"].any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "info 'action_mask' is missing"),
        (np.int8([1, 1, 1]), "info 'action_mask' has 3 entries, where the action 'action' has 4 choices"),
        (np.int8([1, 2, 0, 0]), "info 'action_mask' holds 2, not 0 or 1"),
        (np.zeros(4, np.int8), "info 'action_mask' is all zero: nothing is allowed to an agent that is to move"),
    ],
)
def test_a_malformed_mask_is_named_with_agent_copy_step_and_field(mask, message):
    class Wrong(Vault):
        def step(self, actions):
            answer = super().step(actions)
            if self.t == 3:
                answer[4]["lookout_1"] = {} if mask is None else {"action_mask": mask}
            return answer

    env = InProcessVectorEnv("team/vault-v0", Wrong, num_envs=2)
    with pytest.raises(BadEnvironmentData, match=f"'team/vault-v0', copy 0, agent 'lookout_1', step 3: {message}"):
        play(env, 5)


def test_one_entry_without_a_choice_is_named():
    with pytest.raises(ValueError, match="is all zero for entry 1 of the action"):
        bits(spaces.MultiDiscrete([2, 2]), (np.int8([1, 0]), np.int8([0, 0])))
    with pytest.raises(ValueError, match=r"5 choices \(2 \+ 3\)"):
        bits(spaces.MultiDiscrete([2, 3]), (np.int8([1, 1, 1]), np.int8([1, 1])))


def test_a_mask_of_a_continuous_action_is_an_observation_like_others():
    class Steers(gymnasium.Env):
        observation_space = spaces.Dict(observation=spaces.Box(0, 1, (2,)), action_mask=spaces.MultiBinary(2))
        action_space = spaces.Box(-1, 1, (2,))

    (group,) = InProcessVectorEnv("steers", lambda: Seen(Steers()), num_envs=1).spec.groups
    assert group.masks == {}
    assert set(group.features) == {"observation", "action_mask"}


class Seen(gymnasium.Wrapper):
    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


def test_gymnasiums_taxi_shows_its_mask_in_info_and_follows_it():
    env = make_vector_env("gymnasium/Taxi-v4", num_envs=4)
    (group,) = env.spec.groups
    assert group.masks == {"action": "action_mask"}
    generator, step = np.random.default_rng(0), env.reset(0)
    for _ in range(50):
        before = step.groups["agent"].observation["observation"]
        step = env.step(random_actions(env.spec, generator, step))
        assert (before != step.groups["agent"].observation["observation"]).any(axis=-1).all()  # every move moves


def test_the_random_reference_keeps_to_the_masks():
    env = InProcessVectorEnv("vault", Vault, num_envs=2)
    (reference,) = env.references()
    step = env.reset(1)
    digests = []
    for _ in range(20):
        step = env.step(reference.act(step))
        digests.append(step_digest(step))
    assert len(set(digests)) == 20
