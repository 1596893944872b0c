"""From names to batches, and what is said where that fails."""

import types

import gymnasium
import numpy as np
import pytest
from pydantic import BaseModel
from vector_examples import Counter, OutlivesReset, Walkers

from marl_tr.registry import Entry, UnknownName
from marl_tr.vector import (
    BadEnvironmentConfig,
    BadEnvironmentData,
    EnvironmentFault,
    InProcessVectorEnv,
    NotAnEnvironment,
    ReplayMismatch,
    make_vector_env,
)
from marl_tr.vector.check_vector import step_digest
from marl_tr.vector.sampling import random_actions


class CounterConfig(BaseModel):
    limit: int = 7


def make(target, *, num_envs=1, config=None, native=False, model=None, **how):
    entry = Entry(target=target, native=native, config=model)
    return make_vector_env("team/thing-v0", num_envs=num_envs, config=config, entry=entry, **how)


def test_a_module_and_factory_name_makes_copies_with_their_settings():
    env = make_vector_env("vector_examples:Walkers", num_envs=3, config={"walkers": 2})
    assert env.spec.num_envs == 3
    assert env.spec.agents == ("walker_0", "walker_1")
    assert env.spec.id == "vector_examples:Walkers"


def test_mpe_spread_is_three_agents_of_one_group_with_a_state():
    pytest.importorskip("mpe2")
    env = make_vector_env("mpe2.simple_spread_v3:parallel_env", num_envs=2, config={"continuous_actions": True})
    (group,) = env.spec.groups
    assert (group.name, group.agents) == ("agent", ("agent_0", "agent_1", "agent_2"))
    step = env.reset(0)
    # MPE's state is its observations end to end.
    np.testing.assert_array_equal(step.state["state"], step.groups["agent"].observation["observation"].reshape(2, -1))


def test_gymnasium_names_are_found_by_prefix():
    env = make_vector_env("gymnasium/CartPole-v1", num_envs=2)
    assert env.spec.groups[0].action["action"] == gymnasium.spaces.Discrete(2)


def test_a_model_validates_and_fills_the_settings():
    assert make(Counter, model=CounterConfig).spec.groups[0].observation["observation"].shape == (8,)
    env = make(Counter, model=CounterConfig, config=CounterConfig(limit=2))
    assert env.spec.groups[0].observation["observation"].shape == (3,)
    with pytest.raises(BadEnvironmentConfig, match="limit: must be a valid integer"):
        make(Counter, model=CounterConfig, config={"limit": "many"})


def test_a_misspelt_setting_is_named_with_the_nearest():
    with pytest.raises(BadEnvironmentConfig, match=r"'limitt'; did you mean 'limit'\?"):
        make(Counter, config={"limitt": 3})
    with pytest.raises(BadEnvironmentConfig, match="unexpected keyword argument 'gravity'"):
        make_vector_env("gymnasium/CartPole-v1", num_envs=1, config={"gravity": 3})


@pytest.mark.parametrize(
    ("target", "cure"),
    [
        (lambda: Counter, "return an instance"),
        (lambda: object(), "lacks possible_agents"),
        (lambda: types, "name a function in it"),
        (lambda: InProcessVectorEnv("x", Counter, 1), "native=True"),
        (lambda: gymnasium.make_vec("CartPole-v1", num_envs=2), "marl-tr makes the copies"),
        (types, "is not a factory; name a function in it: 'types:parallel_env'"),
    ],
)
def test_anything_else_than_an_environment_is_refused_with_a_cure(target, cure):
    with pytest.raises(NotAnEnvironment, match=f"'team/thing-v0'.*{cure}"):
        make(target)


def test_a_native_factory_gets_the_number_of_copies_and_must_return_a_batch():
    env = make(
        lambda num_envs, limit: InProcessVectorEnv("x", lambda: Counter(limit), num_envs),
        num_envs=4,
        config={"limit": 3},
        native=True,
    )
    assert env.spec.num_envs == 4
    with pytest.raises(NotAnEnvironment, match="native=True"):
        make(lambda num_envs: Counter(), native=True)


def test_one_object_returned_twice_is_refused():
    for shared in (Counter(), Walkers()):
        with pytest.raises(NotAnEnvironment, match="same object twice"):
            make(lambda shared=shared: shared, num_envs=2)


def test_an_attribute_called_env_is_the_users_own_affair():
    class Configured(Walkers):
        env = None

    assert make(Configured, num_envs=2).spec.num_envs == 2
    shared = Counter()
    with pytest.raises(NotAnEnvironment, match="same object twice"):
        make(lambda: gymnasium.wrappers.TimeLimit(shared, 5), num_envs=2)


def test_copies_that_differ_are_refused():
    sizes = iter((2, 3))
    with pytest.raises(BadEnvironmentData, match="copy 1 has the agents"):
        make(lambda: Walkers(next(sizes)), num_envs=2)
    limits = iter((2, 3))
    with pytest.raises(BadEnvironmentData, match="copy 1, agent 'agent_0': observation_space differs"):
        make(lambda: Counter(next(limits)), num_envs=2)


def test_only_a_batch_made_for_rendering_renders():
    env = make(Walkers, num_envs=2, render=True)
    env.reset(0)
    env.step({"walker": {"action": np.zeros((2, 3, 1), np.float32)}})
    frame = env.render()
    assert (frame.shape, frame.dtype, int(frame[0, 0, 0])) == ((4, 6, 3), np.uint8, 1)
    assert not hasattr(make(Walkers), "render")


def test_an_environment_without_render_mode_says_so():
    with pytest.raises(BadEnvironmentConfig, match="render_mode"):
        make(Counter, render=True)


def test_unknown_names_and_zero_copies_are_refused():
    with pytest.raises(UnknownName):
        make_vector_env("team/nothing-v0", num_envs=1)
    with pytest.raises(ValueError, match="at least 1"):
        make(Counter, num_envs=0)


def test_every_fault_is_a_mistake_that_the_user_can_put_right():
    from marl_tr.errors import UserError

    assert issubclass(EnvironmentFault, UserError)


def test_what_a_factory_raises_names_the_environment_and_the_next_step():
    def broken():
        raise OSError("no map file")

    with pytest.raises(OSError, match="no map file") as caught:
        make(broken)
    (note,) = caught.value.__notes__
    assert "the factory of environment 'team/thing-v0'; 'marl-tr check-env team/thing-v0' looks for the cause" in note


def test_what_the_first_reset_raises_names_the_environment_and_the_next_step():
    class NoStart(Counter):
        def reset(self, **kwargs):
            raise KeyError("map")

    with pytest.raises(KeyError) as caught:
        make(NoStart)
    assert (
        "environment 'team/thing-v0', at its first reset; 'marl-tr check-env team/thing-v0'"
        in caught.value.__notes__[0]
    )


def test_copies_that_are_rebuilt_forget_what_outlives_a_reset():
    first = make(OutlivesReset, num_envs=2, rebuild=True)
    played = [step_digest(step) for step in _play(first, 40)]
    again = make(OutlivesReset, num_envs=2, rebuild=True)
    again.load_state_dict(first.state_dict())
    assert [step_digest(s) for s in _go_on(first, 20)] == [step_digest(s) for s in _go_on(again, 20)]
    assert [step_digest(step) for step in _play(again, 40)] == played
    kept = make(OutlivesReset, num_envs=2)
    _play(kept, 40)
    with pytest.raises(ReplayMismatch, match=r"episode 3: the reset observation differs.*env\.rebuild"):
        make(OutlivesReset, num_envs=2).load_state_dict(kept.state_dict())


def _play(env, steps):
    return [env.reset(3), *_go_on(env, steps)]


def _go_on(env, steps):
    generator = np.random.default_rng(0)
    return [env.step(random_actions(env.spec, generator)) for _ in range(steps)]
