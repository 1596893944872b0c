"""Turn-based environments against PettingZoo's own loop over ``agent_iter()``."""

import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo.classic import connect_four_v3, rps_v2, tictactoe_v3
from pettingzoo.utils import parallel_to_aec
from vector_examples import Auction, KeepsNoCount, Walkers

from marl_tr.vector import BadEnvironmentData, InProcessVectorEnv, NotAnEnvironment
from marl_tr.vector.check_vector import contract_problems
from marl_tr.vector.episode import episode_seed
from marl_tr.vector.sampling import random_actions

GAMES = {
    "connect_four": connect_four_v3.env,
    "connect_four raw": connect_four_v3.raw_env,
    "tictactoe": tictactoe_v3.env,
    "rps": lambda: rps_v2.env(max_cycles=6),
    "spread": lambda: simple_spread_v3.env(max_cycles=6),
    "spread, made turn-based": lambda: parallel_to_aec(simple_spread_v3.parallel_env(max_cycles=6)),
    "walkers, made turn-based": lambda: parallel_to_aec(Walkers(walkers=4, horizon=9, death=0.1)),
    "auction": Auction,
    "auction, counted otherwise": KeepsNoCount,
}


def run(env, steps):
    """`steps` steps of allowed actions."""
    generator, step = np.random.default_rng(1), env.reset(1)
    for _ in range(steps):
        step = env.step(random_actions(env.spec, generator, step))


def played(make, seed):
    """An episode of a batch of one: the steps, the moves as ``(agent, action)``, and the codecs' decoded actions."""
    env = InProcessVectorEnv("game", make, num_envs=1)
    generator = np.random.default_rng(seed)
    steps, moves = [env.reset(seed)], []
    while not steps[-1].done[0]:
        actions = random_actions(env.spec, generator, steps[-1])
        for group in env._block.groups:
            for a, agent in enumerate(group.agents):
                if steps[-1].groups[group.name].acting[0, a]:
                    rows = [actions[group.name][leaf.name][0, a] for leaf in group.action.leaves]
                    moves.append((agent, group.action.decode(rows)))
        steps.append(env.step(actions))
        assert len(moves) == len(steps) - 1  # one agent a step
    return env.spec, steps, moves


def looped(make, seed, moves):
    """What a loop over ``agent_iter`` with the same moves sees: the sums of ``last()``'s rewards, and who ends."""
    env = make()
    env.reset(seed=episode_seed(seed, 0, 0))
    total, ended, rest = {}, {}, list(moves)
    for agent in env.agent_iter():
        _, reward, terminated, truncated, _ = env.last()
        total[agent] = total.get(agent, 0.0) + float(reward)
        action = None
        if terminated or truncated:
            ended[agent] = (terminated, truncated)
        else:
            mover, action = rest.pop(0)
            assert mover == agent
        env.step(action)
    assert rest == []
    return total, ended


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rewards_sum_to_what_last_reports_and_flags_are_set_once(name, seed):
    spec, steps, moves = played(GAMES[name], seed)
    total, ended = looped(GAMES[name], seed, moves)
    for group in spec.groups:
        for a, agent in enumerate(group.agents):
            rows = [step.groups[group.name] for step in steps[1:]]
            paid = sum(float(row.reward[0, a]) for row in rows)
            assert paid == pytest.approx(total.get(agent, 0.0), abs=1e-4)
            flags = [(bool(row.terminated[0, a]), bool(row.truncated[0, a])) for row in rows]
            assert [flag for flag in flags if any(flag)] == ([ended[agent]] if agent in ended else [])


@pytest.mark.parametrize("name", GAMES)
def test_rewards_between_two_turns_are_what_last_reports_at_the_second(name):
    spec, steps, moves = played(GAMES[name], 5)
    env = GAMES[name]()
    env.reset(seed=episode_seed(5, 0, 0))
    place = {agent: (group.name, a) for group in spec.groups for a, agent in enumerate(group.agents)}
    since = dict.fromkeys(place, 0.0)
    rest = list(zip(moves, steps[1:], strict=True))
    for agent in env.agent_iter():
        _, reward, over, late, _ = env.last()
        assert since[agent] == pytest.approx(float(reward), abs=1e-4), agent
        since[agent] = 0.0
        if over or late:
            env.step(None)
            continue
        (_, action), step = rest.pop(0)
        env.step(action)
        for name_, (group, a) in place.items():
            since[name_] += float(step.groups[group].reward[0, a])


def test_a_constant_reward_of_a_game_made_turn_based_is_paid_when_its_round_ends():
    class Wage(Walkers):
        def reward(self, agent):
            return 1.0

    env = InProcessVectorEnv("wage", lambda: parallel_to_aec(Wage(walkers=3, horizon=50)), num_envs=1)
    generator, step = np.random.default_rng(0), env.reset(0)
    for _ in range(5):
        for mover in range(3):
            assert step.groups["walker"].acting[0].tolist() == [a == mover for a in range(3)]
            step = env.step(random_actions(env.spec, generator, step))
            assert step.groups["walker"].reward[0].tolist() == [float(mover == 2)] * 3


@pytest.mark.parametrize("name", GAMES)
def test_every_step_keeps_the_contract_and_one_living_agent_moves(name):
    env = InProcessVectorEnv("game", GAMES[name], num_envs=2)
    generator, before = np.random.default_rng(3), None
    step = env.reset(3)
    for _ in range(60):
        assert contract_problems(env.spec, step, before) == []
        acting = sum(part.acting.sum(axis=1) for part in step.groups.values())
        assert acting.tolist() == [1, 1]
        before, step = step, env.step(random_actions(env.spec, generator, step))


def test_the_board_is_seen_by_both_players_and_the_idle_one_has_no_mask():
    env = InProcessVectorEnv("four", connect_four_v3.env, num_envs=1)
    (group,) = env.spec.groups
    assert group.masks == {"action": "action_mask"}
    assert {leaf: space.shape for leaf, space in group.observation.items()} == {
        "observation": (84,),
        "action_mask": (7,),
    }
    step = env.reset(0)
    # A full column: player_0 and player_1 take turns in column 3.
    for move in range(6):
        part = step.groups["player"]
        assert part.acting[0].tolist() == [move % 2 == 0, move % 2 == 1]
        assert part.observation["action_mask"][0, 1 - move % 2].tolist() == [0] * 7
        step = env.step({"player": {"action": np.array([[3, 3]])}})
    part = step.groups["player"]
    assert part.observation["action_mask"][0].tolist() == [[1, 1, 1, 0, 1, 1, 1], [0] * 7]
    boards = part.observation["observation"][0].reshape(2, 6, 7, 2)
    assert boards[0, :, 3].sum() == 6
    np.testing.assert_array_equal(boards[0], boards[1, ..., ::-1])  # mine and yours change places


def test_both_players_end_with_the_winning_move_and_see_the_final_board():
    env = InProcessVectorEnv("four", connect_four_v3.env, num_envs=1)
    env.reset(0)
    for column in (0, 1, 0, 1, 0, 1):
        env.step({"player": {"action": np.array([[column, column]])}})
    step = env.step({"player": {"action": np.array([[0, 6]])}})  # the other's action is ignored
    part = step.groups["player"]
    assert (step.done.tolist(), part.reward[0].tolist()) == ([True], [1.0, -1.0])
    assert part.terminated.all()
    assert not part.truncated.any()
    assert part.final_observation["observation"][0, 0].reshape(6, 7, 2)[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 1]
    assert not part.final_observation["action_mask"].any()
    assert not part.observation["observation"].any()


def test_an_illegal_move_ends_the_game_as_pettingzoo_rules():
    env = InProcessVectorEnv("tic", tictactoe_v3.env, num_envs=1)
    env.reset(0)
    env.step({"player": {"action": np.array([[4, 0]])}})
    step = env.step({"player": {"action": np.array([[0, 4]])}})
    assert step.done.all()
    assert step.groups["player"].reward[0].tolist() == [0.0, -1.0]


def test_an_agent_that_cannot_be_observed_out_of_turn_keeps_what_it_saw():
    seeing, blind = (InProcessVectorEnv("auction", make, num_envs=1) for make in (Auction, lambda: Auction(blind=True)))
    generator = np.random.default_rng(0)
    one, other = seeing.reset(2), blind.reset(2)
    last = np.zeros((1, 1, 2), np.float32)
    kept = 0
    for _ in range(12):
        acting = one.groups["seller"].acting[0, 0]
        if acting:
            last = one.groups["seller"].observation["observation"]
        np.testing.assert_array_equal(other.groups["seller"].observation["observation"], last)
        kept += not acting
        actions = random_actions(seeing.spec, generator, one)
        one, other = seeing.step(actions), blind.step(actions)
        np.testing.assert_array_equal(one.groups["seller"].reward, other.groups["seller"].reward)
        if one.done.any():
            break
    assert kept > 3


def test_groups_with_different_spaces_join_and_leave_between_turns():
    spec, steps, _ = played(Auction, 1)
    assert [group.name for group in spec.groups] == ["seller", "bidder"]
    alive = np.stack([step.groups["bidder"].alive[0] for step in steps[:-1]])
    assert not alive[0, 2]  # bidder_2 joins later
    assert alive[:, 2].any()
    assert (alive[:-1] & ~alive[1:]).any()  # somebody passed twice


@pytest.mark.parametrize("seed", [0, 1])
def test_rewards_are_added_up_where_nobody_keeps_a_count(seed):
    class Public:
        """An auction that shows its public face alone."""

        def __init__(self):
            self.env = Auction()

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            return getattr(self.env, name)

    _, counted, moves = played(Auction, seed)
    _, added, same_moves = played(Public, seed)
    assert str(moves) == str(same_moves)
    for one, other in zip(counted, added, strict=True):
        for group in ("seller", "bidder"):
            np.testing.assert_allclose(one.groups[group].reward, other.groups[group].reward, atol=1e-6)


def test_a_dead_agent_that_stays_is_named_with_the_line_to_write():
    class Stuck(Auction):
        def _was_dead_step(self, action):
            return None

    env = InProcessVectorEnv("team/stuck-v0", Stuck, num_envs=1)
    where = r"'team/stuck-v0', copy 0, step \d+, agent 'bidder_\d'"
    with pytest.raises(BadEnvironmentData, match=rf"{where}: step\(None\) left it in agents.*_was_dead_step"):
        run(env, 200)


def test_a_selection_of_nobody_is_named():
    class Wanders(Auction):
        def _end_round(self):
            super()._end_round()
            self.agent_selection = "bidder_2"

    env = InProcessVectorEnv("team/wanders-v0", Wanders, num_envs=1)
    with pytest.raises(BadEnvironmentData, match="agent 'bidder_2': agent_selection names it"):
        run(env, 9)


def test_an_object_with_agent_iter_that_lacks_a_method_is_told_which():
    class Half:
        possible_agents = ("a",)
        observation_space = action_space = reset = step = agent_iter = staticmethod(lambda *a: None)

    with pytest.raises(NotAnEnvironment, match=r"lacks observe; a factory returns a PettingZoo ParallelEnv or AECEnv"):
        InProcessVectorEnv("half", Half, num_envs=1)


def test_everybody_keeps_what_it_sees_though_the_environment_writes_it_all_into_one_array():
    class Thrifty(Auction):
        board = np.zeros(2, np.int64)

        def observe(self, agent):
            seen = super().observe(agent)
            if agent == "seller":
                return seen
            self.board[:] = seen
            return self.board

    one, other = (InProcessVectorEnv("auction", make, num_envs=1) for make in (Auction, Thrifty))
    mine, theirs = one.reset(4), other.reset(4)
    generator = np.random.default_rng(4)
    differed = 0
    for _ in range(25):
        rows = mine.groups["bidder"].observation["observation"]
        np.testing.assert_array_equal(theirs.groups["bidder"].observation["observation"], rows)
        differed += (rows[0, 0] != rows[0, 1]).any()
        actions = random_actions(one.spec, generator, mine)
        mine, theirs = one.step(actions), other.step(actions)
    assert differed > 3


def test_who_is_ended_while_the_dead_are_removed_has_flags_rewards_and_a_last_observation():
    class Avalanche(Auction):
        def _was_dead_step(self, action):
            falls = [agent for agent in self.agents[1:] if not self.terminations[agent]][:1]
            super()._was_dead_step(action)
            for agent in falls:
                self.terminations[agent] = True
                self._cumulative_rewards[agent] += 7.0
            self.queue = [agent for agent in self.queue if agent not in falls]

    env = InProcessVectorEnv("avalanche", Avalanche, num_envs=1)
    generator, step, steps = np.random.default_rng(1), env.reset(1), []
    while not step.done[0]:
        step = env.step(random_actions(env.spec, generator, step))
        steps.append(step.groups["bidder"])
    (first, *_), rows = np.argwhere([row.terminated[0].sum() > 1 for row in steps])[0], steps
    fallen = rows[first]
    assert first < len(steps) - 1
    assert not fallen.alive[0, fallen.terminated[0]].any()
    assert fallen.reward[0, fallen.terminated[0]].max() > 5
    assert all(not row.terminated[0, fallen.terminated[0]].any() for row in rows[first + 1 :])


def test_dead_agents_that_only_pass_the_turn_on_are_named_and_do_not_go_round_for_ever():
    class Rotates(Auction):
        def step(self, action):
            if action is None:
                dead = [agent for agent in self.agents if self.terminations[agent] or self.truncations[agent]]
                self.agent_selection = dead[(dead.index(self.agent_selection) + 1) % len(dead)]
            else:
                super().step(action)

    env = InProcessVectorEnv("team/rotates-v0", lambda: Rotates(rounds=1), num_envs=1)
    with pytest.raises(BadEnvironmentData, match=r"agent '\w+': step\(None\) left it in agents.*_was_dead_step"):
        run(env, 9)


def test_a_mask_in_the_infos_of_some_does_not_oblige_whoever_moves_without_one():
    class Limited(Auction):
        """Bidders out of money may not bid; the seller, who chooses among prices, may do anything."""

        def action_space(self, agent):
            return spaces.Discrete(3) if agent == "seller" else spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            super().reset(seed)
            self._limit()

        def step(self, action):
            assert (
                action is None
                or self.agent_selection == "seller"
                or self.infos[self.agent_selection]["action_mask"][action]
            )
            seller = self.agent_selection == "seller" and action is not None
            super().step([action / 3] if seller else action)
            self._limit()

        def _limit(self):
            for agent in self.agents[1:]:
                self.infos[agent] = {"action_mask": np.int8([1, self.round % 2])}

    env = InProcessVectorEnv("limited", Limited, num_envs=2)
    assert {group.name: dict(group.masks) for group in env.spec.groups} == {
        "seller": {},
        "bidder": {"action": "action_mask"},
    }
    run(env, 60)
