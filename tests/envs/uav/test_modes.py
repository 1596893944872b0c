"""What holds in every mode of ``uav/downlink-v0``: of all options, and of pairs that meet in code."""

import numpy as np
import pytest
from pettingzoo.test import api_test, max_cycles_test, parallel_api_test, parallel_seed_test
from pettingzoo.test.state_test import state_test

from marl_tr.envs.uav import vector
from marl_tr.envs.uav.config import DownlinkConfig
from marl_tr.envs.uav.coverage import mean_gain
from marl_tr.envs.uav.gain_map import save_gain_map
from marl_tr.envs.uav.pettingzoo import env, parallel_env
from marl_tr.envs.uav.simulator import Simulator
from marl_tr.envs.uav.traces import write_trace
from marl_tr.envs.uav.vector import make
from marl_tr.vector.check_vector import contract_problems, step_digest
from marl_tr.vector.sampling import random_actions, sample

SIZES = {"num_uavs": 3, "num_users": 7, "horizon": 6}
THREE = {"dimensions": 3}
DISCRETE, HYBRID = {"kind": "discrete"}, {"kind": "hybrid"}
SAMPLED = {"kind": "al_hourani", "averaging": "sampled"}
UMA = {"kind": "tr36777", "scenario": "uma"}
BATTERY = {"capacity_j": 900.0, "least_charge": 0.2}
"""For one to five slots."""
POISSON = {"kind": "poisson", "packets_per_s": 40.0, "queue_bits": 2_000_000}
LIMITS = {"max_users_per_uav": 2, "coverage_radius_m": 400.0, "min_sinr_db": 3.0, "max_spectral_efficiency": 7.4}
SUBCHANNELS = {"subchannels": {"count": 4, "nearest": 5}}
BACKHAUL = {"backhaul": {"place": "edge", "bandwidth_hz": 2e5}}

MODES = {
    "default": {},
    "one uav, one user": {"num_uavs": 1, "num_users": 1},
    "fewer users than uavs": {"num_uavs": 4, "num_users": 2},
    "orthogonal, shared": {"resources": "orthogonal", "rho": 1.0, "w_energy": 0.2},
    "entities, ranges": {"observation": "entities", "comm_range_m": 400.0, "sense_range_m": 300.0},
    "graph, nearest, csi": {"observation": "graph", "nearest_users": 3, "csi_sigma": 0.5, "comm_range_m": 500.0},
    "nearest of few": {"nearest_users": 20, "observation": "entities"},
    "cells, decibels": {
        "cells": True,
        "observation": "entities",
        "actions": {"kind": "velocity", "power_scale": "decibel", "power_floor": 0.01},
    },
    "cells, queues, battery": {"cells": True, "traffic": POISSON, "nearest_users": 3, "battery": BATTERY},
    "mean db": {"channel": {"kind": "al_hourani", "environment": "dense_urban", "averaging": "mean_db"}},
    "sampled": {"channel": SAMPLED},
    "power law, sampled": {"channel": {"kind": "power_law", "averaging": "sampled"}, "observation": "graph"},
    "36.777": {"channel": UMA},
    "36.777 sampled, 3-D": {"channel": {**UMA, "averaging": "sampled"}, "flight": {**THREE, "altitude_max_m": 120.0}},
    "random walk": {"mobility": {"kind": "random_walk"}},
    "waypoint, sampled": {"mobility": {"kind": "random_waypoint"}, "channel": SAMPLED},
    "gauss-markov": {"mobility": {"kind": "gauss_markov"}, "std_over": "running_users"},
    "groups, nearest": {"mobility": {"kind": "group", "groups": 2}, "nearest_users": 3, "observation": "entities"},
    "given hot spots": {"hotspot_centres": [[100.0, 100.0], [900.0, 500.0]], "hotspot_share": 1.0},
    "limits": {"radio": LIMITS},
    "nobody is served": {"radio": {"coverage_radius_m": 1e-3}, "observation": "graph", "outage_mbps": 0.1},
    "limits, orthogonal, alpha": {
        "radio": LIMITS,
        "resources": "orthogonal",
        "utility": {"kind": "alpha_fair"},
        "std_over": "uavs",
    },
    "alpha-fair 2": {"utility": {"kind": "alpha_fair", "alpha": 2.0}, "rho": 0.5},
    "sub-channels": {"radio": SUBCHANNELS},
    "sub-channels, discrete": {"radio": {**SUBCHANNELS, **LIMITS}, "actions": DISCRETE},
    "sub-channels, hybrid, 3-D": {"radio": SUBCHANNELS, "actions": HYBRID, "flight": THREE, "nearest_users": 3},
    "sub-channels, orthogonal, battery": {"radio": SUBCHANNELS, "resources": "orthogonal", "battery": BATTERY},
    "backhaul": {"radio": BACKHAUL},
    "backhaul, sub-channels, queues": {"radio": {**BACKHAUL, **SUBCHANNELS}, "traffic": POISSON},
    "queues": {"traffic": POISSON, "mobility": {"kind": "random_walk"}},
    "queues, nearest, battery": {"traffic": POISSON, "nearest_users": 3, "battery": BATTERY, "observation": "graph"},
    "3-D": {"flight": THREE},
    "3-D, inertia": {"flight": {**THREE, "yaw_rate_max_deg_s": 40.0, "accel_max_m_s2": 3.0}},
    "inertia": {"flight": {"yaw_rate_max_deg_s": 40.0, "accel_max_m_s2": 3.0}, "starts": {"kind": "depot"}},
    "3-D, depot, discrete": {"flight": THREE, "starts": {"kind": "depot"}, "actions": DISCRETE},
    "hybrid": {"actions": HYBRID},
    "velocity, 3-D, sub-channels": {"actions": {"kind": "velocity"}, "flight": THREE, "radio": SUBCHANNELS},
    "crash ends it": {"flight": {"terminate_on_collision": True}, "area_m": 60.0, "num_uavs": 4, "rho": 1.0},
    "battery": {"battery": BATTERY, "rho": 0.5, "std_over": "uavs"},
    "battery, 3-D, all at once": {"battery": {"capacity_j": 600.0}, "flight": THREE, "observation": "graph"},
    "battery, sampled, mobile": {"battery": BATTERY, "channel": SAMPLED, "mobility": {"kind": "random_walk"}},
    "battery, crash, hybrid": {
        "battery": BATTERY,
        "flight": {**THREE, "terminate_on_collision": True},
        "area_m": 60.0,
        "actions": HYBRID,
        "w_energy": 0.1,
    },
}


def settings(name):
    return {**SIZES, **MODES[name]}


each_mode = pytest.mark.parametrize("mode", MODES)


def arrays(step, row):
    """Every specified array of one environment, by name."""
    group = step.groups["uav"]
    found = {f"state {name}": leaf[row] for name, leaf in step.state.items()}
    found |= {f"metric {name}": leaf[row] for name, leaf in step.metrics.items()}
    found |= {f"observation {name}": leaf[row] for name, leaf in group.observation.items()}
    for name in ("reward", "terminated", "truncated", "alive", "acting"):
        found[name] = getattr(group, name)[row]
    found["done"] = step.done[row]
    if step.done[row]:
        found |= {f"final {name}": leaf[row] for name, leaf in group.final_observation.items()}
        found |= {f"final state {name}": leaf[row] for name, leaf in step.final_state.items()}
    return found


def part(actions, rows):
    return {"uav": {leaf: values[rows] for leaf, values in actions["uav"].items()}}


def run(batch, seed, actions):
    steps = [batch.reset(seed)]
    for chosen in actions:
        steps.append(batch.step(chosen))
    return steps


def drawn(mode, envs, steps=8):
    rng = np.random.default_rng(1)
    spec = make(num_envs=envs, **settings(mode)).spec
    return [random_actions(spec, rng) for _ in range(steps)]


@pytest.fixture
def blocks_of_64(mode, monkeypatch):
    """At most, so that batches of 65 have a seam."""
    config = DownlinkConfig(**settings(mode))
    monkeypatch.setattr(vector, "_LINKS", 64 * config.num_uavs * config.num_users)


@pytest.mark.usefixtures("blocks_of_64")
@each_mode
def test_an_environment_of_any_batch_equals_a_batch_of_one(mode):
    config = settings(mode)
    actions = drawn(mode, 65)
    whole = run(make(num_envs=65, **config), 9, actions)
    batches = {
        (0, 1): 1,
        (0, 63): 63,
        (0, 64): 64,
        (63, 64): 1,
        (64, 65): 1,
    }
    for (first, last), envs in batches.items():
        rows = slice(first, last)
        steps = run(make(num_envs=envs, env_offset=first, **config), 9, [part(chosen, rows) for chosen in actions])
        for row in {first, last - 1}:
            for one, many in zip(steps, whole, strict=True):
                mine, theirs = arrays(one, row - first), arrays(many, row)
                assert mine.keys() == theirs.keys()
                for name, array in mine.items():
                    assert np.array_equal(array, theirs[name]), (first, last, row, name)


@pytest.mark.usefixtures("blocks_of_64")
@each_mode
def test_a_restored_state_goes_on_exactly(mode):
    config = settings(mode)
    actions = drawn(mode, 66, steps=10)
    batch = make(num_envs=66, **config)
    batch.reset(5)
    for chosen in actions[:4]:
        batch.step(chosen)
    saved = batch.state_dict()
    expected = [step_digest(batch.step(chosen)) for chosen in actions[4:]]
    other = make(num_envs=66, **config)
    other.reset(77)
    other.load_state_dict(saved)
    assert [step_digest(other.step(chosen)) for chosen in actions[4:]] == expected


@each_mode
def test_every_step_keeps_the_contract_and_is_finite(mode):
    batch = make(num_envs=20, **settings(mode))
    rng = np.random.default_rng(0)
    step, before = batch.reset(3), None
    ended = 0
    for _ in range(20):
        assert contract_problems(batch.spec, step, before) == []
        assert all(np.isfinite(metric).all() for metric in step.metrics.values())
        ended += step.done.sum()
        before, step = step, batch.step(random_actions(batch.spec, rng))
    assert ended >= 40  # no episode is longer than its horizon, 6


@each_mode
def test_rewards_are_their_objectives_weighted_and_mixed(mode):
    config = DownlinkConfig(**settings(mode))
    sim = Simulator(config, 30, dtype=np.float64)
    sim.reset(2)
    rng = np.random.default_rng(0)
    weights = np.array([1.0, config.lambda_sigma, config.c_collision, config.c_out, config.w_energy])
    for _ in range(5):
        leaves = {leaf: sample(space, (30, config.num_uavs), rng) for leaf, space in sim.actions.items()}
        outcome = sim.step(leaves)
        arrays = outcome.objectives.arrays()
        assert list(arrays) == ["utility", "fairness", "collision", "out", "energy"]
        own = np.tensordot(weights, np.stack(list(arrays.values())), axes=1) * outcome.flew
        count = np.maximum(outcome.flew.sum(axis=1, keepdims=True), 1)
        mixed = (1 - config.rho) * own + config.rho * own.sum(axis=1, keepdims=True) / count
        assert outcome.reward == pytest.approx(mixed * outcome.flew, abs=1e-9)
        if sim.over.any():
            sim.next_episode(np.flatnonzero(sim.over))


class Module:
    """The environment as PettingZoo's tests of modules want it."""

    def __init__(self, config):
        self.config = config

    def env(self, max_cycles):
        return env(**{**self.config, "horizon": max_cycles})

    def parallel_env(self, max_cycles):
        return parallel_env(**{**self.config, "horizon": max_cycles})


@pytest.mark.filterwarnings("ignore:Agent's .* observation space value is:UserWarning")
@each_mode
def test_pettingzoos_own_tests_pass(mode):
    config = settings(mode)
    parallel_api_test(parallel_env(**config), num_cycles=12)
    parallel_seed_test(lambda: parallel_env(**config), num_cycles=8)
    api_test(env(**config), num_cycles=12)
    state_test(env(**config), parallel_env(**config))
    if DownlinkConfig(**config).fixed_length:
        max_cycles_test(Module(config))
    assert parallel_env(**config).possible_agents == list(DownlinkConfig(**config).agents)


@each_mode
def test_the_view_is_the_batch_with_one_environment(mode):
    config = settings(mode)
    game, batch = parallel_env(**config), make(num_envs=1, **config)
    observations, _ = game.reset(seed=3)
    step = batch.reset(3)
    flat = len(batch.spec.groups[0].observation) == 1
    one_leaf = len(batch.spec.groups[0].action) == 1
    for chosen in drawn(mode, 1, steps=6):
        group = step.groups["uav"]
        for agent in game.agents:
            row = game.possible_agents.index(agent)
            seen = {"observation": observations[agent]} if flat else observations[agent]
            assert all(np.array_equal(seen[leaf], values[0, row]) for leaf, values in group.observation.items())
        own = {
            agent: {leaf: v[0, row] for leaf, v in chosen["uav"].items()}
            for row, agent in enumerate(game.possible_agents)
        }
        agents = game.agents
        observations, rewards, terminations, truncations, infos = game.step(
            {agent: own[agent]["action"] if one_leaf else own[agent] for agent in agents}
        )
        assert observations.keys() == rewards.keys() == infos.keys() == set(agents)
        step = batch.step(chosen)
        group = step.groups["uav"]
        for agent in agents:
            row = game.possible_agents.index(agent)
            assert rewards[agent] == pytest.approx(group.reward[0, row])
            assert terminations[agent] == group.terminated[0, row]
            assert truncations[agent] == group.truncated[0, row]
            parts = infos[agent]["objectives"]
            assert parts.keys() == game.objective_weights.keys()
            last = {"observation": observations[agent]} if flat else observations[agent]
            if step.done[0]:
                assert all(np.array_equal(last[leaf], v[0, row]) for leaf, v in group.final_observation.items())
        if step.done[0]:
            assert game.agents == []
            break
        assert [group.alive[0, game.possible_agents.index(agent)] for agent in game.agents] == [True] * len(game.agents)
        assert group.alive[0].sum() == len(game.agents)


def placed(config, uavs, users):
    sim = Simulator(config, 1, dtype=np.float64)
    sim.reset(0)
    sim.position[0, :, :2], sim.users[0] = uavs, users
    return sim


STILL_MODES = [name for name, mode in MODES.items() if "mobility" not in mode and mode.get("area_m", 1000) == 1000]


@pytest.mark.parametrize("mode", [name for name in STILL_MODES if "backhaul" not in name])
@pytest.mark.parametrize("turn", [0.0, 0.7, np.pi / 2])
def test_rates_do_not_change_when_the_whole_scene_moves(mode, turn):
    config = DownlinkConfig(**settings(mode))
    rng = np.random.default_rng(2)
    uavs, users = rng.uniform(300, 700, (config.num_uavs, 2)), rng.uniform(350, 650, (config.num_users, 2))
    c, s = np.cos(turn), np.sin(turn)
    move = np.array([[c, s], [-s, c]])
    leaves = {leaf: sample(space, (1, config.num_uavs), rng) for leaf, space in Simulator(config, 1).actions.items()}
    for name in ("action", "move"):
        if config.actions.kind == "velocity":
            leaves["action"][..., : config.flight.dimensions] = 0
        elif name in leaves and np.issubdtype(leaves[name].dtype, np.floating):
            leaves[name][..., 0] = -1  # hover: headings are not turned with the scene
        elif name in leaves:
            leaves[name][..., 0] = 0
    base = placed(config, uavs, users)
    moved = placed(config, (uavs - 500) @ move + (540, 470), (users - 500) @ move + (540, 470))
    one, other = base.step(leaves), moved.step(leaves)
    assert moved.serving.tolist() == base.serving.tolist()
    assert moved.rates == pytest.approx(base.rates, rel=1e-6, abs=1e-3)
    assert other.reward == pytest.approx(one.reward, rel=1e-6)
    assert "nobody" in mode or base.rates.any()


DRAWN = ("sampled", "queues")


@pytest.mark.parametrize("mode", [name for name in STILL_MODES if not any(word in name for word in DRAWN)])
def test_exchanging_users_exchanges_their_rates_and_nothing_else(mode):
    config = DownlinkConfig(**settings(mode))
    rng = np.random.default_rng(3)
    uavs, users = rng.uniform(200, 800, (config.num_uavs, 2)), rng.uniform(100, 900, (config.num_users, 2))
    order = rng.permutation(config.num_users)
    base, other = placed(config, uavs, users), placed(config, uavs, users[order])
    for _ in range(3):
        leaves = {leaf: sample(space, (1, config.num_uavs), rng) for leaf, space in base.actions.items()}
        one, two = base.step(leaves), other.step(leaves)
        assert (other.serving[0] == base.serving[0, order]).all()
        assert other.rates[0] == pytest.approx(base.rates[0, order], rel=1e-9)
        assert two.reward == pytest.approx(one.reward, rel=1e-9, abs=1e-12)
        for name, metric in one.metrics.items():
            assert two.metrics[name] == pytest.approx(metric, rel=1e-9), name


def test_a_map_of_a_channels_own_gains_gives_nearly_its_rates(tmp_path):
    path = tmp_path / "map.npz"
    axis = np.linspace(0.0, 1000.0, 51)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(1, -1, 2)
    config = DownlinkConfig(**SIZES)
    uavs = np.concatenate((grid, np.full((1, grid.shape[1], 1), 100.0)), axis=2)
    gain = mean_gain(config)(uavs, grid).reshape(51, 51, 51, 51)
    save_gain_map(path, gain_db=10 * np.log10(gain), uav_x=axis, uav_y=axis, user_x=axis, user_y=axis, carrier_hz=2e9)
    mapped = DownlinkConfig(**SIZES, channel={"kind": "gain_map", "file": str(path)})
    sims = [Simulator(c, 64) for c in (config, mapped)]
    rng = np.random.default_rng(0)
    for sim in sims:
        sim.reset(4)
    for _ in range(3):
        actions = rng.uniform(-1, 1, (64, 3, 3))
        exact, looked_up = (sim.step(actions) for sim in sims)
    assert (sims[0].serving == sims[1].serving).mean() > 0.98
    assert np.median(np.abs(sims[1].rates / sims[0].rates - 1)) < 0.05
    assert looked_up.metrics["throughput_mbps"].mean() == pytest.approx(
        exact.metrics["throughput_mbps"].mean(), rel=0.03
    )
    whole, twin = Simulator(mapped, 64), Simulator(mapped, 1, env_offset=63)
    for sim in (whole, twin):
        sim.reset(4)
    assert np.array_equal(twin.step(actions[63:]).reward[0], whole.step(actions).reward[63])


def test_users_of_a_trace_go_where_the_file_says(tmp_path):
    path = tmp_path / "walk.csv"
    write_trace(path, 100.0 + 50.0 * np.arange(8.0)[:, None, None] * np.ones((1, 7, 2)), 1.0)
    batch = make(num_envs=3, **SIZES, mobility={"kind": "trace", "path": str(path), "begin_s": 0.0})
    step = batch.reset(0)
    rng = np.random.default_rng(0)
    for slot in range(1, 6):
        step = batch.step(random_actions(batch.spec, rng))
        assert step.state["users"][..., :2] == pytest.approx(np.full((3, 7, 2), 0.1 + 0.05 * slot))
        assert step.state["users"][..., -2:] == pytest.approx(np.full((3, 7, 2), 50 / 20), rel=1e-5)


def test_rates_share_a_utility_that_never_pays_for_dropping_a_user():
    rng = np.random.default_rng(0)
    for alpha in (0.0, 0.5, 1.0, 2.0):
        fair = DownlinkConfig(**SIZES, utility={"kind": "alpha_fair", "alpha": alpha, "floor": 0.05})
        sim = Simulator(fair, 40, dtype=np.float64)
        sim.reset(1)
        outcome = sim.step(rng.uniform(-1, 1, (40, 3, 3)))
        rates, floor = sim.rates / fair.rate_ref, 0.05 if alpha >= 1 else 0.0

        def worth(r, alpha=alpha, floor=floor):
            r = np.maximum(r, floor)
            return np.log(r) if alpha == 1 else r ** (1 - alpha) / (1 - alpha)

        single = (worth(rates) - worth(0.0)) / (worth(1.0) - worth(0.0))
        expected = np.stack([np.where(sim.serving == u, single, 0).sum(axis=1) for u in range(3)], axis=1) * 3 / 7
        assert outcome.objectives.utility == pytest.approx(expected, rel=1e-9)
        assert (single >= 0).all()
    assert (alpha, worth(1.0)) == (2.0, -1.0)


@pytest.mark.parametrize("over", ["users", "uavs", "running_users"])
def test_the_deviation_is_of_what_it_is_said_to_be(over):
    config = DownlinkConfig(
        **SIZES, std_over=over, lambda_sigma=1.0, battery={"capacity_j": 400.0, "least_charge": 0.3}
    )
    sim = Simulator(config, 30, dtype=np.float64)
    sim.reset(1)
    rng = np.random.default_rng(0)
    history = []
    for _ in range(3):
        outcome = sim.step(rng.uniform(-1, 1, (30, 3, 3)))
        history.append(sim.rates)
        for e in range(30):
            flew = outcome.flew[e]
            if over == "users":
                values = sim.rates[e]
            elif over == "running_users":
                values = np.mean(history, axis=0)[e]
            else:
                values = sim.uav_rates[e, flew] * 3 / 7 if flew.any() else np.zeros(1)
            assert outcome.objectives.deviation[e] == pytest.approx(np.std(values) / config.rate_ref, abs=1e-9)
    assert not sim.alive.all()


def test_outage_and_unserved_users_are_counted():
    config = DownlinkConfig(**SIZES, outage_mbps=0.2, radio={"coverage_radius_m": 250.0})
    sim = Simulator(config, 50)
    sim.reset(1)
    outcome = sim.step(np.random.default_rng(0).uniform(-1, 1, (50, 3, 3)))
    assert outcome.metrics["unserved_users"] == pytest.approx((sim.serving < 0).sum(axis=1))
    assert outcome.metrics["outage_share"] == pytest.approx((sim.rates < 2e5).mean(axis=1))
    assert 0 < outcome.metrics["unserved_users"].mean() < 7
    away = np.linalg.norm(sim.users[:, None] - sim.position[:, :, None, :2], axis=3).min(axis=1)
    assert ((sim.serving < 0) == (away > 250)).all()
