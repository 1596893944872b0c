"""The adapter against the environments themselves, played by hand with dicts."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from pettingzoo.classic import rps_v2
from vector_examples import (
    Counter,
    ForgetsAReward,
    Mixed,
    NanLater,
    NeverRemoved,
    Respawns,
    Revives,
    StateOfTheLiving,
    TruncatesOne,
    UsesGlobalRandom,
    Vanishes,
    Walkers,
)

from marl_tr.vector import BadEnvironmentData, InProcessVectorEnv, ReplayMismatch, VectorEnv
from marl_tr.vector.batch import Batch
from marl_tr.vector.block import CopyBlock
from marl_tr.vector.check_vector import contract_problems, step_digest
from marl_tr.vector.episode import episode_seed
from marl_tr.vector.sampling import random_actions


def play(env, steps, *, seed=3, action_seed=5):
    """The steps of a run with drawn actions, and the actions."""
    generator = np.random.default_rng(action_seed)
    answers, actions = [env.reset(seed)], []
    for _ in range(steps):
        actions.append(random_actions(env.spec, generator))
        answers.append(env.step(actions[-1]))
    return answers, actions


def by_hand(make, copy, actions, *, seed=3):
    """Copy `copy` played with dicts and loops: per step (observation, reward, alive, final), rows by agent."""
    env, episode = make(), 0
    names = env.possible_agents
    observations, _ = env.reset(seed=episode_seed(seed, copy, episode))
    steps = []
    for drawn in actions:
        living = list(env.agents)
        given = {agent: drawn["walker"]["action"][copy, names.index(agent)] for agent in living}
        observations, rewards, dead, late, _ = env.step(given)
        row = {
            "reward": [rewards.get(agent, 0.0) for agent in names],
            "terminated": [dead.get(agent, False) for agent in names],
            "truncated": [late.get(agent, False) for agent in names],
            "final": [observations.get(agent, [0.0, 0.0]) for agent in names],
            "final_state": env.state(),
            "done": not env.agents,
        }
        if not env.agents:
            episode += 1
            observations, _ = env.reset(seed=episode_seed(seed, copy, episode))
        row["alive"] = [agent in env.agents for agent in names]
        row["observation"] = [observations[agent] if agent in env.agents else [0.0, 0.0] for agent in names]
        row["state"] = env.state()
        steps.append(row)
    return steps


def test_rows_are_those_of_the_environment_played_by_hand_while_agents_die_at_random():
    def make():
        return Walkers(walkers=4, death=0.15)

    env = InProcessVectorEnv("walkers", make, num_envs=3)
    answers, actions = play(env, 80)
    ends = 0
    for copy in range(3):
        for step, row in zip(answers[1:], by_hand(make, copy, actions), strict=True):
            part = step.groups["walker"]
            for name in ("reward", "terminated", "truncated", "alive"):
                np.testing.assert_array_equal(getattr(part, name)[copy], np.array(row[name], np.float32))
            np.testing.assert_array_equal(part.observation["observation"][copy], np.array(row["observation"]))
            np.testing.assert_array_equal(step.state["state"][copy], row["state"].astype(np.float32))
            assert step.done[copy] == row["done"]
            if row["done"]:
                ends += 1
                np.testing.assert_array_equal(part.final_observation["observation"][copy], np.array(row["final"]))
                np.testing.assert_array_equal(step.final_state["state"][copy], row["final_state"].astype(np.float32))
    assert ends > 10


def test_every_step_keeps_the_contract_and_partly_dead_teams_were_seen():
    env = InProcessVectorEnv("walkers", lambda: Walkers(walkers=4, death=0.15), num_envs=3)
    assert isinstance(env, VectorEnv)
    answers, _ = play(env, 60)
    before = None
    for step in answers:
        assert contract_problems(env.spec, step, before) == []
        before = step
    alive = np.stack([step.groups["walker"].alive for step in answers])
    partly = alive.any(axis=2) & ~alive.all(axis=2)
    assert partly.sum() > 20


def test_steps_that_were_kept_do_not_change_later():
    env = InProcessVectorEnv("walkers", lambda: Walkers(death=0.1), num_envs=2)
    generator = np.random.default_rng(0)
    kept, digests = [env.reset(0)], []
    for _ in range(30):
        digests.append(step_digest(kept[-1]))
        kept.append(env.step(random_actions(env.spec, generator)))
    assert [step_digest(step) for step in kept[:-1]] == digests


def test_cartpole_terminates_and_shows_the_pole_that_fell():
    env = InProcessVectorEnv("cartpole", lambda: gymnasium.make("CartPole-v1"), num_envs=4)
    answers, _ = play(env, 60)
    ended = [step for step in answers if step.done.any()]
    assert len(ended) > 4
    for step in ended:
        part = step.groups["agent"]
        final = part.final_observation["observation"][step.done][:, 0]
        np.testing.assert_array_equal(part.terminated[:, 0], step.done)
        assert not part.truncated.any()
        assert ((np.abs(final[:, 0]) > 2.4) | (np.abs(final[:, 2]) > 0.2094)).all()
        assert (np.abs(part.observation["observation"][step.done]) <= 0.05).all()


def test_pendulum_is_truncated_by_its_time_limit_and_the_bare_one_never():
    limited = InProcessVectorEnv("pendulum", lambda: gymnasium.make("Pendulum-v1"), num_envs=2)
    answers, _ = play(limited, 200)
    assert [bool(step.done.any()) for step in answers] == [False] * 200 + [True]
    assert answers[-1].groups["agent"].truncated.all()
    assert not answers[-1].groups["agent"].terminated.any()
    assert answers[-1].groups["agent"].alive.all()
    bare, _ = play(InProcessVectorEnv("bare", PendulumEnv, num_envs=1), 250)
    assert not any(step.done.any() for step in bare)


def test_an_agent_cut_off_alone_leaves_its_final_observation():
    env = InProcessVectorEnv("truncates", TruncatesOne, num_envs=1)
    answers, _ = play(env, 6)
    part = answers[4].groups["walker"]
    assert part.truncated.tolist() == [[True, False, False]]
    assert part.alive.tolist() == [[False, True, True]]
    assert part.final_observation["observation"][0, 0, 1] == 4
    assert not part.observation["observation"][0, 0].any()
    assert not answers[4].done[0]
    assert answers[5].groups["walker"].final_observation is None


def test_copies_do_not_depend_on_how_many_there_are_and_differ_from_each_other():
    def make():
        return Walkers(death=0.1)

    many = InProcessVectorEnv("walkers", make, num_envs=5)
    few = InProcessVectorEnv("walkers", make, num_envs=2)
    answers, actions = play(many, 40)
    first = few.reset(3).groups["walker"].observation["observation"]
    np.testing.assert_array_equal(first, answers[0].groups["walker"].observation["observation"][:2])
    for step, drawn in zip(answers[1:], actions, strict=True):
        part = few.step({"walker": {"action": drawn["walker"]["action"][:2]}}).groups["walker"]
        np.testing.assert_array_equal(
            part.observation["observation"], step.groups["walker"].observation["observation"][:2]
        )
    starts = answers[0].groups["walker"].observation["observation"][:, 0, 0]
    assert len(set(starts.tolist())) == 5


def test_equal_seeds_give_equal_episodes_and_seed_zero_is_one_of_them():
    env = InProcessVectorEnv("walkers", Walkers, num_envs=2)
    for seed in (0, 7, 2**63 - 1):
        digests = [[step_digest(step) for step in play(env, 20, seed=seed)[0]] for _ in range(2)]
        assert digests[0] == digests[1]
    assert step_digest(env.reset(0)) != step_digest(env.reset(1))
    with pytest.raises(ValueError, match="negative"):
        env.reset(-1)


def test_episode_seeds_are_fixed_and_distinct():
    seeds = {episode_seed(s, e, n) for s in (0, 1, 2**40) for e in range(20) for n in range(20)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**31 for seed in seeds)
    # By hand, so that a change of the rule, which would break every saved run, is seen.
    expected = int(np.random.SeedSequence(5, spawn_key=(2, 9)).generate_state(1)[0]) // 2
    assert episode_seed(5, 2, 9) == expected


@pytest.mark.parametrize("steps", [0, 1, 11, 12, 13, 50])
def test_a_resumed_batch_goes_on_bit_for_bit(steps):
    def make():
        return InProcessVectorEnv("walkers", lambda: Walkers(walkers=4, death=0.1), num_envs=3)

    env, other = make(), make()
    play(env, steps)
    other.load_state_dict(env.state_dict())
    generator = np.random.default_rng(9)
    for _ in range(40):
        actions = random_actions(env.spec, generator)
        assert step_digest(env.step(actions)) == step_digest(other.step(actions))
    assert str(env.state_dict()) == str(other.state_dict())


def test_the_saved_state_is_arrays_numbers_and_strings_of_the_current_episodes_only():
    env = InProcessVectorEnv("walkers", lambda: Walkers(horizon=12), num_envs=3)
    play(env, 12 * 5 + 4)
    state = env.state_dict()
    assert state["length"].tolist() == [4, 4, 4]
    assert state["actions"]["walker"]["action"].shape == (12, 3, 1)
    assert state["digests"].shape == (15,)
    assert state["episode"].tolist() == [5, 5, 5]
    assert (state["id"], state["seed"]) == ("walkers", 3)


def test_a_batch_that_was_never_reset_is_restored_as_such():
    env = InProcessVectorEnv("walkers", Walkers, num_envs=1)
    env.load_state_dict(InProcessVectorEnv("walkers", Walkers, num_envs=1).state_dict())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(random_actions(env.spec, np.random.default_rng(0)))


def test_an_environment_that_does_not_repeat_itself_is_named():
    env = InProcessVectorEnv("team/noisy-v0", UsesGlobalRandom, num_envs=2)
    play(env, 3)
    with pytest.raises(ReplayMismatch, match=r"'team/noisy-v0', copy 0, step 0 .*self\.np_random"):
        InProcessVectorEnv("team/noisy-v0", UsesGlobalRandom, num_envs=2).load_state_dict(env.state_dict())


def test_the_copy_and_the_step_at_which_a_replay_parts_are_named():
    env = InProcessVectorEnv("walkers", Walkers, num_envs=2)
    play(env, 6)
    state = env.state_dict()
    state["actions"]["walker"]["action"][6 + 2] += 0.25  # copy 1, its third step
    with pytest.raises(ReplayMismatch, match=r"copy 1, step 3 of episode 0"):
        InProcessVectorEnv("walkers", Walkers, num_envs=2).load_state_dict(state)


def test_a_state_of_another_batch_is_refused():
    state = InProcessVectorEnv("walkers", Walkers, num_envs=2).state_dict()
    with pytest.raises(ValueError, match="2 copies of 'walkers' given to 3 copies"):
        InProcessVectorEnv("walkers", Walkers, num_envs=3).load_state_dict(state)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NanLater, r"copy 0, agent 'walker_1', step 5: observation is not finite"),
        (NeverRemoved, r"copy 0, agent 'walker_1', step 3: agents lists it in the step in which its episode ended"),
        (Revives, r"copy 0, agent 'walker_1', step 5: observation is missing; .* one that joins in it an observation"),
        (Vanishes, r"copy 0, agent 'walker_2', step 3: agents lost it"),
        (ForgetsAReward, r"copy 0, agent 'walker_2', step 1: reward is missing"),
        (StateOfTheLiving, r"state has \d numbers, 3 after the first reset"),
    ],
)
def test_bad_data_names_environment_copy_agent_step_and_field(broken, message):
    env = InProcessVectorEnv("team/broken-v0", broken, num_envs=2)
    with pytest.raises(BadEnvironmentData, match=f"'team/broken-v0', .*{message}"):
        play(env, 30)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (0, np.zeros(3), "observation is missing"),
        (1, None, "reward is missing"),
        (1, {"walker_0": 10**400}, r"reward is 10*, not a number"),
        (2, None, "terminated is missing"),
        (3, {"walker_0": np.array([True, False])}, r"truncated is array.*, neither true nor false"),
    ],
)
def test_an_answer_that_holds_something_else_than_numbers_and_flags_by_agent_is_named(part, value, message):
    class Odd(Walkers):
        def step(self, actions):
            answer = list(super().step(actions))
            answer[part] = value
            return tuple(answer)

    env = InProcessVectorEnv("team/odd-v0", lambda: Odd(walkers=1), num_envs=1)
    with pytest.raises(BadEnvironmentData, match=f"'team/odd-v0', copy 0, agent 'walker_0', step 1: {message}"):
        play(env, 3)


def test_something_else_that_is_called_state_is_no_global_state():
    env = InProcessVectorEnv("rps", lambda: rps_v2.parallel_env(max_cycles=3), num_envs=1)
    assert env.spec.state == {}
    assert play(env, 7)[0][-1].groups["player"].alive.all()


def test_agents_may_be_called_by_numbers():
    class Numbered(Walkers):
        def __init__(self):
            super().__init__(death=0.2)
            self.possible_agents = [0, 1, 2]
            self.observation_spaces = dict(enumerate(self.observation_spaces.values()))
            self.action_spaces = dict(enumerate(self.action_spaces.values()))

    env = InProcessVectorEnv("numbered", Numbered, num_envs=2)
    assert env.spec.agents == ("0", "1", "2")
    for mine, theirs in zip(
        play(env, 30)[0], play(InProcessVectorEnv("w", lambda: Walkers(death=0.2), 2), 30)[0], strict=True
    ):
        np.testing.assert_array_equal(mine.groups["group_0"].reward, theirs.groups["walker"].reward)


def test_an_agent_named_twice_is_refused():
    class Twins(Walkers):
        def __init__(self):
            super().__init__(walkers=2)
            self.possible_agents = ["walker_0", "walker_0"]

    with pytest.raises(BadEnvironmentData, match="possible_agents names 'walker_0' twice"):
        InProcessVectorEnv("twins", Twins, num_envs=1)


def test_an_observation_of_the_wrong_size_is_not_broadcast():
    class Short(Counter):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Box(0, 9, (4,), np.float32)

        def reset(self, **kwargs):
            return np.zeros(1, np.float32), {}

    with pytest.raises(BadEnvironmentData, match=r"agent 'agent_0', step 0: observation .*shape \(1,\)"):
        InProcessVectorEnv("short", Short, num_envs=1).reset(0)


def test_what_the_environment_raises_says_where():
    class Explodes(Counter):
        def step(self, action):
            raise KeyError("battery")

    env = InProcessVectorEnv("explodes", Explodes, num_envs=2)
    env.reset(0)
    with pytest.raises(KeyError) as caught:
        env.step(random_actions(env.spec, np.random.default_rng(0)))
    (note,) = caught.value.__notes__
    assert note.startswith("(raised inside environment 'explodes', copy 0, step 1, step(); ")
    assert note.endswith("'marl-tr check-env explodes' looks for the cause)")


def test_actions_of_a_wrong_shape_are_refused():
    env = InProcessVectorEnv("walkers", Walkers, num_envs=2)
    env.reset(0)
    with pytest.raises(ValueError, match=r"group 'walker' have shape \(2, 3\), expected \(2, 3, 1\)"):
        env.step({"walker": {"action": np.zeros((2, 3), np.float32)}})


def test_an_environment_that_leaves_agents_filled_at_the_end_is_understood():
    class Sloppy(Walkers):
        def step(self, actions):
            answer = super().step(actions)
            if not self.agents:
                self.agents = list(actions)
            return answer

    tidy, sloppy = (InProcessVectorEnv("w", make, num_envs=2) for make in (Walkers, Sloppy))
    digests = [[step_digest(step) for step in play(env, 30)[0]] for env in (tidy, sloppy)]
    assert digests[0] == digests[1]


def test_the_random_reference_stays_in_the_spaces_and_starts_anew_each_time():
    env = InProcessVectorEnv("mixed", Mixed, num_envs=2)
    step = env.reset(0)
    drawn = []
    for _ in range(2):
        (reference,) = env.references()
        drawn.append([reference.act(step) for _ in range(20)])
    assert reference.name == "random"
    for group in env.spec.groups:
        for first, second in zip(*drawn, strict=True):
            np.testing.assert_array_equal(first[group.name]["action"], second[group.name]["action"])
            for row in first[group.name]["action"].reshape(-1, *group.action["action"].shape):
                assert group.action["action"].contains(row)


def test_agents_that_come_back_begin_a_life_that_knows_nothing_of_the_one_before():
    env = InProcessVectorEnv("respawns", Respawns, num_envs=2)
    answers, _ = play(env, 100)
    before, returns = None, 0
    for step in answers:
        assert contract_problems(env.spec, step, before) == []
        if before is not None:
            born = step.groups["walker"].alive & ~before.groups["walker"].alive & ~step.done[:, None]
            returns += born.sum()
            # Told at once where it is (from 49 on), and paid nothing for the step in which it was not there.
            assert (step.groups["walker"].observation["observation"][born][:, 0] > 45).all()
            assert (step.groups["walker"].reward[born] == 0).all()
        before = step
    assert returns > 30
    assert sum(int(step.groups["walker"].terminated.sum()) for step in answers) > 30


def test_a_block_with_a_first_index_is_that_part_of_the_whole():
    def part(first, count):
        return InProcessVectorEnv("walkers", lambda: Walkers(walkers=4, death=0.1), count, first_index=first)

    whole, blocks = part(0, 5), {0: part(0, 2), 2: part(2, 3)}
    answers, actions = play(whole, 40)
    steps = {first: block.reset(3) for first, block in blocks.items()}
    for index, answer in enumerate(answers):
        for first, block in blocks.items():
            rows = slice(first, first + block.spec.num_envs)
            for name in ("reward", "terminated", "truncated", "alive", "acting"):
                mine = getattr(steps[first].groups["walker"], name)
                np.testing.assert_array_equal(mine, getattr(answer.groups["walker"], name)[rows])
            np.testing.assert_array_equal(steps[first].state["state"], answer.state["state"][rows])
        if index < len(actions):
            for first, block in blocks.items():
                rows = slice(first, first + block.spec.num_envs)
                steps[first] = block.step({"walker": {"action": actions[index]["walker"]["action"][rows]}})
    with pytest.raises(BadEnvironmentData, match="copy 7, agent 'walker_1', step 5"):
        play(InProcessVectorEnv("nan", NanLater, num_envs=1, first_index=7), 9)


def test_blocks_write_into_parts_of_arrays_that_somebody_else_laid_out():
    def block(first, count):
        return CopyBlock("walkers", lambda: Walkers(walkers=4, death=0.1), count, first_index=first)

    whole = InProcessVectorEnv("walkers", lambda: Walkers(walkers=4, death=0.1), 5)
    blocks = {0: block(0, 2), 2: block(2, 3)}
    groups = blocks[0].groups
    layout = Batch.layout(groups, 5, 5)
    memory = {name: np.full(shape, 9, dtype) for name, (shape, dtype) in layout.items()}
    batch = Batch.over(groups, memory)
    generator = np.random.default_rng(0)
    batch.clear()
    for first, copies in blocks.items():
        copies.reset(3, batch.part(first, copies.spec.num_envs))
    step, final = whole.reset(3), None
    for _ in range(40):
        assert step_digest(batch.step(step.done, final)) == step_digest(step)
        actions = random_actions(whole.spec, generator)["walker"]["action"]
        step = whole.step({"walker": {"action": actions}})
        batch.clear()
        done = np.zeros(5, np.bool_)
        for first, copies in blocks.items():
            rows = slice(first, first + copies.spec.num_envs)
            done[rows] = copies.advance({"walker": {"action": actions[rows]}}, batch.part(first, rows.stop - first))
        np.testing.assert_array_equal(done, step.done)
        final = batch.final(done)
        for first, copies in blocks.items():
            copies.renew(done[first : first + copies.spec.num_envs], batch.part(first, copies.spec.num_envs))
