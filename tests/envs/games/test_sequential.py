"""Games in turns: rules, published values, and exact gaps against other ways to compute them."""

from __future__ import annotations

import sys
from enum import Enum
from itertools import product
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from pettingzoo.test import api_test, seed_test
from scipy.optimize import linprog
from scipy.sparse import bmat, lil_matrix

from marl_tr.envs.games import kuhn, leduc, spiel
from marl_tr.envs.games.kuhn import KuhnPoker, kuhn_equilibrium
from marl_tr.envs.games.leduc import LeducPoker
from marl_tr.envs.games.sequential import CHANCE, OVER, GameTree, NotAPolicy, TooManyHistories
from marl_tr.vector import make_vector_env
from marl_tr.vector.check import check_env
from marl_tr.vector.errors import BadEnvironmentConfig
from marl_tr.vector.sampling import random_actions

TREES = {"games/kuhn-v0": GameTree(KuhnPoker()), "games/leduc-v0": GameTree(LeducPoker())}
NAMES = list(TREES)


def drawn_policy(tree, generator):
    mixed = []
    for allowed in tree.allowed:
        rows = generator.exponential(size=allowed.shape) * allowed
        mixed.append(rows / rows.sum(axis=1, keepdims=True))
    return tuple(dict(zip(names, rows, strict=True)) for names, rows in zip(tree.known, mixed, strict=True))


def histories(state, trail=()):
    """``(state, [(player or chance, information set, action)])`` of every end, by plain recursion."""
    if state.turn() == OVER:
        yield state, trail
    elif state.turn() == CHANCE:
        for outcome, probability in state.chances():
            yield from histories(state.after(outcome), (*trail, (CHANCE, None, probability)))
    else:
        for action in state.allowed():
            step = (state.turn(), state.known(state.turn()), action)
            yield from histories(state.after(action), (*trail, step))


def weight(trail, policy, skip=None):
    product_of = 1.0
    for who, where, what in trail:
        if who == CHANCE:
            product_of *= what
        elif who != skip:
            product_of *= policy[who][where][what]
    return product_of


@pytest.mark.parametrize(
    ("id", "uniform", "first", "sets", "rewards"),
    [("games/kuhn-v0", 11 / 12, 2, 6, 2), ("games/leduc-v0", 4.7472222222, 2, 144, 13)],
)
def test_published_numbers(id, uniform, first, sets, rewards):
    tree = TREES[id]
    assert [len(names) for names in tree.known] == [sets, sets]
    assert tree.nash_conv(tree.uniform()) == pytest.approx(uniform, abs=1e-9)
    assert tree.nash_conv(tree.first_action()) == pytest.approx(first, abs=1e-9)
    assert max(max(map(abs, state.returns())) for state, _ in histories(tree.game.start())) == rewards


@pytest.mark.parametrize("alpha", [0, 0.2, 1 / 3])
def test_kuhns_equilibria(alpha):
    tree, policy = TREES["games/kuhn-v0"], kuhn_equilibrium(alpha)
    assert tree.nash_conv(policy) == pytest.approx(0, abs=1e-14)
    assert tree.expected_values(policy) == pytest.approx([-1 / 18, 1 / 18], abs=1e-15)
    with pytest.raises(ValueError, match="alpha"):
        kuhn_equilibrium(0.34)


def sequence_form_value(tree):
    """The first player's value by linear programming over realisation plans (Koller, Megiddo, von Stengel 1996)."""
    ends = list(histories(tree.game.start()))
    sequences = [{(): 0}, {(): 0}]
    parents = [{}, {}]
    for _, trail in ends:
        for player in (0, 1):
            own = ()
            for who, where, what in trail:
                if who == player:
                    parents[player].setdefault(where, own)
                    own = (*own, (where, what))
                    sequences[player].setdefault(own, len(sequences[player]))
    payoff = lil_matrix((len(sequences[0]), len(sequences[1])))
    for state, trail in ends:
        row, column = (sequences[p][tuple((w, a) for who, w, a in trail if who == p)] for p in (0, 1))
        payoff[row, column] += state.returns()[0] * chance_of(trail)
    constraints, targets = [], []
    for player in (0, 1):
        matrix = lil_matrix((1 + len(parents[player]), len(sequences[player])))
        matrix[0, 0] = 1
        for row, (where, parent) in enumerate(parents[player].items(), start=1):
            matrix[row, sequences[player][parent]] = -1
            for sequence, column in sequences[player].items():
                if sequence and sequence[-1][0] == where:
                    matrix[row, column] = 1
        constraints.append(matrix.tocsr())
        targets.append(np.eye(1, matrix.shape[0])[0])
    # max over x of min over y: the dual of the inner problem, with E x = e, F'v <= A'x, maximise f'v.
    first, second = constraints
    program = linprog(
        np.concatenate([np.zeros(first.shape[1]), -targets[1]]),
        A_ub=bmat([[-payoff.T, second.T]]).tocsr(),
        b_ub=np.zeros(second.shape[1]),
        A_eq=bmat([[first, lil_matrix((first.shape[0], second.shape[0]))]]).tocsr(),
        b_eq=targets[0],
        bounds=[(0, None)] * first.shape[1] + [(None, None)] * second.shape[0],
    )
    return -program.fun


def chance_of(trail):
    return np.prod([what for who, _, what in trail if who == CHANCE])


@pytest.mark.parametrize(("id", "value"), [("games/kuhn-v0", -1 / 18), ("games/leduc-v0", -0.085606424078)])
def test_the_games_values_are_those_of_the_linear_program(id, value):
    assert sequence_form_value(TREES[id]) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("id", NAMES)
def test_expected_values_are_sums_over_all_ends(id):
    tree = TREES[id]
    policy = drawn_policy(tree, np.random.default_rng(0))
    ends = list(histories(tree.game.start()))
    assert sum(weight(trail, policy) for _, trail in ends) == pytest.approx(1, abs=1e-12)
    expected = sum(weight(trail, policy) * np.array(state.returns()) for state, trail in ends)
    assert np.allclose(tree.expected_values(policy), expected, atol=1e-12)
    assert expected.sum() == pytest.approx(0, abs=1e-12)


def test_best_responses_in_kuhn_poker_are_the_best_of_all_deterministic_strategies():
    tree = TREES["games/kuhn-v0"]
    ends = list(histories(tree.game.start()))
    for seed in range(3):
        policy = drawn_policy(tree, np.random.default_rng(seed))
        for player in (0, 1):
            plans = [dict(zip(tree.known[player], plan, strict=True)) for plan in product((0, 1), repeat=6)]
            worth = [
                sum(
                    weight(trail, policy, skip=player) * state.returns()[player]
                    for state, trail in ends
                    if all(plan[where] == what for who, where, what in trail if who == player)
                )
                for plan in plans
            ]
            value, response = tree.best_response(policy, player)
            assert value == pytest.approx(max(worth), abs=1e-12)
            chosen = [w for plan, w in zip(plans, worth, strict=True) if response.items() <= plan.items()]
            assert chosen
            assert min(chosen) == pytest.approx(max(worth), abs=1e-12)


@pytest.mark.parametrize("id", NAMES)
def test_playing_the_best_response_earns_its_value(id):
    tree = TREES[id]
    policy = drawn_policy(tree, np.random.default_rng(1))
    for player in (0, 1):
        value, response = tree.best_response(policy, player)
        table = {name: np.eye(tree.game.actions)[response[name]] for name in response}
        joint = tuple({**policy[i], **(table if i == player else {})} for i in (0, 1))
        assert tree.expected_values(joint)[player] == pytest.approx(value, abs=1e-12)
        assert tree.gaps(joint)[player] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("id", NAMES)
def test_what_is_seen_tells_exactly_the_information_sets_apart(id):
    tree = TREES[id]
    for names, seen, allowed in zip(tree.known, tree.seen, tree.allowed, strict=True):
        assert len(np.unique(seen, axis=0)) == len(names) == len(set(names))
        assert ((seen == 0) | (seen == 1)).all()
        assert (allowed.sum(axis=1) >= 2).all()


def test_leducs_hands_are_paid_by_the_rules():
    start = LeducPoker().start()
    assert sum(p for _, p in start.chances()) == pytest.approx(1)
    queens = start.after(3 * 1 + 1)
    raised = queens.after(leduc.RAISE).after(leduc.RAISE)
    assert raised.allowed() == [leduc.FOLD, leduc.CALL]
    assert raised.after(leduc.FOLD).returns() == (-3, 3)
    board = raised.after(leduc.CALL)
    assert board.turn() == CHANCE
    assert dict(board.chances()) == {0: 0.5, 2: 0.5}  # both queens are gone
    assert board.after(2).after(leduc.CALL).after(leduc.CALL).returns() == (0, 0)
    pair = start.after(3 * 0 + 2).after(leduc.CALL).after(leduc.CALL).after(0)  # J and K, then a J
    assert pair.allowed() == [leduc.CALL, leduc.RAISE]
    assert pair.after(leduc.RAISE).after(leduc.CALL).returns() == (5, -5)
    assert pair.known(0) == "JJ:cc/"


@pytest.mark.parametrize(("id", "module"), [("games/kuhn-v0", kuhn), ("games/leduc-v0", leduc)])
def test_pettingzoos_tests_and_check_env_pass(id, module):
    api_test(module.env(), num_cycles=100)
    seed_test(module.env, num_cycles=50)
    for name in (id, f"{module.__name__}:env"):
        report = check_env(name, {}, cycles=10)
        assert report.passed, report.render()


@pytest.mark.parametrize("id", NAMES)
@pytest.mark.parametrize("adapted", [False, True])
def test_batches_pay_what_uniform_play_is_worth_and_have_the_hook(id, adapted):
    tree = TREES[id]
    path = f"marl_tr.envs.games.{id[6:-3]}:env"
    env = make_vector_env(path if adapted else id, num_envs=64)
    generator = np.random.default_rng(0)
    step, returns = env.reset(0), []
    running = np.zeros((64, 2))
    while len(returns) < 3000:
        step = env.step(random_actions(env.spec, generator, step))
        running += step.groups["player"].reward
        returns += list(running[step.done])
        running[step.done] = 0
    returns = np.array(returns)
    assert (returns.sum(axis=1) == 0).all()
    expected = tree.expected_values(tree.uniform())
    assert np.abs(returns.mean(axis=0) - expected).max() < 4 * returns.std() / np.sqrt(len(returns))
    leaves = env.spec.groups[0].observation

    def uniform(agent, observation):
        assert observation.keys() == leaves.keys()
        assert all(
            x.dtype == leaves[leaf].dtype and x.shape[1:] == leaves[leaf].shape for leaf, x in observation.items()
        )
        mask = observation["action_mask"]
        return (mask / mask.sum(axis=1, keepdims=True)).astype(np.float32)

    found = env.exact_gaps(uniform)
    assert list(found) == ["player_0", "player_1"]
    assert np.allclose(list(found.values()), tree.gaps(tree.uniform()), atol=1e-6)


def dealt(state, group, copy):
    """Where chance led to: the outcomes whose observations are those of all players."""
    while state.turn() == CHANCE:
        seen = group.observation["observation"][copy]
        nexts = [state.after(outcome) for outcome, _ in state.chances()]
        (state,) = [n for n in nexts if all(np.array_equal(n.seen(i), seen[i]) for i in (0, 1))]
    return state


@pytest.mark.parametrize("id", NAMES)
def test_every_step_of_the_batch_is_what_the_rules_say(id):
    game, copies = TREES[id].game, 40
    env = make_vector_env(id, num_envs=copies)
    generator = np.random.default_rng(0)
    step = env.reset(3)
    group = step.groups["player"]
    states = [dealt(game.start(), group, copy) for copy in range(copies)]
    hands = 0
    for _ in range(40):
        for copy, state in enumerate(states):
            mover = state.turn()
            assert group.acting[copy].tolist() == [i == mover for i in (0, 1)]
            for i in (0, 1):
                assert np.array_equal(group.observation["observation"][copy, i], state.seen(i))
                assert np.flatnonzero(group.observation["action_mask"][copy, i]).tolist() == (
                    list(state.allowed()) if i == mover else []
                )
        actions = random_actions(env.spec, generator, step)
        step = env.step(actions)
        group = step.groups["player"]
        for copy, state in enumerate(states):
            after = state.after(int(actions["player"]["action"][copy, state.turn()]))
            over = after.turn() == OVER
            assert step.done[copy] == over == group.terminated[copy].all()
            assert group.reward[copy].tolist() == list(after.returns() if over else (0, 0))
            if over:
                hands += 1
                assert all(
                    np.array_equal(group.final_observation["observation"][copy, i], after.seen(i)) for i in (0, 1)
                )
                after = game.start()
            states[copy] = dealt(after, group, copy)
    assert hands > 150


@pytest.mark.parametrize("id", NAMES)
def test_deals_have_their_probabilities_and_references_their_values(id):
    tree = TREES[id]
    env = make_vector_env(id, num_envs=4000)
    values = {"uniform": tree.uniform(), "equilibrium": kuhn_equilibrium(1 / 6)}
    names = [reference.name for reference in env.references()]
    assert names == (["uniform", "equilibrium"] if id == "games/kuhn-v0" else ["uniform"])
    for reference in env.references():
        step, paid, hands, longest = env.reset(1), np.zeros(4000), np.zeros(4000), 0
        cards = step.groups["player"].observation["observation"][:, :, :3].argmax(axis=2)
        while not (hands > 0).all():
            step = env.step(reference.act(step))
            paid += np.where(hands == 0, step.groups["player"].reward[:, 0], 0)
            hands += step.done
            longest += 1
        assert longest <= 8
        expected = tree.expected_values(values[reference.name])[0]
        assert paid.mean() == pytest.approx(expected, abs=4 * paid.std() / np.sqrt(4000))
    for outcome, probability in tree.game.start().chances():
        state = tree.game.start().after(outcome)
        wanted = [state.seen(i)[:3].argmax() for i in (0, 1)]
        share = (cards == wanted).all(axis=1).mean()
        assert share == pytest.approx(probability, abs=4 * np.sqrt(probability / 4000))


def test_a_batch_refuses_what_the_rules_forbid():
    env = make_vector_env("games/leduc-v0", num_envs=2)
    env.reset(0)
    with pytest.raises(ValueError, match=r"action 0 of player_0 in environment 1 is not among the allowed \[1, 2\]"):
        env.step({"player": {"action": np.array([[1, 0], [0, 0]])}})
    with pytest.raises(ValueError, match="is not among the allowed"):
        env.step({"player": {"action": np.array([[1, 0], [1.5, 0]])}})
    with pytest.raises(ValueError, match="have shape"):
        env.step({"player": {"action": np.zeros((3, 2), int)}})
    with pytest.raises(ValueError, match="are not of 2 copies"):
        env.load_state_dict(make_vector_env("games/leduc-v0", num_envs=3).state_dict())


@pytest.mark.parametrize("id", NAMES)
def test_tables_and_functions_of_observations_say_the_same(id):
    tree = TREES[id]
    tables = drawn_policy(tree, np.random.default_rng(5))
    act = tree.acting(tables)
    for mine, back in zip(tables, tree.asked(act), strict=True):
        assert all(np.allclose(mine[name], back[name], atol=1e-15) for name in mine)
    elsewhere = np.full((2, tree.game.features), 0.5, np.float32)
    assert (act("player_0", {"observation": elsewhere}) == 1 / tree.game.actions).all()


def test_environments_without_the_hook_have_none():
    assert not hasattr(make_vector_env("gymnasium/CartPole-v1", num_envs=1), "exact_gaps")


def test_misuse_is_named():
    tree = TREES["games/leduc-v0"]
    good = tree.uniform()
    with pytest.raises(NotAPolicy, match="no probabilities for the information set"):
        tree.gaps(({}, good[1]))
    with pytest.raises(NotAPolicy, match=r"player_0, 'J:': .* is no distribution"):
        tree.gaps(({**good[0], "J:": [0.5, 0.5, 0.0]}, good[1]))
    with pytest.raises(NotAPolicy, match="has shape"):
        tree.asked(lambda agent, observation: np.ones((1, 3)))
    with pytest.raises(TooManyHistories, match="more than 100 histories"):
        GameTree(LeducPoker(), most_nodes=100)
    game = kuhn.env()
    game.reset(seed=0)
    with pytest.raises(ValueError, match="action 2 of player_0 is not among the allowed"):
        game.step(2)
    with pytest.raises(ValueError, match="ansi"):
        kuhn.env(render_mode="rgb_array")


def test_a_hand_can_be_read():
    game = kuhn.env(render_mode="ansi")
    game.reset(seed=0)
    game.step(kuhn.BET)
    mine, theirs = game.render().split("  ")
    assert mine.startswith("player_0 ")
    assert theirs.endswith(":b")
    assert kuhn.env().render() is None


# OpenSpiel


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(spiel.SpielMissing, match=r"pip install 'marl-tr\[spiel\]'"):
        spiel.env(game="kuhn_poker")
    assert issubclass(spiel.SpielMissing, BadEnvironmentConfig)


class StandInState:
    """Kuhn poker behind the names of OpenSpiel's states."""

    def __init__(self, state):
        self.state = state

    def is_terminal(self):
        return self.state.turn() == OVER

    def is_chance_node(self):
        return self.state.turn() == CHANCE

    def current_player(self):
        return {CHANCE: -1, OVER: -4}.get(self.state.turn(), self.state.turn())

    def chance_outcomes(self):
        return self.state.chances()

    def legal_actions(self):
        return list(self.state.allowed())

    def child(self, action):
        return StandInState(self.state.after(action))

    def returns(self):
        return list(self.state.returns())

    def information_state_string(self, player):
        return self.state.known(player)

    def information_state_tensor(self, player):
        return self.state.seen(player).tolist()


def stand_in(dynamics="SEQUENTIAL", chance_mode="EXPLICIT_STOCHASTIC", tensor=True):
    """What of ``pyspiel`` the adapter calls, so that the adapter is tested where the package is not installed."""
    module = ModuleType("pyspiel")
    dynamic = Enum("Dynamics", "SEQUENTIAL SIMULTANEOUS")
    chance = Enum("ChanceMode", "DETERMINISTIC EXPLICIT_STOCHASTIC SAMPLED_STOCHASTIC")
    kind = SimpleNamespace(
        dynamics=dynamic[dynamics],
        chance_mode=chance[chance_mode],
        provides_information_state_tensor=tensor,
        provides_information_state_string=True,
    )
    game = SimpleNamespace(
        get_type=lambda: kind,
        num_players=lambda: 2,
        num_distinct_actions=lambda: 2,
        information_state_tensor_size=lambda: 9,
        new_initial_state=lambda: StandInState(KuhnPoker().start()),
    )

    def load_game(name, parameters):
        if name != "kuhn_poker" or parameters:
            raise RuntimeError(f"Unknown game '{name}'")
        return game

    module.GameType = SimpleNamespace(Dynamics=dynamic, ChanceMode=chance)
    module.load_game = load_game
    return module


def test_the_adapter_plays_and_solves_a_game_behind_openspiels_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", stand_in())
    env = spiel.env(game="kuhn_poker")
    assert env.tree.nash_conv(env.tree.uniform()) == pytest.approx(11 / 12, abs=1e-12)
    assert env.tree.nash_conv(kuhn_equilibrium(0.2)) == pytest.approx(0, abs=1e-12)
    api_test(env, num_cycles=50)
    twin = kuhn.env()
    for game in (env, twin):
        game.reset(seed=4)
        game.step(kuhn.BET)
    assert np.array_equal(env.observe("player_1")["observation"], twin.observe("player_1")["observation"])


@pytest.mark.parametrize(
    ("module", "game", "message"),
    [
        (stand_in(), "chess", "does not load 'chess': Unknown game"),
        (stand_in(dynamics="SIMULTANEOUS"), "kuhn_poker", "not played in turns"),
        (stand_in(chance_mode="SAMPLED_STOCHASTIC"), "kuhn_poker", "draws its chances itself"),
        (stand_in(tensor=False), "kuhn_poker", "no information-state tensor"),
    ],
)
def test_games_that_do_not_fit_are_refused_with_the_reason(monkeypatch, module, game, message):
    monkeypatch.setitem(sys.modules, "pyspiel", module)
    with pytest.raises(BadEnvironmentConfig, match=message):
        spiel.env(game=game)


@pytest.mark.parametrize(("game", "uniform"), [("kuhn_poker", 11 / 12), ("leduc_poker", 4.7472222222)])
def test_openspiels_games_give_the_same_numbers(game, uniform):
    pyspiel = pytest.importorskip("pyspiel")
    exploitability = pytest.importorskip("open_spiel.python.algorithms.exploitability")
    policy = pytest.importorskip("open_spiel.python.policy")
    env = spiel.env(game=game)
    tree = env.tree
    assert tree.nash_conv(tree.uniform()) == pytest.approx(uniform, abs=1e-9)
    loaded = pyspiel.load_game(game)
    assert exploitability.nash_conv(loaded, policy.UniformRandomPolicy(loaded)) == pytest.approx(uniform, abs=1e-9)
    api_test(env, num_cycles=50)
    report = check_env("games/openspiel-v0", {"game": game}, cycles=10)
    assert report.passed, report.render()


def test_openspiels_games_that_do_not_fit_are_refused():
    pytest.importorskip("pyspiel")
    with pytest.raises(BadEnvironmentConfig, match="does not load"):
        spiel.env(game="no_such_game")
    with pytest.raises(BadEnvironmentConfig, match="not played in turns"):
        spiel.env(game="goofspiel")
