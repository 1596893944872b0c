"""Games in normal form as environments: payoffs, rounds, references and exact gaps."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError

from marl_tr.envs.games import differential, matrix, placement
from marl_tr.envs.games.config import DifferentialConfig, MatrixConfig, PlacementConfig
from marl_tr.envs.games.equilibria import (
    best_responses,
    equilibrium,
    expected_payoffs,
    gaps,
    nash_conv,
    pure_equilibria,
    uniform_profile,
)
from marl_tr.envs.games.payoffs import NAMES
from marl_tr.registry import find
from marl_tr.vector import make_vector_env
from marl_tr.vector.check import check_env
from marl_tr.vector.sampling import random_actions

THREE = [
    [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]],
    [[[0, 1], [0, 1], [0, 1]], [[2, 3], [2, 3], [2, 3]]],
    [[[-1, 0], [0, -1], [1, 1]], [[0, 0], [0, 0], [0.5, 0]]],
]
"""Payoffs of three players with 2, 3 and 2 actions."""

ENVIRONMENTS = [
    ("games/matrix-v0", {"game": "rock_paper_scissors"}),
    ("games/matrix-v0", {"payoffs": THREE, "rounds": 3}),
    ("games/matrix-v0", {"game": "anti_coordination", "players": 4}),
    ("games/uav_placement-v0", {}),
    ("games/differential-v0", {"game": "two_hills"}),
]


def tables(step, spec, leaf="reward"):
    """``[E, A]`` in the players' order."""
    columns = {a: getattr(step.groups[g.name], leaf)[:, i] for g in spec.groups for i, a in enumerate(g.agents)}
    return np.stack([columns[agent] for agent in sorted(columns)], axis=1)


def taking(spec, actions):
    """``[E, A]`` in the players' order as actions of groups."""
    order = sorted(spec.agents)
    return {g.name: {"action": actions[:, [order.index(a) for a in g.agents]]} for g in spec.groups}


@pytest.mark.parametrize(("id", "config"), ENVIRONMENTS)
def test_check_env_has_nothing_to_say(id, config):
    report = check_env(id, config, cycles=7)
    assert report.passed, report.render()
    name = id.partition("/")[2].removesuffix("-v0")
    view = check_env(f"marl_tr.envs.games.pettingzoo:{name}", config, cycles=7)
    assert view.passed, view.render()


@pytest.mark.parametrize(("id", "config"), ENVIRONMENTS)
def test_a_copy_plays_the_same_in_a_batch_of_any_size_and_after_resume(id, config):
    make = find("envs", id).load()
    batch, alone = make(num_envs=65, **config), make(num_envs=1, env_offset=64, **config)
    generator = np.random.default_rng(0)
    batch.reset(3), alone.reset(3)
    for reference, own in zip(batch.references(), alone.references(), strict=True):
        for _ in range(batch.spec.horizon):
            moves, move = reference.act(None), own.act(None)
            for group in moves:
                assert np.array_equal(moves[group]["action"][64], move[group]["action"][0])
            step, mine = batch.step(moves), alone.step(move)
            assert np.array_equal(tables(step, batch.spec)[64], tables(mine, alone.spec)[0])
            assert np.array_equal(step.state["context"][64], mine.state["context"][0])
    twin = make(num_envs=65, **config)
    twin.load_state_dict(batch.state_dict())
    for _ in range(4):
        moves = random_actions(batch.spec, generator)
        assert np.array_equal(tables(batch.step(moves), batch.spec), tables(twin.step(moves), batch.spec))


@pytest.mark.parametrize("config", [{"game": name} for name in NAMES] + [{"payoffs": THREE}])
def test_every_joint_action_is_paid_what_the_table_says(config):
    table = MatrixConfig(**config).tensor
    cells = np.array(list(product(*(range(n) for n in table.shape[1:]))))
    env = make_vector_env("games/matrix-v0", num_envs=len(cells), config=config)
    step = env.step(taking(env.spec, cells))
    expected = np.stack([table[(slice(None), *cell)] for cell in cells])
    assert np.array_equal(tables(step, env.spec), expected)
    assert np.array_equal(step.metrics["payoff_player_1"], expected[:, 1])
    assert np.allclose(step.metrics["payoff_mean"], expected.mean(axis=1))
    assert step.done.all()
    assert tables(step, env.spec, "terminated").all()
    assert (step.state["context"] == 1).all()
    assert (step.final_state["context"] == 0).all()


def test_players_with_different_actions_are_groups_of_their_own():
    env = matrix.make(payoffs=THREE)
    assert [(g.name, g.agents, g.action["action"].n) for g in env.spec.groups] == [
        ("actions_2", ("player_0", "player_2"), 2),
        ("actions_3", ("player_1",), 3),
    ]


def test_a_repeated_game_shows_the_last_joint_action_and_the_rounds_that_are_left():
    env = make_vector_env("games/matrix-v0", num_envs=2, config={"payoffs": THREE, "rounds": 4})
    assert env.reset(0).state["context"].tolist() == [[0] * 7 + [1]] * 2
    step = env.step(taking(env.spec, np.array([[1, 2, 0], [0, 0, 1]])))
    assert step.state["context"].tolist() == [[0, 1, 0, 0, 1, 1, 0, 0.75], [1, 0, 1, 0, 0, 0, 1, 0.75]]
    assert not step.done.any()
    for group in env.spec.groups:
        seen = step.groups[group.name].observation["observation"]
        assert all(np.array_equal(seen[:, i], step.state["context"]) for i in range(len(group.agents)))


@pytest.mark.parametrize("config", [{"game": "chicken"}, {"game": "rotation"}, {"payoffs": THREE}])
def test_references_earn_their_expectations(config):
    table = MatrixConfig(**config).tensor
    env = make_vector_env("games/matrix-v0", num_envs=20_000, config=config)
    responses = tuple(
        np.eye(n)[a] for n, a in zip(table.shape[1:], best_responses(table, uniform_profile(table)), strict=True)
    )
    profiles = {
        "uniform": uniform_profile(table),
        "equilibrium": equilibrium(table),
        "best response to uniform": responses,
    }
    references = {reference.name: reference for reference in env.references()}
    assert references.keys() == profiles.keys()
    for name, profile in profiles.items():
        step = env.step(references[name].act(env.reset(1)))
        spread = np.ptp(table)
        assert np.allclose(tables(step, env.spec).mean(axis=0), expected_payoffs(table, profile), atol=0.02 * spread)


def test_no_equilibrium_is_offered_where_none_is_known():
    pennies = np.array([[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]])
    payoffs = [np.stack([t, t], -1).tolist() for t in (*pennies, 0 * pennies[0])]
    names = [reference.name for reference in matrix.make(payoffs=payoffs).references()]
    assert names == ["uniform", "best response to uniform"]


@pytest.mark.parametrize("config", [{"game": "prisoners_dilemma"}, {"payoffs": THREE}])
def test_the_hook_gives_the_gaps_of_one_round(config):
    table = MatrixConfig(**config).tensor
    generator = np.random.default_rng(0)
    profile = [generator.dirichlet(np.ones(n)) for n in table.shape[1:]]
    env = make_vector_env("games/matrix-v0", num_envs=2, config=config)

    def policy(agent, observation):
        assert observation["observation"].tolist() == [[1.0]]
        return profile[int(agent[-1])][None].astype(np.float32)

    found = env.exact_gaps(policy)
    assert list(found) == [f"player_{i}" for i in range(len(table))]
    assert np.allclose(list(found.values()), gaps(table, profile), atol=1e-6)


def brute_repeated_gaps(table, rounds, probabilities):
    """Gaps by trying every deterministic strategy of a player: a map from (round, last joint action) to an action."""
    counts = table.shape[1:]
    cells = list(product(*(range(n) for n in counts)))

    def value(player, choose):
        def go(slot, last):
            if slot == rounds:
                return 0.0
            total = 0.0
            for cell in cells:
                weight = np.prod([choose(i, slot, last)[a] for i, a in enumerate(cell)])
                if weight:
                    total += weight * (table[(player, *cell)] + go(slot + 1, cell))
            return total

        return go(0, None)

    found = []
    for player, n in enumerate(counts):
        places = [(slot, last) for slot in range(rounds) for last in (cells if slot else [None])]
        best = -np.inf
        for plan in product(range(n), repeat=len(places)):
            plans = dict(zip(places, plan, strict=True))

            def choose(i, slot, last, player=player, plans=plans, n=n):
                return np.eye(n)[plans[slot, last]] if i == player else probabilities(i, slot, last)

            best = max(best, value(player, choose))
        found.append(best - value(player, probabilities))
    return found


def test_the_gaps_of_a_repeated_game_are_those_of_all_its_strategies():
    table = MatrixConfig(game="prisoners_dilemma").tensor

    def probabilities(player, slot, last):
        """Forgive sometimes, and less towards the end: a best response must look ahead."""
        cooperate = 0.9 if last is None or last[1 - player] == 0 else 0.1 + 0.2 * player
        return np.array([cooperate, 1 - cooperate])

    def policy(agent, observation):
        rows = []
        for seen in observation["observation"]:
            slot = round((1 - seen[-1]) * 2)
            last = (int(seen[1]), int(seen[3])) if slot else None
            rows.append(probabilities(int(agent[-1]), slot, last))
        return np.array(rows)

    env = make_vector_env("games/matrix-v0", num_envs=1, config={"game": "prisoners_dilemma", "rounds": 2})
    found = list(env.exact_gaps(policy).values())
    expected = brute_repeated_gaps(table, 2, probabilities)
    assert np.allclose(found, expected, atol=1e-12)
    assert min(found) > 0
    # Looking at each round alone would miss what today's defection costs tomorrow.
    myopic = sum(gaps(table, [probabilities(i, 1, None) for i in (0, 1)])) * 2
    assert sum(found) < myopic - 0.1


def test_a_hook_is_told_when_it_gets_no_distributions():
    env = matrix.make()
    with pytest.raises(ValueError, match="'player_0' gives no distributions over 2 actions"):
        env.exact_gaps(lambda agent, observation: np.ones((1, 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"payoffs": [[[1, 2], [3]], [[1, 2], [3, 4]]]}, r"payoffs\[0\]\[1\] has 1 entries, expected 2"),
        ({"payoffs": [[1, 2], [3, "x"]]}, r"payoffs\[1\]\[1\] is 'x', not a finite number"),
        ({"payoffs": [[1, 2], [3, 4]]}, "2 players, but each table has 1 axes"),
        ({"payoffs": [[1, 2], 3]}, r"payoffs\[1\] is 3 where its neighbours are lists of 2"),
        ({"payoffs": []}, "has 0 entries"),
        ({"payoffs": [[1, 2]], "game": "chicken"}, "both given"),
        ({"game": "chicken", "players": 3}, "chicken is for 2 players"),
        ({"game": "anti_coordination", "players": 3}, "even number"),
        ({"game": "poker"}, "game"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_impossible_games_are_refused_with_the_place(settings, message):
    with pytest.raises(ValidationError, match=message):
        MatrixConfig(**settings)


def test_choices_that_are_none_are_refused():
    env = make_vector_env("games/matrix-v0", num_envs=2, config={"game": "chicken"})
    with pytest.raises(ValueError, match="player_1 in environment 1 of 'games/matrix-v0' is none of its 2"):
        env.step({"player": {"action": np.array([[0, 1], [1, 2]])}})
    with pytest.raises(ValueError, match="is none of its 2"):
        env.step({"player": {"action": np.array([[0, 1], [0.5, 0]])}})


def test_shared_rewards_are_told():
    assert MatrixConfig(game="coordination").shared_reward
    assert not MatrixConfig(game="stag_hunt").shared_reward
    assert MatrixConfig(game="anti_coordination", players=4).shared_reward
    assert PlacementConfig(rho=1).shared_reward
    assert not DifferentialConfig(game="saddle").shared_reward


# UAV placement

ACTIONS = list(product((100, 300, 500, 700, 900), (0.05, 0.1)))
LOUD_300, LOUD_900 = ACTIONS.index((300, 0.1)), ACTIONS.index((900, 0.1))
QUIET_300, QUIET_900 = ACTIONS.index((300, 0.05)), ACTIONS.index((900, 0.05))


@pytest.mark.parametrize(
    ("weight", "rho", "stable", "paid", "optimum", "total", "conv"),
    [
        (0, 0, (LOUD_300, LOUD_900), (1.9677, 1.9059), (QUIET_300, LOUD_900), 3.8751, 0.458912),
        (0, 1, (QUIET_300, LOUD_900), (1.9376, 1.9376), (QUIET_300, LOUD_900), 3.8751, 0.224761),
        (0.5, 0, (LOUD_300, LOUD_900), (1.4180, 1.3562), (LOUD_300, QUIET_900), 3.0943, 0.394490),
        (0.5, 1, (LOUD_300, QUIET_900), (1.5472, 1.5472), (LOUD_300, QUIET_900), 3.0943, 0.239472),
    ],
)
def test_the_placement_games_table(weight, rho, stable, paid, optimum, total, conv):
    env = placement.make(lambda_sigma=weight, rho=rho)
    table = env.game.payoffs
    assert table.shape == (2, 10, 10)
    assert pure_equilibria(table) == sorted([stable, stable[::-1]])
    assert table[(slice(None), *stable)] == pytest.approx(paid, abs=1e-4)
    # The same for both, but where a user receives both equally well and the first serves it.
    tied = np.eye(10, dtype=bool)
    for power in range(2):
        tied[6 + power, 8 + power] = tied[8 + power, 6 + power] = True  # 700 and 900, and a user at 800
    assert np.array_equal(~np.isclose(table[0], table[1].T, atol=1e-12), tied & (rho < 1 or ~np.eye(10, dtype=bool)))
    sums = table.sum(axis=0)
    assert sums.max() == pytest.approx(total, abs=1e-4)
    assert np.unravel_index(sums.argmax(), sums.shape) in {optimum, optimum[::-1]}
    uniform = env.exact_gaps(lambda agent, observation: np.full((1, 10), 0.1))
    assert sum(uniform.values()) == pytest.approx(conv, abs=1e-6)
    assert nash_conv(table, uniform_profile(table)) == pytest.approx(conv, abs=1e-6)


def test_one_uav_alone_has_a_best_choice():
    env = placement.make(num_uavs=1)
    worth = env.game.payoffs[0]
    assert env.exact_gaps(lambda agent, observation: np.full((1, 10), 0.1)) == {
        "uav_0": pytest.approx(worth.max() - worth.mean(), abs=1e-12)
    }
    assert pure_equilibria(env.game.payoffs) == [(int(worth.argmax()),)]


def test_selfish_uavs_lose_what_is_stated():
    for weight, loss in ((0, 0.0004), (0.5, 0.103)):
        table = placement.make(lambda_sigma=weight).game.payoffs
        best = max(sum(table[(slice(None), *cell)]) for cell in pure_equilibria(table))
        assert 1 - best / table.sum(axis=0).max() == pytest.approx(loss, abs=1e-4 if weight == 0 else 1e-3)


def test_placement_payoffs_are_the_formula_written_out():
    config = PlacementConfig(
        num_uavs=3, places=[0, 250], powers=[0.01, 0.2], users=[10, 120, 300], lambda_sigma=0.7, rho=0.3
    )
    table = placement.placement_payoffs(config)
    assert table.shape == (3, 4, 4, 4)
    menu = list(product((0, 250), (0.01, 0.2)))
    noise = 10 ** (-16.7) * 1e-3 * 1e6
    for cell in [(0, 3, 2), (1, 1, 3), (2, 2, 2)]:
        received = np.empty((3, 3))
        for u, a in enumerate(cell):
            place, power = menu[a]
            for g, user in enumerate((10, 120, 300)):
                r = abs(place - user)
                elevation = np.degrees(np.arctan2(100, r))
                los = 1 / (1 + 9.61 * np.exp(-0.16 * (elevation - 9.61)))
                free = 20 * np.log10(4 * np.pi * 2e9 * np.hypot(r, 100) / 299792458)
                received[u, g] = power * (los * 10 ** (-(free + 1) / 10) + (1 - los) * 10 ** (-(free + 20) / 10))
        serving = received.argmax(axis=0)
        rates = np.empty(3)
        for g in range(3):
            signal = received[serving[g], g]
            sinr = signal / (received[:, g].sum() - signal + noise)
            rates[g] = 1e6 / (serving == serving[g]).sum() * np.log2(1 + sinr)
        reference = 3 * 1e6 / 3 * np.log2(11)
        own = np.array([rates[serving == u].sum() / reference for u in range(3)]) - 0.7 * rates.std() / reference
        own -= [sum(menu[a][0] == menu[b][0] for b in cell) > 1 for a in cell]
        assert table[(slice(None), *cell)] == pytest.approx(0.7 * own + 0.3 * own.mean(), rel=1e-9)


def test_placement_settings_are_checked():
    with pytest.raises(ValidationError, match="names a value twice"):
        PlacementConfig(places=[1, 2, 1])
    with pytest.raises(ValidationError, match="payoffs, more than"):
        PlacementConfig(num_uavs=4, places=list(range(20)))


# Differential games


def test_differential_games_pay_their_formulas():
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (50, 2, 1)).astype(np.float32)
    for game, bound in (("product", 2), ("saddle", 2), ("two_hills", 10)):
        env = make_vector_env("games/differential-v0", num_envs=50, config={"game": game})
        step = env.step({"player": {"action": actions}})
        a, b = bound * actions[:, 0, 0], bound * actions[:, 1, 0]
        hills = np.maximum(-0.8 * ((a + 5) ** 2 + (b + 5) ** 2) / 9, 10 - (a - 5) ** 2 - (b - 5) ** 2)
        first, second = {"product": (a * b, a * b), "saddle": (a * b, -a * b), "two_hills": (hills, hills)}[game]
        assert np.allclose(step.groups["player"].reward, np.stack([first, second], 1), rtol=1e-5, atol=1e-5)
        assert np.allclose(step.metrics["choice_player_1"], b, rtol=1e-6)


@pytest.mark.parametrize(("game", "worth"), [("product", 4), ("saddle", 0), ("two_hills", 10)])
def test_nobody_gains_by_leaving_the_reference_equilibrium_of_a_differential_game(game, worth):
    env = differential.make(game=game)
    (reference,) = [r for r in env.references() if r.name == "equilibrium"]
    limit = DifferentialConfig(game=game).limit
    choice = limit * reference.act(env.reset(0))["player"]["action"][0, :, 0].astype(np.float64)
    from marl_tr.envs.games.differential import Differential

    payoffs = Differential(DifferentialConfig(game=game)).payoffs
    here = payoffs(choice)
    assert here[0] == worth
    for player in range(2):
        tried = np.repeat(choice[None], 2001, axis=0)
        tried[:, player] = np.linspace(-limit, limit, 2001)
        assert payoffs(tried)[:, player].max() <= here[player] + 1e-9
    with pytest.raises(ValidationError, match="at least 5"):
        DifferentialConfig(game="two_hills", bound=3)


def test_simultaneous_best_steps_lose_what_sequential_ones_gain():
    """Kuba et al.'s toy: means (-.25, .25), unit variance, KL radius .5, so steps of length 1."""
    from marl_tr.envs.games.differential import Differential

    payoffs = Differential(DifferentialConfig()).payoffs
    a, b = -0.25, 0.25
    together = payoffs(np.array([a + np.sign(b), b + np.sign(a)]))[0]
    first = a + np.sign(b)
    in_turn = payoffs(np.array([first, b + np.sign(first)]))[0]
    assert (payoffs(np.array([a, b]))[0], together, in_turn) == (-0.0625, -0.5625, 0.9375)
