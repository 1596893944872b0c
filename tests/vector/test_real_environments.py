"""Environments of PettingZoo, MPE, Gymnasium and our own zoo, unchanged: the contract, and resuming byte by byte."""

import warnings

import numpy as np
import pytest
from vector_examples import Auction, Clerk, Mixed, Respawns, Vault

from marl_tr.registry import Entry
from marl_tr.vector import ReplayMismatch, make_vector_env
from marl_tr.vector.check_vector import contract_problems, step_digest
from marl_tr.vector.sampling import random_actions

KNIGHTS = "pettingzoo.butterfly.knights_archers_zombies_v11"

# id: (settings, steps before the resume)
PUBLIC = {
    "mpe2.simple_spread_v3:parallel_env": ({"continuous_actions": True}, 60),
    "mpe2.simple_spread_v3:env": ({"max_cycles": 10}, 60),
    "mpe2.simple_reference_v3:parallel_env": ({"continuous_actions": True}, 60),
    "mpe2.simple_world_comm_v3:parallel_env": ({}, 30),
    "mpe2.simple_world_comm_v3:env": ({"max_cycles": 5}, 60),
    f"{KNIGHTS}:parallel_env": ({"line_death": True, "spawn_delay": 10, "max_cycles": 57}, 150),
    f"{KNIGHTS}:env": ({"line_death": True, "spawn_delay": 10, "max_cycles": 23}, 200),
    "pettingzoo.classic.connect_four_v3:env": ({}, 60),
    "pettingzoo.classic.connect_four_v3:raw_env": ({}, 60),
    "pettingzoo.classic.tictactoe_v3:env": ({}, 40),
    "pettingzoo.classic.rps_v2:env": ({}, 70),
    "gymnasium/CartPole-v1": ({}, 60),
    "gymnasium/Pendulum-v1": ({}, 250),
    "gymnasium/HalfCheetah-v5": ({}, 40),
    "gymnasium/Taxi-v4": ({}, 250),
}
OWN = {"clerk": Clerk, "vault": Vault, "respawns": Respawns, "auction": Auction, "mixed": Mixed}


def batch(name, num_envs=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PettingZoo's own module loader
        if name in OWN:
            return make_vector_env(name, num_envs=num_envs, entry=Entry(target=OWN[name]))
        settings, _ = PUBLIC[name]
        # zombie_spawn_interval is made in __init__ alone: it counts on through resets.
        return make_vector_env(name, num_envs=num_envs, config=settings, rebuild=name.startswith(KNIGHTS))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*PUBLIC, *OWN])
def test_a_batch_keeps_the_contract_and_goes_on_byte_by_byte_in_another(name):
    env = batch(name)
    generator, before, ends = np.random.default_rng(1), None, 0
    step = env.reset(4)
    for _ in range(PUBLIC.get(name, ({}, 40))[1]):
        assert contract_problems(env.spec, step, before) == []
        before, step = step, env.step(random_actions(env.spec, generator, step))
        ends += int(step.done.sum())
    assert ends > 1 or name in {"gymnasium/HalfCheetah-v5", "mixed"}  # the resume lies in a later episode
    other = batch(name)
    other.load_state_dict(env.state_dict())
    for _ in range(25):
        actions = random_actions(env.spec, generator, step)
        step = env.step(actions)
        assert step_digest(step) == step_digest(other.step(actions))
    one, two = env.state_dict(), other.state_dict()
    assert str(one) == str(two)


def test_knights_die_one_by_one_and_do_not_repeat_themselves_unless_they_are_rebuilt():
    name = f"{KNIGHTS}:parallel_env"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        make = lambda: make_vector_env(name, num_envs=1, config=PUBLIC[name][0])  # noqa: E731
        env, other = make(), make()
    generator, step, partly = np.random.default_rng(1), env.reset(4), 0
    for _ in range(150):
        step = env.step(random_actions(env.spec, generator, step))
        alive = step.groups["group_0"].alive[0]
        partly += alive.any() and not alive.all()
    assert partly > 5
    with pytest.raises(ReplayMismatch, match=r"copy 0, step \d+ of episode \d.*env\.rebuild"):
        other.load_state_dict(env.state_dict())
